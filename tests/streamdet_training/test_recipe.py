"""Recipes: what is taken, what is refused and with which words."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from streamdet.config import Section
from streamdet.errors import ConfigError, MissingError
from streamdet_training import recipe

NAMES = sorted(file.name for file in recipe.SHIPPED.glob("*.toml"))
MINIMAL = 'name = "x"\n[backbone]\nsource = "y"\n'


def write(folder, text):
    path = folder / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_name_and_a_backbone_are_enough(tmp_path):
    found = recipe.load(write(tmp_path, MINIMAL))
    assert found.mode == "lora"
    assert found.train == recipe.Train()


@pytest.mark.parametrize(
    ("text", "near"),
    [
        (MINIMAL + "[train]\nstepz = 3\n", "train.steps"),
        (MINIMAL + "[lora]\nranks = 3\n", "lora.rank"),
        (MINIMAL + "[augmnet]\nroom = 0.1\n", "augment"),
    ],
)
def test_an_unknown_key_names_the_near_one(tmp_path, text, near):
    with pytest.raises(ConfigError, match=near):
        recipe.load(write(tmp_path, text))


@pytest.mark.parametrize("value", ["[train]\nsteps = 0", "[augment]\nnoise = 1.5", '[data]\nformat = "wav"'])
def test_values_out_of_range_are_refused(tmp_path, value):
    with pytest.raises(ConfigError):
        recipe.load(write(tmp_path, MINIMAL + value))


@pytest.mark.parametrize(
    "line",
    ['codecs = ["speex"]', "codecs = []", "rawboost_algorithms = [9]", "clipping_share = [0.1, 2]", "g711 = 0.3"],
)
def test_what_augmentation_does_not_have_is_refused(tmp_path, line):
    with pytest.raises(ConfigError, match="augment"):
        recipe.load(write(tmp_path, f"{MINIMAL}[augment]\n{line}\n"))


def test_a_folder_of_noises_has_to_exist(tmp_path):
    with pytest.raises(MissingError, match=r"augment\.noise_folder"):
        recipe.load(write(tmp_path, f'{MINIMAL}[augment]\nnoise_folder = "{tmp_path}/none"\n'))


@pytest.mark.parametrize("backbone", ["layers = 2", 'source = "a"\nrecipe = "b"', 'source = "a"\n[backbone.config]\n'])
def test_a_backbone_has_exactly_one_origin(tmp_path, backbone):
    with pytest.raises(ConfigError, match="exactly one of source, recipe and config"):
        recipe.load(write(tmp_path, f'name = "x"\n[backbone]\n{backbone}\n'))


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_is_found_by_name(name):
    found = recipe.load(name)
    manifest = found.draft()
    assert manifest.audio.window_samples == found.window.window_s * found.window.rate_hz
    assert manifest.model.kind == found.window.kind
    if found.backbone.recipe is not None:
        assert found.backbone.recipe in NAMES


def test_there_are_shipped_recipes():
    assert {"starter.toml", "starter_backbone.toml", "xlsr_lora.toml"} <= set(NAMES)


def test_a_file_of_the_same_name_goes_before_the_shipped_one(tmp_path, monkeypatch):
    write(tmp_path, MINIMAL).rename(tmp_path / NAMES[0])
    monkeypatch.chdir(tmp_path)
    assert recipe.load(NAMES[0]).name == "x"


@pytest.mark.parametrize("name", ["stater.toml", "nowhere/starter.toml"])
def test_a_missing_recipe_lists_the_shipped_ones(name):
    with pytest.raises(MissingError) as caught:
        recipe.load(name)
    assert all(shipped in str(caught.value) for shipped in NAMES)


# -- docs ------------------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def keys(section=recipe.Recipe, prefix=""):
    """Every key with its field, tables' keys after a dot."""
    for name, field in section.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)
        tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        for table in tables:
            yield from keys(table, f"{prefix}{name}.")
        if field.annotation not in tables:  # a table that may be absent has a row of its own too
            yield prefix + name, field


def row(name, field):
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    shown = "required" if field.is_required() else "not set" if default is None else f"`{json.dumps(default)}`"
    return f"| `{name}` | {shown} | {field.description} |"


def missing_rows(text):
    return [row(*key) for key in keys() if row(*key) not in text.splitlines()]


def test_every_key_has_its_row_with_default_and_meaning():
    assert missing_rows(PAGE.read_text("utf-8")) == []


def test_no_row_is_left_of_a_key_that_went_away():
    text = PAGE.read_text("utf-8").partition("## Recipes")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)) == {name for name, _ in keys()}


def test_a_missing_or_stale_row_is_noticed():
    text = PAGE.read_text("utf-8")
    assert missing_rows(text.replace("| `train.steps` |", "| `train.updates` |"))
    assert missing_rows(text.replace("| `train.steps` | `1000` |", "| `train.steps` | `2000` |"))
    assert missing_rows(text.replace("Updates of the weights.", "Steps."))


def test_each_key_is_explained():
    assert [name for name, field in keys() if not field.description] == []
