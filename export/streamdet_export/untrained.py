"""A run and its bundle with random weights: speed, memory and agreement do not depend on what was learnt."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import torch
from transformers import Wav2Vec2Config

from streamdet import bundle
from streamdet.bundle import Bundle
from streamdet.errors import UsageError
from streamdet_export.graph import MODEL, Precision, to_onnx
from streamdet_training import model, recipe, run
from streamdet_training.backbones import shape
from streamdet_training.recipe import Backbone, Recipe, Window

RUN: Final = "run"
BUNDLE: Final = "bundle"


def recipe_of(config: str, layers: int = 0) -> Recipe:
    """Return a recipe that begins with random weights.

    Args:
        config: a name of `backbones.SHAPES`, a wav2vec2's config.json, or a recipe with a `backbone.config`.
        layers: of the transformer, from below; 0 for all.

    Raises:
        UsageError: it is a recipe whose weights come from elsewhere.
        MissingError, ConfigError: there is no such thing, or it is not right.
    """
    if config.endswith(".toml"):
        found = recipe.load(config)
        if found.backbone.config is None:
            raise UsageError.of("--config", config, "a recipe with backbone.config: its weights are random")
    else:
        # Fields of a config.json that Wav2Vec2Config does not have are of no use here.
        known = Wav2Vec2Config().to_dict().keys() - {"model_type", "architectures", "dtype", "transformers_version"}
        fields = {key: value for key, value in shape(config).items() if key in known}
        name = config if "/" not in config and "." not in config else Path(config).stem
        found = Recipe(name=name, backbone=Backbone(config=fields), window=Window(normalise=True))
    backbone = found.backbone.model_copy(update={"layers": layers or found.backbone.layers})
    return found.model_copy(update={"mode": "full", "backbone": backbone})


def make(how: Recipe, out: Path, precision: Precision = "fp32", *, seed: int = 1) -> Bundle:
    """Write a run (`out/run`) and its bundle (`out/bundle`); its LLRs are raw scores, nothing is calibrated."""
    torch.manual_seed(seed)
    detector = model.build(how).eval()
    run.begin(out / RUN, how, detector)
    run.save_weights(out / RUN, detector)
    draft = how.draft()
    draft = msgspec.structs.replace(
        draft,
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        model=msgspec.structs.replace(draft.model, file=MODEL, precision=precision),
        provenance={"base": "random", "total_parameters": model.count(detector).total},
    )
    return bundle.save(out / BUNDLE, draft, to_onnx(detector, draft.audio.window_samples, precision))
