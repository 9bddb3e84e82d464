"""Simulated calls: one voice on one channel, made of a corpus's clips.

The rolling verdict's own numbers can only be fitted on what it will meet: many windows of one voice, whose errors go
together. A call strings the clips of one speaker (or one generator) on one channel together. A spliced call begins with
a bona fide voice and goes on with a spoof one: how soon is the change noticed?
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from streamdet.audio import Samples, resample
from streamdet.bundle import Manifest
from streamdet_training.data import Clip, Label
from streamdet_training.scores import ScoreWindows, cut, heard

Groups = Mapping[tuple[Label, str, str], Sequence[Clip]]
"""Clips by label, voice and channel."""

# Long enough for a rolling sum to fill several times, short enough that one talkative speaker makes several calls.
CALL_MAX_S: Final = 60.0
# Windows of bona fide talk before a splice: at its onset the last window is full, and so is what the sums remember.
LEAD_WINDOWS: Final = 2
# Spoof talk after it; who has not noticed by then is late for any use.
SPOOF_S: Final = 20.0


class Call(msgspec.Struct, frozen=True):
    """What a detector says of one call."""

    label: Label
    voice: str
    """Speaker of bona fide, generator of spoof."""
    channel: str
    windows: tuple[tuple[float, float | None], ...]
    """(end_s, LLR or CM score) of each; None where the speech gate turned it away."""
    onset_s: float = 0.0
    """Where the spoof begins, in a spliced call."""
    before: str | None = None
    """Who spoke until then: a bona fide speaker."""

    @property
    def seconds(self) -> float:
        """Length (s)."""
        return self.windows[-1][0] if self.windows else 0.0


def simulate(clips: Iterable[Clip], manifest: Manifest, score: ScoreWindows) -> list[Call]:
    """Score all calls that the clips make."""
    calls = []
    for (label, name, channel), members in grouped(clips).items():
        parts = pieces(strung(members, manifest.audio.rate_hz), CALL_MAX_S, manifest.audio.rate_hz)
        calls += [Call(label, name, channel, _scored(part, manifest, score)) for part in parts]
    return calls


def splice(clips: Iterable[Clip], manifest: Manifest, score: ScoreWindows) -> list[Call]:
    """Score a call for each spoof voice and channel that begins with a bona fide voice, on the same channel if it can.

    Both parts have the same level, so that the splice is no step in it. There are none where a class is missing.
    """
    groups, rate_hz = grouped(clips), manifest.audio.rate_hz
    lead = LEAD_WINDOWS * manifest.audio.window_samples
    calls = []
    for number, ((label, name, channel), members) in enumerate(groups.items()):
        if label == "bonafide" or (partner := _partner(groups, channel, number)) is None:
            continue
        bonafide = np.resize(strung(groups["bonafide", *partner], rate_hz), lead)
        spoof = np.resize(strung(members, rate_hz), round(SPOOF_S * rate_hz))
        both = np.concatenate([bonafide, spoof * (_level(bonafide) / max(_level(spoof), 1e-6))])
        windows = _scored(np.clip(both, -1, 1).astype(np.float32), manifest, score)
        calls.append(Call("spoof", name, channel, windows, onset_s=lead / rate_hz, before=partner[0]))
    return calls


def voice(clip: Clip) -> str:
    """Whose errors go together: the speaker of bona fide speech, the generator of spoof."""
    return clip.system if clip.label == "spoof" else clip.speaker


def voices(clips: Iterable[Clip]) -> dict[Label, list[str]]:
    """Names of the voices, sorted, where the corpus has any."""
    named = {(clip.label, voice(clip)) for clip in clips} - {("bonafide", "-"), ("spoof", "-")}
    return {label: sorted(name for of, name in named if of == label) for label in ("bonafide", "spoof")}


def mapped(call: Call, scale: float, offset: float) -> Call:
    """Calibrate a call whose windows hold CM scores."""
    windows = tuple((end_s, None if llr is None else scale * llr + offset) for end_s, llr in call.windows)
    return msgspec.structs.replace(call, windows=windows)


def grouped(clips: Iterable[Clip]) -> Groups:
    """Sort clips by label, voice and channel."""
    groups: dict[tuple[Label, str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[clip.label, voice(clip), clip.channel].append(clip)
    return dict(sorted(groups.items()))


def _partner(groups: Groups, channel: str, number: int) -> tuple[str, str] | None:
    """Voice and channel of the bona fide group that comes before the spoof group of this number."""
    bonafide = [(name, on) for label, name, on in groups if label == "bonafide"]
    there = [it for it in bonafide if it[1] == channel] or bonafide
    return there[number % len(there)] if there else None


def strung(clips: Iterable[Clip], rate_hz: int, line: str | None = None, most_s: float = math.inf) -> Samples:
    """Clips one after the other, as they come over a line; none more once there are `most_s` seconds: `(T,)`."""
    parts: list[Samples] = []
    for clip in clips:
        if sum(part.size for part in parts) >= most_s * rate_hz:
            break
        samples, from_hz = heard(clip, line)
        parts.append(resample(samples, from_hz, rate_hz))
    return np.concatenate(parts)


def pieces(samples: Samples, most_s: float, rate_hz: int) -> list[Samples]:
    """Cut into parts of `most_s` seconds; the last may be shorter."""
    most = round(most_s * rate_hz)
    return [samples[at : at + most] for at in range(0, samples.size, most)]


def _scored(samples: Samples, manifest: Manifest, score: ScoreWindows) -> tuple[tuple[float, float | None], ...]:
    windows = cut(samples, manifest.audio.rate_hz, manifest)
    ends_s = [window.end_sample / manifest.audio.rate_hz for window in windows]
    return tuple(zip(ends_s, (result.llr for result in score(windows)), strict=True))


def _level(samples: Samples) -> float:
    """RMS."""
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean()))
