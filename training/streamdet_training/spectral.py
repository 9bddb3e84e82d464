"""A wav2vec2 that hears spectra: log band energies and a small 2-D network in place of convolutions over raw audio.

wav2vec2's own encoder has to learn from audio what a spectrum is, which takes more speech than a small corpus has. Here
that part is given, and the rest of the model (projection, positional convolution, transformer, its masks, its LoRA
targets) is transformers' own. docs/experiments.md has what it gains.

Shapes: B windows of T samples, N bands, F feature frames.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchaudio.functional import linear_fbanks, melscale_fbanks
from transformers import Wav2Vec2Config, Wav2Vec2Model

from streamdet_training.recipe import Spectral

RATE_HZ: Final = 16000
WINDOW: Final = 400  # samples: 25 ms
STEP: Final = 160  # samples: 10 ms; the network halves it to wav2vec2's 20 ms
FFT: Final = 512
# Log energies beyond this spread count as much as each other; keeps activations near 1.
SCALE_DB: Final = 15.0
# Strides over (bands, time). The first layer is wide and cheap, time is halved once.
_STRIDES: Final = ((2, 1), (2, 2), (2, 1), (2, 1))


class SpectralWav2Vec2(Wav2Vec2Model):
    """Wav2Vec2Model with another feature encoder; made from a config that holds `spectral`."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        """Build with random weights."""
        super().__init__(config)
        encoder: nn.Module = SpectralEncoder(Spectral.model_validate(config.spectral))
        self.add_module("feature_extractor", encoder)  # in place of the one that transformers made
        self.post_init()  # type: ignore[no-untyped-call] # transformers has no types for it


class SpectralEncoder(nn.Module):
    """Audio `(B, T)` to features `(B, C, F)`, as wav2vec2's own encoder gives them."""

    def __init__(self, how: Spectral) -> None:
        """Lay out the network."""
        super().__init__()
        self.energies = BandEnergies(how)
        channels = (1, *how.channels)
        sizes = list(zip(channels, channels[1:], _STRIDES, strict=False))
        first = nn.Sequential(
            nn.Conv2d(1, channels[1], 5, _STRIDES[0], 2, bias=False), nn.BatchNorm2d(channels[1]), nn.ReLU()
        )
        self.blocks = nn.Sequential(first, *(Residual(*size) for size in sizes[1:]))

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Hear `(B, T)`."""
        # Channels last: several times faster on a CPU.
        levels = self.energies(audio)[:, None].contiguous(memory_format=torch.channels_last)
        heard = self.blocks(levels)  # (B, channels, bands, F)
        features: torch.Tensor = heard.flatten(1, 2)
        return features

    def train(self, mode: bool = True) -> "SpectralEncoder":
        """Batch statistics belong to the weights: a frozen encoder must not go on measuring."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))


class BandEnergies(nn.Module):
    """Log energies `(B, N, frames)` of bands, above a floor, each band's mean over the window taken away.

    The mean carries the line (its frequency response and level), which must not be learnt; the floor hides what is
    further below the loudest than `range_db`, which is the noise of the recording and not the voice.
    """

    def __init__(self, how: Spectral) -> None:
        """Make the fixed matrices."""
        super().__init__()
        # A convolution with sines and cosines is a Fourier transform that every runtime computes fast.
        angle = 2 * np.pi * np.outer(np.arange(FFT // 2 + 1), np.arange(WINDOW)) / FFT
        shape = np.hanning(WINDOW) / np.sqrt(np.square(np.hanning(WINDOW)).sum())
        kernel = np.concatenate([np.cos(angle) * shape, np.sin(angle) * shape])[:, None]
        self.kernel: torch.Tensor
        self.register_buffer("kernel", torch.tensor(kernel, dtype=torch.float32))
        self.banks: torch.Tensor
        self.register_buffer("banks", _banks(how))
        self.range_db = how.range_db
        self.mask_bands = how.mask_bands

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Hear `(B, T)`; in float32 whatever the rest runs in, since energies span ten decades."""
        with torch.autocast(audio.device.type, enabled=False):
            waves = functional.conv1d((audio - audio.mean(1, keepdim=True))[:, None].float(), self.kernel, stride=STEP)
            cosines, sines = waves.square().chunk(2, 1)
            power = cosines + sines  # (B, FFT / 2 + 1, frames)
            level_db = 10 * torch.log10(self.banks @ power + 1e-10)
            loudest_db = level_db.amax((1, 2), keepdim=True)
            level_db = torch.maximum(level_db, loudest_db - self.range_db)
            level_db = (level_db - level_db.mean(2, keepdim=True)) / SCALE_DB
        return mask(level_db, self.mask_bands) if self.training and self.mask_bands else level_db


class Residual(nn.Module):
    """Two convolutions beside a short cut (He et al., CVPR 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: tuple[int, int]) -> None:
        """From `channels_in` to `channels_out`, over bands and time with `stride`."""
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.cut = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, channels_in, N, F)` to `(B, channels_out, N / stride, F / stride)`."""
        return functional.relu(self.main(x) + self.cut(x))


def mask(level_db: torch.Tensor, widest: int) -> torch.Tensor:
    """Silence two stretches of up to `widest` bands in each window (SpecAugment; Park et al., Interspeech 2019)."""
    count, bands, _ = level_db.shape
    band = torch.arange(bands, device=level_db.device)
    for _ in range(2):
        width = torch.randint(0, widest + 1, (count, 1), device=level_db.device)
        start = (torch.rand(count, 1, device=level_db.device) * (bands - width)).long()
        kept = (band < start) | (band >= start + width)  # (B, N)
        level_db = level_db * kept[:, :, None]
    return level_db


def config_fields(how: Spectral) -> dict[str, Any]:
    """What Wav2Vec2Config has to say of this encoder: its features' width and the samples behind a frame."""
    fields = {
        "conv_dim": [width(how)],
        "conv_kernel": [WINDOW],
        "conv_stride": [2 * STEP],
        "num_feat_extract_layers": 1,
        "feat_extract_norm": "layer",
    }
    return {**fields, "spectral": how.model_dump(mode="json")}


def width(how: Spectral) -> int:
    """Channels times the bands that the strides leave."""
    bands = how.bands
    for stride, _ in _STRIDES[: len(how.channels)]:
        bands = -(-bands // stride)
    return bands * how.channels[-1]


def _banks(how: Spectral) -> torch.Tensor:
    """Triangular filters `(N, FFT / 2 + 1)`, each of them a weighted mean."""
    make: Any = melscale_fbanks if how.scale == "mel" else linear_fbanks
    arguments: Sequence[Any] = (FFT // 2 + 1, how.from_hz, how.to_hz, how.bands, RATE_HZ)
    # transformers builds a model that it will load without memory, where nothing can be computed.
    with torch.device("cpu"):
        banks: torch.Tensor = make(*arguments).T
    return banks / banks.sum(1, keepdim=True).clamp_min(1e-9)
