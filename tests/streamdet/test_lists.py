"""Lists on a command line: what they say, or the option and the word that are wrong."""

import re

import pytest

from streamdet.errors import UsageError
from streamdet.lists import numbers, one_of, some_of


def test_words_and_numbers_keep_their_order():
    assert one_of("--way", "tcp", ("tcp", "unix")) == "tcp"
    assert some_of("--ways", "unix, tcp", ("tcp", "unix")) == ["unix", "tcp"]
    assert numbers("--batches", "16,1, 4", 1, 16) == [16, 1, 4]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("smoke", "--ways: 'smoke', expected one of tcp, unix"),
        ("tcp,", "--ways: '', expected one of tcp, unix"),
        ("tcp,tcp", "--ways: 'tcp,tcp', expected each only once"),
    ],
)
def test_a_word_that_is_none_of_them_is_named(text, complaint):
    with pytest.raises(UsageError, match=f"^{re.escape(complaint)}$"):
        some_of("--ways", text, ("tcp", "unix"))


@pytest.mark.parametrize("text", ["", "x", "0", "17", "1.5", "-1", "²", "1,,2"])
def test_what_is_no_number_in_range_is_named(text):
    with pytest.raises(UsageError, match=re.escape(f"--batches: {text!r}, expected whole numbers from 1 to 16")):
        numbers("--batches", text, 1, 16)
