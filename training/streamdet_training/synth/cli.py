"""`streamdet synth`."""

from pathlib import Path
from typing import Annotated

import typer

Sources = Annotated[
    list[Path] | None, typer.Argument(metavar="SOURCE...", help="Manifest CSV, folder, or recordings: all bona fide.")
]


def synth(
    out: Annotated[Path, typer.Option(help="Folder for the clips and their manifest.csv.")],
    sources: Sources = None,
    systems: Annotated[str, typer.Option(help="world, griffin-lim, lpc, phase, gan, istft.")] = (
        "world,griffin-lim,lpc,phase"
    ),
    per_clip: Annotated[int | None, typer.Option(min=1, help="Systems a clip, drawn by the seed; all.")] = None,
    split: Annotated[str, typer.Option(help="train, dev or test: of a manifest, the one that is read.")] = "train",
    min_s: Annotated[float, typer.Option(min=0.2, help="Shorter clips are passed over (s).")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn; another one adds other clips.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Make spoof clips from bona fide recordings: a start for those who have none."""
    from streamdet.errors import UsageError
    from streamdet_training.synth import copies
    from streamdet_training.synth import sources as found
    from streamdet_training.synth import systems as vocoders
    from streamdet_training.terminal import settle

    settle()
    names = vocoders.known(systems)
    if per_clip is not None and per_clip > len(names):
        raise UsageError.of("--per-clip", per_clip, f"at most {len(names)}, as many as --systems")
    clips = found.find(sources or [], split)
    out.mkdir(parents=True, exist_ok=True)
    tasks = copies.plan(clips, out, names, per_clip or len(names), seed)
    code = copies.make(tasks, out, min_s=min_s, jobs=jobs)
    typer.echo(out / "manifest.csv")
    if code:
        raise typer.Exit(code)
