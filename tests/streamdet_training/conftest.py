"""A backbone of a few thousand weights, recipes around it, and clips to feed it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from streamdet_training.data import Clip
from streamdet_training.recipe import Recipe

RATE_HZ = 16_000

# Two convolutions take 16 kHz down by 320. No dropout: a score is then a function of the audio alone.
TINY = {
    "conv_dim": [16, 16],
    "conv_kernel": [20, 16],
    "conv_stride": [20, 16],
    "num_feat_extract_layers": 2,
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}


class Tiny:
    """Recipes around the tiny backbone."""

    def tables(self, **changes: Any) -> dict[str, Any]:
        """A recipe as TOML would hold it, with some keys of some tables changed."""
        tables: dict[str, Any] = {
            "name": "tiny",
            "backbone": {"config": TINY},
            "lora": {"rank": 4},
            "head": {"hidden": 8, "dropout": 0.0},
            "window": {"window_s": 0.5, "hop_s": 0.5, "min_speech_s": 0.0},
            "train": {"steps": 4, "batch": 4, "warmup": 1, "crop_s": [0.25, 0.5], "workers": 0, "check_every": 2},
        }
        for key, value in changes.items():
            tables[key] = {**tables.get(key, {}), **value} if isinstance(value, dict) else value
        return tables

    def recipe(self, **changes: Any) -> Recipe:
        """The same, validated."""
        return Recipe.model_validate(self.tables(**changes))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """With matrices of 16 by 16, threads wait for each other more than they work."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Tiny:
    return Tiny()


def write_tone(path: Path, hertz: float, seconds: float) -> Path:
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * time_s), RATE_HZ)
    return path


@pytest.fixture
def tones(tmp_path: Path) -> list[Clip]:
    """Bona fide are tones of 400 Hz from two sources, spoof tones of 2 kHz from two systems."""
    clips = []
    for number in range(4):
        bona = write_tone(tmp_path / f"bona{number}.wav", 400, 1)
        fake = write_tone(tmp_path / f"fake{number}.wav", 2000, 1)
        clips.append(Clip(path=bona, label="bonafide", source=f"s{number % 2}"))
        clips.append(Clip(path=fake, label="spoof", system=f"a{number % 2}"))
    return clips


@pytest.fixture
def manifest_csv(tones: list[Clip], tmp_path: Path) -> Path:
    """The tones as a manifest: half of them to train on, half for dev."""
    rows = [
        f"{clip.path.name},{clip.label},{clip.system},{'train' if at % 4 < 2 else 'dev'}"
        for at, clip in enumerate(tones)
    ]
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(["path,label,system,split", *rows]) + "\n", "utf-8")
    return path
