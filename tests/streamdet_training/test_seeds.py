"""Several seeds, one table."""

import json
import re

import pytest

from streamdet.errors import UsageError
from streamdet_training import recipe, run, seeds


def write(out, seed, eer, cllr):
    folder = out / f"seed-{seed}"
    folder.mkdir(parents=True)
    saved = {"steps": [4, 2], "dev_eer": eer, "dev_min_cllr": cllr}
    found = {
        "seed": seed,
        "saved": saved,
        "wall_s": 10.0 * seed,
        "peak_memory_bytes": 2e6,
        "trainable_parameters": 1234,
    }
    (folder / run.METRICS).write_text(json.dumps(found | {"peak_memory_bytes": 2_000_000}))


@pytest.fixture
def three(tmp_path):
    for row in ((1, 0.2, 0.6), (2, 0.1, 0.5), (3, 0.3, 0.4)):
        write(tmp_path, *row)
    return tmp_path


def test_mean_deviation_and_best_by_hand(tiny, three):
    found = seeds.summary(tiny.recipe(), three, [1, 2, 3])
    assert found.mean == pytest.approx({"dev_eer": 0.2, "dev_min_cllr": 0.5, "wall_s": 20})
    assert found.deviation == pytest.approx({"dev_eer": 0.1, "dev_min_cllr": 0.1, "wall_s": 10})
    assert found.best == 2
    assert seeds.summary(tiny.recipe(train={"select": "min_cllr"}), three, [1, 2, 3]).best == 3


def test_the_page_has_a_row_a_seed_then_mean_and_best(tiny, three):
    text = seeds.page(seeds.summary(tiny.recipe(), three, [1, 2, 3]))
    assert "| 1 | 4 2 | 20.00 | 0.600 | 10 | 2 |" in text
    assert "| mean |  | 20.00 ± 10.00 | 0.500 ± 0.100 | 20 |  |" in text
    assert "| best: 2 | 4 2 | 10.00 | 0.500 | 20 | 2 |" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {7}


@pytest.mark.parametrize("text", ["", "1", "1,1", "1,x", "1,-2", "1.5,2"])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(UsageError, match=re.escape(f"--seeds: {text!r}, expected two or more")):
        seeds.numbers(text)


def test_each_seed_is_a_run_and_resuming_passes_over_what_is_done(tiny, manifest_csv, tmp_path):
    how, out = tiny.recipe(), tmp_path / "runs"
    first = seeds.train_seeds(how, out, [3, 5], data=[manifest_csv])
    assert [run.load_recipe(out / f"seed-{seed}").seed for seed in (3, 5)] == [3, 5]
    assert [row.seed for row in first.seeds] == [3, 5]
    heads = [(out / f"seed-{seed}" / run.HEAD).read_bytes() for seed in (3, 5)]
    assert heads[0] != heads[1]
    kept = json.loads((out / seeds.JSON).read_text())
    assert kept["mean"] == first.mean
    assert (out / seeds.PAGE).read_text() == seeds.page(first)
    more = seeds.train_seeds(how, out, [3, 5, 6], data=[manifest_csv], resume=True)
    assert more.seeds[:2] == first.seeds  # times and all
    with pytest.raises(UsageError, match="--resume"):
        seeds.train_seeds(how, out, [3, 5], data=[manifest_csv])


def test_a_seed_reaches_the_recipe_of_the_backbone(tiny, manifest_csv, tmp_path, monkeypatch):
    """A replicate whose backbone were always the same one would vary too little."""
    before = tiny.recipe(name="first", mode="full")
    monkeypatch.setattr(recipe, "load", lambda _name: before)
    how = tiny.recipe(backbone={"config": None, "recipe": "first.toml"})
    seeds.train_seeds(how, tmp_path / "runs", [3, 5], data=[manifest_csv])
    assert [run.load_recipe(tmp_path / "runs" / f"seed-{seed}" / run.FIRST).seed for seed in (3, 5)] == [3, 5]
