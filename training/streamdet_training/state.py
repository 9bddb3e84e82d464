"""What changes in training, and its way into a checkpoint and out of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from streamdet_training import checkpoint, durable, model, run
from streamdet_training.average import Average, Best, in_place, overwrite
from streamdet_training.checkpoint import Progress
from streamdet_training.clips import Clip, Split
from streamdet_training.model import Detector
from streamdet_training.recipe import Recipe


class State:
    """The detector with all that training changes beside it."""

    def __init__(
        self,
        accelerator: Accelerator,
        detector: Detector,
        optimiser: torch.optim.Optimizer,
        how: Recipe,
        clips: Mapping[Split, Sequence[Clip]],
    ) -> None:
        """Take what `accelerator.prepare` has put on its device."""
        self.accelerator = accelerator
        self.detector = detector
        self._optimiser = optimiser
        self._trained = {name: values for name, values in detector.named_parameters() if values.requires_grad}
        self.weights = {**self._trained, **dict(detector.named_buffers())}
        self.average = Average(self._trained | model.statistics(detector), how.train.average)
        self.best = Best(how.train.average_best)
        self._published: list[int] = []
        frozen = {name: values for name, values in detector.named_parameters() if not values.requires_grad}
        self.progress = Progress(data=checkpoint.of_clips(clips), frozen=checkpoint.of_weights(frozen))

    def save(self, out: Path) -> None:
        """Write the checkpoint, then the weights that are best so far. Every process takes part in the first."""
        device = self.accelerator.device
        mine = checkpoint.random_state(device)
        everybodys = {name: self.accelerator.gather(state[None].to(device)) for name, state in mine.items()}  # (P, n)
        if not self.accelerator.is_main_process:
            return
        self.progress.averaged_steps = self.average.steps
        self.progress.kept = [each.rank for each in self.best.kept]
        scaler = self.accelerator.scaler
        self.progress.scaler = scaler.state_dict() if scaler else {}
        parts = {
            "weights": self.weights,
            "optimiser": checkpoint.optimiser_state(self._optimiser, list(self._trained)),
            "average": self.average.averages,
            "random": everybodys,
            **{f"kept.{number}": each.weights for number, each in enumerate(self.best.kept)},
        }
        with durable.saving(out):
            checkpoint.save(out / run.CHECKPOINT, parts, self.progress)
            if self.best.steps != self._published:
                self._publish(out)

    def restore(self, out: Path) -> None:
        """Go on where the checkpoint stands; weights whose publishing was cut short are published again."""
        parts, progress = checkpoint.load(out / run.CHECKPOINT)
        checkpoint.refuse_other_data(progress, self.progress)
        overwrite(self.weights, parts["weights"])
        checkpoint.restore_optimiser(self._optimiser, list(self._trained), parts["optimiser"])
        self.average.restore(parts["average"], progress.averaged_steps)
        for number, rank in enumerate(progress.kept):
            self.best.offer(rank, parts[f"kept.{number}"])
        mine = {name: states[self.accelerator.process_index] for name, states in parts["random"].items()}
        checkpoint.restore_random(mine, self.accelerator.device)
        if self.accelerator.scaler and progress.scaler:
            self.accelerator.scaler.load_state_dict(progress.scaler)
        self.progress = progress
        if self.accelerator.is_main_process:
            with durable.saving(out):
                self._publish(out)

    def _publish(self, out: Path) -> None:
        """Put the mean of the best checkpoints' weights where the run's result lies."""
        with in_place(self.weights, self.best.mean()):
            run.publish(out, self.detector)
        self._published = self.best.steps
