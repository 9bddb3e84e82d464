"""Simulated calls: one voice on one channel, made of a corpus's clips.

The rolling verdict's own numbers can only be fitted on what it will meet: many windows of one voice, whose errors go
together. A call strings the clips of one speaker (or one generator) on one channel together.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec
import numpy as np

from streamdet.audio import Samples, read_recording, resample
from streamdet.bundle import Manifest
from streamdet.records import Score, Window
from streamdet_training.data import Clip, Label
from streamdet_training.scores import cut

# Long enough for a rolling sum to fill several times, short enough that one talkative speaker makes several calls.
CALL_MAX_S: Final = 60.0


class Call(msgspec.Struct, frozen=True):
    """What a detector says of one call."""

    label: Label
    voice: str
    """Speaker of bona fide, generator of spoof."""
    channel: str
    windows: tuple[tuple[float, float | None], ...]
    """(end_s, LLR or CM score) of each; None where the speech gate turned it away."""

    @property
    def seconds(self) -> float:
        """Length (s)."""
        return self.windows[-1][0] if self.windows else 0.0


def simulate(
    clips: Sequence[Clip], manifest: Manifest, score: Callable[[Sequence[Window]], Sequence[Score]]
) -> list[Call]:
    """Score all calls that the clips make."""
    groups: dict[tuple[Label, str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[clip.label, voice(clip), clip.channel].append(clip)
    calls = []
    for (label, name, channel), members in sorted(groups.items()):
        for samples in _strung(members, manifest.audio.rate_hz):
            windows = cut(samples, manifest.audio.rate_hz, manifest)
            ends_s = [window.end_sample / manifest.audio.rate_hz for window in windows]
            llrs = [result.llr for result in score(windows)]
            calls.append(Call(label, name, channel, tuple(zip(ends_s, llrs, strict=True))))
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


def _strung(clips: Sequence[Clip], rate_hz: int) -> list[Samples]:
    """Clips one after the other, cut into calls of at most CALL_MAX_S."""
    parts = []
    for clip in clips:
        samples, from_hz = read_recording(clip.path)
        parts.append(resample(samples[:, 0], from_hz, rate_hz))
    whole, most = np.concatenate(parts), round(CALL_MAX_S * rate_hz)
    return [whole[at : at + most] for at in range(0, whole.size, most)]
