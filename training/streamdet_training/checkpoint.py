"""All that a resumed run needs, in one safetensors file: nothing is pickled, so nothing that is loaded can run.

It is there whole or not at all, since one rename replaces the last one. Tensors go by `part/name`; numbers and the
history are JSON in the header.
"""

import hashlib
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from streamdet.errors import DataError
from streamdet_training import durable
from streamdet_training.clips import Clip, Split
from streamdet_training.recipe import Recipe

# Bump it when parts are renamed: an older file is then refused by name instead of by what it lacks.
FORMAT: Final = "streamdet-checkpoint-1"

Tensors = dict[str, torch.Tensor]


class Check(msgspec.Struct, frozen=True):
    """What was measured at a checkpoint."""

    step: int
    loss: float
    """Mean since the check before."""
    dev_eer: float
    dev_min_cllr: float
    audio_s_per_s: float
    """Seconds of audio that were trained on in one second, since the check before."""
    wall_s: float
    """Since the run began, without the time in which it did not run."""

    def rank(self, select: str) -> tuple[float, float, int]:
        """Order checks by what a recipe selects, then by the other measure, then in time: the lowest is the best."""
        if select == "eer":
            return self.dev_eer, self.dev_min_cllr, self.step
        return self.dev_min_cllr, self.dev_eer, self.step


class Progress(msgspec.Struct):
    """The numbers of a checkpoint."""

    data: str
    """Fingerprint of the clips."""
    frozen: str
    """Fingerprint of the weights that are not trained."""
    history: list[Check] = []
    averaged_steps: int = 0
    kept: list[tuple[float, float, int]] = []
    """Ranks of the best checks, whose weights are the parts `kept.0`, `kept.1`, ..."""
    scaler: dict[str, float] = {}
    """Of fp16's loss scale."""


def save(path: Path, parts: Mapping[str, Mapping[str, torch.Tensor]], progress: Progress) -> None:
    """Write a checkpoint over the last one."""
    flat = {
        f"{part}/{name}": value.detach().cpu().contiguous()
        for part, tensors in parts.items()
        for name, value in tensors.items()
    }
    header = {"format": FORMAT, "progress": msgspec.json.encode(progress).decode()}
    durable.replace(path, lambda new: save_file(flat, new, header))


def load(path: Path) -> tuple[dict[str, Tensors], Progress]:
    """Read a checkpoint.

    Raises:
        DataError: it is none, or damaged.
    """
    parts: dict[str, Tensors] = {}
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise DataError.of("checkpoint format", header.get("format"), FORMAT)
            progress = msgspec.json.decode(header["progress"], type=Progress)
            for key in file.keys():  # noqa: SIM118 # it is no dict
                part, _, name = key.partition("/")
                parts.setdefault(part, {})[name] = file.get_tensor(key)
    except (SafetensorError, msgspec.MsgspecError, OSError) as error:
        raise DataError.of("checkpoint", str(path), f"one that `streamdet train` wrote ({error})") from None
    return parts, progress


# -- what is in it ---------------------------------------------------------------------------------------------------


def optimiser_state(optimiser: torch.optim.Optimizer, names: Sequence[str]) -> Tensors:
    """Moments and counts of each weight; rates and the like come from the recipe."""
    state = optimiser.state_dict()["state"]
    return {
        f"{names[number]}/{field}": torch.as_tensor(value)
        for number, fields in state.items()
        for field, value in fields.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, names: Sequence[str], tensors: Tensors) -> None:
    """Put back what `optimiser_state` took."""
    state: dict[int, Tensors] = {}
    numbers = {name: number for number, name in enumerate(names)}
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        state.setdefault(numbers[name], {})[field] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def random_state(device: torch.device) -> Tensors:
    """State of every global generator of this process, as bytes `(n,)`: Python's, numpy's, torch's and the device's."""
    _, words, gauss = random.getstate()
    python = np.array(words, np.uint32).tobytes() + struct.pack("<?d", gauss is not None, gauss or 0.0)
    legacy = np.random.get_state()  # transformers masks by it
    assert isinstance(legacy, tuple)
    _, keys, position, has_gauss, cached = legacy
    found = {
        "python": _bytes(python),
        "numpy": _bytes(keys.tobytes() + struct.pack("<iid", position, has_gauss, cached)),
        "torch": torch.get_rng_state(),
    }
    return found | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random(states: Tensors, device: torch.device) -> None:
    """Put back what `random_state` took."""
    python, numpy = (states[name].numpy().tobytes() for name in ("python", "numpy"))
    has_gauss, gauss = struct.unpack("<?d", python[-9:])
    words = tuple(int(word) for word in np.frombuffer(python[:-9], np.uint32))
    random.setstate((3, words, gauss if has_gauss else None))
    position, has_cached, cached = struct.unpack("<iid", numpy[-16:])
    np.random.set_state(("MT19937", np.frombuffer(numpy[:-16], np.uint32), position, has_cached, cached))
    torch.set_rng_state(states["torch"].clone())  # of a row of many, torch reads the first
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].clone(), device)


def _bytes(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


# -- is it the same run? ---------------------------------------------------------------------------------------------

# These change nothing of what comes out: where the clips lie, which `of_clips` knows better, and who reads them.
_FREE: Final = {"data.path", "train.workers"}


def refuse_other_recipe(begun: Recipe, now: Recipe, *, but: frozenset[str] = frozenset()) -> None:
    """Compare the recipe that began a run with the one that is to go on with it.

    Args:
        begun: as the run's folder has it.
        now: as it is asked for.
        but: further keys that may differ.

    Raises:
        DataError: they differ; names the first key that does.
    """
    then, wanted = _flat(begun.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    for key in [*wanted, *(key for key in then if key not in wanted)]:
        if key not in _FREE | but and then.get(key) != wanted.get(key):
            raise DataError.of(f"recipe {key}", wanted.get(key), f"{then.get(key)!r}, with which the run began")


def _flat(tables: Mapping[str, object], head: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in tables.items():
        found |= _flat(value, f"{head}{key}.") if isinstance(value, dict) else {f"{head}{key}": value}
    return found


def of_clips(splits: Mapping[Split, Sequence[Clip]]) -> str:
    """Fingerprint of clips in their order: file names and labels, wherever they lie."""
    digest = hashlib.sha256()
    for split, clips in splits.items():
        for clip in clips:
            digest.update(f"{split}\t{clip.path.name}\t{clip.label}\t{clip.system}\t{clip.source}\n".encode())
    return digest.hexdigest()


def of_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Fingerprint of weights, by name and value."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def refuse_other_data(begun: Progress, now: Progress) -> None:
    """Compare what a checkpoint was made on with what is there.

    Raises:
        DataError: other clips, or other weights underneath.
    """
    if begun.data != now.data:
        raise DataError.of("data", now.data[:12], f"the clips with which the run began ({begun.data[:12]})")
    if begun.frozen != now.frozen:
        expected = (
            f"those with which the run began ({begun.frozen[:12]}); same backbone, same versions of torch and others?"
        )
        raise DataError.of("frozen weights", now.frozen[:12], expected)
