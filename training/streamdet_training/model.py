"""The detector: wav2vec2, and a head on its feature frames.

Shapes: B windows of T samples, F feature frames of width D.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2Model
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeatureEncoder

from streamdet.errors import ConfigError, MissingError
from streamdet_training import heads, objectives, spectral
from streamdet_training.recipe import Augment, Backbone, Lora, Recipe
from streamdet_training.spectral import SpectralWav2Vec2

# In feature frames (0.2 s) and in channels; wav2vec2's own pre-training masks spans of 10 frames.
MASK_SPAN: Final = 10

# Dropout of the network is the recipe's matter, augmentation that of our own code.
_QUIET = {"apply_spec_augment": False, "layerdrop": 0.0}


class Detector(nn.Module):
    """Audio in, CM score out."""

    def __init__(self, backbone: Wav2Vec2Model | PeftModel, recipe: Recipe) -> None:
        """Put the recipe's head on a backbone."""
        super().__init__()
        self.backbone = backbone
        states = len(_layers(backbone)) + 1 if recipe.backbone.layer_sum else 0
        classes = objectives.COSINES.get(recipe.loss.kind, 0)
        self.head = heads.make(recipe.head, backbone.config.hidden_size, states=states, classes=classes)
        self.normalise = recipe.window.normalise
        self.blocks = Blocks.of(recipe, backbone.config) if recipe.window.kind == "block" else None

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Score windows.

        Args:
            audio: float32 `(B, T)` in [-1, 1]; for blocks T = left + N hops, of which the first N hops' past is left.

        Returns:
            CM scores `(B,)`, higher = more bona fide; by cross-entropy on balanced classes a logit of about the LLR.
        """
        score: torch.Tensor = self.head.score(self.head.pool(self.features(audio)))
        return score

    def features(self, audio: torch.Tensor) -> torch.Tensor:
        """Feature frames of windows `(B, T)` that are pooled: `(B, F, D)`. Of blocks, those of their hops alone."""
        if self.blocks is None:
            return self._features(audio)
        rows = self.blocks.cut(audio)  # (B, N, left + hop)
        frames = self._features(rows.flatten(0, 1))[:, self.blocks.left_frames :]  # (B N, F, D)
        return frames.reshape(audio.shape[0], -1, frames.shape[2])

    def _features(self, audio: torch.Tensor) -> torch.Tensor:
        if self.normalise:
            # As Wav2Vec2FeatureExtractor does it (zero mean, unit variance, epsilon 1e-7), but inside the graph.
            centred = audio - audio.mean(1, keepdim=True)
            audio = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + 1e-7)
        layered = self.head.layer_sum is not None
        states = self._states(audio) if layered else [self.backbone(audio).last_hidden_state]
        features: torch.Tensor = self.head.features(states)
        return features

    def _states(self, audio: torch.Tensor) -> list[torch.Tensor]:
        """What goes into the lowest layer, then what comes out of each: `(B, F, D)` every one.

        Listened to at the layers themselves: whether the last of transformers' `output_hidden_states` has been through
        the final layer norm hangs on its version.
        """
        states: list[torch.Tensor] = []

        def enters(_layer: nn.Module, given: tuple[Any, ...]) -> None:
            states.append(given[0])

        def leaves(_layer: nn.Module, _given: Any, gives: Any) -> None:
            states.append(gives[0] if isinstance(gives, tuple) else gives)

        layers = _layers(self.backbone)
        hooks = [layers[0].register_forward_pre_hook(enters), *(it.register_forward_hook(leaves) for it in layers)]
        try:
            self.backbone(audio)
        finally:
            for hook in hooks:
                hook.remove()
        return states


class Encoder(nn.Module):
    """The part of a block detector that hears: blocks `(B, left + hop)` to their pooling sums `(B, 2 + 2 D)`."""

    def __init__(self, detector: Detector) -> None:
        """Share its weights."""
        super().__init__()
        self.detector = detector

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Encode."""
        return self.detector.head.sums(self.detector.features(audio))


class Merger(nn.Module):
    """The part that judges: the sums of a window's blocks `(B, N, 2 + 2 D)` to its CM score `(B,)`."""

    def __init__(self, detector: Detector) -> None:
        """Share its weights."""
        super().__init__()
        self.head = detector.head

    def forward(self, sums: torch.Tensor) -> torch.Tensor:
        """Merge and score."""
        return self.head.score(self.head.merge(sums))


class Blocks(msgspec.Struct, frozen=True):
    """How a window falls into blocks: hops, each with some audio before it."""

    left: int
    """Samples before a hop."""
    hop: int
    """Samples."""
    left_frames: int
    """Feature frames that belong to `left`."""

    @classmethod
    def of(cls, recipe: Recipe, config: Any) -> "Blocks":
        """Cut as a recipe says, for a backbone of this config.

        Raises:
            ConfigError: the head's pooling is no ratio of sums.
        """
        if recipe.head.kind not in heads.BLOCKWISE:
            raise ConfigError.of("head.kind", recipe.head.kind, f"{' or '.join(heads.BLOCKWISE)} for blocks")
        window = recipe.window
        left = round(window.left_s * window.rate_hz)
        return cls(left, round(window.hop_s * window.rate_hz), left // math.prod(config.conv_stride))

    def cut(self, audio: torch.Tensor) -> torch.Tensor:
        """Audio `(B, T)` to blocks `(B, N, left + hop)`, counted back from its end."""
        count = (audio.shape[1] - self.left) // self.hop
        return audio[:, audio.shape[1] - self.left - count * self.hop :].unfold(1, self.left + self.hop, self.hop)


def _layers(backbone: Any) -> nn.ModuleList:
    """Return the transformer's layers, whether or not adapters are around them."""
    model: Any = backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone
    layers: nn.ModuleList = model.encoder.layers
    return layers


class Parameters(msgspec.Struct, frozen=True):
    """How many numbers there are, and how many of them are trained."""

    backbone_trainable: int
    """Adapters, the whole backbone in full fine-tuning, nothing where the head alone is trained."""
    head: int
    total: int

    @property
    def trainable(self) -> int:
        """All that is trained."""
        return self.backbone_trainable + self.head

    def __str__(self) -> str:
        """Say it as papers do."""
        return (
            f"trainable {self.trainable:,} ({self.backbone_trainable:,} in the backbone, {self.head:,} in the head) "
            f"of {self.total:,}: 1 in {self.total / self.trainable:.1f}"
        )


def count(detector: Detector) -> Parameters:
    """Count a detector's parameters."""
    backbone = sum(p.numel() for p in detector.backbone.parameters() if p.requires_grad)
    head = sum(p.numel() for p in detector.head.parameters())
    return Parameters(backbone, head, sum(p.numel() for p in detector.parameters()))


def statistics(detector: Detector) -> dict[str, torch.Tensor]:
    """Running means and variances that training changes beside the parameters: an average of weights needs them too."""
    return {
        f"{name}.{field}": buffer
        for name, module in detector.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.weight.requires_grad
        for field, buffer in module.named_buffers()
        if buffer.is_floating_point()
    }


def build(recipe: Recipe) -> Detector:
    """Make the detector that a recipe begins with; its `backbone.recipe` must have become a `source` by now."""
    backbone: Any = load_backbone(recipe.backbone, _masks(recipe.augment))
    if recipe.mode == "lora":
        backbone = add_lora(backbone, recipe)
    elif recipe.mode == "head":
        freeze(backbone)
    return Detector(backbone, recipe)


def _masks(how: Augment) -> dict[str, Any]:
    """Return the fields of Wav2Vec2Config for its own SpecAugment, which acts in training mode alone.

    Where nothing is masked the probabilities stay as they are: on them hangs whether there is a `masked_spec_embed`.
    """
    if not how.mask_frames and not how.mask_features:
        return {}
    return {
        "apply_spec_augment": True,
        "mask_time_prob": how.mask_frames,
        "mask_time_length": MASK_SPAN,
        "mask_feature_prob": how.mask_features,
        "mask_feature_length": MASK_SPAN,
    }


def load_backbone(origin: Backbone, masks: Mapping[str, Any] | None = None) -> Wav2Vec2Model:
    """Load a wav2vec2 from the hub, from a folder, or from a config alone with random weights.

    Raises:
        MissingError: there is nothing at `source`.
        ConfigError: `config` holds what is no field of Wav2Vec2Config.
    """
    if origin.source is None:
        config = _config(origin, masks or {})
        return _kind(config)(config)
    changes: dict[str, Any] = {**_QUIET, **(masks or {})}
    if origin.layers:
        changes["num_hidden_layers"] = origin.layers
    try:
        kind = _kind(Wav2Vec2Config.from_pretrained(origin.source))
        # Never the pickled weights beside them, which can run code; the hub converts what it has of those alone.
        model: Wav2Vec2Model = kind.from_pretrained(origin.source, use_safetensors=True, **changes)
    except (OSError, ValueError) as error:
        expected = f"a model on the hub or a folder written by save_pretrained, in safetensors ({_first_line(error)})"
        raise MissingError.of("backbone.source", origin.source, expected) from None
    return model


def freeze(backbone: Wav2Vec2Model) -> None:
    """Train no weight of a backbone, and keep nothing of it for a backward pass that nobody needs.

    In training mode transformers' front-end asks for a gradient of the audio itself unless it is told not to: the
    convolutions would be run backwards for nothing, and a head alone would cost the memory of full fine-tuning.
    """
    backbone.requires_grad_(requires_grad=False)
    if isinstance(backbone.feature_extractor, Wav2Vec2FeatureEncoder):  # a spectral one asks for nothing
        backbone.freeze_feature_encoder()  # type: ignore[no-untyped-call] # transformers has no types for it


def add_lora(backbone: Wav2Vec2Model, recipe: Recipe) -> PeftModel:
    """Freeze a backbone and put adapters beside its target matrices.

    Raises:
        ConfigError: no layer has a target's name, or what a pattern says; or there are fewer layers.
    """
    lora = recipe.lora
    layers = _numbers(lora.layers, backbone.config.num_hidden_layers)
    names = _adapted(backbone, lora, layers)
    adapters = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # peft says int, and only divides it by the rank
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        layers_to_transform=layers if lora.layers else None,
        layers_pattern="layers" if lora.layers else None,
        rank_pattern=_by_name(lora.rank_pattern, names, "lora.rank_pattern"),
        alpha_pattern=_by_name(lora.alpha_pattern, names, "lora.alpha_pattern"),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=True if lora.init == "kaiming" else lora.init,
        bias="none",  # a trained bias could be merged too, but it is no low rank, and the paper counts none
    )
    freeze(backbone)
    adapted = get_peft_model(backbone, adapters)
    if not isinstance(adapted, PeftModel):
        raise TypeError(f"get_peft_model gave a {type(adapted).__name__}")
    # PiSSA has taken the adapters' start out of the weights. Loaded again beside those, they are like any others.
    adapters.init_lora_weights = True
    return adapted


def _numbers(chosen: Sequence[int | str], count: int) -> list[int]:
    """Layers by number, from numbers and slices of `count` layers; all of them when nothing is chosen."""
    found = set[int]() if chosen else set(range(count))
    for each in chosen:
        if isinstance(each, str):
            first, last = (int(end) if end else None for end in each.split(":"))
            some = range(count)[first:last]
        else:
            some = range(count)[each : each + 1 or None] if -count <= each < count else range(0)
        if not some:
            raise ConfigError.of("lora.layers", each, f"some of {count} layers, numbered from 0")
        found.update(some)
    return sorted(found)


def _adapted(backbone: Wav2Vec2Model, lora: Lora, layers: Sequence[int]) -> list[str]:
    """Full names of the layers that get an update."""
    inside = tuple(f"encoder.layers.{number}." for number in layers)
    names = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    for target in lora.targets:
        if not any(name.endswith(f".{target}") for name in names):
            raise ConfigError.of("lora.targets", target, "the name of a linear layer: q_proj, k_proj, v_proj, ...")
    ends = tuple(f".{target}" for target in lora.targets)
    return [name for name in names if name.endswith(ends) and (not lora.layers or name.startswith(inside))]


def _by_name(patterns: Mapping[str, Any], names: Sequence[str], key: str) -> dict[str, Any]:
    """Spell patterns out by layers' full names; the first one that fits a name's end, after a dot, counts.

    peft takes patterns too. But it passes over one that fits nothing, and sorts them in the file that it saves, so that
    where two fit the loaded adapter would have other shapes than the trained one.
    """
    found: dict[str, Any] = {}
    for pattern, value in patterns.items():
        try:
            fitting = [name for name in names if re.match(rf"(.*\.)?({pattern})$", name)]
        except re.error as error:
            raise ConfigError.of(key, pattern, f"a layer's name or a regular expression ({error})") from None
        if not fitting:
            raise ConfigError.of(key, pattern, f"the end of an adapted layer's name, such as {names[0]}")
        found = dict.fromkeys(fitting, value) | found
    return found


def merge(detector: Detector) -> Detector:
    """Fold the adapters into the weights that they adapt: the same scores, and nothing extra to run."""
    if isinstance(detector.backbone, PeftModel):
        detector.backbone = detector.backbone.merge_and_unload()
    return detector.eval()


def _kind(config: Wav2Vec2Config) -> type[Wav2Vec2Model]:
    return SpectralWav2Vec2 if getattr(config, "spectral", None) else Wav2Vec2Model


def _config(origin: Backbone, masks: Mapping[str, Any]) -> Wav2Vec2Config:
    fields = dict(origin.config or {})
    known = Wav2Vec2Config().to_dict()
    for field in fields:
        if field not in known:
            raise ConfigError.of("backbone.config", field, "a field of transformers' Wav2Vec2Config")
    if origin.layers:
        fields["num_hidden_layers"] = origin.layers
    if origin.spectral is not None:
        fields |= spectral.config_fields(origin.spectral)
    return Wav2Vec2Config(**{**fields, **_QUIET, **masks})


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
