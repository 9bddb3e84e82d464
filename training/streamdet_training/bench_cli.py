"""`streamdet bench train`."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from streamdet.errors import UsageError
from streamdet.lists import numbers, one_of, some_of


def train(
    config: Annotated[str, typer.Option(help="xlsr-300m, or a wav2vec2's config.json.")] = "xlsr-300m",
    batches: Annotated[str, typer.Option(help="Windows a step, one size after another.")] = "1,2,4,8",
    modes: Annotated[str, typer.Option(help="Any of lora, full and head; they take turns.")] = "lora,full,head",
    window_s: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds of a window.")] = 4.0,
    rank: Annotated[int, typer.Option(min=1, help="Of LoRA, on query and value.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="no (float32) or bf16 (autocast).")] = "no",
    steps: Annotated[int, typer.Option(min=1, help="Timed steps a turn, after one to warm up.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each mode at the most.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for bench-train.json and bench-train.png.")] = None,
) -> None:
    """Time a training step and its memory: LoRA, every weight, the head alone; weights are random."""
    import torch  # says at once which extra is missing; --help needs none of it

    from streamdet.bench import report
    from streamdet_training import bench
    from streamdet_training.backbones import shape
    from streamdet_training.terminal import settle

    exact = one_of("--precision", precision, bench.PRECISIONS)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise UsageError.of("--device", device, "auto, cpu, or a CUDA device that is there")
    settle()
    ask = bench.Ask(
        config=shape(config),
        mode="lora",
        batch=1,
        window_s=window_s,
        device=device,
        precision=exact,
        steps=steps,
        rank=rank,
    )
    some = some_of("--modes", modes, bench.MODES)
    rows = bench.bench(ask, some, numbers("--batches", batches, 1), rounds, out)
    found = bench.reported(rows, ask)
    if not as_json:
        found = msgspec.structs.replace(found, rows=bench.laid_out(rows))
    report.show(found, bench.COLUMNS, as_json=as_json)
