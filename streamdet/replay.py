"""A recording through the same engine as a live call, as fast as it goes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from streamdet.audio import Samples, read_recording, resample
from streamdet.bundle import Manifest
from streamdet.engine import Engine
from streamdet.errors import DataError
from streamdet.records import MAX_CHANNELS, RATES_HZ, AudioFormat, Event, Frame, Score, Verdict, Window
from streamdet.scorer import Scorer

ScoreWindows = Callable[[Sequence[Window]], Sequence[Score]]


def replay(
    path: Path, scorer: Scorer, *, prior_spoof: float | None = None, adaptive: bool = False
) -> list[Verdict | Event]:
    """Score a recording.

    Args:
        path: any file that libsndfile reads, 1 to 8 channels; each channel is scored on its own.
        scorer: whose bundle decides windows and thresholds.
        prior_spoof: instead of the bundle's.
        adaptive: whether the hop is.

    Returns:
        what the daemon would have published for it, in order.

    Raises:
        MissingError: there is no such file.
        DataError: it is not audio, or has too many channels.
    """
    samples, rate_hz = read_recording(path)
    if samples.shape[1] > MAX_CHANNELS:
        raise DataError.of(f"channels of {path}", samples.shape[1], f"at most {MAX_CHANNELS}")
    if rate_hz not in RATES_HZ:
        model_hz = scorer.manifest.audio.rate_hz
        samples = np.stack([resample(channel, rate_hz, model_hz) for channel in samples.T], axis=1)
        rate_hz = model_hz
    return replay_samples(
        path.name, samples, rate_hz, scorer.manifest, scorer.score, prior_spoof=prior_spoof, adaptive=adaptive
    )


def replay_samples(
    stream: str,
    samples: Samples,
    rate_hz: int,
    manifest: Manifest,
    score: ScoreWindows,
    *,
    prior_spoof: float | None = None,
    adaptive: bool = False,
) -> list[Verdict | Event]:
    """Score samples `(T, channels)`: `replay` after the file has been read, with any scoring function."""
    said: list[Verdict | Event] = []
    engine = Engine(manifest, said.append, prior_spoof=prior_spoof, adaptive=adaptive)
    form = AudioFormat(rate_hz, "f32le", samples.shape[1])
    engine.open(stream, form, 0.0, resume=lambda: None)
    for payload in _hops(samples, rate_hz, manifest):
        engine.feed(Frame(stream, form, payload), 0.0, lossless=True)
        _drain(engine, score)
    engine.close(stream, "end", 0.0)
    _drain(engine, score)
    return said


def _hops(samples: Samples, rate_hz: int, manifest: Manifest) -> Iterator[bytes]:
    hop = manifest.audio.hop_samples * rate_hz // manifest.audio.rate_hz
    for at in range(0, samples.shape[0], hop):
        yield samples[at : at + hop].astype("<f4").tobytes()


def _drain(engine: Engine, score: ScoreWindows) -> None:
    while jobs := engine.take(MAX_CHANNELS):
        engine.settle(jobs, score([job.window for job in jobs]), 0.0)
