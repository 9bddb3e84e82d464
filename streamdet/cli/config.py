"""`streamdet config`: a file to start from, or what is in force."""

from typing import Annotated

import msgspec
import typer

from streamdet import config as settings
from streamdet.cli.options import ConfigFile, Settings, read_config


def config(
    config: ConfigFile = None,
    set_: Settings = None,
    in_force: Annotated[bool, typer.Option("--in-force", help="Print the values in force, as JSON.")] = False,
) -> None:
    """Print a config file with every key at its default, or the values in force."""
    if in_force:
        tree = read_config(config, set_).model_dump(mode="json")
        typer.echo(msgspec.json.format(msgspec.json.encode(tree), indent=2).decode())
    else:
        typer.echo(settings.sample(), nl=False)
