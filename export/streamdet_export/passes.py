"""What is done to one ONNX file, in place, whatever it holds: a model of windows, or either half of a block model.

Nothing here needs torch. A model of more than `INLINE_MAX_BYTES` has its weights beside it, in one file.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec
import onnx
from onnx import ModelProto

from streamdet.audio import Samples
from streamdet.bundle import Model
from streamdet_export import halve as halves
from streamdet_export import quantise, skip

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
Quantization = Literal["static", "dynamic"]
QUANTIZATIONS: Final[tuple[Quantization, ...]] = get_args(Quantization)

# A protobuf ends at 2 GiB; from here on weights lie beside the graph.
INLINE_MAX_BYTES: Final = 1 << 30


def fuse(path: Path) -> None:
    """Make one operator of a bias, a residual sum and the layer norm behind it, for a GPU.

    onnxruntime does this by itself only where nobody else wants the sum, and in wav2vec2 the next layer does. On a CPU
    its one operator takes nine times as long as the three (docs/benchmarks.md).
    """
    model = onnx.load(path, load_external_data=False)  # weights beside the graph stay as they are
    skip.fuse(model.graph)
    onnx.save(model, path)


def described(model: Model, precision: Precision, quantization: Quantization) -> Model:
    """What a manifest says of a model that has been through `reduce`."""
    how = quantization if precision == "int8" else msgspec.UNSET
    return msgspec.structs.replace(model, precision=precision, quantization=how)


def reduce(path: Path, precision: Precision, quantization: Quantization, windows: Iterable[Samples]) -> None:
    """Go over from float32 to a precision; `windows` are for static int8 alone."""
    if precision == "fp16":
        fuse(path)
        halve(path)
    elif precision == "int8" and quantization == "static":
        quantise_static(path, windows)
    elif precision == "int8":
        quantise_dynamic(path)


def halve(path: Path) -> None:
    """Go over to fp16 where float32 is not needed; input and output stay float32."""
    model = onnx.load(path)
    halves.halve(model)
    save(model, path)


def quantise_static(path: Path, windows: Iterable[Samples], keep: float = quantise.KEEP) -> None:
    """Go over to int8 with the scales that windows `(T,)` show: any batch will give a window the same score."""
    ranges = quantise.calibrate(path, windows, keep)
    model = onnx.load(path)
    quantise.static(model, ranges)
    save(model, path)


def quantise_dynamic(path: Path) -> None:
    """Go over to int8 whose scales are taken from each run: right for one window at a time, without any calibration."""
    model = onnx.load(path)
    quantise.dynamic(model)
    save(model, path)


def save(model: ModelProto, path: Path) -> None:
    """Write a model whose weights are in memory, and take away what lay beside the one before."""
    data = _data(path)
    data.unlink(missing_ok=True)
    large = model.ByteSize() > INLINE_MAX_BYTES
    onnx.save(model, path, save_as_external_data=large, location=data.name)


def _data(path: Path) -> Path:
    """Where the weights of a large model lie; a bundle's manifest lists it beside the graph."""
    return path.with_name(f"{path.name}.data")
