"""`streamdet synth`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

if TYPE_CHECKING:
    from streamdet_training.clips import Clip, Split

GAN_STEPS = 3000

Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="SOURCE...", help="Bona fide: a manifest CSV, FORMAT:CORPUS, a folder, or recordings."),
]


def synth(
    out: Annotated[Path, typer.Option(help="Folder for the clips and their manifest.csv.")],
    sources: Sources = None,
    systems: Annotated[str, typer.Option(help="Some of world, griffin-lim, lpc, phase, gan, istft.")] = (
        "world,griffin-lim,lpc,phase"
    ),
    per_clip: Annotated[
        int | None, typer.Option(min=1, help="Systems a clip (all), or takes a program and sentence (1).")
    ] = None,
    split: Annotated[str, typer.Option(help="train, dev or test: the one to read, and to write.")] = "train",
    min_s: Annotated[float, typer.Option(min=0.2, help="Shorter clips are passed over (s).")] = 0.5,
    gan_steps: Annotated[int | None, typer.Option(min=2, help="Updates in the training of gan and istft.")] = None,
    vocoders: Annotated[Path | None, typer.Option(help="Folder of their weights; OUT/vocoders.")] = None,
    text: Annotated[str | None, typer.Option(help="Sentences to speak: a file, or built-in.")] = None,
    tts: Annotated[str, typer.Option(help="Programs that speak them, or installed.")] = "installed",
    tts_command: Annotated[
        list[str] | None, typer.Option(metavar="NAME=COMMAND", help="One of yours, with {text} and {wav}; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn; another one adds other clips.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Make spoof clips: bona fide recordings through vocoders, or sentences through text-to-speech programs."""
    from streamdet.errors import UsageError
    from streamdet_training.clips import Split
    from streamdet_training.terminal import settle

    settle()
    if split not in get_args(Split):
        raise UsageError.of("--split", split, f"one of {', '.join(get_args(Split))}")
    if not sources and text is None:
        raise UsageError.of("SOURCE", None, "bona fide recordings, or --text")
    code = 0
    if sources:
        code = _copy(sources, out, systems, per_clip, cast("Split", split), min_s, gan_steps, vocoders, seed, jobs)
    if text is not None:
        code = _speak(text, tts, tts_command or [], out, per_clip or 1, split, seed) or code
    typer.echo(out / "manifest.csv")
    if code:
        raise typer.Exit(code)


def _copy(
    given: list[str],
    out: Path,
    systems: str,
    per_clip: int | None,
    split: "Split",
    min_s: float,
    gan_steps: int | None,
    vocoders: Path | None,
    seed: int,
    jobs: int,
) -> int:
    from streamdet.errors import UsageError
    from streamdet_training.synth import copies, sources
    from streamdet_training.synth import systems as known

    names = known.read(systems)
    if per_clip is not None and per_clip > len(names):
        raise UsageError.of("--per-clip", per_clip, f"at most {len(names)}, as many as --systems")
    clips = sources.find(given, split, out=out)
    out.mkdir(parents=True, exist_ok=True)
    weights = vocoders or out / "vocoders"
    _train([name for name in names if name in known.TRAINED], clips, weights, gan_steps, seed)
    tasks = copies.plan(clips, out, names, per_clip or len(names), seed)
    return copies.make(tasks, out, weights, min_s=min_s, jobs=jobs)


def _train(kinds: list[str], clips: list["Clip"], weights: Path, steps: int | None, seed: int) -> None:
    """Train the vocoders that are asked for; without a number of steps, those that have no weights yet."""
    if not kinds:
        return
    from streamdet_training.synth import gan, gan_training

    for kind in kinds:
        if steps is not None or not gan.checkpoints(weights, kind):
            gan_training.train(kind, clips, weights, steps=steps or GAN_STEPS, seed=seed)


def _speak(text: str, tts: str, commands: list[str], out: Path, takes: int, split: str, seed: int) -> int:
    from streamdet_training.synth import programs, speak

    own = [programs.own(command) for command in commands]
    # Who names a program of their own and no other wants that one alone.
    chosen = [] if own and tts == "installed" else programs.choose(tts)
    out.mkdir(parents=True, exist_ok=True)
    return speak.speak([*chosen, *own], text, out, takes=takes, split=split, seed=seed)
