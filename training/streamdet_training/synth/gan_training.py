"""Trains the small vocoders on the spot, from top to bottom: first towards the spectrum alone, then against critics.

Spectral losses as in Parallel WaveGAN (Yamamoto et al. 2020); critics of the waveform folded by periods (HiFi-GAN) and
of spectrograms at several resolutions (UnivNet, Jang et al. 2021), least-squares GAN and feature matching.
"""

import logging
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import l1_loss, leaky_relu, pad
from torch.nn.utils.parametrizations import weight_norm

from streamdet.audio import resample
from streamdet.errors import DataError, StreamdetError
from streamdet_training.data import Clip
from streamdet_training.synth import gan, sources

log = logging.getLogger(__name__)

SEGMENT: Final = 6144  # samples: 0.38 s at 16 kHz, some pitch periods and a consonant
BATCH: Final = 6
LEARNING_RATE: Final = 1.5e-3
ALONE: Final = 0.4  # share of the steps without critics: until there is speech there is nothing to criticise
PERIODS: Final = (2, 3, 7)
RESOLUTIONS: Final = (128, 512, 1024)
MOST_SAMPLES: Final = (
    16_000 * 3600 * 2
)  # two hours in half precision are 230 MB; a small network learns no more from more


class PeriodCritic(nn.Module):
    """Judges the waveform folded to rows of one period: what repeats lies in columns."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self._period = period
        widths = (1, 8, 16, 32)
        self._layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), padding=(2, 0))) for a, b in pairwise(widths)
        )
        self._layers.append(weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0))))

    def forward(self, audio: Tensor) -> list[Tensor]:
        """Judge `(B, T)`."""
        folded = pad(audio, (0, -audio.shape[-1] % self._period)).view(audio.shape[0], 1, -1, self._period)
        return _through(self._layers, folded)


class SpectrumCritic(nn.Module):
    """Judges the magnitudes of a spectrogram."""

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        self._n_fft = n_fft
        widths = (1, 8, 16, 16)
        self._layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 3), (2, 1), padding=(2, 1))) for a, b in pairwise(widths)
        )
        self._layers.append(weight_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))

    def forward(self, audio: Tensor) -> list[Tensor]:
        """Judge `(B, T)`."""
        return _through(self._layers, magnitudes(audio, self._n_fft)[:, None])


def _through(layers: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """Every layer's output, the judgement last."""
    seen = []
    for layer in layers:
        x = layer(x)
        seen.append(x)
        x = leaky_relu(x, 0.1)
    return seen


def magnitudes(audio: Tensor, n_fft: int) -> Tensor:
    """`(B, T)` to `(B, bins, frames)`; the square root's slope is finite at zero."""
    spectra = torch.stft(audio, n_fft, n_fft // 4, window=torch.hann_window(n_fft), return_complex=True)
    return (spectra.real**2 + spectra.imag**2 + 1e-7).sqrt()


def spectral_loss(made: Tensor, real: Tensor) -> Tensor:
    """Spectral convergence and the distance of log magnitudes, averaged over resolutions."""
    loss = torch.zeros(())
    for n_fft in RESOLUTIONS:
        a, b = magnitudes(made, n_fft), magnitudes(real, n_fft)
        loss = loss + (a - b).norm() / b.norm() + l1_loss(a.log(), b.log())
    return loss / len(RESOLUTIONS)


def train(kind: str, clips: Sequence[Clip], folder: Path, *, steps: int, seed: int) -> list[Path]:
    """Train one network; weights are kept at half of the steps and at their end.

    Args:
        kind: `gan` or `istft`.
        clips: bona fide recordings.
        folder: for the weights.
        steps: updates.
        seed: of weights and segments.

    Returns:
        The weights' files.

    Raises:
        DataError: no clip can be used.
    """
    kept = {step: folder / f"{kind}-{seed}-{step:06d}.safetensors" for step in (max(1, steps // 2), steps)}
    if kept[steps].is_file():
        return list(kept.values())
    speech = Speech(clips, np.random.default_rng(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = gan.NETWORKS[kind]()
        critics = nn.ModuleList([*map(PeriodCritic, PERIODS), *map(SpectrumCritic, RESOLUTIONS)])
        hear = gan.Mel()
        weights = sum(p.numel() for p in network.parameters())
        judging = sum(p.numel() for p in critics.parameters())
        log.info("%s: %d weights, %d in its critics, %.0f minutes of speech", kind, weights, judging, speech.minutes)
        maker = torch.optim.AdamW(network.parameters(), LEARNING_RATE, betas=(0.8, 0.99))
        judge = torch.optim.AdamW(critics.parameters(), LEARNING_RATE / 2, betas=(0.8, 0.99))
        schedule = torch.optim.lr_scheduler.OneCycleLR(maker, LEARNING_RATE, total_steps=steps + 1, pct_start=0.05)
        began_s = time.monotonic()
        for step in range(1, steps + 1):
            real = speech.draw()
            mel = hear(real)
            made = network(mel)
            near = l1_loss(hear(made), mel)
            loss = 2 * near + spectral_loss(made, real)
            if step > ALONE * steps:
                # The critics' turn: 1 for speech, 0 for what was made of it.
                both = [(critic(real), critic(made.detach())) for critic in critics]
                judged = torch.stack([((a[-1] - 1) ** 2).mean() + (b[-1] ** 2).mean() for a, b in both]).sum()
                judge.zero_grad()
                judged.backward()  # type: ignore[no-untyped-call] # torch has no type for it
                judge.step()
                # The network's turn: be taken for speech, and look like it to every layer.
                both = [(critic(real), critic(made)) for critic in critics]
                fooled = torch.stack([((b[-1] - 1) ** 2).mean() for _, b in both]).sum()
                pairs = [pair for a, b in both for pair in zip(a[:-1], b[:-1], strict=True)]
                alike = torch.stack([l1_loss(b, a.detach()) for a, b in pairs]).sum()
                loss = loss + (fooled + 2 * alike) / len(critics)
            maker.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch has no type for it
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            maker.step()
            schedule.step()
            if step in kept:
                gan.save(kept[step], network)
            if step % max(1, steps // 10) == 0:
                speed = step / (time.monotonic() - began_s)
                log.info("%s: step %d of %d, mel %.3f, %.1f steps a second", kind, step, steps, near.item(), speed)
    return list(kept.values())


class Speech:
    """Segments of speech at one level, drawn at random."""

    def __init__(self, clips: Sequence[Clip], rng: np.random.Generator) -> None:
        """Read clips in random order until there is enough; one that cannot be used is passed over."""
        self._rng = rng
        self._clips: list[NDArray[np.float16]] = []
        total, seconds = 0, 0.0
        for at in rng.permutation(len(clips)):
            try:
                samples, rate_hz = sources.read(clips[at].path)
            except StreamdetError:
                continue  # copies.make says so, in its turn
            inner = resample(samples, rate_hz, min(rate_hz, gan.HIGHEST_HZ))
            if inner.any() and inner.size >= SEGMENT:
                self._clips.append(gan.at_level(inner).astype(np.float16))
                total += inner.size
                seconds += samples.size / rate_hz
            if total > MOST_SAMPLES:
                break
        if not self._clips:
            raise DataError.of("clips to train a vocoder on", 0, f"some of {SEGMENT} samples or more")
        sizes = np.array([clip.size for clip in self._clips], np.float64)
        self._share = sizes / sizes.sum()
        self.minutes = seconds / 60

    def draw(self) -> Tensor:
        """Draw `(BATCH, SEGMENT)`: loud enough to hold speech, up to 6 dB softer or louder."""
        return torch.from_numpy(np.stack([self._segment() for _ in range(BATCH)]))

    def _segment(self) -> NDArray[np.float32]:
        for _ in range(4):  # a pause teaches nothing
            clip = self._clips[self._rng.choice(len(self._clips), p=self._share)]
            start = int(self._rng.integers(0, clip.size - SEGMENT + 1))
            segment = clip[start : start + SEGMENT].astype(np.float32)
            if np.square(segment).mean() > (gan.RMS / 4) ** 2:
                break
        return segment * np.float32(2 ** self._rng.uniform(-1, 1))
