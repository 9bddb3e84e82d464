"""Every input that a fuzzer kept, once more, as plain tests: what was found once stays mended. No atheris needed."""

from pathlib import Path

import pytest

from tests.fuzz import keep, targets

ALL = [(target, file) for target in targets.TARGETS for file in sorted((keep.CORPUS / target).glob("*"))]
# Together; made by fuzzing, so nobody reads them.
MOST_FILES, MOST_BYTES = 200, 200_000


@pytest.mark.parametrize(("target", "file"), ALL, ids=lambda value: value.name if isinstance(value, Path) else value)
def test_a_kept_input_breaks_no_promise(target, file):
    targets.TARGETS[target](file.read_bytes())


@pytest.mark.parametrize("target", targets.TARGETS)
def test_good_inputs_are_good(target, monkeypatch):
    """Fuzzing begins with them, so one that is refused would begin nowhere."""
    refused = []
    monkeypatch.setattr(targets, "told", lambda error: refused.append(error) or str(error))
    for seed in targets.small_seeds()[target]:
        targets.TARGETS[target](seed)
    assert refused == []


@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_parser_that_breaks_on_good_input_fails_its_target(target):
    """The control of all of these: a broken parser must not pass."""

    def bug(_):
        raise KeyError("planted")

    seed = targets.small_seeds()[target][0]
    with targets.broken(target, bug), pytest.raises(KeyError, match="planted"):
        targets.TARGETS[target](seed)


def test_the_corpus_is_small_and_every_target_has_one():
    sizes = [file.stat().st_size for _, file in ALL]
    assert len(sizes) <= MOST_FILES
    assert sum(sizes) <= MOST_BYTES
    assert {target for target, _ in ALL} == set(targets.TARGETS)
    assert {folder.name for folder in keep.CORPUS.iterdir()} == set(targets.TARGETS)


def test_only_inputs_that_reach_something_new_are_kept():
    good = targets.small_seeds()["header"][0]
    assert keep.smallest("header", [b"{}", b"{", b"{ ", b"[", good]) == [b"[", b"{}"]
