"""The live table is a function of what was heard and of the time: no terminal, no daemon."""

import io

import pytest
from rich.console import Console
from rich.style import Style

from streamdet.cli.board import BARS, CLOSED_FOR_S, NEW_ALARM_S, TREND, Board, line, sparkline
from streamdet.records import Event, Heartbeat, State, Verdict


def verdict(stream: str = "call", *, seq: int = 0, state: State = "bonafide", **changes: object) -> Verdict:
    fields = {
        "stream": stream,
        "channel": 0,
        "opened": "first",
        "seq": seq,
        "start_s": float(seq),
        "end_s": seq + 4.0,
        "speech_s": 3.0,
        "total_speech_s": 3.0,
        "llr": 1.5,
        "rolling_llr": 2.5,
        "p_spoof": None if state == "listening" else 0.25,
        "state": state,
        "state_since_s": 0.0,
        "skipped": 0,
        "lag_ms": 12.0,
        "transit_ms": None,
        "model": "level-0123456789ab",
    }
    return Verdict(**{**fields, **changes})


def close(stream: str = "call", opened: str = "first") -> Event:
    return Event("close", stream, None, 9.0, {"reason": "end", "opened": opened})


def beat(epoch: str = "a", **changes: object) -> Heartbeat:
    fields = {"seq": 1, "streams": 1, "tracks": 2, "windows": 30, "skipped": 0, "lag_ms_p99": 8.0, "overload": False}
    return Heartbeat(epoch, **{**fields, **changes})


def board_of(*records: Verdict | Event | Heartbeat, at_s: float = 0.0) -> Board:
    board = Board()
    for record in records:
        board.update(record, at_s)
    return board


def drawn(board: Board, now_s: float = 0.0, height: int = 40, width: int = 120) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    with console.capture() as capture:
        console.print(board.render(now_s, height))
    return [text.rstrip() for text in capture.get().splitlines()]


def style_of(board: Board, text: str, now_s: float) -> Style:
    """The style of the piece of the drawing that is `text`."""
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    found = [piece.style for piece in console.render(board.render(now_s)) if piece.text.strip() == text]
    assert found[0] is not None
    return found[0]


def calls(board: Board, now_s: float = 0.0, height: int = 40) -> list[str]:
    """First words of the rows, as drawn."""
    return [text.split()[0] for text in drawn(board, now_s, height)[2:]]  # after the headline and the columns' names


# -- rows ------------------------------------------------------------------------------------------------------------


def test_a_row_tells_what_is_known_of_a_track():
    board = board_of(verdict(seq=3, state="uncertain", channel=1, total_speech_s=5.4, skipped=2))
    (row,) = drawn(board)[2:]
    assert row.split() == ["call/1", "uncertain", "0.25", sparkline([2.5]), "5", "s", "7", "s", "12", "ms", "2"]


def test_while_listening_there_is_no_probability():
    (row,) = drawn(board_of(verdict(state="listening", llr=None)))[2:]
    assert row.split()[:4] == ["call/0", "listening", "–", "·"]


def test_channels_and_streams_have_rows_of_their_own():
    board = board_of(verdict("b"), verdict("a", channel=1), verdict("a"))
    assert calls(board) == ["a/0", "a/1", "b/0"]


def test_alarms_come_first_and_listeners_last():
    states: list[State] = ["listening", "bonafide", "spoof", "uncertain"]
    assert calls(board_of(*(verdict(state, state=state) for state in states))) == [
        "spoof/0",
        "uncertain/0",
        "bonafide/0",
        "listening/0",
    ]


@pytest.mark.parametrize("stream", ["call[/]", "[red]call", "call:smile:", "[/bold]"])
def test_a_stream_id_is_shown_as_it_is(stream: str):
    assert calls(board_of(verdict(stream))) == [f"{stream}/0"]


def test_skips_are_counted_over_the_call():
    board = board_of(*(verdict(seq=seq, skipped=2) for seq in range(3)))
    assert drawn(board)[2].split()[-1] == "6"


def test_only_the_latest_verdicts_make_the_trend():
    board = board_of(*(verdict(seq=seq, rolling_llr=9.0 if seq < 5 else -9.0) for seq in range(5 + TREND)))
    assert drawn(board)[2].count(BARS[-1]) == TREND
    assert BARS[0] not in drawn(board)[2]


# -- alarms ----------------------------------------------------------------------------------------------------------


def test_a_new_alarm_stands_out_for_a_while():
    board = board_of(verdict())
    board.update(verdict(seq=1, state="spoof"), 10.0)
    board.update(verdict(seq=2, state="spoof"), 13.0)  # still the same alarm
    assert style_of(board, "spoof", 10.0).reverse
    assert style_of(board, "spoof", 10.0 + NEW_ALARM_S - 0.1).reverse
    assert not style_of(board, "spoof", 10.0 + NEW_ALARM_S).reverse


def test_a_call_that_is_an_alarm_from_its_first_verdict_on_stands_out():
    assert style_of(board_of(verdict(state="spoof"), at_s=10.0), "spoof", 10.0).reverse


def test_an_alarm_that_returns_stands_out_again():
    board = board_of(verdict(state="spoof"), verdict(seq=1, state="uncertain"))
    board.update(verdict(seq=2, state="spoof"), 60.0)
    assert style_of(board, "spoof", 60.0).reverse


def test_what_is_no_alarm_does_not_stand_out():
    assert not style_of(board_of(verdict()), "bonafide", 0.0).reverse


# -- the end of a call -----------------------------------------------------------------------------------------------


def test_a_call_that_ended_greys_and_goes():
    board = board_of(verdict(), close(), at_s=10.0)
    assert style_of(board, "call/0 (ended)", 10.0).dim
    assert calls(board, 10.0 + CLOSED_FOR_S) == ["call/0"]
    assert calls(board, 10.0 + CLOSED_FOR_S + 0.1) == []


def test_a_call_goes_with_all_its_channels_and_no_other():
    board = board_of(verdict(), verdict(channel=1), verdict("other"), close())
    assert calls(board, CLOSED_FOR_S + 1) == ["other/0"]


def test_a_late_close_does_not_end_the_next_call_of_that_name():
    board = board_of(verdict(), verdict(opened="second"), close(opened="first"))
    assert calls(board, CLOSED_FOR_S + 1) == ["call/0"]
    assert "(ended)" not in drawn(board)[2]


def test_a_call_that_comes_back_begins_anew():
    board = board_of(verdict(seq=7, skipped=3), close(), verdict(opened="second"))
    (row,) = drawn(board)[2:]
    assert "(ended)" not in row
    assert row.split()[-1] == "0"


@pytest.mark.parametrize("kind", ["open", "state", "gap", "error"])
def test_other_events_change_nothing(kind: str):
    board = board_of(verdict())
    before = drawn(board)
    board.update(Event(kind, "call", None, 1.0, {"opened": "first"}), 0.0)
    assert drawn(board) == before


# -- repeats and restarts --------------------------------------------------------------------------------------------


def test_a_repeat_is_dropped():
    board = board_of(verdict(seq=4, skipped=1), verdict(seq=4, skipped=1, snapshot=True), verdict(seq=3, skipped=1))
    (row,) = drawn(board)[2:]
    assert row.split()[3] == sparkline([2.5])
    assert row.split()[-1] == "1"


def test_a_snapshot_is_all_that_is_known_of_a_call_that_began_earlier():
    assert calls(board_of(verdict(seq=40, snapshot=True))) == ["call/0"]


def test_another_daemon_knows_nothing_of_the_calls():
    board = board_of(beat("a"), verdict())
    board.update(beat("a", seq=2), 1.0)
    assert calls(board, 1.0) == ["call/0"]
    board.update(beat("b"), 2.0)
    assert calls(board, 2.0) == []


# -- headline and height ---------------------------------------------------------------------------------------------


def test_the_headline_waits_for_a_daemon():
    assert drawn(Board())[0] == "waiting for a daemon …"


def test_the_headline_sums_up():
    assert drawn(board_of(beat()))[0] == "1 calls, 2 tracks, 30 windows, lag p99 8 ms"
    assert drawn(board_of(beat(lag_ms_p99=None)))[0].endswith("lag p99 –")


def test_the_headline_tells_of_overload():
    assert drawn(board_of(beat(overload=True, skipped=12)))[0].endswith("behind: 12 windows skipped")


def test_the_headline_tells_of_silence_until_something_comes():
    board = board_of(beat(), verdict())
    assert drawn(board, 7.0)[0] == "nothing heard for 7 s, still trying …"
    board.update(beat(seq=2), 7.5)
    assert drawn(board, 8.0)[0].startswith("1 calls")


@pytest.mark.parametrize("height", [4, 10, 24])
@pytest.mark.parametrize("width", [80, 120])
def test_what_does_not_fit_is_counted(height: int, width: int):
    board = board_of(beat(overload=True, windows=123_456, skipped=1234), *(verdict(f"call-{n}") for n in range(50)))
    lines = drawn(board, 0.0, height, width)
    assert len(lines) == height
    assert lines[-1] == f"… and {50 - (height - 3)} more"


def test_what_fits_is_not_counted():
    board = board_of(*(verdict(f"call-{n}") for n in range(7)))
    assert len(calls(board, 0.0, 10)) == 7
    assert "more" not in drawn(board, 0.0, 10)[-1]


def test_a_long_stream_id_leaves_the_verdict_to_be_read():
    board = board_of(verdict("x" * 128, state="spoof"))
    (row,) = drawn(board, width=80)[2:]
    assert "spoof" in row
    assert "0.25" in row


# -- pieces ----------------------------------------------------------------------------------------------------------


def test_the_sparkline_is_high_for_spoof_and_low_for_bona_fide():
    assert sparkline([-5.0, -99.0]) == "██"
    assert sparkline([5.0, 99.0]) == "▁▁"
    assert sparkline([4.9, 3.0, 1.0, 0.0, -1.0, -3.0, -4.9]) == "▁▂▄▅▅▇█"


def test_the_sparkline_has_a_dot_where_too_little_was_heard():
    assert sparkline([None, 0.0, None]) == "·▅·"
    assert sparkline([]) == ""


def test_a_verdict_as_a_line():
    assert line(verdict(seq=2, state="spoof", skipped=1)) == (
        "    6.0 s  call/0  spoof      P(spoof) 0.250  rolling +2.50  LLR +1.50  speech 3.0 s  lag 12 ms  skipped 1"
    )


def test_a_verdict_without_speech_as_a_line():
    text = line(verdict(state="listening", llr=None))
    assert "P(spoof) –" in text
    assert "too little speech" in text


def test_events_as_lines():
    assert line(Event("state", "call", 1, 12.0, {"from": "bonafide", "to": "spoof"})) == (
        "   12.0 s  call/1  state  from=bonafide to=spoof"
    )
    assert line(Event("resumed", "call", None, 3.25, {})) == "    3.2 s  call  resumed"
    assert line(Event("close", "call", None, 3.25, {"states": ["spoof"], "reason": "end"})).endswith(
        "close  reason=end"
    )


def test_a_heartbeat_as_a_line():
    assert line(beat()) == "hb 1 streams 30 windows 0 skipped"
