"""`streamdet bench peers`."""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from streamdet.lists import numbers, one_of, some_of

COLUMNS: Final = {
    "": "way",
    "threads": "threads",
    "windows/s": "windows_per_s",
    "audio s/s": "audio_s_per_s",
    "CPU s a s": "cpu_s_per_audio_s",
    "peak bytes": "peak_bytes",
    "difference": "largest_difference",
    "ours faster": "ratio_calls_to_this",
    "its CPU to ours": "ratio_cpu_this_to_calls",
    "agreed": "agreed",
}


def peers(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILES", help="Recordings; without any, those that come along.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run whose weights torch uses; with --bundle.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle exported of that run.")] = None,
    config: Annotated[
        str, typer.Option(help="Without --run: xlsr-300m, a wav2vec2's config.json or a recipe; random weights.")
    ] = "xlsr-300m",
    layers: Annotated[int, typer.Option(min=0, help="Of that, transformer layers from below; 0: all.")] = 6,
    kind: Annotated[str, typer.Option(help="Of that bundle: window or block.")] = "window",
    precision: Annotated[str, typer.Option(help="Of that bundle: fp32, fp16, int8 or int8-dynamic.")] = "fp32",
    keep: Annotated[Path | None, typer.Option(help="Folder for the run and bundle with random weights.")] = None,
    ways: Annotated[str, typer.Option(help="Any of eager, batched, whole, call and calls.")] = "all",
    seconds: Annotated[float, typer.Option(min=1, help="Of each recording at the most.")] = 6.0,
    calls: Annotated[int, typer.Option(min=0, help="Repeat the recordings for so many; 0: each is one.")] = 0,
    threads: Annotated[str, typer.Option(help="One number after another; 0: one a core.")] = "1,0",
    batch: Annotated[int, typer.Option(min=1, help="Windows in a batch.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way at the most.")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    autocast: Annotated[str, typer.Option(help="Of torch: no (float32), fp16 or bf16.")] = "no",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the bench's JSON file and PNG plot.")] = None,
) -> None:
    """Hold the engine against torch and transformers as one would write it, over the same recordings."""
    from streamdet.bench import report
    from streamdet.bundle import starter_recordings
    from streamdet.errors import UsageError
    from streamdet_export import bench_peers
    from streamdet_export.bench_peers import WAYS, Ask
    from streamdet_training.terminal import settle

    if (run is None) != (bundle is None):
        raise UsageError.of("--run, --bundle", (run, bundle), "both or neither: the bundle is of that run")
    chosen = WAYS if ways == "all" else some_of("--ways", ways, WAYS)
    counts = [count or len(os.sched_getaffinity(0)) for count in numbers("--threads", threads, 0)]
    counts = list(dict.fromkeys(counts))
    place: Literal["cpu", "cuda"] = one_of("--device", device, ("cpu", "cuda"))
    mixed: Literal["no", "fp16", "bf16"] = one_of("--autocast", autocast, ("no", "fp16", "bf16"))
    if out is not None:
        report.need_plots()
    settle()
    with tempfile.TemporaryDirectory() as folder:
        if run is None or bundle is None:
            run, bundle = random_weights(config, layers, kind, precision, keep or Path(folder))
        ask = Ask(
            run=str(run),
            bundle=str(bundle),
            files=tuple(str(file) for file in files or starter_recordings()),
            seconds=seconds,
            calls=calls,
            threads=1,
            batch=batch,
            device=place,
            autocast=mixed,
        )
        settings = {"model": model_id(bundle), "seconds": seconds, "calls": calls, "batch": batch, "device": device}
        rows = bench_peers.bench(ask, chosen, counts, rounds)
    found = report.Report.of("peers", {**settings, "autocast": autocast}, rows)
    report.show(found, COLUMNS, as_json=as_json)
    if out is not None:
        report.write(found, out, lambda figure: draw(figure, rows))


def random_weights(config: str, layers: int, kind: str, precision: str, folder: Path) -> tuple[Path, Path]:
    """Make a run and a bundle with the same random weights."""
    from streamdet_export import untrained

    how = untrained.recipe_of(config, layers, one_of("--kind", kind, untrained.KINDS))
    (made,) = untrained.make(how, folder, [one_of("--precision", precision, untrained.MADE)])
    return folder / untrained.RUN, made.path


def model_id(path: Path) -> str:
    """Name a bundle."""
    from streamdet import bundle

    return bundle.load(path).manifest.model_id


def draw(figure: Any, rows: list[dict[str, Any]]) -> None:
    """Draw a bar a way: seconds of audio a second."""
    axes = figure.subplots()
    names = [f"{row['way']}, {row['threads']} threads" for row in rows]
    axes.barh(names[::-1], [row["audio_s_per_s"] for row in rows][::-1])
    axes.set(xlabel="seconds of audio a second")
