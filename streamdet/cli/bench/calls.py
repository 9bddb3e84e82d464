"""`streamdet bench calls`."""

from typing import Annotated

import typer

from streamdet.cli.bench.loads import Ask, Attach, HalfDuplex, Pid, Recordings, Sockets, Way, at_a_daemon
from streamdet.cli.options import AsJson, BenchOut, BundlePath, ConfigFile, Settings, read_config


def calls(
    config: ConfigFile = None,
    set_: Settings = None,
    bundle: BundlePath = None,
    attach: Attach = False,
    pid: Pid = None,
    number: Annotated[int | None, typer.Option("--calls", min=1, help="Hold this many; no search.")] = None,
    start: Annotated[int, typer.Option(min=1, help="First number of the search.")] = 16,
    most: Annotated[int, typer.Option(min=1, help="Last number of the search.")] = 4096,
    limit_ms: Annotated[float, typer.Option(min=1, help="Of the 99th percentile of lag.")] = 250.0,
    over: Way = "zeromq",
    frame_ms: Annotated[int, typer.Option(min=2, help="Audio in a frame.")] = 20,
    recordings: Recordings = None,
    half_duplex: HalfDuplex = False,
    sockets: Sockets = 256,
    warm_up_s: Annotated[float, typer.Option(min=0, help="After the last call has begun.")] = 2.0,
    hold_s: Annotated[float, typer.Option(min=0.5, help="Of one look at a number of calls.")] = 5.0,
    budget_s: Annotated[float, typer.Option(min=1, help="Time for all of it.")] = 150.0,
    json: AsJson = False,
    out: BenchOut = None,
) -> None:
    """Find the most calls at real time whose lag stays under a limit: real sockets, a daemon of its own."""
    from streamdet.bench import calls as bench
    from streamdet.bench import report
    from streamdet.scorer import Scorer

    if out is not None:
        report.need_plots()
    ask = Ask(config, set_, bundle, attach, pid, recordings, over, frame_ms, half_duplex, sockets)
    limits = bench.Limits(limit_ms, warm_up_s, hold_s, budget_s)
    with at_a_daemon(ask) as (load, model):
        held = bench.Bench(load, limits, lambda line: typer.echo(line, err=True))
        if number is None:
            found = held.find(start, most)
            half = max(1, found.calls // 2)
        else:
            found, half = None, number
        held.repeat(half)
        load.set_calls(0)
        load.await_closed()
        scoring = read_config(config, set_, bundle).scoring
        scorer = Scorer.of(model, scoring, at_once=True)  # as the daemon has it
        rows = bench.rows(held.held, limit_ms)
        middle = next(row for row in rows if row["calls"] == half)
        middle.update(bench.added(middle, bench.pure_ms(scorer, max(1, round(middle["mean_batch"])))))
    settings = {
        "bundle": model.manifest.model_id,
        "over": over,
        "frame_ms": frame_ms,
        "half_duplex": half_duplex,
        "limit_ms": limit_ms,
        "hold_s": hold_s,
        "most_calls": found and found.calls,
        "too_many": found and found.above,
        "stopped_by": found and found.why,
    }
    made = report.Report.of("calls", settings, rows)
    report.show(made, bench.COLUMNS, as_json=json)
    if found is not None and not json:
        typer.echo(bench.conclusion(found, limit_ms, model.manifest.model_id))
    if out is not None:
        report.write(made, out, bench.curve(rows, limit_ms))
