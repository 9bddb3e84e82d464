"""`top` is a function of what was heard, answered and pressed: no terminal, no daemon."""

import io
import os
import pty
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from streamdet.cli import keyboard
from streamdet.cli.board import View
from streamdet.cli.summary import lasted, summary
from streamdet.cli.top import STALE_S, Screen


def health(**changes: Any) -> dict[str, Any]:
    fields = {
        "ready": True,
        "version": "1.2.3",
        "pid": 7,
        "epoch": "e",
        "uptime_s": 3725.0,
        "provider": "CPUExecutionProvider",
        "streams_max": 1000,
        "lag_ms_p99": 8.0,
        "overload": False,
        "batches": 3,
        "batch_windows_mean": 2.5,
        "batch_windows_max": 4,
        "batch_ms_mean": 12.0,
        "load": 0.25,
        "loop_late_ms": 1.0,
        "refused": {},
        "reload": None,
        "rss_bytes": 100 << 20,
        "fds": 30,
        "fds_max": 1024,
        "log_lines_lost": 0,
    }
    return {**fields, **changes}


def track(stream: str, **changes: Any) -> dict[str, Any]:
    fields = {
        "stream": stream,
        "channel": 0,
        "opened": f"of {stream}",
        "paused": False,
        "state": "bonafide",
        "state_since_s": 0.0,
        "p_spoof": 0.1,
        "rolling_llr": 1.0,
        "seconds": 9.0,
        "windows": 9,
        "skipped": 0,
        "total_speech_s": 5.0,
        "lag_ms": 10.0,
    }
    return {**fields, **changes}


def answer(*tracks: dict[str, Any], **changes: Any) -> dict[str, Any]:
    counts = {"streams": len(tracks), "tracks": len(tracks), "windows": 30, "skipped": 0, "paused": 0}
    return {"model": "level@0", "counts": counts, "tracks": list(tracks), "health": health(**changes)}


def screen(*tracks: dict[str, Any], **changes: Any) -> Screen:
    made = Screen(View())
    made.answered(answer(*tracks, **changes), 0.0)
    return made


def drawn(of: Screen, now_s: float = 0.0, height: int = 30) -> list[str]:
    console = Console(file=io.StringIO(), width=130, height=height)
    with console.capture() as capture:
        console.print(of.render(now_s, height))
    return [line.rstrip() for line in capture.get().splitlines()]


def names(of: Screen, now_s: float = 0.0, height: int = 30) -> list[str]:
    return [line.partition("/0")[0] for line in drawn(of, now_s, height) if "/0" in line]


THREE = (
    track("a", state="spoof", p_spoof=0.4, lag_ms=None, seconds=2.0, skipped=1),
    track("b", state="bonafide", p_spoof=None, lag_ms=30.0, seconds=9.0, skipped=0),
    track("c", state="uncertain", p_spoof=0.9, lag_ms=20.0, seconds=4.0, skipped=7),
)


# -- rows and keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "order"),
    [("s", "acb"), ("p", "cab"), ("l", "bca"), ("k", "cab"), ("d", "bca"), ("n", "abc")],
)
def test_a_key_sorts_with_what_is_worth_a_look_on_top(key: str, order: str):
    of = screen(*THREE)
    of.press(key)
    assert "".join(names(of)) == order
    of.press("r")
    assert "".join(names(of)) == order[::-1]


def test_a_filter_shows_what_it_finds_while_it_is_typed():
    of = screen(track("alice"), track("bob"), track("malik"))
    for key in ("/", "l", "i"):
        of.press(key)
    assert names(of) == ["alice", "malik"]
    assert "filter: li" in "".join(drawn(of))
    of.press("q")  # a letter like any other
    assert names(of) == []
    of.press("backspace")
    of.press("enter")
    assert names(of) == ["alice", "malik"]
    of.press("escape")
    assert len(names(of)) == 3
    assert not of.over
    of.press("q")
    assert of.over


def test_it_scrolls_as_far_as_there_is_something():
    of = screen(*(track(f"{number:02}") for number in range(40)))
    of.press("n")
    assert names(of, height=16)[0] == "00"
    of.press("down")
    assert names(of, height=16)[0] == "01"
    for _ in range(9):
        of.press("page down")
    drawn(of, height=16)
    assert names(of, height=16)[-1] == "39"
    of.press("up")
    assert names(of, height=16)[-1] == "38"
    of.press("home")
    assert names(of, height=16)[0] == "00"
    for _ in range(3):
        of.press("up")
    assert names(of, height=16)[0] == "00"


@given(st.lists(st.sampled_from(["s", "p", "r", "/", "x", "up", "down", "page down", "home", "enter", "escape", "é"])))
def test_no_order_of_keys_breaks_it(pressed: list[str]):
    of = screen(*THREE)
    for key in pressed:
        of.press(key)
        drawn(of, height=7)


def test_what_status_alone_knows_is_a_row_and_what_it_no_longer_knows_ends():
    of = screen(track("a", paused=True), track("b"))
    assert any("a/0 (paused)" in line for line in drawn(of))
    of.answered(answer(track("b")), 1.0)
    assert any("a/0 (ended)" in line for line in drawn(of, 1.0))
    of.answered(answer(track("a"), track("b")), 2.0)
    assert not any("(ended)" in line for line in drawn(of, 2.0))


# -- the head --------------------------------------------------------------------------------------------------------


def said(**changes: Any) -> str:
    return "\n".join(line.plain for line in summary(answer(track("a"), **changes)))


def test_the_head_sums_up():
    assert said().splitlines() == [
        "streamdet 1.2.3: ready, level@0 on CPU, up 1 h 2 min, pid 7",
        "1 of 1000 calls, 1 tracks, 30 windows, 0 skipped, lag p99 8 ms",
        "scoring 25 % busy, batches of 2.5 (at most 4) in 12 ms, 100 MB, 30 of 1024 files",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ready": False, "provider": None}, "not ready, level@0 on nothing yet"),
        ({"lag_ms_p99": None}, "lag p99 –"),
        ({"batches": 0}, "scoring 25 % busy, 100 MB"),
        ({"refused": {"protocol": 3, "auth": 1}}, "refused: 3 protocol, 1 auth"),
        ({"loop_late_ms": 250.0}, "event loop 250 ms late"),
        ({"log_lines_lost": 4}, "4 log lines not written"),
        ({"reload": {"at": "now", "ok": False, "error": "bad"}}, "reload refused at now: bad"),
    ],
)
def test_the_head_tells_what_to_look_at(changes: dict[str, Any], words: str):
    assert words in said(**changes)


def test_a_good_reload_is_no_remark():
    assert len(said(reload={"at": "now", "ok": True, "error": None}).splitlines()) == 3


def test_an_old_answer_is_not_how_things_are():
    of = screen(track("a"))
    assert "level@0" in drawn(of, STALE_S - 0.1)[0]
    assert drawn(of, STALE_S)[0] == "waiting for a daemon …"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (42, "42 s"), (185, "3 min 5 s"), (7620, "2 h 7 min"), (442_800, "5 d 3 h"), (86_400, "1 d 0 h")],
)
def test_how_long(seconds: float, text: str):
    assert lasted(seconds) == text


# -- once ------------------------------------------------------------------------------------------------------------


def test_once_as_lines_has_no_keys():
    lines = screen(*THREE).once(as_json=False)
    assert lines[0].startswith("streamdet 1.2.3")
    assert [line[:3] for line in lines[-3:]] == ["a/0", "c/0", "b/0"]
    assert "quit" not in "".join(lines)
    assert "30 ms" in lines[-1]


def test_once_as_json_has_the_health_and_the_tracks_in_their_order():
    of = screen(*THREE)
    of.view.sort, of.view.match = "lag", ""
    first, *tracks = (msgspec.json.decode(line) for line in of.once(as_json=True))
    assert (first["type"], first["streams"], first["model"], first["load"]) == ("health", 3, "level@0", 0.25)
    assert [each["stream"] for each in tracks] == ["b", "c", "a"]
    assert {each["type"] for each in tracks} == {"track"}


# -- the keyboard ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1bOB", ["up", "down"]),
        (b"\x1b[5~x\x1b[6~", ["page up", "x", "page down"]),
        (b"\x1b", ["escape"]),
        (b"\r\x7f", ["enter", "backspace"]),
        ("é√".encode(), ["é", "√"]),
        (b"\x1b[24~q", ["q"]),  # F12 is nobody's key
        (b"\x00\xff", []),
    ],
)
def test_keys_of_what_a_terminal_sends(data: bytes, expected: list[str]):
    assert list(keyboard.keys(data)) == expected


@given(st.binary(max_size=30))
def test_whatever_comes_is_keys_with_names_or_single_signs(data: bytes):
    for key in keyboard.keys(data):
        assert key in keyboard.NAMES.values() or (len(key) == 1 and key.isprintable())


def test_a_terminal_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch):
    import termios

    master, slave = pty.openpty()
    with os.fdopen(slave) as terminal, os.fdopen(master, "wb", buffering=0) as hand:
        monkeypatch.setattr("sys.stdin", terminal)
        before = termios.tcgetattr(slave)
        with keyboard.pressed() as descriptor:
            assert descriptor is not None
            hand.write(b"s")  # no Enter
            assert keyboard.read(descriptor) == ["s"]
        assert termios.tcgetattr(slave) == before


def test_without_a_terminal_nobody_is_at_the_keyboard(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with keyboard.pressed() as descriptor:
        assert descriptor is None
