"""A run and its bundles with random weights: speed, memory and agreement do not depend on what was learnt.

    python -m streamdet_export.untrained CONFIG OUT [--layers N] [--kind window|block] PRECISION...

Precisions are fp32, fp16, int8 (static, its scales from the synthetic speech that comes along) and int8-dynamic.
"""

import argparse
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec
import torch
from transformers import Wav2Vec2Config

from streamdet import bundle
from streamdet.audio import Samples, fill, read_recording, resample
from streamdet.bundle import Audio, Bundle
from streamdet.errors import UsageError
from streamdet_export import passes
from streamdet_export.graph import MODEL, to_onnx
from streamdet_export.passes import Precision
from streamdet_training import model, recipe, run
from streamdet_training.backbones import shape
from streamdet_training.model import Detector
from streamdet_training.recipe import Backbone, Recipe, Window

RUN: Final = "run"

Kind = Literal["window", "block"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
Made = Literal["fp32", "fp16", "int8", "int8-dynamic"]
MADE: Final[tuple[Made, ...]] = get_args(Made)


def recipe_of(config: str, layers: int = 0, kind: Kind | None = None) -> Recipe:
    """Return a recipe that begins with random weights.

    Args:
        config: a name of `backbones.SHAPES`, a wav2vec2's config.json, or a recipe with a `backbone.config`.
        layers: of the transformer, from below; 0 for all.
        kind: of the bundle; None leaves what the recipe says, which is a windowed one for a config.

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
    window = found.window.model_copy(update={"kind": kind or found.window.kind})
    return found.model_copy(update={"mode": "full", "backbone": backbone, "window": window})


def make(how: Recipe, out: Path, precisions: Sequence[Made] = ("fp32",), *, seed: int = 1) -> list[Bundle]:
    """Write a run (`out/run`) and a bundle of each precision (`out/fp32`, ...).

    LLRs are raw scores: nothing is calibrated.
    """
    torch.manual_seed(seed)
    detector = model.build(how).eval()
    run.begin(out / RUN, how, detector)
    run.save_weights(out / RUN, detector)
    total = model.count(detector).total
    return [_bundle(how, detector, out / made, made, total) for made in precisions]


def _bundle(how: Recipe, detector: Detector, out: Path, made: Made, total: int) -> Bundle:
    draft = how.draft()
    precision: Precision = "int8" if made == "int8-dynamic" else made
    quantization: passes.Quantization = "dynamic" if made == "int8-dynamic" else "static"
    windows = list(_windows(draft.audio)) if made == "int8" else ()
    draft = msgspec.structs.replace(
        draft,
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        model=passes.described(msgspec.structs.replace(draft.model, file=MODEL), precision, quantization),
        provenance={"base": "random", "total_parameters": total},
    )
    contents = to_onnx(detector, draft.audio.window_samples, precision, quantization=quantization, windows=windows)
    return bundle.save(out, draft, contents)


def _windows(audio: Audio) -> Iterator[Samples]:
    """Cut windows out of the synthetic speech that comes with the starter, one after the other."""
    for path in bundle.starter_recordings():
        samples, rate_hz = read_recording(path)
        heard = resample(samples[:, 0], rate_hz, audio.rate_hz)
        for at in range(0, heard.size, audio.window_samples):
            yield fill(heard[at : at + audio.window_samples], audio.window_samples)


def main() -> None:
    """Make what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("out", type=Path)
    parser.add_argument("precisions", nargs="+", choices=MADE)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS)
    args = parser.parse_args()
    make(recipe_of(args.config, args.layers, args.kind), args.out, args.precisions)


if __name__ == "__main__":
    main()
