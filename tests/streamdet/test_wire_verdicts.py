"""Verdict messages: what is built is read back, and whatever comes is a record or one line that says what is wrong."""

import json
from typing import get_type_hints

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamdet.errors import ProtocolError
from streamdet.records import Event, Heartbeat, Verdict
from streamdet.wire import verdicts

VERDICT = Verdict(
    stream="a",
    channel=1,
    opened="0123456789ab",
    seq=3,
    start_s=0.0,
    end_s=4.0,
    speech_s=2.5,
    total_speech_s=2.5,
    llr=None,
    rolling_llr=0.5,
    p_spoof=None,
    state="listening",
    state_since_s=0.0,
    skipped=0,
    lag_ms=12.5,
    transit_ms=None,
    model="level-0123456789ab",
)
EVENT = Event("gap", "a", None, 1.5, {"seconds": 0.5})
BEAT = Heartbeat(epoch="e", seq=0, streams=1, tracks=2, windows=3, skipped=0, lag_ms_p99=None, overload=False)

numbers = st.floats(allow_nan=False, allow_infinity=False)


def some(kind: type, **fields: st.SearchStrategy) -> st.SearchStrategy:
    """Any record of a kind, with numbers that JSON has."""
    hints = get_type_hints(kind)
    floats = {name: numbers for name, hint in hints.items() if hint is float}
    unknown = {name: st.none() | numbers for name, hint in hints.items() if hint == float | None}
    return st.builds(kind, **{**floats, **unknown, **fields})


details = st.dictionaries(st.text(), st.none() | st.integers(0, 9) | st.text())
some_records = some(Verdict) | some(Event, detail=details) | some(Heartbeat)


@given(some_records)
def test_a_built_message_reads_back_to_the_same_record(record):
    assert verdicts.parse(verdicts.build(record)) == record


@given(st.lists(st.binary(max_size=64), max_size=3))
@example([b"", b"{}"])
@example([b"h", b"[" * 5000])
def test_any_parts_give_a_record_or_one_line(parts):
    try:
        found = verdicts.parse(parts)
    except ProtocolError as error:
        found = str(error)
    assert isinstance(found, Verdict | Event | Heartbeat) or "\n" not in found


@pytest.mark.parametrize(
    ("record", "topic", "kind"),
    [(VERDICT, b"v.a.1", "verdict"), (EVENT, b"e.a", "gap"), (BEAT, b"hb", "hb")],
)
def test_each_record_has_its_topic_and_type(record, topic, kind):
    first, body = verdicts.build(record)
    assert first == topic
    assert json.loads(body)["type"] == kind


def test_what_is_unknown_is_written_as_null_not_left_out():
    fields = json.loads(verdicts.build(VERDICT)[1])
    assert set(fields) == {"type", *Verdict.__struct_fields__}
    assert (fields["llr"], fields["p_spoof"], fields["transit_ms"], fields["snapshot"]) == (None, None, None, False)


def test_fields_of_a_later_version_are_ignored():
    first, body = verdicts.build(VERDICT)
    later = json.dumps({**json.loads(body), "mood": "good"}).encode()
    assert verdicts.parse([first, later]) == VERDICT


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ([b"v.a.0"], "message parts: 1, expected 2: topic, JSON"),
        ([b"x", b"{}"], "topic: b'x', expected v.<stream>.<channel>, e.<stream>, daemon or hb"),
        ([b"v.a.0", b"{"], "message: b'{', expected the JSON of Verdict"),
        ([b"e.a", b"{}"], "message: b'{}', expected the JSON of Event"),
        ([b"hb", b'{"epoch":"\xff"}'], "message: "),
        ([b"hb", b'{"type":"hb","later":' + b"[" * 5000], "message: "),
        ([b"v", rb'{"type":"a\nb"}'], "message: b'"),
        ([b"hb", b"\xff"], r"message: b'\xff', expected the JSON of Heartbeat"),
    ],
)
def test_a_message_that_is_none_of_ours_is_told_by_what_was_expected(parts, line):
    with pytest.raises(ProtocolError) as caught:
        verdicts.parse(parts)
    assert str(caught.value).startswith(line)
    assert str(caught.value).isprintable()
