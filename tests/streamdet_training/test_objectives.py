"""Objectives, against values worked out by hand and torch's own."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamdet_training import objectives, recipe

KINDS = tuple(objectives.EACH)


def loss(scores, labels, kind="cross_entropy", smoothing=0.0, **changes):
    how = recipe.Loss(kind=kind, **changes)
    return objectives.loss(torch.tensor(scores, dtype=torch.float64), torch.tensor(labels), how, smoothing)


def softplus(x):
    return math.log1p(math.exp(x))


def test_a_recipe_can_name_every_loss():
    assert get_args(recipe.Loss.model_fields["kind"].annotation) == KINDS


def test_cross_entropy_by_hand():
    """p = 1/4 for bona fide: ln 4; p = 3/4 for spoof's truth: ln 4/3."""
    logit = math.log(1 / 3)
    assert loss([logit, logit], [1.0, 0.0]).item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
    # Smoothing 0.2 moves a target of 1 to 0.9.
    expected = 0.9 * math.log(4) + 0.1 * math.log(4 / 3)
    assert loss([logit], [1.0], smoothing=0.2).item() == pytest.approx(expected)


def test_the_focal_loss_by_hand():
    """p = 3/4 for the truth, either way: (1/4)^2 ln 4/3."""
    logit = math.log(3)
    for score, label in ((logit, 1.0), (-logit, 0.0)):
        assert loss([score], [label], "focal").item() == pytest.approx(math.log(4 / 3) / 16)
        assert loss([score], [label], "focal", gamma=0.0).item() == pytest.approx(loss([score], [label]).item())


def test_one_class_softmax_by_hand():
    """At their scale of 20: bona fide at 0.8 is 0.1 below its margin, spoof at 0.5 is 0.3 above."""
    assert loss([0.8], [1.0], "oc_softmax").item() == pytest.approx(softplus(20 * 0.1))
    assert loss([0.5], [0.0], "oc_softmax").item() == pytest.approx(softplus(20 * 0.3))
    assert loss([0.8, 0.5], [1.0, 0.0], "oc_softmax").item() == pytest.approx((softplus(2) + softplus(6)) / 2)


def test_additive_margin_softmax_is_that_of_two_cosines():
    """The formula as the paper has it, with cosines 0.7 to bona fide and 0.1 to spoof."""
    s, m, bona, spoof = 10.0, 0.2, 0.7, 0.1
    right = -math.log(math.exp(s * (bona - m)) / (math.exp(s * (bona - m)) + math.exp(s * spoof)))
    wrong = -math.log(math.exp(s * (spoof - m)) / (math.exp(s * (spoof - m)) + math.exp(s * bona)))
    assert loss([bona - spoof], [1.0], "am_softmax", scale=s, margin=m).item() == pytest.approx(right)
    assert loss([bona - spoof], [0.0], "am_softmax", scale=s, margin=m).item() == pytest.approx(wrong)


def test_weights_are_those_of_torchs_cross_entropy():
    """As the field trains, with 0.9 for bona fide and 0.1 for spoof."""
    scores, labels = torch.tensor([0.3, -1.2, 2.0, 0.1]), torch.tensor([1, 0, 0, 1])
    logits = torch.stack([torch.zeros(4), scores], 1)
    expected = torch.nn.functional.cross_entropy(logits, labels, weight=torch.tensor([0.1, 0.9]))
    found = objectives.loss(scores, labels.float(), recipe.Loss(bona_fide_weight=0.9))
    assert found.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("kind", KINDS)
@given(score=st.floats(-0.99, 0.99), label=st.sampled_from([0.0, 1.0]))
def test_every_loss_draws_bona_fide_up_and_pushes_spoof_down(kind, score, label):
    scores = torch.tensor([score], dtype=torch.float64, requires_grad=True)
    objectives.loss(scores, torch.tensor([label]), recipe.Loss(kind=kind)).backward()
    assert scores.grad.item() * (1 if label else -1) < 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_far_off_has_a_finite_loss_and_gradient(kind):
    scores = torch.tensor([-1e4, 1e4], requires_grad=True)
    value = objectives.loss(scores, torch.tensor([1.0, 0.0]), recipe.Loss(kind=kind))
    value.backward()
    assert value.isfinite()
    assert scores.grad.isfinite().all()
