"""`streamdet bench roofline`."""

from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from streamdet.cli.options import AsJson, BenchOut

COLUMNS: Final = {
    "model": "model",
    "batch": "batch",
    "GFLOP": "gflop",
    "least ms": "least_ms",
    "ms": "ms",
    "reached": "ratio_reached",
    "fp32 GFLOP/s": "matrix_gflop_s_fp32",
    "fp16": "matrix_gflop_s_fp16",
    "int8": "matrix_gflop_s_int8",
    "time in": "time_in",
}


def roofline(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="BUNDLES", help="Folders; without any, the starter.")
    ] = None,
    provider: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model runs.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Of a run on the CPU; 0: one a core.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Windows in a run.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each at the most.")] = 12,
    as_json: AsJson = False,
    out: BenchOut = None,
) -> None:
    """Hold models against the machine's limit: their operations over the rate of a large matrix product."""
    import os

    from streamdet import bundle
    from streamdet.bench import report
    from streamdet.bench.roofline import bench
    from streamdet.providers import wanted

    if out is not None:
        report.need_plots()
    threads = threads or len(os.sched_getaffinity(0))
    loaded = [bundle.load(path) for path in bundles or [bundle.starter_path()]]
    rows = bench(loaded, provider=wanted(provider), threads=threads, batch=batch, rounds=rounds)
    found = report.Report.of("roofline", {"provider": provider, "threads": threads, "batch": batch}, rows)
    columns = {heading: key for heading, key in COLUMNS.items() if any(key in row for row in rows)}
    report.show(found, columns, as_json=as_json)
    if out is not None:
        report.write(found, out, lambda figure: draw(figure, rows))


def draw(figure: Any, rows: list[dict[str, Any]]) -> None:
    """Draw a bar a model: the time it takes, and within it the least it could."""
    axes = figure.subplots()
    names = [f"{row['model']}\n{row['precision']}, batch {row['batch']}" for row in rows]
    axes.barh(names, [row["ms"] for row in rows], label="measured", color="lightgrey")
    axes.barh(names, [row["least_ms"] for row in rows], label="its products alone", height=0.4)
    axes.set(xlabel="ms a window")
    axes.legend()
