"""`streamdet bench engine`."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from streamdet.cli.options import AsJson, BenchOut, BundlePath
from streamdet.errors import UsageError
from streamdet.lists import numbers
from streamdet.records import RATES_HZ, AudioFormat, Encoding


def engine(
    bundle: BundlePath = None,
    recording: Annotated[
        list[Path] | None, typer.Option(help="Speech to play; may be repeated. Without one, the demo's.")
    ] = None,
    batches: Annotated[str, typer.Option(help="Most windows in one run, one size after another.")] = "1,4,16",
    threads: Annotated[
        str, typer.Option(help="Threads of the model, one number after another; 0 is one a core.")
    ] = "1,0",
    provider: Annotated[Literal["auto", "cpu", "cuda", "tensorrt"], typer.Option(help="Where the model runs.")] = "cpu",
    cuda_graphs: Annotated[bool, typer.Option("--cuda-graphs", help="Replay each batch size as one launch.")] = False,
    rate: Annotated[int, typer.Option(help="Of the calls (Hz).")] = 8000,
    encoding: Annotated[Encoding, typer.Option(help="Of the calls.")] = "mulaw",
    windows: Annotated[int, typer.Option(min=1, help="A turn.")] = 160,
    rounds: Annotated[int, typer.Option(min=3, help="Turns of each at the most.")] = 8,
    lag_s: Annotated[float, typer.Option(min=1, help="Seconds of calls at half load.")] = 10.0,
    parity: Annotated[
        bool, typer.Option("--parity", help="Only the difference a batch makes to its windows' LLRs.")
    ] = False,
    as_json: AsJson = False,
    out: BenchOut = None,
) -> None:
    """Measure the line from bytes to verdicts against the bare model, stage by stage, and its lag at half load."""
    from streamdet import bundle as bundles
    from streamdet.bench import engine as bench
    from streamdet.bench.report import Report, need_plots, show, write

    if rate not in RATES_HZ:
        raise UsageError.of("--rate", rate, f"one of {', '.join(map(str, RATES_HZ))}")
    if out is not None and not parity:
        need_plots()
    form = AudioFormat(rate, encoding)
    ask = bench.Ask(
        bundle=bundles.load(bundle or bundles.starter_path()),
        audio=bench.speech(recording or [], form),
        form=form,
        provider=provider,
        cuda_graphs=cuda_graphs,
        windows=windows,
        rounds=rounds,
        lag_s=lag_s,
    )
    sizes = numbers("--batches", batches, 1)
    pools = [number or len(os.sched_getaffinity(0)) for number in numbers("--threads", threads, 0)]
    rows: list[dict[str, Any]] = []
    if parity:
        rows = bench.parity(ask, max(sizes), pools[0])
    else:
        rows += [bench.throughput(ask, batch, pool) for pool in pools for batch in sizes]
        rows += bench.stages(ask, max(sizes), pools[0])
        rows += [bench.half_load(ask, max(sizes), pool) for pool in pools]
    settings = {"bundle": ask.bundle.manifest.model_id, "provider": provider, "rate_hz": rate, "encoding": encoding}
    report = Report.of("engine", settings, rows)
    for kind, columns in bench.tables(rows).items():
        some = Report(
            report.bench, report.settings, [row for row in rows if row["row"] == kind], report.machine, report.at
        )
        show(some, columns, as_json=as_json)
    if out is not None:
        write(report, out, None if parity else lambda figure: draw(figure, rows))


def draw(figure: Any, rows: list[dict[str, Any]]) -> None:
    """Windows a second of both sides, and where a window's CPU time goes."""
    left, right = figure.subplots(1, 2)
    cells = [row for row in rows if row["row"] == "throughput"]
    names = [f"batch {row['batch']}\n{row['threads']} thread(s)" for row in cells]
    for shift, side in ((-0.2, "bare"), (0.2, "engine")):
        left.bar(
            [at + shift for at in range(len(cells))], [row[f"{side}_windows_per_s"] for row in cells], 0.4, label=side
        )
    left.set_xticks(range(len(cells)), names, fontsize=7)
    left.set_ylabel("windows a second")
    left.legend()
    parts = [row for row in rows if row["row"] == "stage" and row["stage"] != "run"]
    right.barh([row["stage"] for row in parts], [row["cpu_us"] for row in parts])
    right.set_xlabel("CPU microseconds a window, beside the model's run")
