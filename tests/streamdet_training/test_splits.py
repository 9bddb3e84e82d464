"""Who is met twice is refused, by name, unless it was allowed by name."""

from pathlib import Path

import pytest

from streamdet.errors import DataError
from streamdet_training import data
from streamdet_training.clips import Clip
from streamdet_training.splits import refuse_overlap


def bona(name: str, speaker: str = "-") -> Clip:
    return Clip(path=Path(name), label="bonafide", speaker=speaker)


def spoof(name: str, system: str = "-", speaker: str = "-") -> Clip:
    return Clip(path=Path(name), label="spoof", system=system, speaker=speaker)


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (bona("a", "Ada"), bona("b", "Ada"), "speaker:Ada"),
        (spoof("a", "vits"), spoof("b", "vits"), "system:vits"),
    ],
)
def test_a_speaker_or_system_in_two_splits_is_refused(one, other, found):
    words = f"^speakers and systems in train and dev: '{found}', expected none, or their names in data.allow_overlap$"
    with pytest.raises(DataError, match=words):
        refuse_overlap({"train": [one], "dev": [other]})


def test_every_two_splits_are_compared():
    with pytest.raises(DataError, match="in dev and test: 'system:vits'"):
        refuse_overlap({"train": [spoof("a", "world")], "dev": [spoof("b", "vits")], "test": [spoof("c", "vits")]})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (bona("a", "Ada"), bona("b", "Eve")),
        (bona("a"), bona("b")),  # nobody knows whether they are one
        (spoof("a"), spoof("b")),
        (bona("a", "Ada"), spoof("b", "vits", speaker="Ada")),  # a cloned voice
        (spoof("a", "vits", speaker="Ada"), spoof("b", "world", speaker="Ada")),
        (bona("a", "vits"), spoof("b", "vits")),
    ],
)
def test_others_and_the_unknown_are_no_overlap(one, other):
    refuse_overlap({"train": [one], "dev": [other]})


@pytest.mark.parametrize(
    "allowed", [["system:A01", "system:A02"], ["system:A*"], ["system:*"], ["speaker:x", "system:A0*"]]
)
def test_systems_are_allowed_by_name(allowed):
    parts = {"train": [spoof("a", "A01"), spoof("b", "A02")], "dev": [spoof("c", "A01"), spoof("d", "A02")]}
    refuse_overlap(parts, allowed)


@pytest.mark.parametrize("allowed", [["system:A01"], ["speaker:A02"], ["speaker:*"], ["system:A"], ["system:a02"]])
def test_what_is_not_named_is_still_refused(allowed):
    parts = {"train": [spoof("a", "A01"), spoof("b", "A02")], "dev": [spoof("c", "A01"), spoof("d", "A02")]}
    with pytest.raises(DataError, match="system:A02"):
        refuse_overlap(parts, allowed)


def test_a_recording_in_two_splits_is_refused_whoever_is_allowed():
    with pytest.raises(DataError, match=r"recordings in train and dev: '.*a', expected each recording in one split"):
        refuse_overlap({"train": [spoof("a", "A01")], "dev": [spoof("./x/../a", "A01")]}, ["system:*"])


def test_many_names_are_counted():
    parts = {split: [bona(f"{split}{number}", f"p{number}") for number in range(9)] for split in ("train", "dev")}
    with pytest.raises(DataError, match="'speaker:p0, speaker:p1, speaker:p2, speaker:p3, speaker:p4 and 4 more'"):
        refuse_overlap(parts)


def test_nobody_is_met_twice_in_the_corpus_of_the_starter(corpus):
    refuse_overlap({split: data.load("csv", [corpus / "manifest.csv"], split) for split in ("train", "dev", "test")})
