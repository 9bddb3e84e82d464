"""The engine with the daemon's own scorer and pump. No torch here: its memory would be counted as ours."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from streamdet import bundle
from streamdet.bench.recordings import Recordings
from streamdet.bench.side_by_side import play
from streamdet.bundle import Bundle
from streamdet.records import Event, Verdict
from streamdet.replay import replay_samples
from streamdet.scorer import Scorer
from streamdet_export.bench_peers import Ask


class Ours:
    """One scorer, warm."""

    def __init__(self, ask: Ask, *, at_once: bool = True) -> None:
        """Load the bundle and warm every bucket up; `at_once` as the daemon does, for `calls`."""
        self.ask = ask
        self.bundle = without_gate(bundle.load(Path(ask.bundle)))
        self.scorer = Scorer(
            self.bundle, provider=ask.device, threads=ask.threads, batch_max=ask.batch, at_once=at_once
        )
        self.scorer.warm_up()

    def call(self, recordings: Recordings) -> dict[str, float]:
        """Replay one recording after the other, as `streamdet score` does."""
        said: list[Verdict | Event] = []
        for name, (samples, rate_hz) in recordings.items():
            said += replay_samples(name, samples[:, None], rate_hz, self.bundle.manifest, self.scorer.score)
        return self._scores(said)

    def calls(self, recordings: Recordings) -> dict[str, float]:
        """Play all of them side by side, as so many raw PCM connections, as fast as they are taken."""
        return self._scores(play(recordings, self.scorer, self.ask.batch))

    def _scores(self, said: Iterable[Verdict | Event]) -> dict[str, float]:
        fit = self.bundle.manifest.calibration
        return {
            f"{verdict.stream} {verdict.end_s:.3f}": (verdict.llr - fit.offset) / fit.scale
            for verdict in said
            if isinstance(verdict, Verdict) and verdict.llr is not None
        }


def without_gate(found: Bundle) -> Bundle:
    """Have every window scored, silent or not: what the gate spares is no merit of the engine."""
    manifest = found.manifest
    decision = msgspec.structs.replace(manifest.decision, min_speech_s=0.0)
    return msgspec.structs.replace(found, manifest=msgspec.structs.replace(manifest, decision=decision))
