"""`streamdet bench ingest`."""

from typing import Annotated

import typer

from streamdet.cli.options import AsJson, BenchOut
from streamdet.lists import numbers, some_of


def ingest(
    over: Annotated[str, typer.Option(help="Any of zeromq, tcp and unix.")] = "zeromq,tcp,unix",
    streams: Annotated[str, typer.Option(help="Numbers of streams.")] = "1,100,1000",
    frame_ms: Annotated[str, typer.Option(help="Lengths of a frame.")] = "20,40,100",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of one look.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="Looks at the most, until three agree.")] = 4,
    calls: Annotated[int, typer.Option(min=0, max=5000, help="At real time; 0 leaves them out.")] = 1000,
    tracks: Annotated[int, typer.Option(min=0, max=100_000, help="Whose memory is read; 0 leaves it out.")] = 10_000,
    json: AsJson = False,
    out: BenchOut = None,
) -> None:
    """Time a frame from a socket into its track, and weigh an open track; with a model that costs nothing."""
    from streamdet.bench import ingest as bench
    from streamdet.bench import report

    if out is not None:
        report.need_plots()
    ways = some_of("--over", over, bench.WAYS)
    ask = bench.Ask(
        over=tuple(way for way in bench.WAYS if way in ways),
        streams=tuple(sorted(numbers("--streams", streams, 1, 5000))),
        frames_ms=tuple(sorted(numbers("--frame-ms", frame_ms, 1, 1000))),
        seconds=seconds,
        rounds=rounds,
        calls=calls,
        tracks=tracks,
    )
    rows = bench.bench(ask, lambda line: typer.echo(line, err=True))
    settings = {"seconds": seconds, "rounds": rounds, "format": bench.FORMAT}
    made = report.Report.of("ingest", settings, rows)
    report.show(made, bench.COLUMNS, as_json=json)
    if out is not None:
        report.write(made, out, bench.curve(rows))
