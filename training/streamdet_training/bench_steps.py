"""One cell of `streamdet bench train`: steps of one mode at one batch size, in a process of its own.

    python -m streamdet_training.bench_steps ASK.json

prints one `Steps` as JSON. A process of its own, since the highest memory a process ever had is all that the system
says of it, and that would be the largest cell's for all.
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import Wav2Vec2Config

from streamdet_training import model
from streamdet_training.bench import Ask, Steps, Timing
from streamdet_training.model import Detector
from streamdet_training.recipe import Backbone, Head, Lora, Recipe, Window

# Beside weights, gradients, Adam's two moments and what autograd keeps: the libraries themselves, and what a layer
# needs while it runs. Measured with XLS-R 300M on a CPU, and rounded up: 0.75 GiB, and a fifth of what is kept.
LIBRARIES_BYTES: Final = 3 << 28
WHILE_RUNNING: Final = 1.2


def recipe(ask: Ask) -> Recipe:
    """Return the recipe of a cell; fields of a config.json that Wav2Vec2Config does not have are of no use here."""
    known = Wav2Vec2Config().to_dict().keys() - {"model_type", "architectures", "dtype", "transformers_version"}
    return Recipe(
        name="bench",
        mode=ask.mode,
        backbone=Backbone(config={key: value for key, value in ask.config.items() if key in known}),
        lora=Lora(rank=ask.rank),
        head=Head(),
        window=Window(window_s=ask.window_s),
    )


def measure(ask: Ask) -> Steps:
    """Build a cell's detector with random weights and time its steps, unless its memory would not be there."""
    how = recipe(ask)
    counted, estimated = estimate(how, ask.batch)
    steps = Steps(counted.trainable, counted.total, estimated)
    free = free_bytes(ask.device)
    if estimated > free:
        reason = f"needs about {estimated / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        return msgspec.structs.replace(steps, skipped=reason)
    torch.manual_seed(1)
    with torch.device(ask.device):
        detector = model.build(how).train()
        audio = torch.randn(ask.batch, samples(how)).mul_(0.1)
        labels = torch.arange(ask.batch).remainder(2).float()
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)
    timings = [step(ask, detector, optimiser, audio, labels) for _ in range(ask.warm_up + ask.steps)]
    return msgspec.structs.replace(steps, timings=timings[ask.warm_up :], peak_bytes=peak_bytes(ask.device))


def step(
    ask: Ask, detector: Detector, optimiser: torch.optim.Optimizer, audio: torch.Tensor, labels: torch.Tensor
) -> Timing:
    """Run one step as `streamdet train` does, and time its three parts."""
    began_s, began_cpu_s = _now_s(ask.device), time.process_time()
    with torch.autocast(torch.device(ask.device).type, torch.bfloat16, enabled=ask.precision == "bf16"):
        scores = detector(audio)
    loss = binary_cross_entropy_with_logits(scores.float(), labels)
    forward_s = _now_s(ask.device)
    loss.backward()  # type: ignore[no-untyped-call] # torch has no types for it
    backward_s = _now_s(ask.device)
    torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
    optimiser.step()
    optimiser.zero_grad()
    ended_s = _now_s(ask.device)
    return Timing(forward_s - began_s, backward_s - forward_s, ended_s - backward_s, time.process_time() - began_cpu_s)


def estimate(how: Recipe, batch: int) -> tuple[model.Parameters, int]:
    """Count a recipe's parameters and estimate the memory of its steps (bytes), without any of it.

    On the meta device a forward pass costs nothing, and says all the same what autograd would keep of it.
    """
    with torch.device("meta"):
        detector = model.build(how).train()
        audio = torch.zeros(1, samples(how))
    counted = model.count(detector)
    own = {parameter.untyped_storage()._cdata for parameter in detector.parameters()}
    kept: dict[int, Any] = {}  # the storages themselves: one that has gone lends its number to another

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    as_it_is: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor  # noqa: E731 # a name for a type
    with torch.autograd.graph.saved_tensors_hooks(keep, as_it_is):
        detector(audio)
    kept_bytes = batch * sum(storage.nbytes() for storage in kept.values())
    fixed_bytes = 4 * counted.total + 12 * counted.trainable  # float32: a gradient and two moments for what is trained
    return counted, LIBRARIES_BYTES + fixed_bytes + round(WHILE_RUNNING * kept_bytes)


def samples(how: Recipe) -> int:
    """T of a window."""
    return round(how.window.window_s * how.window.rate_hz)


def free_bytes(device: str) -> int:
    """Memory that a process may still take: of the card, or of the machine."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def peak_bytes(device: str) -> int:
    """Return the highest memory so far: what torch took of the card, or what the process held of the machine."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # KiB on Linux


def _now_s(device: str) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)  # a kernel that was only asked for has not run yet
    return time.perf_counter()


if __name__ == "__main__":
    asked = msgspec.json.decode(sys.argv[1].encode(), type=Ask)
    sys.stdout.write(msgspec.json.encode(measure(asked)).decode() + "\n")
