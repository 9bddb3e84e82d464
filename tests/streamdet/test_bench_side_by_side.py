"""Recordings as calls at once: the same verdicts as one after the other, and an end whatever happens."""

import numpy as np
import pytest

from streamdet.bench.side_by_side import play
from streamdet.errors import StreamdetError
from streamdet.records import Event, Verdict
from streamdet.replay import replay_samples
from streamdet.scorer import Scorer


@pytest.mark.parametrize("kind", ["tiny_bundle", "block_bundle"])
def test_side_by_side_says_what_one_after_the_other_says(kind, babble, request):
    scorer = Scorer(request.getfixturevalue(kind), provider="cpu", threads=2, batch_max=4)
    recordings = {
        "a": (babble[:90_000], 16_000),
        "short": (babble[:3_000], 16_000),  # it closes before any other has a window
        "b": (0.5 * babble[20_000:100_000], 8_000),
        "c": (0.3 * babble, 16_000),
    }
    said = play(recordings, scorer, 4)
    for name, (samples, rate_hz) in recordings.items():
        alone = replay_samples(name, samples[:, None], rate_hz, scorer.manifest, scorer.score)
        expected = [(it.end_s, it.llr) for it in alone if isinstance(it, Verdict)]
        found = [(it.end_s, it.llr) for it in said if isinstance(it, Verdict) and it.stream == name]
        assert [end_s for end_s, _ in found] == [end_s for end_s, _ in expected]
        assert np.allclose([llr for _, llr in found], [llr for _, llr in expected], atol=1e-4)
    assert sum(isinstance(it, Event) and it.type == "close" for it in said) == 4


def test_a_model_that_breaks_ends_it(tiny_bundle, babble, monkeypatch):
    scorer = Scorer(tiny_bundle, provider="cpu", threads=1, batch_max=4)

    def broken(*_parts):
        raise StreamdetError("the model is gone")

    monkeypatch.setattr(scorer, "run", broken)
    with pytest.raises(StreamdetError, match="the model is gone"):
        play({"a": (babble, 16_000), "b": (babble, 16_000)}, scorer, 4)
