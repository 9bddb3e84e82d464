"""`streamdet synth`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from streamdet_training.data import Clip

GAN_STEPS = 3000  # ten minutes for both on one core: words are clear, the voice is hoarse

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
    gan_steps: Annotated[
        int | None, typer.Option(min=2, help="Updates of gan and istft, if they need training.")
    ] = None,
    vocoders: Annotated[Path | None, typer.Option(help="Their weights are here, or go here; OUT/vocoders.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Make spoof clips from bona fide recordings: a start for those who have none."""
    from streamdet.errors import UsageError
    from streamdet_training.synth import copies
    from streamdet_training.synth import sources as found
    from streamdet_training.synth import systems as known
    from streamdet_training.terminal import settle

    settle()
    names = known.read(systems)
    if per_clip is not None and per_clip > len(names):
        raise UsageError.of("--per-clip", per_clip, f"at most {len(names)}, as many as --systems")
    clips = found.find(sources or [], split)
    weights = vocoders or out / "vocoders"
    _train([name for name in names if name in known.TRAINED], clips, weights, gan_steps, seed)
    tasks = copies.plan(clips, out, names, per_clip or len(names), seed)
    code = copies.make(tasks, out, weights, min_s=min_s, jobs=jobs)
    typer.echo(out / "manifest.csv")
    if code:
        raise typer.Exit(code)


def _train(kinds: list[str], clips: list["Clip"], weights: Path, steps: int | None, seed: int) -> None:
    """Train the vocoders that are asked for; without a number of steps, those that have no weights yet."""
    if not kinds:
        return
    from streamdet_training.synth import gan, gan_training

    for kind in kinds:
        if steps is not None or not gan.checkpoints(weights, kind):
            gan_training.train(kind, clips, weights, steps=steps or GAN_STEPS, seed=seed)
