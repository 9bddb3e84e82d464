"""Nobody is met twice: speakers and systems of one split must not be in another, or its figures say too much."""

from collections.abc import Iterable, Mapping, Sequence
from os.path import abspath
from typing import Final

from streamdet.errors import DataError
from streamdet_training.clips import UNKNOWN, Clip, Split

# Names that an error lists; enough to see what kind they are.
NAMED: Final = 5


def refuse_overlap(splits: Mapping[Split, Sequence[Clip]], allowed: Sequence[str] = ()) -> None:
    """Compare every two splits.

    Bona fide speech overlaps by its speaker, spoof by its system: a voice that was cloned may well be heard elsewhere.
    What a corpus does not name (`-`) overlaps with nothing.

    Args:
        splits: clips by the name of their split.
        allowed: `speaker:NAME` or `system:NAME`; a `*` at the end stands for any ending.

    Raises:
        DataError: a recording, a speaker or a system is in two of them and not allowed to be.
    """
    names = list(splits)
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            _refuse(f"in {one} and {other}", splits[one], splits[other], allowed)


def _refuse(where: str, one: Sequence[Clip], other: Sequence[Clip], allowed: Sequence[str]) -> None:
    if both := _recordings(one) & _recordings(other):
        raise DataError.of(f"recordings {where}", _listed(both), "each recording in one split")
    both = {voice for voice in _voices(one) & _voices(other) if not is_allowed(voice, allowed)}
    if both:
        expected = "none, or their names in data.allow_overlap"
        raise DataError.of(f"speakers and systems {where}", _listed(both), expected)


def _recordings(clips: Iterable[Clip]) -> set[str]:
    return {abspath(clip.path) for clip in clips}  # noqa: PTH100 # resolve() asks the disk, for every clip of a corpus


def _voices(clips: Iterable[Clip]) -> set[str]:
    """Return `speaker:NAME` of the bona fide and `system:NAME` of the spoof."""
    speakers = {f"speaker:{clip.speaker}" for clip in clips if clip.label == "bonafide" and clip.speaker != UNKNOWN}
    systems = {f"system:{clip.system}" for clip in clips if clip.label == "spoof" and clip.system != UNKNOWN}
    return speakers | systems


def is_allowed(voice: str, allowed: Iterable[str]) -> bool:
    """Tell whether `speaker:NAME` or `system:NAME` is among the names that may overlap."""
    return any(voice.startswith(pattern[:-1]) if pattern.endswith("*") else voice == pattern for pattern in allowed)


def _listed(names: Iterable[str]) -> str:
    ranked = sorted(names)
    more = f" and {len(ranked) - NAMED} more" if len(ranked) > NAMED else ""
    return ", ".join(ranked[:NAMED]) + more
