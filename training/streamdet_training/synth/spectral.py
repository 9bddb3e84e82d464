"""Speech from magnitudes: Griffin-Lim from a mel spectrogram, and short-time spectra whose phase was replaced."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torchaudio.transforms import GriffinLim, InverseMelScale, MelSpectrogram

from streamdet.audio import Samples

Array = NDArray[np.floating]


def griffin_lim(samples: Samples, rate_hz: int, rng: np.random.Generator) -> Samples:
    """Mel spectrogram of `(T,)` and back, the phase by Griffin and Lim's iteration (1984; Perraudin's fast form)."""
    n_fft = _even(rate_hz * rng.choice([0.032, 0.048, 0.064]))
    hop = n_fft // int(rng.choice([3, 4, 6]))
    n_mels = min(int(rng.integers(40, 101)), most_mels(rate_hz, n_fft))
    power = float(rng.choice([1.0, 2.0]))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(int(rng.integers(2**62)))  # torchaudio draws the first phase from the global generator
        mel = MelSpectrogram(rate_hz, n_fft=n_fft, hop_length=hop, n_mels=n_mels, power=power)(
            torch.from_numpy(samples)
        )
        if rng.random() < 0.3:  # as smooth as an acoustic model's
            mel = torch.nn.functional.avg_pool1d(mel, 3, stride=1, padding=1, count_include_pad=False)
        linear = InverseMelScale(n_fft // 2 + 1, n_mels, rate_hz, driver="gelsd")(mel)
        momentum = float(rng.choice([0.0, 0.5, 0.99]))
        turns = int(rng.integers(8, 61))
        back = GriffinLim(n_fft, n_iter=turns, hop_length=hop, power=power, momentum=momentum, length=samples.size)
        made: torch.Tensor = back(linear)
        return made.numpy()


def phase(samples: Samples, rate_hz: int, rng: np.random.Generator) -> Samples:
    """Keep the short-time magnitudes of `(T,)` and replace the phase: random, zero, least, or a steady tone's each bin.

    Some are then mended by a few turns of Griffin and Lim's iteration.
    """
    n_fft = _even(rate_hz * rng.choice([0.016, 0.025, 0.032, 0.064]))
    hop = n_fft // int(rng.choice([2, 4, 4, 8]))
    window = torch.hann_window(n_fft)

    def spectrum(audio: torch.Tensor) -> torch.Tensor:
        return torch.stft(audio, n_fft, hop, window=window, return_complex=True)

    def sound(spectra: torch.Tensor) -> torch.Tensor:
        return torch.istft(spectra, n_fft, hop, window=window, length=samples.size)

    size = spectrum(torch.from_numpy(samples)).abs()
    angle = torch.from_numpy(_angle(size.numpy(), n_fft, hop, rng).astype(np.float32))
    turns = int(rng.choice([0, 0, 1, 2, 4, 8]))
    for _ in range(turns):
        angle = spectrum(sound(torch.polar(size, angle))).angle()
    return sound(torch.polar(size, angle)).numpy()


def most_mels(rate_hz: int, n_fft: int) -> int:
    """The most mel bands whose lowest one still holds a bin: it ends two bands up, at about 0.62 Hz a mel."""
    top = 2595 * math.log10(1 + rate_hz / 2 / 700)
    return int(2 * 0.62 * top / (rate_hz / n_fft)) - 1


def _angle(size: Array, n_fft: int, hop: int, rng: np.random.Generator) -> Array:
    """Draw a kind of phase for magnitudes `(bins, frames)`."""
    bins, frames = np.arange(size.shape[0])[:, None], np.arange(size.shape[1])
    middle = np.pi * bins  # energy in the middle of the frame: at its edges the window would take it away
    kind = rng.integers(4)
    angle: Array
    if kind == 0:
        angle = rng.uniform(-np.pi, np.pi, size.shape)
    elif kind == 1:
        angle = np.broadcast_to(middle, size.shape)
    elif kind == 2:
        angle = middle + _least_phase(size, n_fft)
    else:
        angle = rng.uniform(-np.pi, np.pi, bins.shape) + 2 * np.pi * bins * hop / n_fft * frames
    return angle


def _least_phase(size: Array, n_fft: int) -> Array:
    """Phase of the minimum-phase sound with these magnitudes: fold the cepstrum (Oppenheim and Schafer)."""
    cepstrum = np.fft.irfft(np.log(size + 1e-7), n_fft, axis=0)
    fold = np.zeros((n_fft, 1))
    fold[0] = fold[n_fft // 2] = 1
    fold[1 : n_fft // 2] = 2
    least: Array = np.fft.rfft(cepstrum * fold, axis=0).imag
    return least


def _even(samples: float) -> int:
    return 2 * round(samples / 2)
