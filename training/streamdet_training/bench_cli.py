"""`streamdet bench train`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer

from streamdet.errors import UsageError

Value = TypeVar("Value")


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

    if precision not in bench.PRECISIONS:
        raise UsageError.of("--precision", precision, f"one of {', '.join(bench.PRECISIONS)}")
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
        precision="bf16" if precision == "bf16" else "no",
        steps=steps,
        rank=rank,
    )
    some = listed("--modes", modes, lambda word: next(mode for mode in bench.MODES if mode == word))
    rows = bench.bench(ask, some, listed("--batches", batches, _size), rounds, out)
    found = bench.reported(rows, ask)
    if not as_json:
        found = msgspec.structs.replace(found, rows=bench.laid_out(rows))
    report.show(found, bench.COLUMNS, as_json=as_json)


def listed(option: str, text: str, read: Callable[[str], Value]) -> list[Value]:
    """Read a comma-separated list.

    Raises:
        UsageError: a word cannot be read, or comes twice.
    """
    found: list[Value] = []
    for word in text.split(","):
        try:
            value = read(word.strip())
        except (ValueError, StopIteration):
            raise UsageError.of(option, word, "a list as in --help") from None
        if value in found:
            raise UsageError.of(option, word, "each only once")
        found.append(value)
    return found


def _size(word: str) -> int:
    if (size := int(word)) < 1:
        raise ValueError(word)
    return size
