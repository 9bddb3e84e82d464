"""From a trained detector to the bytes of an ONNX model."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import onnx
import torch
from onnx import NodeProto
from torch import nn
from torch.nn.utils import parametrize

from streamdet.audio import Samples
from streamdet_export import passes
from streamdet_export.fused import fused
from streamdet_export.passes import Precision, Quantization
from streamdet_export.quantise import EXACT
from streamdet_training.model import Blocks, Detector, Encoder, Merger

MODEL: Final = "model.onnx"
HEAD: Final = "head.onnx"
# Where torch's exporter notes the modules around a node.
_SCOPES: Final = "pkg.torch.onnx.name_scopes"


def to_onnx(
    detector: Detector,
    window_samples: int,
    precision: Precision,
    *,
    quantization: Quantization = "dynamic",
    windows: Iterable[Samples] = (),
) -> dict[str, bytes]:
    """Export a merged detector.

    Args:
        detector: without adapters, in eval mode; its weight norm is folded in place.
        window_samples: T of the input `audio` `(B, T)`; B stays dynamic. The output is `score` `(B,)`. Of a block
            detector it is the window that its head merges.
        precision: of weights and arithmetic; input, output and head stay float32.
        quantization: of int8.
        windows: `(T,)` each, real ones: static int8 takes its scales from them (a block model from their ends).

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
        passes.reduce(path, precision, quantization, windows)
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
    with fused(module), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
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
        program.save(path, external_data=size_bytes > passes.INLINE_MAX_BYTES)
    _forget_origins(path)


def _forget_origins(path: Path) -> None:
    """Take out where each node came from: stack traces with the exporting machine's paths, a tenth of a small model.

    What is left of it is the mark on nodes that keep float32 in every precision.
    """
    model = onnx.load(path, load_external_data=False)  # weights beside the graph stay as they are
    graph = model.graph
    for node in graph.node:
        if _is_exact(node):
            node.name = EXACT + node.name
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(model, path)


def _is_exact(node: NodeProto) -> bool:
    """Whether a node belongs to the head, to the input's normalisation, or to band energies, which span ten decades."""
    scopes = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES), "")
    inside = {part for scope in scopes.split("'") for part in scope.split(".")}
    return "backbone" not in inside or "energies" in inside
