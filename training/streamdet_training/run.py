"""A training run's folder: what training leaves and export reads.

recipe.json            the recipe as it was run
adapter/               LoRA weights, in peft's own format (mode lora)
backbone/              the wav2vec2, where it can be had nowhere else (mode full, random start, adapters by PiSSA)
head.safetensors
metrics.json           written last: a folder with it is a finished run
checkpoint.safetensors what `--resume` needs
"""

import os
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file

from streamdet.errors import DataError, MissingError
from streamdet_training import durable, model
from streamdet_training.model import Detector
from streamdet_training.recipe import Backbone, Recipe

RECIPE: Final = "recipe.json"
ADAPTER: Final = "adapter"
BACKBONE: Final = "backbone"
HEAD: Final = "head.safetensors"
METRICS: Final = "metrics.json"
CHECKPOINT: Final = "checkpoint.safetensors"
READY: Final = "weights.ready"
FIRST: Final = "first"


def begin(path: Path, recipe: Recipe, detector: Detector) -> None:
    """Make the folder: the start of the backbone unless the recipe says where else it lies, and last of all the recipe.

    A folder with a recipe is therefore a run that has begun.
    """
    path.mkdir(parents=True, exist_ok=True)
    # PiSSA's adapters belong beside weights that are no longer those of the source.
    elsewhere = recipe.backbone.source is not None and (recipe.mode, recipe.lora.init) != ("lora", "pissa")
    if recipe.mode != "full" and not elsewhere:
        with torch.no_grad():
            base: Any = detector.backbone
            if isinstance(base, PeftModel):
                base = base.get_base_model()
            base_weights = {name: value for name, value in base.state_dict().items() if ".lora_" not in name}
            plain = {name.replace(".base_layer", ""): value for name, value in base_weights.items()}
            shutil.rmtree(path / BACKBONE, ignore_errors=True)  # of a start that was killed
            durable.replace(path / BACKBONE, lambda new: base.save_pretrained(new, state_dict=plain))
    durable.replace_text(path / RECIPE, recipe.model_dump_json(indent=1) + "\n")


def publish(path: Path, detector: Detector) -> None:
    """Put what has been trained in the place of what was there, all of it or, if the process is killed, none of it.

    No rename replaces several files at once. So the new ones are first made whole in a folder of their own; once that
    is called `weights.ready`, readers look there first, and its parts move to their places one after the other.
    """
    settle(path)
    shutil.rmtree(path / f"{READY}{durable.NEW}", ignore_errors=True)  # half of one that was killed
    durable.replace(path / READY, lambda new: save_weights(new, detector))
    settle(path)


def settle(path: Path) -> None:
    """Move weights that are ready to their places."""
    ready = path / READY
    if not ready.is_dir():
        return
    for part in sorted(ready.iterdir()):
        if (path / part.name).is_dir():
            shutil.rmtree(path / part.name)
        os.replace(part, path / part.name)  # noqa: PTH105 # Path.replace is the same; tests count these calls
    ready.rmdir()
    durable.sync(path, inside=False)


def part(path: Path, name: str) -> Path:
    """Where a part of a run's weights is: at its place, or on the way to it."""
    ready = path / READY / name
    return ready if ready.exists() else path / name


def save_weights(path: Path, detector: Detector) -> None:
    """Write what has been trained."""
    path.mkdir(parents=True, exist_ok=True)
    if isinstance(detector.backbone, PeftModel):
        detector.backbone.save_pretrained(str(path / ADAPTER))
    elif any(parameter.requires_grad for parameter in detector.backbone.parameters()):
        detector.backbone.save_pretrained(path / BACKBONE)
    head = {name: value.detach().cpu().contiguous() for name, value in detector.head.state_dict().items()}
    save_file(head, path / HEAD)


def load_recipe(path: Path) -> Recipe:
    """Read the recipe of a run.

    Raises:
        MissingError: it is no run folder.
    """
    file = path / RECIPE
    if not file.is_file():
        raise MissingError.of("run", str(path), f"a folder that `streamdet train` wrote, with {RECIPE}")
    return Recipe.model_validate_json(file.read_text("utf-8"))


def load_run(path: Path) -> Detector:
    """Load the trained detector of a run, adapters still beside their matrices.

    Raises:
        MissingError: it is no run folder, or weights are missing.
        DataError: weights do not fit the recipe.
    """
    recipe = load_recipe(path)
    if not part(path, HEAD).is_file():  # saved last of the weights
        raise MissingError.of("run head", str(path / HEAD), "the weights that a finished run has")
    adapter = part(path, ADAPTER)
    if recipe.mode == "lora" and not (adapter / SAFETENSORS_WEIGHTS_NAME).is_file():
        # peft would look for pickled weights instead.
        raise MissingError.of("run adapter", str(adapter), f"a folder with {SAFETENSORS_WEIGHTS_NAME}")
    origin = recipe.backbone
    for kept in (part(path, BACKBONE), part(path / FIRST, BACKBONE)):
        if kept.is_dir():  # wherever the folder has been moved to since
            origin = Backbone(source=str(kept), layers=0 if kept == part(path, BACKBONE) else recipe.backbone.layers)
            break
    backbone = model.load_backbone(origin)
    adapted = PeftModel.from_pretrained(backbone, adapter, is_trainable=True) if recipe.mode == "lora" else backbone
    detector = Detector(adapted, recipe)
    try:
        detector.head.load_state_dict(load_file(part(path, HEAD)))
    except RuntimeError as error:
        raise DataError.of("run head", str(path / HEAD), f"weights that fit {RECIPE} ({error})") from None
    return detector.eval()
