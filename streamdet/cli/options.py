"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from streamdet import config
from streamdet.config import Config
from streamdet.errors import UsageError
from streamdet.keys import Identity

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help=f"TOML file; without one, {config.SYSTEM_FILE} if it is there."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; may be repeated."),
]
BundlePath = Annotated[Path | None, typer.Option("--bundle", help="Folder of the bundle; without one, the config's.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
IdentityFile = Annotated[
    Path | None,
    typer.Option("--identity", envvar="STREAMDET_IDENTITY", help="Who you are: a file of streamdet keys new."),
]
BenchOut = Annotated[Path | None, typer.Option("--out", help="Folder for the bench's JSON file and PNG plot.")]


def read_identity(file: Path | None) -> Identity | None:
    """Read who the user is, where the daemon asks."""
    return None if file is None else Identity.read(file)


def read_config(file: Path | None, settings: list[str] | None, bundle: Path | None = None) -> Config:
    """Read the settings: flag before environment before file before default."""
    overrides = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UsageError.of("--set", setting, "section.key=value")
        overrides[name] = value
    if bundle is not None:
        overrides["bundle.path"] = str(bundle)
    return config.load(file, overrides)
