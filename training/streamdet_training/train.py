"""The training run, from top to bottom: LoRA or full fine-tuning by one loop."""

import json
import logging
import math
import platform
import resource
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast, set_seed

from streamdet.errors import MissingError, StreamdetError, UsageError
from streamdet_training import checkpoint, dev, durable, model, objectives, recipe, run
from streamdet_training.average import in_place
from streamdet_training.batches import batches
from streamdet_training.calls import voices
from streamdet_training.checkpoint import Check
from streamdet_training.data import Clip, Split, load
from streamdet_training.listener import Listener, listener
from streamdet_training.model import Detector
from streamdet_training.progress import Display
from streamdet_training.recipe import Recipe
from streamdet_training.splits import refuse_overlap
from streamdet_training.state import State

log = logging.getLogger(__name__)


def train(
    how: Recipe, out: Path, *, data: Sequence[str | Path] = (), resume: bool = False, seed: int | None = None
) -> Path:
    """Train a detector.

    Args:
        how: the recipe.
        out: folder of the run.
        data: manifests and corpora, instead of the recipe's.
        resume: go on from the checkpoint in `out`, or from the start if it had not come to one.
        seed: instead of the recipe's, and of that of `backbone.recipe`: a replicate is trained anew from the start.

    Returns:
        `out`.

    Raises:
        UsageError: no data is named, or `out` holds a run and `resume` was not asked for.
        MissingError, DataError, ConfigError: what the recipe names is not there or not right; or there is no run to
            resume, or one of another recipe or other data.
        StreamdetError: the loss is no number any more, or nothing can be written.
    """
    if data:
        how = how.model_copy(update={"data": how.data.model_copy(update={"path": tuple(map(str, data))})})
    if seed is not None:
        how = how.model_copy(update={"seed": seed})
    if not how.data.path:
        raise UsageError.of("data", None, "--data, or data.path in the recipe")
    begun = (out / run.RECIPE).is_file()
    if begun and not resume:
        raise UsageError.of("out", str(out), "a new folder, or --resume")
    if resume and not begun and not (out / run.FIRST).is_dir():
        raise MissingError.of("out", str(out), "a run that has begun; without --resume a new one begins")
    splits: tuple[Split, ...] = ("train", "dev")
    clips: dict[Split, list[Clip]] = {split: load(how.data.format, how.data.path, split) for split in splits}
    refuse_overlap(clips, how.data.allow_overlap)
    how = _with_backbone(how, out, seed)
    if begun:
        moved = frozenset({"backbone.source"} if (out / run.FIRST).is_dir() else ())  # it lies within `out`
        checkpoint.refuse_other_recipe(run.load_recipe(out), how, but=moved)
    if (out / run.METRICS).is_file():
        log.info("%s: %s is a finished run", how.name, out)
        return out

    # Set everything up. accelerate finds the devices; each process takes every n-th batch.
    # Where nothing is masked, a backbone trained in full has a mask embedding that no gradient reaches.
    unused = DistributedDataParallelKwargs(find_unused_parameters=how.mode == "full")
    accelerator = Accelerator(mixed_precision=how.train.precision, kwargs_handlers=[unused])
    set_seed(how.seed)
    detector = model.build(how)
    parameters = model.count(detector)
    log.info("%s: %s", how.name, parameters)
    trained = [p for p in detector.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=how.train.lr, weight_decay=how.train.weight_decay)
    wrapped, optimiser = accelerator.prepare(detector, optimiser)
    state = State(accelerator, detector, optimiser, how, clips)
    if (out / run.CHECKPOINT).is_file():
        state.restore(out)
    elif accelerator.is_main_process:
        if begun:
            log.info("%s: %s had not come to a checkpoint, so it begins again", how.name, out)
        with durable.saving(out):
            run.begin(out, how, detector)
    history = state.progress.history
    heard_clips = dev.some(clips["dev"], how.train.dev_clips)
    display = Display(how, accelerator.is_main_process)
    stopped = _is_over(history, how)

    # Train.
    before_s, began_s = history[-1].wall_s if history else 0.0, time.monotonic()
    first = history[-1].step if history else 0
    batches = iter(()) if stopped else _batches(clips["train"], how, accelerator, first)
    wrapped.train()
    for step, (audio, labels) in enumerate(batches, first + 1):
        rate = how.train.lr * _rate(step - 1, how)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with accelerator.autocast():
            scores = wrapped(audio)
        loss = objectives.loss(scores.float(), labels, how.loss, how.train.label_smoothing)
        optimiser.zero_grad()
        accelerator.backward(loss)
        length = accelerator.clip_grad_norm_(trained, how.train.clip_norm)
        _refuse_no_number(step, rate, loss, None if accelerator.scaler else length)
        optimiser.step()
        state.average.update()
        display.step(step, loss.item(), audio.numel() / how.window.rate_hz * accelerator.num_processes)

        # Now and then: how good is it on speakers and systems that it has not met?
        if step % how.train.check_every == 0 or step == how.train.steps:
            if accelerator.is_main_process:
                loss_before, speed = display.loss, display.speed
                with in_place(state.weights, state.average.averages):
                    found = dev.measure(heard_clips, how.draft(), _listener(detector, accelerator))
                    wall_s = before_s + time.monotonic() - began_s
                    history.append(Check(step, loss_before, *found, round(speed, 1), round(wall_s, 1)))
                    state.best.offer(history[-1].rank(how.train.select), state.weights)
                display.checked(history[-1], _best(history, how))
            stopped = bool(broadcast(torch.tensor(float(_is_over(history, how)), device=accelerator.device)))
            state.save(out)
            wrapped.train()
            display.next()
            if stopped:
                break

    display.close()
    if accelerator.is_main_process:
        _finish(out, how, parameters, clips, state, heard_clips)
    return out


def _with_backbone(how: Recipe, out: Path, seed: int | None) -> Recipe:
    """Train the recipe that gives the backbone, unless that is done, and start from its result."""
    if how.backbone.recipe is None:
        return how
    first = out / run.FIRST
    before = recipe.load(how.backbone.recipe)
    train(before, first, data=how.data.path, resume=(first / run.RECIPE).is_file(), seed=seed)
    origin = how.backbone.model_copy(update={"recipe": None, "source": str(first / run.BACKBONE)})
    return how.model_copy(update={"backbone": origin})


def _rate(step: int, how: Recipe) -> float:
    """Share of the highest learning rate: up along a line, down along a cosine."""
    if step < how.train.warmup:
        return (step + 1) / how.train.warmup
    done = (step - how.train.warmup) / max(1, how.train.steps - how.train.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _batches(
    clips: list[Clip], how: Recipe, accelerator: Accelerator, first: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This process's batches from step `first` on, on its device."""
    mine = [step * accelerator.num_processes + accelerator.process_index for step in range(first, how.train.steps)]
    for audio, labels in batches(clips, how, mine):
        yield audio.to(accelerator.device), labels.to(accelerator.device)


def _listener(detector: Detector, accelerator: Accelerator) -> Listener:
    return listener(detector, accelerator.device, accelerator.autocast)


def _refuse_no_number(step: int, rate: float, loss: torch.Tensor, length: torch.Tensor | None) -> None:
    """Stop where more training would only spread it; fp16 passes no length, since its loss scale is there for that.

    Raises:
        StreamdetError: loss or gradient is infinite or no number.
    """
    for name, value in (("loss", loss), ("gradient", length)):
        if value is not None and not torch.isfinite(value):
            expected = (
                f"a finite number; a lower train.lr than the present {rate:.2g}, or another train.precision, may help"
            )
            raise StreamdetError.of(f"{name} of step {step}", value.item(), expected)


def _best(history: Sequence[Check], how: Recipe) -> Check:
    return min(history, key=lambda check: check.rank(how.train.select))


def _is_over(history: Sequence[Check], how: Recipe) -> bool:
    """Has nothing become better for `train.patience` checks?"""
    if not history or not how.train.patience:
        return False
    return len(history) - 1 - history.index(_best(history, how)) >= how.train.patience


def _finish(
    out: Path,
    how: Recipe,
    parameters: model.Parameters,
    clips: dict[Split, list[Clip]],
    state: State,
    heard_clips: Sequence[Clip],
) -> None:
    """Write metrics.json, last of all."""
    best = _best(state.progress.history, how)
    saved: dict[str, Any] = {"steps": state.best.steps, "dev_eer": best.dev_eer, "dev_min_cllr": best.dev_min_cllr}
    if len(state.best.steps) > 1:  # a mean is a model that no check has met
        with in_place(state.weights, state.best.mean()):
            heard = _listener(state.detector, state.accelerator)
            saved["dev_eer"], saved["dev_min_cllr"] = dev.measure(heard_clips, how.draft(), heard)
    found = {
        "recipe": how.name,
        "mode": how.mode,
        "seed": how.seed,
        "trainable_parameters": parameters.trainable,
        "backbone_trainable_parameters": parameters.backbone_trainable,
        "head_parameters": parameters.head,
        "total_parameters": parameters.total,
        "clips": {split: len(rows) for split, rows in clips.items()},
        "dev_clips": len(heard_clips),
        "voices": voices(clips["train"]),  # whom calibration must not meet again
        "best": msgspec.to_builtins(best),
        "saved": saved,
        "history": msgspec.to_builtins(state.progress.history),
        "wall_s": state.progress.history[-1].wall_s,
        "peak_memory_bytes": _peak_memory_bytes(state.accelerator.device),
        "device": str(state.accelerator.device),
        "made_with": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("streamdet", "torch", "transformers", "peft", "accelerate")},
        },
    }
    with durable.saving(out):
        durable.replace_text(out / run.METRICS, json.dumps(found, indent=1) + "\n")
    log.info(
        "%s: dev EER %.2f %%, min Cllr %.3f from step %s, in %s",
        how.name,
        100 * saved["dev_eer"],
        saved["dev_min_cllr"],
        " and ".join(map(str, saved["steps"])),
        out,
    )


def _peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this process has held: on the GPU if it trained there, else in all."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
