"""docs/paper.md says what the code counts, and its command works up to where weights and a corpus are needed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from streamdet_training import backbones, model, recipe, run, train
from streamdet_training.recipe import Backbone, Recipe

PAGE = Path(__file__).parents[2] / "docs" / "paper.md"
RANKS = (1, 2, 4, 8, 16, 32)
MATRICES = {
    "q": ["q_proj"],
    "v": ["v_proj"],
    "q, v": ["q_proj", "v_proj"],
    "q, k, v, o": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "feed-forward": ["intermediate_dense", "output_dense"],
    "q, k, v, o, feed-forward": [
        *("q_proj", "k_proj", "v_proj", "out_proj"),
        *("intermediate_dense", "output_dense"),
    ],
}


def counted(targets: list[str], rank: int) -> int:
    lora = {"rank": rank, "targets": targets}
    how = Recipe.model_validate({"name": "x", "backbone": {"config": backbones.XLSR_300M}, "lora": lora})
    with torch.device("meta"):
        return model.count(model.build(how)).backbone_trainable


def told() -> dict[str, list[int]]:
    """The page's table: matrices -> a number for each rank."""
    text = PAGE.read_text("utf-8").partition("## (a)")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    assert [int(cell.removeprefix("r = ")) for cell in rows[0][1:]] == list(RANKS)
    return {row[0]: [int(cell.replace(",", "")) for cell in row[1:]] for row in rows[1:]}


@pytest.mark.parametrize("matrices", MATRICES)
def test_the_page_tells_what_is_counted(matrices):
    assert told()[matrices] == [counted(MATRICES[matrices], rank) for rank in RANKS]


def test_the_page_has_no_other_rows():
    assert told().keys() == MATRICES.keys()


def test_the_whole_of_xlsr_is_what_the_page_says():
    how = recipe.load("xlsr_lora.toml").model_copy(update={"backbone": Backbone(config=backbones.XLSR_300M)})
    with torch.device("meta"):
        found = model.count(model.build(how))
    text = PAGE.read_text("utf-8")
    assert f"{found.total - found.trainable:,} in the backbone" in text
    assert f"our head of {found.head:,}" in text
    assert f"1 in {found.total / found.trainable:.0f} of all" in text


@pytest.fixture
def la(tmp_path) -> Path:
    """Eight clips in the layout of ASVspoof 2019 LA, whose train and dev share systems as they do there."""
    root, rng = tmp_path / "LA", np.random.default_rng(1)
    (root / "ASVspoof2019_LA_cm_protocols").mkdir(parents=True)
    for split, suffix, letter in (("train", "trn", "T"), ("dev", "trl", "D")):
        folder = root / f"ASVspoof2019_LA_{split}" / "flac"
        folder.mkdir(parents=True)
        rows = []
        for number in range(4):
            name, spoof = f"LA_{letter}_{1000 + number}", number % 2
            soundfile.write(folder / f"{name}.flac", 0.1 * rng.standard_normal(16_000), 16_000)
            rows.append(f"LA_{letter}{number:03} {name} - {'A01 spoof' if spoof else '- bonafide'}")
        protocol = root / "ASVspoof2019_LA_cm_protocols" / f"ASVspoof2019.LA.cm.{split}.{suffix}.txt"
        protocol.write_text("\n".join(rows) + "\n")
    return root


def test_the_real_thing_runs_but_for_weights_and_corpus(tiny, la, tmp_path):
    """xlsr_lora.toml as it ships; only sizes, steps and the place of the weights are others."""
    model.load_backbone(tiny.recipe().backbone).save_pretrained(tmp_path / "weights")
    paper = recipe.load("xlsr_lora.toml")
    short = {"steps": 2, "check_every": 2, "batch": 4, "crop_s": (0.5,), "workers": 0, "warmup": 1, "precision": "no"}
    how = paper.model_copy(
        update={
            "backbone": Backbone(source=str(tmp_path / "weights")),
            "train": paper.train.model_copy(update=short),
            "window": paper.window.model_copy(update={"min_speech_s": 0.0}),
        }
    )
    out = train.train(how, tmp_path / "run", data=[f"asvspoof2019_la:{la}"])
    found = json.loads((out / run.METRICS).read_text())
    assert found["clips"] == {"train": 4, "dev": 4}
    assert found["backbone_trainable_parameters"] == 2 * 2 * 2 * 16 * paper.lora.rank
    assert not (out / run.BACKBONE).exists()  # it is where the recipe says
    with torch.inference_mode():
        assert model.merge(run.load_run(out))(torch.zeros(2, 8000)).isfinite().all()


def test_the_page_gives_that_command():
    assert re.search(r"streamdet train xlsr_lora\.toml --data asvspoof2019_la:", PAGE.read_text("utf-8"))


def test_the_queue_of_runs_keeps_to_its_recipe():
    """training/paper.py changes what a row is about and nothing else."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("paper", PAGE.parents[1] / "training" / "paper.py")
    paper = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(paper)
    rows = dict(paper.settings())
    assert {row["mode"] for row in rows.values()} == {"lora", "full", "head"}
    assert len(rows) == 2 + len(paper.RANKS) + len(paper.MATRICES) - 1
    base = recipe.load("paper_small.toml")
    how = paper.changed(3, 0.5, Path("b"), rows["lora-qkvo-r4"])
    assert (how.seed, how.train.lr, how.backbone.source, how.lora.rank, how.lora.alpha) == (3, 0.5, "b", 4, 8)
    assert how.lora.targets == ("q_proj", "k_proj", "v_proj", "out_proj")
    assert how.train.model_copy(update={"lr": base.train.lr}) == base.train
    assert (how.augment, how.window, how.head) == (base.augment, base.window, base.head)
