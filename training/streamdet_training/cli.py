"""`streamdet train` and `streamdet evaluate`."""

import logging
from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.toml", help="A recipe file, or the name of a shipped one.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: Annotated[Path | None, typer.Option(help="Manifest CSV or corpus folder; before the recipe's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in OUT.")] = False,
) -> None:
    """Fine-tune a wav2vec2 by a recipe: LoRA, or every weight."""
    from streamdet_training import recipe as recipes  # torch takes seconds to import, --help should not
    from streamdet_training.train import train as run

    logging.basicConfig(level="INFO", format="%(message)s")
    run(recipes.load(recipe), out, data=data, resume=resume)
