"""`streamdet export`."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `streamdet train` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="[FORMAT:]PATH", help="Manifest CSV or corpus folder, before the recipe's; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the bundle; the recipe's without one.")] = None,
    false_alarms_per_hour: Annotated[float, typer.Option(min=0.01, help="What the alarm height is chosen for.")] = 1.0,
) -> None:
    """Merge a run, export it to ONNX, check parity, calibrate, and write a bundle."""
    from streamdet.errors import UsageError
    from streamdet_export.export import export as make  # torch takes seconds to import, --help should not
    from streamdet_export.graph import PRECISIONS
    from streamdet_training.terminal import settle

    settle()
    chosen = next((known for known in PRECISIONS if known == precision), None)
    if chosen is None:
        raise UsageError.of("--precision", precision, f"one of {', '.join(PRECISIONS)}")
    made = make(run, out, precision=chosen, data=data or (), name=name, false_alarms_per_hour=false_alarms_per_hour)
    typer.echo(made.manifest.model_id)
