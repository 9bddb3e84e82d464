"""`streamdet bench overload`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from streamdet.cli.bench.loads import Ask, Attach, HalfDuplex, Pid, Recordings, Sockets, Way, at_a_daemon
from streamdet.cli.options import AsJson, BenchOut, BundlePath, ConfigFile, Settings
from streamdet.errors import OverloadError, UsageError
from streamdet.lists import numbers


def overload(
    config: ConfigFile = None,
    set_: Settings = None,
    bundle: BundlePath = None,
    attach: Attach = False,
    pid: Pid = None,
    number: Annotated[int | None, typer.Option("--calls", min=1, help="What 1x is; without it, a search.")] = None,
    factors: Annotated[str, typer.Option(help="Loads to hold, ascending.")] = "1,2,4,8",
    slow_ms: Annotated[float | None, typer.Option(min=1, help="A made model of so many ms a window.")] = None,
    limit_ms: Annotated[float, typer.Option(min=1, help="Lag of what is normal.")] = 250.0,
    over: Way = "zeromq",
    frame_ms: Annotated[int, typer.Option(min=2, help="Audio in a frame.")] = 100,
    recordings: Recordings = None,
    half_duplex: HalfDuplex = False,
    sockets: Sockets = 256,
    hold_s: Annotated[float, typer.Option(min=1, help="Of each load, at the least.")] = 6.0,
    budget_s: Annotated[float, typer.Option(min=1, help="Time for the search.")] = 60.0,
    json: AsJson = False,
    out: BenchOut = None,
) -> None:
    """Hold multiples of what the machine carries: effective hop, fairness, memory, and recovery."""
    from streamdet.bench import calls as searches
    from streamdet.bench import overload as bench
    from streamdet.bench import report
    from streamdet.bench.made import slow_bundle

    if out is not None:
        report.need_plots()
    loads = _factors(factors)
    if slow_ms is not None and (bundle is not None or attach):
        raise UsageError.of("--slow-ms", slow_ms, "neither --bundle nor --attach beside it")

    def tell(line: str) -> None:
        typer.echo(line, err=True)

    with tempfile.TemporaryDirectory(prefix="streamdet-bench-") as folder:
        chosen = bundle if slow_ms is None else slow_bundle(Path(folder), slow_ms).path
        ask = Ask(config, set_, chosen, attach, pid, recordings, over, frame_ms, half_duplex, sockets)
        with at_a_daemon(ask) as (load, model):
            if number is None:
                limits = searches.Limits(limit_ms, warm_up_s=1.5, hold_s=4.0, budget_s=budget_s)
                number = searches.Bench(load, limits, tell).find(8, 4096).calls
                if not number:
                    raise OverloadError.of("calls", 0, "at least one that this machine carries; give --calls")
            rows = bench.run(load, bench.Plan(number, loads, hold_s, limit_ms), tell)
    settings = {
        "bundle": model.manifest.model_id,
        "calls": number,
        "over": over,
        "frame_ms": frame_ms,
        "slow_ms": slow_ms,
        "half_duplex": half_duplex,
        "limit_ms": limit_ms,
    }
    made = report.Report.of("overload", settings, rows)
    report.show(made, bench.COLUMNS, as_json=json)
    if out is not None:
        report.write(made, out, bench.picture(rows))


def _factors(text: str) -> tuple[int, ...]:
    """Read the loads.

    Raises:
        UsageError: they are no ascending whole numbers.
    """
    found = numbers("--factors", text, 1, 64)
    if found != sorted(found):
        raise UsageError.of("--factors", text, "ascending loads")
    return tuple(found)
