"""The same network in operators that onnxruntime has whole, for the time of an export.

transformers' modules are written for training. Exported as they are, attention becomes a dozen small operators (with
guards against masked rows, though a window has no mask), and the front-end goes back and forth between channels first,
for its convolutions, and channels last, for its layer norms. Here, while `fused` is open, attention is one operator and
every convolution of the front-end a matrix product on frames of channels, which is also what int8 is fastest at.
docs/benchmarks.md has what each gains.

Shapes: B windows of T samples or frames, C channels, F frames that a convolution makes, D the width of the transformer.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.models.wav2vec2.modeling_wav2vec2 import (
    Wav2Vec2Attention,
    Wav2Vec2FeatureEncoder,
    Wav2Vec2LayerNormConvLayer,
)

Forward = Callable[..., Any]


@contextlib.contextmanager
def fused(network: nn.Module) -> Iterator[None]:
    """Give a network's modules forwards that export to fused operators, and take them back.

    The weights stay where they are; while this is open it can be exported, and not run: the operator of attention
    exists in onnxruntime alone.
    """
    changed = [(module, forward) for module in network.modules() if (forward := _replacement(module)) is not None]
    for module, forward in changed:
        module.forward = forward
    try:
        yield
    finally:
        for module, _ in changed:
            del module.forward  # the class's own is behind it


def _replacement(module: nn.Module) -> Forward | None:
    if isinstance(module, Wav2Vec2Attention):
        return lambda hidden_states, *_, **__: (attention(module, hidden_states), None)
    layers: list[Any] = list(module.conv_layers) if isinstance(module, Wav2Vec2FeatureEncoder) else []
    if layers and all(isinstance(layer, Wav2Vec2LayerNormConvLayer) for layer in layers):
        kernels = [flat(layer.conv.weight) for layer in layers]
        return lambda audio: front_end(layers, kernels, audio)
    return None


def attention(module: Wav2Vec2Attention, frames: torch.Tensor) -> torch.Tensor:
    """Self-attention over `(B, F, D)` as onnxruntime's one operator, which adds the three biases itself."""
    projections = (module.q_proj, module.k_proj, module.v_proj)
    query, key, value = (linear(frames, projection.weight) for projection in projections)
    bias = torch.cat([projection.bias for projection in projections])
    attended = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (query, key, value, bias),
        {"num_heads": module.num_heads, "scale": module.scaling},
        dtype=frames.dtype,
        shape=frames.shape,
        version=1,
    )
    found: torch.Tensor = module.out_proj(attended)
    return found


def flat(kernel: torch.Tensor) -> torch.Tensor:
    """A convolution's `(channels out, C, K)` as a matrix `(K C, channels out)`: tap by tap, channels within."""
    return kernel.detach().permute(2, 1, 0).flatten(0, 1).contiguous()


def front_end(layers: Sequence[Any], kernels: Sequence[torch.Tensor], audio: torch.Tensor) -> torch.Tensor:
    """wav2vec2's convolutions over `(B, T)`, with channels last from one end to the other: `(B, C, F)`.

    None of them has padding, dilation or groups.
    """
    frames = audio[:, :, None]
    for layer, kernel in zip(layers, kernels, strict=True):
        made = unfold(frames, layer.conv.kernel_size[0], layer.conv.stride[0]) @ kernel
        frames = layer.activation(layer.layer_norm(made if layer.conv.bias is None else made + layer.conv.bias))
    return frames.transpose(1, 2)


def unfold(frames: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """`(B, T, C)` to `(B, F, kernel C)`: side by side the `kernel` frames from every `stride`-th on."""
    count = (frames.shape[1] - kernel) // stride + 1
    at = stride * torch.arange(count)[:, None] + torch.arange(kernel)  # (F, kernel)
    return frames.index_select(1, at.flatten()).reshape(-1, count, kernel * frames.shape[2])
