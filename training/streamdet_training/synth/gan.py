"""Two small neural vocoders: from a mel spectrogram to a waveform, in well under a million weights each.

`gan` grows samples out of frames with transposed convolutions, as MelGAN and HiFi-GAN do (Kumar et al. 2019, Kong et
al. 2020). `istft` stays at the frame rate and predicts each frame's magnitude and phase, as Vocos does (Siuzdak 2023).
They leave traces of different kinds, which is what a detector is to learn from.

The networks know samples, not seconds: a call at 8 kHz is to them a voice twice as high that talks twice as fast, so
one set of weights serves both rates, and audio at a higher rate than 16 kHz goes through them at 16 kHz.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import gelu, leaky_relu
from torch.nn.utils.parametrizations import weight_norm
from torchaudio.transforms import MelSpectrogram

from streamdet.audio import Samples, resample
from streamdet.errors import DataError, MissingError

MELS: Final = 80
HOP: Final = 128  # 8 ms at 16 kHz
N_FFT: Final = 512
HIGHEST_HZ: Final = 16_000
RMS: Final = 0.1  # every clip is brought to this level first; streamdet_training.synth.match takes it back


class Mel(nn.Module):
    """Natural log of the mel spectrogram: `(B, T)` to `(B, MELS, T / HOP)`, T a multiple of HOP."""

    def __init__(self, n_fft: int = N_FFT) -> None:
        super().__init__()
        # Slaney's scale is linear below 1 kHz, so that every band holds a bin.
        self._mel = MelSpectrogram(
            HIGHEST_HZ, n_fft=n_fft, hop_length=HOP, n_mels=MELS, power=1.0, mel_scale="slaney", norm=None
        )

    def forward(self, audio: Tensor) -> Tensor:
        """Listen."""
        mel: Tensor = self._mel(audio)[..., :-1]
        return mel.clamp(min=1e-4).log()


class Residual(nn.Module):
    """HiFi-GAN's residual block: pairs of convolutions, the first of each ever wider apart."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self._pairs = nn.ModuleList(
            nn.ModuleList(
                weight_norm(nn.Conv1d(width, width, kernel, dilation=apart, padding=(kernel - 1) // 2 * apart))
                for apart in (dilation, 1)
            )
            for dilation in (1, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add to `(B, width, T)`."""
        first: nn.Module
        second: nn.Module
        for first, second in self._pairs:  # type: ignore[misc] # torch does not say that it is a list of lists
            x = x + second(leaky_relu(first(leaky_relu(x, 0.1)), 0.1))
        return x


class Grower(nn.Module):
    """`gan`: `(B, MELS, F)` to `(B, F * HOP)` by three transposed convolutions of stride 8, 4 and 4."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self._first = weight_norm(nn.Conv1d(MELS, width, 7, padding=3))
        self._stages = nn.ModuleList()
        for stride in (8, 4, 4):
            up = nn.ConvTranspose1d(width, width // 2, 2 * stride, stride, padding=stride // 2)
            width //= 2
            self._stages.append(nn.ModuleList([weight_norm(up), Residual(width, 3), Residual(width, 7)]))
        self._last = weight_norm(nn.Conv1d(width, 1, 7, padding=3))

    def forward(self, mel: Tensor) -> Tensor:
        """Make a waveform."""
        x: Tensor = self._first(mel)
        up: nn.Module
        narrow: nn.Module
        wide: nn.Module
        for up, narrow, wide in self._stages:  # type: ignore[misc] # as above
            x = up(leaky_relu(x, 0.1))
            x = (narrow(x) + wide(x)) / 2
        return torch.tanh(self._last(leaky_relu(x, 0.1))).squeeze(1)


class Block(nn.Module):
    """ConvNeXt's block over time: a convolution in each channel, then two linear layers in each frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._along = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self._norm = nn.LayerNorm(width)
        self._out, self._back = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add to `(B, width, F)`."""
        y = self._norm(self._along(x).transpose(1, 2))
        more: Tensor = self._back(gelu(self._out(y))).transpose(1, 2)
        return x + more


class Framer(nn.Module):
    """`istft`: `(B, MELS, F)` to `(B, F * HOP)` by the magnitude and the phase of every frame."""

    def __init__(self, width: int = 160, blocks: int = 4) -> None:
        super().__init__()
        self._first = nn.Conv1d(MELS, width, 7, padding=3)
        self._blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self._last = nn.Linear(width, N_FFT + 2)

    def forward(self, mel: Tensor) -> Tensor:
        """Make a waveform."""
        x = self._last(self._blocks(self._first(mel)).transpose(1, 2)).transpose(1, 2)
        size, angle = x.chunk(2, dim=1)
        size = size.clamp(max=5.0).exp()  # a frame of full scale has a magnitude of 128
        spectra = torch.complex(size * angle.cos(), size * angle.sin())
        # One frame more than there is, so that the last hop has its whole overlap.
        spectra = torch.cat([spectra, spectra[..., -1:]], dim=-1)
        return torch.istft(spectra, N_FFT, HOP, window=torch.hann_window(N_FFT), length=HOP * mel.shape[-1])


NETWORKS: Final[dict[str, type[nn.Module]]] = {"gan": Grower, "istft": Framer}


def vocoder(weights: Path) -> Callable[[Samples, int, np.random.Generator], Samples]:
    """The vocoder with these weights.

    Raises:
        DataError: they are of another network.
    """
    network = _load(weights)

    def vocode(samples: Samples, rate_hz: int, rng: np.random.Generator) -> Samples:
        inner_hz = min(rate_hz, HIGHEST_HZ)
        audio = at_level(resample(samples, rate_hz, inner_hz))
        padded = np.pad(audio, (0, max(-audio.size % HOP, N_FFT - audio.size)))
        with torch.inference_mode():
            mel = Mel()(torch.from_numpy(padded)[None])
            if rng.random() < 0.3:  # as smooth as an acoustic model's
                mel = nn.functional.avg_pool1d(mel, 3, stride=1, padding=1, count_include_pad=False)
            made: Samples = network(mel)[0].numpy()
        return resample(made[: audio.size], inner_hz, rate_hz)

    return vocode


def at_level(samples: Samples) -> Samples:
    """Bring `(T,)` to the level that the networks know."""
    rms = np.sqrt(np.square(samples, dtype=np.float64).mean())
    level: Samples = (samples * (RMS / max(rms, 1e-6))).astype(np.float32)
    return level


def checkpoints(folder: Path, kind: str) -> list[Path]:
    """Weights of a kind of network in a folder."""
    return sorted(folder.glob(f"{kind}-*.safetensors"))


def choose(folder: Path, kind: str, clip: str) -> Path:
    """One of the weights of a kind, by the clip's name: half-trained ones leave other traces than finished ones.

    Raises:
        MissingError: there are none.
    """
    found = checkpoints(folder, kind)
    if not found:
        raise MissingError.of("weights", str(folder / f"{kind}-*.safetensors"), "those that --gan-steps trains")
    return found[hashlib.sha256(clip.encode()).digest()[0] % len(found)]


def save(path: Path, network: nn.Module) -> None:
    """Write weights: under another name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, temporary)
    temporary.replace(path)


@lru_cache(maxsize=8)
def _load(path: Path) -> nn.Module:
    network = NETWORKS[path.name.partition("-")[0]]()
    try:
        network.load_state_dict(load_file(path))
    except (RuntimeError, OSError) as error:
        first = str(error).partition("\n")[0]
        raise DataError.of("weights", str(path), f"those of a network of this version ({first})") from None
    return network.eval()
