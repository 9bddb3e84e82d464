"""`streamdet bench gpu`."""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from streamdet.lists import numbers, one_of, some_of

COLUMNS: Final = {"part": "part", "of": "of", "": "figure", "found": "value", "target": "target", "why not": "note"}


def gpu(
    config: Annotated[str, typer.Option(help="xlsr-300m, a wav2vec2's config.json or a recipe.")] = "xlsr-300m",
    layers: Annotated[int, typer.Option(min=0, help="Transformer layers, from below; 0: all.")] = 0,
    provider: Annotated[str, typer.Option(help="cuda; cpu to see that it runs.")] = "cuda",
    batches: Annotated[str, typer.Option(help="Most windows in one run, one size after another.")] = "16,64,128",
    parts: Annotated[str, typer.Option(help="Some of the parts by name, or all.")] = "all",
    total_s: Annotated[float, typer.Option(min=10, help="Time for all of it.")] = 470.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the bench's JSON file, kept up to date.")] = None,
) -> None:
    """Run every bench that makes sense on a GPU within 8 minutes, with random weights; one table comes last."""
    from streamdet.bench import report
    from streamdet_export import bench_gpu

    one_of("--provider", provider, ("cuda", "cpu"))
    sizes = numbers("--batches", batches, 1)
    settings = {"config": config, "layers": layers, "provider": provider, **bench_gpu.card()}
    with tempfile.TemporaryDirectory(prefix="streamdet-gpu-") as folder:
        ask = bench_gpu.Ask(
            config=config,
            layers=layers,
            provider=provider,
            batches=tuple(sizes),
            folder=folder,
        )
        known = {part.name: part for part in bench_gpu.parts(ask)}
        names = list(known) if parts == "all" else some_of("--parts", parts, list(known))
        chosen = [known[name] for name in names]

        def keep(found: Any) -> None:
            if out is not None:
                report.write(report.Report.of("gpu", settings, bench_gpu.raw(found)), out)

        found = bench_gpu.bench(chosen, total_s, lambda line: typer.echo(line, err=True), keep)
    targets = bench_gpu.TARGETS if (provider, config, layers) == ("cuda", "xlsr-300m", 0) else {}
    rows = bench_gpu.raw(found) if as_json else bench_gpu.laid_out(chosen, found, targets)
    report.show(report.Report.of("gpu", settings, rows), COLUMNS, as_json=as_json)
    if not as_json:
        typer.echo(", ".join(f"{key} {value}" for key, value in settings.items() if value is not None))
    if all(outcome.reason is not None for outcome in found.values()):
        raise typer.Exit(69)  # nothing was measured
