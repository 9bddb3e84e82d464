"""Recipes: what is taken, what is refused and with which words."""

import pytest

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


@pytest.mark.parametrize("backbone", ["layers = 2", 'source = "a"\nrecipe = "b"', 'source = "a"\n[backbone.config]\n'])
def test_a_backbone_has_exactly_one_origin(tmp_path, backbone):
    with pytest.raises(ConfigError, match="exactly one of source, recipe and config"):
        recipe.load(write(tmp_path, f'name = "x"\n[backbone]\n{backbone}\n'))


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_is_found_by_name(name):
    found = recipe.load(name)
    manifest = found.draft()
    assert manifest.audio.window_samples == found.window.window_s * found.window.rate_hz
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
