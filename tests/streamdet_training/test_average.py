"""Means of weights."""

import pytest
import torch

from streamdet_training.average import Average, Best, in_place


def weights(value, batches=0):
    return {"w": torch.tensor([value, 10 * value]), "batches": torch.tensor(batches)}


def test_the_moving_average_by_hand():
    """The decay is n / (n + 10) at step n, until it reaches the recipe's."""
    weight = torch.tensor([0.0])
    average = Average({"w": weight}, 0.15)
    for value in (1.0, 2.0):
        weight.fill_(value)
        average.update()
    after_one = 1 / 11 * 0 + 10 / 11 * 1
    assert average.averages["w"].item() == pytest.approx(0.15 * after_one + 0.85 * 2)


def test_the_best_are_kept_and_their_mean_is_uniform():
    best = Best(2)
    for step, (measure, value) in enumerate([(0.3, 1.0), (0.1, 2.0), (0.4, 100.0), (0.2, 4.0)]):
        best.offer((measure, 0.0, step), weights(value, batches=step))
    assert best.steps == [1, 3]
    assert best.mean()["w"].tolist() == [3.0, 30.0]
    assert best.mean()["batches"].item() == 1  # a count has no mean


def test_what_is_kept_is_a_copy():
    best, live = Best(1), weights(1.0)
    best.offer((0.1, 0.0, 1), live)
    live["w"].fill_(7)
    assert best.mean()["w"].tolist() == [1.0, 10.0]
    best.mean()["w"].fill_(8)
    assert best.mean()["w"].tolist() == [1.0, 10.0]


def test_one_alone_is_kept_to_the_bit():
    best, value = Best(1), torch.tensor([0.1, 1 / 3])
    best.offer((0.1, 0.0, 1), {"w": value})
    assert torch.equal(best.mean()["w"], value)


def test_values_are_in_place_only_for_a_while():
    live = weights(1.0)
    seen = []

    def breaks():
        with in_place(live, {"w": torch.tensor([5.0, 6.0])}):
            seen.append(live["w"].tolist())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks()
    assert seen == [[5.0, 6.0]]
    assert live["w"].tolist() == [1.0, 10.0]
