"""Checkpoints: what goes in comes out, and what does not belong is refused."""

import pickle
import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from streamdet.errors import DataError, StreamdetError
from streamdet_training import checkpoint, durable
from streamdet_training.checkpoint import Check, Progress
from streamdet_training.data import Clip

PROGRESS = Progress(data="d", frozen="f", history=[Check(2, 0.7, 0.5, 0.9, 10.0, 1.0)], kept=[(0.5, 0.9, 2)])
CPU = torch.device("cpu")


def test_a_checkpoint_comes_back(tmp_path):
    parts = {"weights": {"a.b": torch.randn(2, 3)}, "average": {"a.b": torch.randn(2, 3), "n": torch.tensor(5)}}
    checkpoint.save(tmp_path / "c", parts, PROGRESS)
    found, progress = checkpoint.load(tmp_path / "c")
    assert progress == PROGRESS
    assert found.keys() == parts.keys()
    assert all(torch.equal(found[part][name], value) for part, all_ in parts.items() for name, value in all_.items())


def test_random_states_come_back():
    def draw():
        return random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.rand(3).tolist()

    draw()  # an odd number of normals leaves one in store
    states = checkpoint.random_state(CPU)
    expected = [draw() for _ in range(700)]
    many = {name: torch.stack([torch.zeros_like(state), state]) for name, state in states.items()}  # of two processes
    checkpoint.restore_random({name: both[1] for name, both in many.items()}, CPU)
    assert [draw() for _ in range(700)] == expected


def test_the_optimiser_comes_back():
    def step(weights, optimiser):
        optimiser.zero_grad()
        weights.square().sum().backward()
        optimiser.step()

    one, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    first, second = (torch.optim.AdamW([weights], lr=0.1) for weights in (one, other))
    step(one, first)
    with torch.no_grad():
        other.copy_(one)
    state = {key: value.clone() for key, value in checkpoint.optimiser_state(first, ["w"]).items()}
    checkpoint.restore_optimiser(second, ["w"], state)
    for weights, optimiser in ((one, first), (other, second)):
        step(weights, optimiser)
    assert torch.equal(one, other)


@pytest.mark.parametrize("content", [b"", b"\0" * 50, pickle.dumps({"a": 1})])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(DataError, match="checkpoint"):
        checkpoint.load(tmp_path / "c")


def test_half_a_checkpoint_is_refused(tmp_path):
    checkpoint.save(tmp_path / "c", {"weights": {"a": torch.randn(100)}}, PROGRESS)
    whole = (tmp_path / "c").read_bytes()
    (tmp_path / "c").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="expected one that"):
        checkpoint.load(tmp_path / "c")


def test_other_tensors_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "c")
    with pytest.raises(DataError, match="checkpoint format: None, expected streamdet-checkpoint-1"):
        checkpoint.load(tmp_path / "c")


# -- is it the same run? ---------------------------------------------------------------------------------------------


def test_another_recipe_is_named_by_its_first_key(tiny):
    begun = tiny.recipe()
    checkpoint.refuse_other_recipe(begun, tiny.recipe(data={"path": "elsewhere.csv"}, train={"workers": 3}))
    with pytest.raises(DataError, match=r"recipe train\.lr: 0\.5, expected 0\.0001, with which the run began"):
        checkpoint.refuse_other_recipe(begun, tiny.recipe(train={"lr": 0.5, "warmup": 7}))
    other = {**tiny.tables()["backbone"]["config"], "hidden_size": 32}
    with pytest.raises(DataError, match=r"recipe backbone\.config\.hidden_size: 32, expected 16"):
        checkpoint.refuse_other_recipe(begun, tiny.recipe(backbone={"config": other}))
    with pytest.raises(DataError, match=r"recipe backbone\.source: 'x', expected None"):
        checkpoint.refuse_other_recipe(begun, tiny.recipe(backbone={"config": None, "source": "x"}))


def test_clips_are_known_by_names_and_labels_wherever_they_lie(tmp_path):
    clip = Clip(path=tmp_path / "a.wav", label="spoof")
    moved, other = Clip(path=tmp_path / "b" / "a.wav", label="spoof"), Clip(path=tmp_path / "a.wav", label="bonafide")
    known = checkpoint.of_clips({"train": [clip], "dev": []})
    assert known == checkpoint.of_clips({"train": [moved], "dev": []})
    assert known not in (checkpoint.of_clips({"train": [other], "dev": []}), checkpoint.of_clips({"dev": [clip]}))


def test_weights_are_known_by_name_and_value():
    known = checkpoint.of_weights({"a": torch.ones(2), "b": torch.zeros(())})
    assert known == checkpoint.of_weights({"b": torch.zeros(()), "a": torch.ones(2)})
    assert known != checkpoint.of_weights({"a": torch.ones(2), "b": torch.tensor(1e-7)})
    assert known != checkpoint.of_weights({"a": torch.ones(2), "c": torch.zeros(())})


# -- which check is better -------------------------------------------------------------------------------------------


def test_checks_are_ordered_by_what_is_selected_and_then_by_the_other():
    early, sharp, flat = (
        Check(step, 0, *found, 0, 0) for step, found in ((1, (0.1, 0.4)), (2, (0.1, 0.4)), (3, (0.2, 0.3)))
    )
    best = {select: min((flat, sharp, early), key=lambda check: check.rank(select)) for select in ("eer", "min_cllr")}
    assert best == {"eer": early, "min_cllr": flat}


# -- writing ---------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    durable.replace_text(tmp_path / "a", "old")

    def breaks(new):
        new.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StreamdetError, match=r"with room in it \(No space left on device\)"), durable.saving(tmp_path):
        durable.replace(tmp_path / "a", breaks)
    assert (tmp_path / "a").read_text() == "old"
