"""From a trained detector to the bytes of an ONNX model."""

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Final, Literal, get_args

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn
from torch.nn.utils import parametrize

from streamdet_training.model import Blocks, Detector, Encoder, Merger

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

MODEL: Final = "model.onnx"
HEAD: Final = "head.onnx"
DATA: Final = "model.onnx.data"
# A protobuf ends at 2 GiB; from here on weights lie beside the graph.
INLINE_MAX_BYTES: Final = 1 << 30


def to_onnx(detector: Detector, window_samples: int, precision: Precision) -> dict[str, bytes]:
    """Export a merged detector.

    Args:
        detector: without adapters, in eval mode; its weight norm is folded in place.
        window_samples: T of the input `audio` `(B, T)`; B stays dynamic. The output is `score` `(B,)`. Of a block
            detector it is the window that its head merges.
        precision: of weights and arithmetic; input and output stay float32.

    Returns:
        file name -> content, as a bundle holds them.
    """
    fold_weight_norm(detector)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        if detector.blocks is None:
            _export(detector, torch.zeros(2, window_samples), ("audio", "score"), path)
        else:
            _export_blocks(detector, detector.blocks, window_samples, path)
        if precision != "fp32":
            _reduce(path, precision)
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def fold_weight_norm(detector: Detector) -> None:
    """Turn parametrised weights (the positional convolution's) into plain ones: torch's exporter cannot trace them."""
    for module in detector.modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type] # a ModuleDict, once it is parametrised
                parametrize.remove_parametrizations(module, name)


def _export_blocks(detector: Detector, blocks: Blocks, window_samples: int, path: Path) -> None:
    """Write the encoder to `path`, and the head beside it."""
    encoder = Encoder(detector)
    block = torch.zeros(2, blocks.left + blocks.hop)
    _export(encoder, block, ("audio", "sums"), path)
    with torch.inference_mode():
        sums = encoder(block)[:, None].repeat(1, window_samples // blocks.hop, 1)
    _export(Merger(detector), sums.clone(), ("sums", "score"), path.with_name(HEAD))


def _export(module: nn.Module, example: torch.Tensor, names: tuple[str, str], path: Path) -> None:
    """Write a module of one input and one output; `example` has two rows: one would be taken for a constant."""
    size_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # torch's and onnxscript's own deprecations, and their reports of success on stdout, which is for data.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            input_names=names[:1],
            output_names=names[1:],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            optimize=True,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export gave nothing")
        program.save(path, external_data=size_bytes > INLINE_MAX_BYTES)
    _forget_origins(path)


def _forget_origins(path: Path) -> None:
    """Take out where each node came from: stack traces with the exporting machine's paths, a tenth of a small model."""
    model = onnx.load(path, load_external_data=False)  # weights beside the graph stay as they are
    graph = model.graph
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(model, path)


def _reduce(path: Path, precision: Precision) -> None:
    """Rewrite the model at `path` in lower precision."""
    model = onnx.load(path)
    (path.parent / DATA).unlink(missing_ok=True)
    # The exporter's shapes are true for float32 only, and the tools below would believe them.
    del model.graph.value_info[:]
    if precision == "fp16":
        model = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
        large = model.ByteSize() > INLINE_MAX_BYTES
        onnx.save(model, path, save_as_external_data=large, location=DATA)
        return
    source = path.with_name("float.onnx")
    onnx.save(model, source, save_as_external_data=model.ByteSize() > INLINE_MAX_BYTES, location="float.data")
    # Only matrix products: int8 convolutions over raw audio lose more than they save.
    quantize_dynamic(source, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)
    for file in path.parent.iterdir():
        if file.name.startswith("float"):
            file.unlink()
