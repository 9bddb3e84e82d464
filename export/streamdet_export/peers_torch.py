"""What a user would write: transformers and torch in eager mode, with the run's own weights."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from streamdet import bundle
from streamdet.audio import Samples, fill, resample
from streamdet.bench.recordings import Recordings
from streamdet.bundle import Audio
from streamdet_export.bench_peers import Ask
from streamdet_training import model, run
from streamdet_training.model import Detector


class Torch:
    """The run's own model, adapters merged, in eager mode."""

    def __init__(self, ask: Ask) -> None:
        """Load it and warm it up."""
        torch.set_num_threads(ask.threads)
        self.ask = ask
        self.audio = bundle.load(Path(ask.bundle)).manifest.audio
        self.detector: Detector = model.merge(run.load_run(Path(ask.run))).to(ask.device)
        self._score(np.zeros((1, self.audio.window_samples), np.float32))

    def eager(self, recordings: Recordings) -> dict[str, float]:
        """Cut, resample and score one window after the other, as in a notebook."""
        return {
            key: float(
                self._score(fill(resample(cut, rate_hz, self.audio.rate_hz), self.audio.window_samples)[None])[0]
            )
            for key, cut, rate_hz in windows(recordings, self.audio)
        }

    def batched(self, recordings: Recordings) -> dict[str, float]:
        """Do the same with `batch` windows at a time."""
        found: dict[str, float] = {}
        waiting: list[tuple[str, Samples]] = []

        def flush() -> None:
            scores = self._score(np.stack([samples for _, samples in waiting]))
            found.update(zip((key for key, _ in waiting), map(float, scores), strict=True))
            waiting.clear()

        for key, cut, rate_hz in windows(recordings, self.audio):
            waiting.append((key, fill(resample(cut, rate_hz, self.audio.rate_hz), self.audio.window_samples)))
            if len(waiting) == self.ask.batch:
                flush()
        if waiting:
            flush()
        return found

    def whole(self, recordings: Recordings) -> dict[str, float]:
        """Score each recording in one pass: one score for all of it, and every second encoded once."""
        return {
            name: float(self._score(resample(samples, rate_hz, self.audio.rate_hz)[None])[0])
            for name, (samples, rate_hz) in recordings.items()
        }

    def _score(self, audio: Samples) -> Samples:
        kind = torch.bfloat16 if self.ask.autocast == "bf16" else torch.float16
        with torch.no_grad(), torch.autocast(self.ask.device, kind, enabled=self.ask.autocast != "no"):
            scores = self.detector(torch.from_numpy(audio).to(self.ask.device))
        return np.asarray(scores.float().cpu().numpy())


def windows(recordings: Recordings, audio: Audio) -> Iterator[tuple[str, Samples, int]]:
    """Cut each recording as the daemon does: (its name and the window's end, samples, rate)."""
    for name, (samples, rate_hz) in recordings.items():
        hop, length = (count * rate_hz // audio.rate_hz for count in (audio.hop_samples, audio.window_samples))
        ends = list(range(hop, samples.size + 1, hop))
        if 2 * (samples.size - (ends[-1] if ends else 0)) >= hop:
            ends.append(samples.size)
        for end in ends:
            yield f"{name} {end / rate_hz:.3f}", samples[max(0, end - length) : end], rate_hz
