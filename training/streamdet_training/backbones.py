"""Well-known backbones by their shape alone: enough to count parameters, and to measure speed and memory."""

import json
from pathlib import Path
from typing import Any, Final

from streamdet.errors import ConfigError, MissingError

# facebook/wav2vec2-xls-r-300m's config.json, where it differs from transformers' defaults. XLSR-53 has the same shape.
XLSR_300M: Final[dict[str, Any]] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "final_dropout": 0.0,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
}
SHAPES: Final[dict[str, dict[str, Any]]] = {"xlsr-300m": XLSR_300M}


def shape(name: str) -> dict[str, Any]:
    """Return fields of Wav2Vec2Config: by a name of `SHAPES`, or from a model's config.json.

    Raises:
        MissingError: neither a name nor a file.
        ConfigError: it is no config of a wav2vec2.
    """
    if name in SHAPES:
        return SHAPES[name]
    path = Path(name)
    if not path.is_file():
        raise MissingError.of("--config", name, f"a model's config.json, or one of {', '.join(SHAPES)}")
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError.of(str(path), str(error), "JSON") from None
    kind = found.get("model_type", "wav2vec2") if isinstance(found, dict) else type(found).__name__
    if kind != "wav2vec2":
        raise ConfigError.of(f"{path} model_type", kind, "wav2vec2")
    return dict(found)
