"""A finished run of a tiny detector, and clips for its dev split."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from streamdet_training import model, run
from streamdet_training.model import Detector
from streamdet_training.recipe import Lora, Recipe

RATE_HZ = 16_000
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
}


def recipe(**window: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "backbone": {"config": TINY},
            "lora": {"rank": 4},
            "window": {"window_s": 1.0, "hop_s": 0.5, "min_speech_s": 0.1, **window},
        }
    )


def trained(how: Recipe) -> Detector:
    """A detector whose adapters and head do something, as after training."""
    torch.manual_seed(0)
    detector = model.build(how)
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if "lora_B" in name or name == "head.linear.weight":
                parameter.normal_(std=0.3)
    return detector.eval()


@pytest.fixture
def trained_with() -> Callable[[dict[str, object]], tuple[Recipe, Detector]]:
    """Makes a recipe with these keys of `lora`, and its detector as after training."""

    def make(lora: dict[str, object]) -> tuple[Recipe, Detector]:
        how = recipe().model_copy(update={"lora": Lora.model_validate(lora)})
        return how, trained(how)

    return make


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run folder as training leaves it."""
    return _finished(recipe(), tmp_path / "run")


@pytest.fixture
def finished_blocks(tmp_path: Path) -> Path:
    """The same of a block model: hops of 0.5 s with 0.25 s before them."""
    return _finished(recipe(kind="block", left_s=0.25), tmp_path / "blocks")


def _finished(how: Recipe, path: Path) -> Path:
    detector = trained(how)
    run.begin(path, how, detector)
    run.save_weights(path, detector)
    (path / run.METRICS).write_text('{"clips": {"train": 1, "dev": 8}}')
    return path


@pytest.fixture
def manifest_csv(tmp_path: Path) -> Path:
    """Eight dev clips of four voices: noise that comes and goes, brighter for spoof."""
    rng, rows = np.random.default_rng(3), ["path,label,speaker,system,split,note"]
    for number in range(8):
        label = ("bonafide", "spoof")[number % 2]
        time_s = np.arange(3 * RATE_HZ) / RATE_HZ
        noise = rng.standard_normal(time_s.size)
        if label == "bonafide":
            noise = np.convolve(noise, np.ones(8) / 8, "same")
        sound = 0.2 * np.clip(np.sin(2 * np.pi * 4 * time_s), 0, 1) * noise
        soundfile.write(tmp_path / f"{number}.wav", sound, RATE_HZ)
        voice = f"{label[0]}{number // 4}"
        rows.append(f"{number}.wav,{label},{voice},{voice},dev,chan=wide")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "manifest.csv"
