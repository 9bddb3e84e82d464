"""What a person sees of a training run: a bar on a terminal, and a line for each check anywhere."""

import logging
import math
import time

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from streamdet_training.checkpoint import Check
from streamdet_training.recipe import Recipe

log = logging.getLogger(__name__)


class Display:
    """Shows steps and checks, and keeps what belongs to the stretch since the last check."""

    def __init__(self, how: Recipe, shown: bool) -> None:
        """Show nothing but lines, unless there is a terminal and `shown`."""
        self._how = how
        self._losses: list[float] = []
        self._heard_s, self._since_s = 0.0, time.monotonic()
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
        self._bar.start()

    @property
    def loss(self) -> float:
        """Mean since the last check."""
        return float(np.mean(self._losses))

    @property
    def speed(self) -> float:
        """Seconds of audio a second, since the last check."""
        return self._heard_s / max(1e-9, time.monotonic() - self._since_s)

    def step(self, step: int, loss: float, heard_s: float) -> None:
        """Count a step that heard so many seconds of audio."""
        self._losses.append(loss)
        self._heard_s += heard_s
        self._bar.update(self._task, completed=step, loss=self.loss, speed=self.speed)

    def checked(self, check: Check, best: Check) -> None:
        """Say what a check found."""
        self._bar.update(self._task, dev_eer=f"{100 * check.dev_eer:.1f} %")
        log.info(
            "%s: step %d of %d, loss %.3f, dev EER %.2f %%, min Cllr %.3f (best %.2f %%, %.3f), %.0f audio s/s",
            self._how.name,
            check.step,
            self._how.train.steps,
            check.loss,
            100 * check.dev_eer,
            check.dev_min_cllr,
            100 * best.dev_eer,
            best.dev_min_cllr,
            check.audio_s_per_s,
        )

    def next(self) -> None:
        """Begin the stretch after a check."""
        self._losses, self._heard_s, self._since_s = [], 0.0, time.monotonic()

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()
