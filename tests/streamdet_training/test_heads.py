"""Heads: from feature frames to one score."""

from typing import get_args

import pytest
import torch

from streamdet.errors import ConfigError
from streamdet_training import heads, recipe

KINDS = tuple(heads.HEADS)


def make(kind="pool", width=16, *, dropout=0.0, hidden=4, **last):
    torch.manual_seed(1)
    return heads.make(recipe.Head(kind=kind, hidden=hidden, dropout=dropout), width, **last).eval()


def frames(count=3, length=20, width=16, seed=2):
    return torch.randn(count, length, width, generator=torch.Generator().manual_seed(seed))


def size(module):
    return sum(values.numel() for values in module.parameters())


# -- all of them -----------------------------------------------------------------------------------------------------


def test_a_recipe_can_name_every_head():
    assert get_args(recipe.Head.model_fields["kind"].annotation) == KINDS


@pytest.mark.parametrize("width", [16, 24, 144, 192])
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_scores_each_window_by_itself(kind, width):
    head = make(kind, width)
    scores = head([frames(width=width)])
    assert scores.shape == (3,)
    assert torch.allclose(scores[1:2], head([frames(width=width)[1:2]]), atol=1e-6)
    assert head([frames(length=1, width=width)]).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_a_head_is_of_use(kind):
    head = make(kind, 64).train()
    head([frames(width=64)]).sum().backward()
    still = {name for name, values in head.named_parameters() if values.grad is None or not values.grad.any()}
    # All attention scores shift alike with the last bias, and the softmax takes that away.
    assert still <= {"attention.2.bias"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_head_keeps_running_statistics(kind):
    """An average of weights would not fit them."""
    assert list(make(kind).buffers()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_constant_features_have_a_gradient(kind):
    constant = torch.ones(2, 5, 16, requires_grad=True)
    make(kind)([constant]).sum().backward()
    assert constant.grad.isfinite().all()


# -- each ------------------------------------------------------------------------------------------------------------


def test_pooling_takes_weighted_mean_and_deviation():
    head = make("pool", 2)
    with torch.no_grad():
        head.attention[2].weight.zero_()  # equal weights
        head.linear.weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
        head.linear.bias.zero_()
    two = torch.tensor([[[1.0, 4.0], [3.0, 10.0]]])  # means 2 and 7, deviations 1 and 3
    assert head([two]).item() == pytest.approx(2 + 70 + 100 + 3000)


def test_the_mean_is_the_mean():
    head = make("mean", 2)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 10.0]]))
        head.linear.bias.fill_(0.5)
    assert head([torch.tensor([[[1.0, 4.0], [3.0, 10.0]]])]).item() == pytest.approx(2 + 70 + 0.5)


def test_the_nested_head_is_slim():
    assert size(make("nested", 1024)) < 200_000
    assert size(make("nested", 144)) < 10_000


def test_a_group_of_the_nested_head_hears_those_before_it_and_none_after():
    """Eight groups of two channels: what the fifth becomes hangs on the first five."""
    head = make("nested")
    audio = frames().requires_grad_()
    mean = head.pool(audio)[:, :16]
    mean[:, 8:10].sum().backward()
    heard = audio.grad.abs().sum((0, 1)) > 0
    assert heard.tolist() == [True] * 10 + [False] * 6


def test_the_nested_head_hears_the_order_in_time():
    """Pooling alone cannot."""
    head, shuffled = make("nested"), frames()[:, torch.randperm(20, generator=torch.Generator().manual_seed(3))]
    assert (head([frames()]) - head([shuffled])).abs().max() > 1e-3
    assert torch.allclose(make("mean")([frames()]), make("mean")([shuffled]), atol=1e-6)


def test_a_width_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"head\.kind: 'nested', expected a backbone whose width, here 20, divides"):
        make("nested", 20)


# -- the sum over layers ---------------------------------------------------------------------------------------------


def test_the_sum_begins_as_the_mean_of_normalised_states():
    one, two = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[50.0, 10.0]]])
    layers = heads.LayerSum(2)
    assert torch.allclose(layers([one, two]), torch.zeros(1, 1, 2), atol=1e-4)  # (-1, 1) and (1, -1)
    with torch.no_grad():
        layers.weights.copy_(torch.tensor([3.0, 1.0]).log())  # softmax: 3/4 and 1/4
    assert torch.allclose(layers([one, two]), torch.tensor([[[-0.5, 0.5]]]), atol=1e-4)


def test_the_size_of_a_state_does_not_matter():
    layers, states = heads.LayerSum(2), [frames(), frames(seed=5)]
    assert torch.allclose(layers(states), layers([states[0], 100 * states[1]]), atol=1e-4)


# -- cosines ---------------------------------------------------------------------------------------------------------


def test_a_cosine_is_that_of_the_angle():
    layer = heads.CosineLayer(2, 2, 1)
    with torch.no_grad():
        layer.embedding.weight.copy_(torch.eye(2))
        layer.embedding.bias.zero_()
        layer.weight.copy_(torch.tensor([[5.0, 0.0]]))
    given = torch.tensor([[2.0, 0.0], [3.0, 3.0], [0.0, 1.0], [-7.0, 0.0]])
    assert layer(given)[:, 0].tolist() == pytest.approx([1, 0.5**0.5, 0, -1], abs=1e-6)


def test_of_two_classes_it_is_the_difference():
    layer = heads.CosineLayer(2, 2, 2)
    with torch.no_grad():
        layer.embedding.weight.copy_(torch.eye(2))
        layer.embedding.bias.zero_()
        layer.weight.copy_(torch.tensor([[5.0, 0.0], [0.0, 2.0]]))  # bona fide to the right, spoof upwards
    given = torch.tensor([[4.0, 0.0], [0.0, 4.0], [1.0, 1.0], [3.0, -3.0]])
    assert layer(given)[:, 0].tolist() == pytest.approx([1, -1, 0, 2**0.5], abs=1e-6)


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_head_can_end_in_cosines(kind, classes):
    scores = make(kind, classes=classes)([frames(count=50)])
    assert scores.shape == (50,)
    assert scores.abs().max() <= classes + 1e-5


# -- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", heads.BLOCKWISE)
@pytest.mark.parametrize("lengths", [(20,), (10, 10), (1, 7, 12)])
def test_sums_of_blocks_merge_to_what_pooling_all_their_frames_gives(kind, lengths):
    head = make(kind)
    features = 3 * frames()
    sums = torch.stack([head.sums(block) for block in features.split(lengths, 1)], 1)
    assert sums.shape == (3, len(lengths), 2 + 2 * 16)
    assert torch.allclose(head.merge(sums), head.pool(features), atol=1e-5)


@pytest.mark.parametrize("kind", heads.BLOCKWISE)
def test_an_absent_block_weighs_nothing_wherever_it_stands(kind):
    head = make(kind)
    sums = torch.stack([head.sums(block) for block in frames().split((8, 12), 1)], 1)
    absent = torch.zeros_like(sums[:, :1])
    absent[..., 0] = -1e30
    for padded in ([absent, sums], [sums, absent], [sums[:, :1], absent, sums[:, 1:]]):
        assert torch.equal(head.merge(torch.cat(padded, 1)), head.merge(sums))


def test_logits_of_any_size_merge_to_numbers():
    head = make("pool")
    with torch.no_grad():
        head.attention[2].weight.mul_(1e4)
    sums = torch.stack([head.sums(block) for block in frames().split((8, 12), 1)], 1)
    assert sums.isfinite().all()
    assert torch.allclose(head.merge(sums), head.pool(frames()), atol=1e-4)
