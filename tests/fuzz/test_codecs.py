"""Good inputs that were tampered with, and any bytes at all, keep every parser's promises (`targets.py`)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdet.wire.pcm import PcmParser
from tests.fuzz import targets

SEEDS = targets.small_seeds()
WORDS = st.sampled_from(targets.words()) | st.binary(max_size=4)
# Where, how much goes, what comes in its place.
EDITS = st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 20), WORDS), max_size=4)


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, length, new in edits:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + length :]
    return data


def check(target: str, number: int, edits: list[tuple[int, int, bytes]]) -> None:
    targets.TARGETS[target](edited(SEEDS[target][number % len(SEEDS[target])], edits))


@pytest.mark.parametrize("target", targets.TARGETS)
@given(st.integers(0, 9), EDITS)
@settings(max_examples=200)
def test_a_good_input_that_was_tampered_with_breaks_no_promise(target, number, edits):
    check(target, number, edits)


@pytest.mark.parametrize("target", targets.TARGETS)
@given(st.binary(max_size=200))
def test_any_bytes_break_no_promise(target, data):
    targets.TARGETS[target](data)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_parser_that_stumbles_over_one_letter_is_found_out(target):
    """The control: input with a tilde ends in an exception that nobody declared."""

    def bug(value: bytes | str) -> None:
        if (b"~" if isinstance(value, bytes) else "~") in value:
            raise KeyError("planted")

    tampered = given(
        st.integers(0, 9), st.lists(st.tuples(st.integers(0, 1500), st.just(0), st.just(b"~")), min_size=1)
    )
    with targets.broken(target, bug), pytest.raises(KeyError, match="planted"):
        tampered(settings(max_examples=500, report_multiple_bugs=False)(check_of(target)))()


def check_of(target: str):
    def one(number: int, edits: list[tuple[int, int, bytes]]) -> None:
        check(target, number, edits)

    return one


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_a_reading_that_depends_on_where_it_is_cut_is_found_out(pieces):
    """The control: a parser that forgets a byte with each read gives other samples for other cuts."""
    data = b"".join(pieces)
    whole, cut = targets.pcm_outcome([data], targets.LISTENERS[6]), targets.pcm_outcome(pieces, targets.LISTENERS[6])
    assert whole[:2] == cut[:2]
    if len(pieces) > 1 and min(map(len, pieces)) > 1 and not data.startswith((b"S", b"R")):
        feed = PcmParser.feed
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PcmParser, "feed", lambda parser, piece: feed(parser, piece[:-1]))
            assert targets.pcm_outcome(pieces, targets.LISTENERS[6])[1] != whole[1]
