"""`streamdet bench gpu`: every bench that makes sense on a GPU, one after the other, within a time.

Each part is a `streamdet bench` command of its own in a process of its own, which is ended when its time is up. A part
that fails, or for which no time is left, is a row with its reason: on a rented card everything else must still come.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

# Between being told to end and being ended.
GRACE_S: Final = 3.0
# A part that would get less cannot even load its model.
LEAST_S: Final = 5.0

TARGETS: Final[Mapping[tuple[str, str], float]] = {
    ("engine", "engine_windows_per_s"): 2000.0,
    ("engine", "ratio_engine_to_bare"): 0.9,
}
"""By part and key: what an H200 is to reach with XLS-R 300M, fp16, windowed."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One bench, and what of its rows goes into the table."""

    name: str
    command: tuple[str, ...]
    """After the interpreter."""
    seconds: float
    """At the most; what a part leaves goes to those after it."""
    label: tuple[str, ...] = ()
    """Keys that tell rows apart."""
    figures: tuple[str, ...] = ()
    """Keys of what was found."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of a part."""

    rows: list[dict[str, Any]]
    seconds: float
    reason: str | None = None
    """Why there is no more."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What all parts share."""

    config: str
    layers: int
    provider: str
    """cuda, or cpu to see that it runs."""
    batches: tuple[int, ...]
    folder: str
    """For the models."""


Tell = Callable[[str], None]


def parts(ask: Ask) -> list[Part]:
    """List the parts, the most telling first.

    Seconds add up to a little more than the whole may take: not every part needs all of its own.
    """
    folder, device = ask.folder, ("cpu" if ask.provider == "cpu" else "cuda")
    half, whole = f"{folder}/fp16", f"{folder}/fp32"
    layers = ("--layers", str(ask.layers))
    largest = str(max(ask.batches))
    some = ",".join(str(batch) for batch in ask.batches)
    engine = ("engine", "--batches", some, "--threads", "1", "--rounds", "4", "--lag-s", "4")
    throughput = {
        "label": ("batch",),
        "figures": (
            "engine_windows_per_s",
            "bare_windows_per_s",
            "ratio_engine_to_bare",
            "alone_ms",
            "added_lag_ms_p99",
        ),
    }
    peers: tuple[str, ...] = (
        "peers",
        "--run",
        f"{folder}/run",
        "--threads",
        "1",
        "--batch",
        largest,
        "--device",
        device,
    )
    peers = (*peers, "--rounds", "3", "--seconds", "10")
    compared = {
        "label": ("way",),
        "figures": ("windows_per_s", "audio_s_per_s", "ratio_calls_to_this", "largest_difference"),
    }
    trained = ("train", "--config", ask.config, "--device", device, "--precision", "bf16", "--batches", "8")
    return [
        Part(
            name="models",
            command=("-m", "streamdet_export.untrained", ask.config, folder, "fp16", "fp32", *layers),
            seconds=170,  # everything but train and the starter needs them
        ),
        _bench("engine", (*engine, "--bundle", half, "--provider", ask.provider), 80, **throughput),
        _bench("peers torch fp32", (*peers, "--bundle", half), 60, **compared),
        _bench(
            "peers torch fp16",
            (*peers, "--bundle", half, "--autocast", "fp16", "--ways", "batched,calls"),
            40,
            **compared,
        ),
        _bench("peers ours fp32", (*peers, "--bundle", whole, "--ways", "eager,calls"), 40, **compared),
        _bench(
            "calls",
            (
                *("calls", "--bundle", half, "--set", f"scoring.provider={ask.provider}"),
                *("--set", f"scoring.batch_max={largest}", "--set", "streams.max_streams=10000"),
                # Its rows come last, and its budget counts from when the daemon is ready.
                *("--start", "64", "--frame-ms", "100", "--hold-s", "3", "--budget-s", "30"),
            ),
            65,
            label=("calls", "point"),
            figures=("lag_ms_p50", "lag_ms_p99", "mean_batch", "daemon_cores"),
        ),
        _bench(
            "roofline",
            ("roofline", half, "--provider", ask.provider, "--batch", largest, "--threads", "1", "--rounds", "4"),
            40,
            label=("model",),
            figures=("gflop", "matrix_gflop_s_fp16", "matrix_gflop_s_fp32", "windows_per_s", "ratio_reached"),
        ),
        _bench(
            "train",
            (*trained, "--modes", "lora,full,head", "--steps", "5", "--rounds", "3"),
            90,
            label=("row", "mode", "batch"),
            figures=(
                "step_s",
                "peak_bytes",
                "trainable_parameters",
                "ratio_step_full_to_lora",
                "ratio_peak_full_to_lora",
            ),
        ),
        _bench("starter", (*engine, "--provider", ask.provider), 40, **throughput),
        _bench("TensorRT", (*engine, "--bundle", half, "--provider", "tensorrt"), 300, **throughput),
    ]


def _bench(name: str, words: tuple[str, ...], seconds: float, **rest: Any) -> Part:
    return Part(name=name, command=("-m", "streamdet", "bench", *words, "--json"), seconds=seconds, **rest)


def bench(
    some: Sequence[Part], total_s: float, tell: Tell, keep: Callable[[Mapping[str, Outcome]], None]
) -> dict[str, Outcome]:
    """Run parts one after the other.

    Args:
        some: the parts.
        total_s: for all of them.
        tell: is told what begins, for a person who waits.
        keep: gets everything so far after each part, so that nothing is lost with the machine.
    """
    found: dict[str, Outcome] = {}
    ends_s = time.monotonic() + total_s
    for part in some:
        left_s = ends_s - time.monotonic() - GRACE_S
        if left_s < LEAST_S:
            found[part.name] = Outcome([], 0.0, f"no time left of {total_s:.0f} s")
        else:
            tell(f"{part.name}: {min(part.seconds, left_s):.0f} s at the most")
            found[part.name] = run(part, min(part.seconds, left_s))
            tell(f"{part.name}: {found[part.name].seconds:.0f} s, {found[part.name].reason or 'done'}")
        keep(found)
    return found


def run(part: Part, seconds: float) -> Outcome:
    """Run one part for so long at the most. What it had said by then counts."""
    began_s = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        signal.signal(signal.SIGTERM, _terminated)
        process = subprocess.Popen(  # noqa: S603 # our own interpreter and modules
            [sys.executable, "-P", *part.command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            reason = None if code == 0 else _last_line(_read(err)) or f"exit code {code}"
        except subprocess.TimeoutExpired:
            reason = f"its time was up after {seconds:.0f} s"
        finally:
            _end(process)
        rows = list(_rows(_read(out)))
    return Outcome(rows, time.monotonic() - began_s, reason)


def raw(found: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """Give every part's rows as it gave them, and a row of its own for its time and reason."""
    rows = []
    for name, outcome in found.items():
        rows += [{**row, "part": name} for row in outcome.rows]
        rows.append({"part": name, "row": "part", "seconds": outcome.seconds, "reason": outcome.reason})
    return rows


def laid_out(
    some: Sequence[Part], found: Mapping[str, Outcome], targets: Mapping[tuple[str, str], float]
) -> list[dict[str, Any]]:
    """Lay everything out for a person: a row a figure, and a row for every part that has a reason."""
    return [row for part in some if part.name in found for row in _laid_out(part, found[part.name], targets)]


def _laid_out(part: Part, outcome: Outcome, targets: Mapping[tuple[str, str], float]) -> Iterator[dict[str, Any]]:
    for row in outcome.rows:
        of = ", ".join(str(row[key]) for key in part.label if row.get(key) is not None)
        for key in part.figures:
            if row.get(key) is not None:
                target = targets.get((part.name, key))
                yield {"part": part.name, "of": of, "figure": key, "value": row[key], "target": target}
    if outcome.reason is not None:
        yield {"part": part.name, "of": "", "figure": "not measured", "note": outcome.reason}
    elif not outcome.rows:
        yield {"part": part.name, "of": "", "figure": "seconds", "value": outcome.seconds}


def card() -> dict[str, Any]:
    """Name the card and its driver, as far as its own tool does."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout  # noqa: S603 # no input of anybody's
    except (OSError, subprocess.SubprocessError):
        return {"card": None}
    name, driver, memory = (word.strip() for word in said.splitlines()[0].split(","))
    return {"card": name, "driver": driver, "memory": memory}


def _terminated(*_: object) -> None:
    """Make of SIGTERM an exception, so that the part that runs is ended too."""
    raise SystemExit(128 + signal.SIGTERM)


def _rows(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of a process that was ended
        if isinstance(row, dict):
            yield row


def _read(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode("utf-8", "replace"))


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][:200]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process with all that it started: a child left behind would keep the card's memory."""
    for number, wait_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
