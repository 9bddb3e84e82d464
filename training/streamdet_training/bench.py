"""`streamdet bench train`: what a training step costs, LoRA against full fine-tuning and the head alone.

Modes take turns within one run, so that a machine that slows down slows all of them; each turn is a process of its own
(bench_steps.py), so that a peak of memory is that cell's and nobody else's. On Linux a process begins its life with its
parent's peak: this one builds no model, so its own is below any cell's.
"""

import logging
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec

from streamdet.bench import report, steady
from streamdet.bench.report import Report
from streamdet.errors import StreamdetError

log = logging.getLogger(__name__)

Mode = Literal["lora", "full", "head"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
Precision = Literal["no", "bf16"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

COLUMNS: Final[Mapping[str, str]] = {
    "batch": "batch",
    "mode": "mode",
    "step s": "step_s",
    "forward": "forward_s",
    "backward": "backward_s",
    "optimiser": "optimiser_s",
    "CPU s": "cpu_s",
    "peak GiB": "peak_gib",
    "trained": "trainable_parameters",
    "step ratio": "ratio_step",
    "peak ratio": "ratio_peak",
    "": "note",
}
"""Of the table: heading -> key of `laid_out`."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a cell is to measure."""

    config: dict[str, Any]
    """Fields of transformers' Wav2Vec2Config."""
    mode: Mode
    batch: int
    window_s: float
    device: str
    precision: Precision
    steps: int
    warm_up: int = 1
    rank: int = 16
    """Of LoRA, on query and value."""


class Timing(msgspec.Struct, frozen=True):
    """One step."""

    forward_s: float
    backward_s: float
    optimiser_s: float
    """With the clipping of gradients."""
    cpu_s: float
    """Of the process, whatever it waited for: steadier than the clock on a machine with other work."""

    @property
    def step_s(self) -> float:
        """The whole step."""
        return float(self.forward_s + self.backward_s + self.optimiser_s)


class Steps(msgspec.Struct, frozen=True):
    """What one process found."""

    trainable: int
    total: int
    estimated_bytes: int
    skipped: str | None = None
    timings: list[Timing] = []
    peak_bytes: int = 0


class Cell(msgspec.Struct, frozen=True, tag_field="row", tag="measured"):
    """A mode at a batch size. Times are medians over `steps` steps, which took `rounds` turns."""

    mode: Mode
    batch: int
    steps: int
    rounds: int
    agreed: bool
    """Three of the turns are within 10 %."""
    step_s: float
    forward_s: float
    backward_s: float
    optimiser_s: float
    cpu_s: float
    peak_bytes: int
    """Highest of all turns: the process's resident memory, or what torch took of the card."""
    estimated_bytes: int
    trainable_parameters: int
    total_parameters: int


class Skipped(msgspec.Struct, frozen=True, tag_field="row", tag="skipped"):
    """A cell that was not measured, and why."""

    mode: Mode
    batch: int
    reason: str


Ratios = dict[str, Any]
"""`row`, `batch`, and `ratio_step_MODE_to_REFERENCE`, `ratio_cpu_...`, `ratio_peak_...`, `ratio_trainable_...`."""
Row = Cell | Skipped | Ratios
Measure = Callable[[Ask], Steps]


def bench(ask: Ask, modes: Sequence[Mode], batches: Sequence[int], rounds: int, out: Path | None) -> list[Row]:
    """Measure every mode at every batch size.

    Args:
        ask: what all cells share; its mode and batch are replaced.
        modes: take turns; ratios are to lora, or to the first of them.
        batches: windows a step.
        rounds: turns at the most, where they do not agree.
        out: folder for bench-train.json and bench-train.png, written after each batch size.

    Raises:
        StreamdetError: a cell's process broke down.
    """
    rows: list[Row] = []
    for batch in batches:
        found = take_turns(msgspec.structs.replace(ask, batch=batch), modes, rounds, in_its_own_process)
        rows += [*found, ratios(found)]
        if out is not None:
            report.write(reported(rows, ask), out, partial(draw, cells=[row for row in rows if isinstance(row, Cell)]))
    return rows


def reported(rows: Sequence[Row], ask: Ask) -> Report:
    """Put machine and settings to the rows."""
    shared = {key: value for key, value in msgspec.to_builtins(ask).items() if key not in ("mode", "batch")}
    threads = os.environ.get("OMP_NUM_THREADS")
    return Report.of("train", {**shared, "omp_num_threads": threads}, [msgspec.to_builtins(row) for row in rows])


def take_turns(ask: Ask, modes: Sequence[Mode], rounds: int, measure: Measure) -> list[Cell | Skipped]:
    """Measure the modes at one batch size, round after round until each one's turns agree."""
    turns: dict[Mode, list[Steps]] = {mode: [] for mode in modes}

    def once(mode: Mode) -> float | None:
        turn = measure(msgspec.structs.replace(ask, mode=mode))
        turns[mode].append(turn)
        log.info("batch %d, round %d, %s: %s", ask.batch, len(turns[mode]), mode, _said(turn))
        return None if turn.skipped else statistics.median(timing.step_s for timing in turn.timings)

    # Each turn is a new process, which has had a step of its own to warm up.
    found = steady.take_turns({mode: partial(once, mode) for mode in modes}, warm_up=0, rounds=rounds)
    return [summary(mode, ask.batch, turns[mode], agreed=found[mode].agreed) for mode in modes]


def in_its_own_process(ask: Ask) -> Steps:
    """Measure in a process of its own."""
    command = [sys.executable, "-P", "-m", "streamdet_training.bench_steps", msgspec.json.encode(ask).decode()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)  # noqa: S603 # our own interpreter and module
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise StreamdetError.of(f"bench train {ask.mode} batch {ask.batch}", last, "a process that ends well")
    return msgspec.json.decode(done.stdout, type=Steps)


def summary(mode: Mode, batch: int, turns: Sequence[Steps], *, agreed: bool) -> Cell | Skipped:
    """Take the medians of all turns. A mode that was skipped in a later round keeps what it has."""
    timings = _timings(turns)
    if not timings:
        return Skipped(mode, batch, next(turn.skipped for turn in turns if turn.skipped))

    def median(part: str) -> float:
        return float(statistics.median(getattr(timing, part) for timing in timings))

    return Cell(
        mode=mode,
        batch=batch,
        steps=len(timings),
        rounds=sum(1 for turn in turns if turn.timings),
        agreed=agreed,
        step_s=median("step_s"),
        forward_s=median("forward_s"),
        backward_s=median("backward_s"),
        optimiser_s=median("optimiser_s"),
        cpu_s=median("cpu_s"),
        peak_bytes=max(turn.peak_bytes for turn in turns),
        estimated_bytes=turns[0].estimated_bytes,
        trainable_parameters=turns[0].trainable,
        total_parameters=turns[0].total,
    )


def ratios(found: Sequence[Cell | Skipped]) -> Ratios:
    """How many times the reference each other mode costs; the reference is lora, or the first that was measured."""
    cells = {cell.mode: cell for cell in found if isinstance(cell, Cell)}
    row: Ratios = {"row": "ratios", "batch": found[0].batch}
    if not cells:
        return row
    name = "lora" if "lora" in cells else next(iter(cells))
    reference = cells[name]
    for mode, cell in cells.items():
        if mode != name:
            for key, part in _COMPARED.items():
                row[f"ratio_{key}_{mode}_to_{name}"] = round(getattr(cell, part) / getattr(reference, part), 4)
    return row


_COMPARED: Final[Mapping[str, str]] = {
    "step": "step_s",
    "cpu": "cpu_s",
    "peak": "peak_bytes",
    "trainable": "trainable_parameters",
}


def laid_out(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Lay the rows out for a person, as COLUMNS wants them; ratios stand beside the mode that they are of."""
    found = {row["batch"]: row for row in rows if isinstance(row, dict)}
    shown: list[dict[str, Any]] = []
    for row in rows:
        if isinstance(row, Skipped):
            shown.append({"batch": row.batch, "mode": row.mode, "note": f"skipped: {row.reason}"})
        elif isinstance(row, Cell):
            note = f"{row.steps} steps" + ("" if row.agreed else ", no three turns within 10 %")
            beside: dict[str, Any] = {
                f"ratio_{key}": _ratio(found.get(row.batch, {}), key, row.mode) for key in ("step", "peak")
            }
            shown.append({**msgspec.to_builtins(row), "peak_gib": row.peak_bytes / 2**30, **beside, "note": note})
    return shown


def draw(figure: Any, cells: Sequence[Cell]) -> None:
    """Draw step time and peak memory over the batch size, a line a mode."""
    left, right = figure.subplots(1, 2)
    for mode in MODES:
        mine = sorted((cell for cell in cells if cell.mode == mode), key=lambda cell: cell.batch)
        batches = [cell.batch for cell in mine]
        if mine:
            left.plot(batches, [cell.step_s for cell in mine], marker="o", label=mode)
            right.plot(batches, [cell.peak_bytes / 2**30 for cell in mine], marker="o", label=mode)
    left.set(xlabel="windows a step", ylabel="seconds a step")
    right.set(xlabel="windows a step", ylabel="peak memory (GiB)")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        if cells:
            axes.legend()


def _timings(turns: Sequence[Steps]) -> list[Timing]:
    return [timing for turn in turns for timing in turn.timings]


def _said(turn: Steps) -> str:
    if turn.skipped:
        return f"skipped, {turn.skipped}"
    steps = ", ".join(f"{timing.step_s:.3g}" for timing in turn.timings)
    return f"{steps} s a step, {turn.peak_bytes / 2**30:.2f} GiB"


def _ratio(found: Ratios, of: str, mode: Mode) -> float | None:
    return next((value for key, value in found.items() if key.startswith(f"ratio_{of}_{mode}_to_")), None)
