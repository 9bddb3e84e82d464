"""Errors as people and logs meet them: one printable line, whatever was put into it."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamdet.errors import LINE_CHARS, SHOWN_CHARS, ConfigError, ProtocolError, StreamdetError, shown


@given(st.text(st.characters(), max_size=3000))
@example("a\nERROR streamdet: something that never happened")
@example("\x1b[2J")
@example("\u202eabc\ud800\u2028")
@example("\0" * LINE_CHARS)
def test_a_message_is_one_printable_line_of_bounded_length(text):
    for error in (StreamdetError(text), ProtocolError.of(text, text, text)):
        assert str(error).isprintable()
        assert len(str(error)) <= LINE_CHARS


@given(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=LINE_CHARS))
def test_an_ordinary_message_is_left_as_it_is(text):
    assert str(ConfigError(text)) == text


def test_a_long_message_keeps_both_its_ends():
    line = str(ConfigError("begin" + "x" * 5000 + "end"))
    assert line.startswith("beginxxx")
    assert line.endswith("xxxend")
    assert len(line) == LINE_CHARS


@pytest.mark.parametrize("depth", [100_000])
def test_a_value_that_python_cannot_write_is_shown_all_the_same(depth):
    nested: list = []
    for _ in range(depth):
        nested = [nested]
    assert shown(10**5000) == "a int too large to show"
    assert shown(nested) == "a list too large to show"
    assert len(shown(["x" * 5000])) == SHOWN_CHARS
    while nested:  # or freeing it would recurse as well
        nested = nested.pop()
