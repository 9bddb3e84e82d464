"""`streamdet train` and `streamdet evaluate`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamdet_training.evaluate import Section


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.toml", help="A recipe file, or the name of a shipped one.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="[FORMAT:]PATH", help="Manifest CSV or corpus folder, before the recipe's; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in OUT.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="A run each, in OUT/seed-N, and a table of mean and best.")
    ] = None,
) -> None:
    """Fine-tune a wav2vec2 by a recipe: LoRA, every weight, or the head alone."""
    from streamdet.errors import UsageError
    from streamdet_training import recipe as recipes  # torch takes seconds to import, --help should not
    from streamdet_training import seeds as several
    from streamdet_training.terminal import settle
    from streamdet_training.train import train as run

    if seed is not None and seeds is not None:
        raise UsageError.of("--seed", seed, "either --seed or --seeds")
    settle()
    how = recipes.load(recipe)
    if seeds is not None:
        found = several.train_seeds(how, out, several.numbers(seeds), data=data or (), resume=resume)
        Console(width=None if sys.stdout.isatty() else 120).print(several.table(found))
        return
    run(how, out, data=data or (), resume=resume, seed=seed)


def evaluate(
    bundle: Annotated[
        list[Path] | None, typer.Argument(help="Folders of bundles; without any (and --scores), the starter.")
    ] = None,
    manifest: Annotated[
        list[str] | None,
        typer.Option(metavar="[FORMAT:]PATH", help="Manifest CSV, or the folder of a corpus; repeatable."),
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="train, dev, test (default) or all; repeatable.")] = None,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="What a plain PATH is.")] = "csv",
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write a report with pictures here.")] = None,
    scores: Annotated[list[Path] | None, typer.Option(help="A score file beside the bundles; repeatable.")] = None,
    through: Annotated[
        list[str] | None, typer.Option(metavar="LINE", help="Also over this line: mulaw, alaw or gsm; repeatable.")
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Simulate calls: delays, false alarms, flips.")
    ] = False,
    adaptive_hop: Annotated[
        bool, typer.Option("--adaptive-hop", help='Simulate them with scoring.hop = "adaptive".')
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD:VALUE", help="Add a row without a system, source, speaker, channel; repeatable."),
    ] = None,
    asv_scores: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of a speaker verification: min t-DCF.")
    ] = None,
    tdcf: Annotated[str | None, typer.Option(metavar="FORM", help="Of the t-DCF: 2019 or 2021.")] = None,
    resamples: Annotated[int, typer.Option(min=0, max=100_000, help="For the intervals; 0 for none.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
) -> None:
    """Measure bundles and score files on labelled recordings, side by side."""
    from streamdet.errors import UsageError
    from streamdet_training import comparison

    if not manifest:
        raise UsageError.of("--manifest", None, "a manifest CSV or a corpus")
    if adaptive_hop and not streaming:
        raise UsageError.of("--adaptive-hop", None, "--streaming beside it")
    asked = comparison.Asked(
        bundles=bundle or [],
        scores=scores or [],
        manifests=manifest,
        form=form,
        splits=split or ["test"],
        through=through or [],
        streaming=streaming,
        adaptive=adaptive_hop,
        without=without or [],
        asv_scores=asv_scores,
        tdcf=tdcf,
        resamples=resamples,
        seed=seed,
    )
    if out is not None:
        from streamdet_training.report import write  # half a second to import, and not everybody asks for pictures

        write.check(out)
        sections = comparison.run(asked)
        write.write(out, sections, resamples, seed)
    else:
        sections = comparison.run(asked)
    _print(sections, as_json=as_json)


def _print(sections: "Sequence[Section]", *, as_json: bool) -> None:
    from streamdet_training.evaluate import streaming_lines, table

    console = Console(width=None if sys.stdout.isatty() else 140)
    for section in sections:
        for entry, evaluation in zip(section.entries, section.evaluations, strict=True):
            for name in evaluation.unscored:
                typer.echo(f"{name}: not one window with enough speech, counts as LLR 0 ({entry.name})", err=True)
            if as_json:
                for row in evaluation.rows:
                    where = {"split": section.split, "entry": entry.name}
                    typer.echo(msgspec.json.encode({**where, **msgspec.to_builtins(row)}).decode())
                if entry.streaming is not None:
                    where["group"] = "streaming"
                    typer.echo(msgspec.json.encode({**where, **msgspec.to_builtins(entry.streaming)}).decode())
                continue
            console.print(f"{entry.name}, {section.split}", style="bold", highlight=False)
            console.print(table(evaluation))
            for line in streaming_lines(entry):
                console.print(line, highlight=False)
        if not as_json:
            for first, second, found in section.differences:
                low, high = (f"{100 * bound:+.1f}" for bound in found.interval)
                text = f"EER of {second} minus {first}: {100 * found.difference:+.1f} points (95 %: {low} to {high})"
                console.print(text, highlight=False)
