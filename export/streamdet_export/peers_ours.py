"""The engine with the scorer that the daemon would have. No torch here: its memory would be counted as ours."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from streamdet import bundle
from streamdet.audio import Samples
from streamdet.bundle import Bundle
from streamdet.engine import Engine
from streamdet.records import MAX_CHANNELS, AudioFormat, Event, Frame, Verdict
from streamdet.scorer import Scorer
from streamdet_export.bench_peers import Ask, Recordings


class Ours:
    """The engine with the scorer that the daemon would have."""

    def __init__(self, ask: Ask) -> None:
        """Load the bundle and warm every bucket up."""
        self.ask = ask
        self.bundle = without_gate(bundle.load(Path(ask.bundle)))
        self.scorer = Scorer(self.bundle, provider=ask.device, threads=ask.threads, batch_max=ask.batch)
        self.scorer.warm_up()

    def call(self, recordings: Recordings) -> dict[str, float]:
        """Replay one recording after the other, as `streamdet score` does."""
        found: dict[str, float] = {}
        for name, recording in recordings.items():
            found |= self.calls({name: recording})
        return found

    def calls(self, recordings: Recordings) -> dict[str, float]:
        """Replay all of them side by side, as so many calls, as fast as it goes."""
        said: list[Verdict | Event] = []
        engine = Engine(self.bundle.manifest, said.append)
        forms = {name: AudioFormat(rate_hz, "f32le", 1) for name, (_, rate_hz) in recordings.items()}
        for name, form in forms.items():
            engine.open(name, form, 0.0, resume=lambda: None)
        hops = {name: _hops(samples, engine.hop_bytes(forms[name])) for name, (samples, _) in recordings.items()}
        while hops:
            for name, rest in list(hops.items()):
                payload = next(rest, None)
                if payload is None:
                    engine.close(name, "end", 0.0)
                    del hops[name]
                else:
                    engine.feed(Frame(name, forms[name], payload), 0.0, lossless=True)
            self._drain(engine)
        return self._scores(said)

    def _drain(self, engine: Engine) -> None:
        while jobs := engine.take(max(self.ask.batch, MAX_CHANNELS)):
            engine.settle(jobs, self.scorer.score([job.window for job in jobs]), 0.0)

    def _scores(self, said: list[Verdict | Event]) -> dict[str, float]:
        fit = self.bundle.manifest.calibration
        return {
            f"{verdict.stream} {verdict.end_s:.3f}": (verdict.llr - fit.offset) / fit.scale
            for verdict in said
            if isinstance(verdict, Verdict) and verdict.llr is not None
        }


def _hops(samples: Samples, hop_bytes: int) -> Iterator[bytes]:
    data = samples.astype("<f4").tobytes()
    return (data[at : at + hop_bytes] for at in range(0, len(data), hop_bytes))


def without_gate(found: Bundle) -> Bundle:
    """Have every window scored, silent or not: what the gate spares is no merit of the engine."""
    manifest = found.manifest
    decision = msgspec.structs.replace(manifest.decision, min_speech_s=0.0)
    return msgspec.structs.replace(found, manifest=msgspec.structs.replace(manifest, decision=decision))
