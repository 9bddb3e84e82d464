"""`streamdet train` and `streamdet evaluate`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import msgspec
import typer
from rich.console import Console

if TYPE_CHECKING:
    from streamdet_training.evaluate import Evaluation


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.toml", help="A recipe file, or the name of a shipped one.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="[FORMAT:]PATH", help="Manifest CSV or corpus folder, before the recipe's; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in OUT.")] = False,
) -> None:
    """Fine-tune a wav2vec2 by a recipe: LoRA, or every weight."""
    from streamdet_training import recipe as recipes  # torch takes seconds to import, --help should not
    from streamdet_training.terminal import settle
    from streamdet_training.train import train as run

    settle()
    run(recipes.load(recipe), out, data=data or (), resume=resume)


def evaluate(
    bundle: Annotated[Path | None, typer.Argument(help="Folder of a bundle; without one, the starter.")] = None,
    manifest: Annotated[
        list[str] | None,
        typer.Option(metavar="[FORMAT:]PATH", help="Manifest CSV, or the folder of a corpus; repeatable."),
    ] = None,
    split: Annotated[str, typer.Option(help="train, dev, test or all.")] = "test",
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="What a plain PATH is.")] = "csv",
    scores: Annotated[Path | None, typer.Option(help="A score file instead of a bundle.")] = None,
    write_scores: Annotated[Path | None, typer.Option(help="Write the trials' LLRs here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the DET curve here (.png, .svg, .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
) -> None:
    """Measure a bundle, or a score file, on labelled recordings."""
    from streamdet import bundle as bundles
    from streamdet.errors import UsageError
    from streamdet.scorer import Scorer
    from streamdet_training import data, evaluate
    from streamdet_training import scores as score_files

    if not manifest:
        raise UsageError.of("--manifest", None, "a manifest CSV or a corpus")
    splits: dict[str, data.Split | None] = {**{name: name for name in get_args(data.Split)}, "all": None}
    if split not in splits:
        raise UsageError.of("--split", split, f"one of {', '.join(splits)}")
    clips = data.load(form, manifest, splits[split])
    if scores is not None:
        scored = evaluate.read_scores(scores, clips)
        found = evaluate.evaluate(scored)
    else:
        trials = evaluate.score_with_bundle(clips, Scorer(bundles.load(bundle or bundles.starter_path())))
        scored = [evaluate.Scored(trial.clip, trial.llr) for trial in trials]
        found = evaluate.of_trials(trials)
        if write_scores is not None:
            score_files.write(write_scores, trials)
    if plot is not None:
        evaluate.plot_det(scored, plot)
    _print(found, as_json=as_json)


def _print(found: "Evaluation", *, as_json: bool) -> None:
    from streamdet_training.evaluate import table

    for name in found.unscored:
        typer.echo(f"{name}: not one window with enough speech, counts as LLR 0", err=True)
    if as_json:
        for row in found.rows:
            typer.echo(msgspec.json.encode(row).decode())
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(table(found))
