"""`streamdet sign`: vouch for a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from streamdet import bundle, signature

Folder = Annotated[Path, typer.Argument(help="The bundle.", show_default=False)]
Key = Annotated[Path, typer.Option("--key", help="PEM file with a private Ed25519 key, without a passphrase.")]


def sign(folder: Folder, key: Key) -> None:
    """Sign a bundle's manifest, once its files are verified; prints the public key for `bundle.signed_by`."""
    bundle.sign(folder, key)
    typer.echo(signature.public_text(key))
