"""Clips of one voice on one channel become calls."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamdet.bundle import Manifest
from streamdet.records import Score
from streamdet_training import calls
from streamdet_training.calls import Call, mapped, simulate
from streamdet_training.data import Clip
from streamdet_training.recipe import Backbone, Recipe

RATE_HZ = 8_000


@pytest.fixture
def draft() -> Manifest:
    """Windows of 1 s each half second, at a rate that the clips do not have."""
    return Recipe.model_validate(
        {"name": "x", "backbone": Backbone(config={}), "window": {"window_s": 1.0, "hop_s": 0.5}}
    ).draft()


def clip(folder: Path, name: str, seconds: float, **fields: str) -> Clip:
    rng = np.random.default_rng(0)
    soundfile.write(folder / name, 0.1 * rng.standard_normal(round(seconds * RATE_HZ)), RATE_HZ)
    return Clip(path=folder / name, **{"label": "bonafide", "speaker": "a", "channel": "wide", **fields})


def levels(windows):
    """A score for each window, its number in the call; every third one is gated."""
    return [Score(None if at % 3 == 2 else float(at), 1.0) for at, _ in enumerate(windows)]


def test_clips_of_one_voice_on_one_channel_are_strung_together(tmp_path, draft):
    clips = [
        clip(tmp_path, "1.wav", 2.0),
        clip(tmp_path, "2.wav", 3.0),
        clip(tmp_path, "3.wav", 2.0, channel="g711"),
        clip(tmp_path, "4.wav", 2.0, speaker="b"),
    ]
    made = simulate(clips, draft, levels)
    assert [(call.voice, call.channel, call.seconds) for call in made] == [
        ("a", "g711", 2.0),
        ("a", "wide", 5.0),
        ("b", "wide", 2.0),
    ]


def test_a_spoof_voice_is_its_system_whoever_it_imitates(tmp_path, draft):
    clips = [
        clip(tmp_path, f"{name}.wav", 2.0, label="spoof", system="vits", speaker=name, channel="-") for name in "ab"
    ]
    (call,) = simulate(clips, draft, levels)
    assert (call.label, call.voice, call.seconds) == ("spoof", "vits", 4.0)


def test_a_window_has_its_end_and_none_where_it_was_gated(tmp_path, draft):
    (call,) = simulate([clip(tmp_path, "1.wav", 2.5)], draft, levels)
    assert call.windows == ((1.0, 0.0), (1.5, 1.0), (2.0, None), (2.5, 3.0))


def test_no_call_is_longer_than_the_longest(tmp_path, draft, monkeypatch):
    monkeypatch.setattr(calls, "CALL_MAX_S", 4.0)
    made = simulate([clip(tmp_path, f"{number}.wav", 3.0) for number in range(3)], draft, levels)
    assert [call.seconds for call in made] == [4.0, 4.0, 1.0]


def test_calibration_maps_what_was_scored_and_nothing_else():
    call = Call("bonafide", "a", "-", ((1.0, 2.0), (2.0, None)))
    assert mapped(call, 2.0, -1.0).windows == ((1.0, 3.0), (2.0, None))


def test_voices_are_named_once_by_label_and_nobody_is_not_a_voice(tmp_path):
    def row(label: str, speaker: str, system: str = "-") -> Clip:
        return Clip(path=tmp_path, label=label, speaker=speaker, system=system)

    clips = [
        row("spoof", "b", "vits"),
        row("bonafide", "b"),
        row("bonafide", "a"),
        row("bonafide", "a"),
        row("spoof", "a"),
    ]
    assert calls.voices([*clips, row("bonafide", "-")]) == {"bonafide": ["a", "b"], "spoof": ["vits"]}


def test_a_spliced_call_goes_from_a_bona_fide_voice_to_a_spoof_one_on_the_same_channel(tmp_path, draft):
    clips = [
        clip(tmp_path, "1.wav", 2.0, speaker="a", channel="wide"),
        clip(tmp_path, "2.wav", 2.0, speaker="b", channel="g711"),
        clip(tmp_path, "3.wav", 2.0, label="spoof", system="vits", speaker="c", channel="g711"),
        clip(tmp_path, "4.wav", 2.0, label="spoof", system="lpc", speaker="c", channel="gsm"),
    ]
    made = {call.voice: call for call in calls.splice(clips, draft, levels)}
    assert {name: call.channel for name, call in made.items()} == {"vits": "g711", "lpc": "gsm"}
    assert made["vits"].before == "b"
    assert made["lpc"].before in "ab"
    assert all((call.label, call.onset_s, call.seconds) == ("spoof", 2.0, 22.0) for call in made.values())


def test_a_splice_is_no_step_in_level(tmp_path, draft):
    loud, quiet = clip(tmp_path, "1.wav", 4.0), clip(tmp_path, "2.wav", 4.0, label="spoof", system="vits")
    samples, rate_hz = soundfile.read(quiet.path)
    soundfile.write(quiet.path, 0.01 * samples, rate_hz)
    heard = []

    def listen(windows):
        heard.extend(np.frombuffer(window.data, np.float32) for window in windows)
        return levels(windows)

    calls.splice([loud, quiet], draft, listen)
    first, last = (float(np.sqrt(np.mean(window**2))) for window in (heard[0], heard[-1]))
    assert last == pytest.approx(first, rel=0.1)


def test_without_a_bona_fide_voice_nothing_is_spliced(tmp_path, draft):
    assert calls.splice([clip(tmp_path, "1.wav", 2.0, label="spoof", system="vits")], draft, levels) == []
