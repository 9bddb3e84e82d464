"""The training run, from top to bottom: LoRA or full fine-tuning by one loop."""

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.functional import binary_cross_entropy_with_logits

from streamdet.audio import Samples
from streamdet.errors import DataError, UsageError
from streamdet.records import Score, Window
from streamdet.window import score_windows
from streamdet_training import metrics, model, recipe, run
from streamdet_training.average import Average
from streamdet_training.batches import batches
from streamdet_training.calls import voices
from streamdet_training.data import Clip, Split, load
from streamdet_training.model import Detector
from streamdet_training.recipe import Recipe
from streamdet_training.scores import by_class, score_clips
from streamdet_training.splits import refuse_overlap

log = logging.getLogger(__name__)


def train(how: Recipe, out: Path, *, data: Sequence[str | Path] = (), resume: bool = False) -> Path:
    """Train a detector.

    Args:
        how: the recipe.
        out: folder of the run.
        data: manifests and corpora, instead of the recipe's.
        resume: go on from the checkpoint in `out`, if there is one.

    Returns:
        `out`.

    Raises:
        UsageError: no data is named, or `out` holds a run and `resume` was not asked for.
        MissingError, DataError, ConfigError: what the recipe names is not there or not right.
    """
    if data:
        how = how.model_copy(update={"data": how.data.model_copy(update={"path": tuple(map(str, data))})})
    if not how.data.path:
        raise UsageError.of("data", None, "--data, or data.path in the recipe")
    if (out / run.RECIPE).is_file() and not resume:
        raise UsageError.of("out", str(out), "a new folder, or --resume")
    splits: tuple[Split, ...] = ("train", "dev")
    clips: dict[Split, list[Clip]] = {split: load(how.data.format, how.data.path, split) for split in splits}
    refuse_overlap(clips, how.data.allow_overlap)
    how = _with_backbone(how, out)

    # Set everything up. accelerate finds the devices; each process takes every n-th batch.
    # Where nothing is masked, a backbone trained in full has a mask embedding that no gradient reaches.
    unused = DistributedDataParallelKwargs(find_unused_parameters=how.mode == "full")
    accelerator = Accelerator(mixed_precision=how.train.precision, kwargs_handlers=[unused])
    set_seed(how.seed)
    detector = model.build(how)
    parameters = model.count(detector)
    log.info("%s: %s", how.name, parameters)
    if accelerator.is_main_process and not resume:
        run.begin(out, how, detector)
    trained = [p for p in detector.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=how.train.lr, weight_decay=how.train.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, how))
    wrapped, optimiser = accelerator.prepare(detector, optimiser)
    average = Average([*trained, *model.statistics(detector)], how.train.average)
    accelerator.register_for_checkpointing(average, schedule)
    progress = _Progress(how, accelerator.is_main_process)
    history: list[dict[str, float]] = []
    first = _restore(accelerator, out, history) if resume else 0

    # Train.
    began_s, heard_s = time.monotonic(), 0.0
    wrapped.train()
    for step, (audio, labels) in enumerate(_batches(clips["train"], how, accelerator, first), first + 1):
        with accelerator.autocast():
            scores = wrapped(audio)
        smooth = how.train.label_smoothing
        loss = binary_cross_entropy_with_logits(scores.float(), labels * (1 - smooth) + smooth / 2)
        optimiser.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, how.train.clip_norm)
        optimiser.step()
        schedule.step()
        average.update()
        heard_s += audio.numel() / how.window.rate_hz * accelerator.num_processes
        progress.step(step, loss.item(), heard_s / (time.monotonic() - began_s))

        # Now and then: how good is it on speakers and systems that it has not met?
        if step % how.train.check_every == 0 or step == how.train.steps:
            if accelerator.is_main_process:
                with average.in_place():
                    dev_eer = _dev_eer(detector, clips["dev"], how, accelerator)
                    history.append({"step": step, "loss": progress.loss, "dev_eer": dev_eer})
                    if dev_eer <= min(row["dev_eer"] for row in history):
                        run.save_weights(out, detector)
                progress.checked(history)
            accelerator.wait_for_everyone()
            _checkpoint(accelerator, out, history)
            wrapped.train()

    progress.close()
    if accelerator.is_main_process:
        _finish(out, how, parameters, clips, history)
    return out


def _with_backbone(how: Recipe, out: Path) -> Recipe:
    """Train the recipe that gives the backbone, unless that is done, and start from its result."""
    if how.backbone.recipe is None:
        return how
    first = out / run.FIRST
    if not (first / run.METRICS).is_file():
        train(recipe.load(how.backbone.recipe), first, data=how.data.path, resume=(first / run.RECIPE).is_file())
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


def _dev_eer(detector: Detector, clips: list[Clip], how: Recipe, accelerator: Accelerator) -> float:
    """EER by the daemon's own path of the clips with enough speech to score: raw scores know no neutral value."""
    manifest = how.draft()

    def run_detector(audio: Samples) -> Samples:
        with torch.inference_mode(), accelerator.autocast():
            scores: torch.Tensor = detector(torch.from_numpy(audio).to(accelerator.device))
            return scores.float().cpu().numpy()

    def score(windows: Sequence[Window]) -> list[Score]:
        return score_windows(windows, manifest, run_detector)

    detector.eval()
    return metrics.eer(*by_class(trial for trial in score_clips(clips, manifest, score) if trial.llrs))


# -- checkpoints -----------------------------------------------------------------------------------------------------


def _checkpoint(accelerator: Accelerator, out: Path, history: list[dict[str, float]]) -> None:
    """Write all that a resumed run needs; the older one goes only when the new one is whole."""
    new, kept = out / f"{run.CHECKPOINT}.new", out / run.CHECKPOINT
    accelerator.save_state(str(new))
    if accelerator.is_main_process:
        (new / "progress.json").write_text(json.dumps(history))
        shutil.rmtree(kept, ignore_errors=True)
        new.rename(kept)


def _restore(accelerator: Accelerator, out: Path, history: list[dict[str, float]]) -> int:
    """Load the checkpoint; returns the steps that are done."""
    kept = out / run.CHECKPOINT
    if not (kept / "progress.json").is_file():
        raise DataError.of(
            "checkpoint", str(kept), "one that `streamdet train` wrote; the run had none yet, start anew"
        )
    accelerator.load_state(str(kept))
    history.extend(json.loads((kept / "progress.json").read_text()))
    return int(history[-1]["step"])


def _finish(
    out: Path,
    how: Recipe,
    parameters: model.Parameters,
    clips: dict[Split, list[Clip]],
    history: list[dict[str, float]],
) -> None:
    """Write metrics.json, last of all."""
    best = min(history, key=lambda row: row["dev_eer"])
    found = {
        "recipe": how.name,
        "mode": how.mode,
        "trainable_parameters": parameters.trainable,
        "backbone_trainable_parameters": parameters.backbone_trainable,
        "head_parameters": parameters.head,
        "total_parameters": parameters.total,
        "clips": {split: len(rows) for split, rows in clips.items()},
        "voices": voices(clips["train"]),  # whom calibration must not meet again
        "best": best,
        "history": history,
    }
    (out / run.METRICS).write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    log.info("%s: best dev EER %.2f %% at step %d, in %s", how.name, 100 * best["dev_eer"], best["step"], out)


class _Progress:
    """A bar on a terminal, and a line for each check anywhere."""

    def __init__(self, how: Recipe, shown: bool) -> None:
        self._how = how
        self._started = False
        self._losses: list[float] = []
        self._speed = 0.0
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f} · dev EER {task.fields[dev_eer]} · {task.fields[speed]:.0f} s/s"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, disable=not (shown and console.is_terminal))
        self._task = self._bar.add_task(how.name, total=how.train.steps, loss=math.nan, dev_eer="–", speed=0.0)

    @property
    def loss(self) -> float:
        """Mean of the last hundred steps."""
        return float(np.mean(self._losses[-100:]))

    def step(self, step: int, loss: float, speed: float) -> None:
        if not self._started:
            self._bar.start()
            self._started = True
        self._losses.append(loss)
        self._speed = speed
        self._bar.update(self._task, completed=step, loss=self.loss, speed=speed)

    def checked(self, history: list[dict[str, float]]) -> None:
        last, best = history[-1], min(row["dev_eer"] for row in history)
        self._bar.update(self._task, dev_eer=f"{100 * last['dev_eer']:.1f} %")
        log.info(
            "%s: step %d of %d, loss %.3f, dev EER %.2f %% (best %.2f %%), %.0f s of audio a second",
            self._how.name,
            last["step"],
            self._how.train.steps,
            last["loss"],
            100 * last["dev_eer"],
            100 * best,
            self._speed,
        )

    def close(self) -> None:
        self._bar.stop()
