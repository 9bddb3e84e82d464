"""What a bench says: a table for a person, JSON lines for a program, a JSON file and a PNG for the record."""

import json
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from streamdet.errors import MissingError, from_extra

Row = Mapping[str, Any]
"""One line of a bench: flat; seconds, bytes and counts carry their unit in the name, ratios begin with `ratio_`."""
Draw = Callable[[Any], None]
"""Fills a matplotlib Figure."""

# What moves the figures of a bench; those that are not installed are left out.
_PACKAGES: Final = (
    "streamdet",
    "onnxruntime-gpu",
    "onnxruntime",
    "numpy",
    "pyzmq",
    "soxr",
    "torch",
    "transformers",
    "peft",
)


class Report(msgspec.Struct, frozen=True):
    """One run of a bench."""

    bench: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    machine: dict[str, Any]
    at: str
    """RFC 3339."""

    @classmethod
    def of(cls, bench: str, settings: Mapping[str, Any], rows: Sequence[Row]) -> "Report":
        """Put machine and date to what was found."""
        at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return cls(bench, dict(settings), [dict(row) for row in rows], machine(), at)


def machine() -> dict[str, Any]:
    """Say what a reader needs to compare figures."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: found for name in _PACKAGES if (found := _version(name)) is not None},
    }


def show(report: Report, columns: Mapping[str, str], *, as_json: bool) -> None:
    """Print a report: as a table on stdout, or one JSON object a row.

    Args:
        report: what to print.
        columns: heading -> the rows' key; numbers are shown with three digits.
        as_json: the rows as they are, instead.
    """
    if as_json:
        for row in report.rows:
            sys.stdout.write(_json({"bench": report.bench, **row}) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)  # a cell may hold [extra]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in columns:
        table.add_column(heading, justify="right", overflow="fold")
    for row in report.rows:
        table.add_row(*(said(row.get(key)) for key in columns.values()))
    console.print(table)
    facts = report.machine
    console.print(f"{facts['processor']}, {facts['cores']} cores, Python {facts['python']}, {report.at}", style="dim")


def said(value: object) -> str:
    """Write a value for a table: three digits of a float, thousands of an int, a dash for nothing."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def write(report: Report, out: Path, draw: Draw | None = None) -> None:
    """Write `bench-NAME.json`, and `bench-NAME.png` where there is something to draw; each replaces an older one whole.

    Raises:
        MissingError: there is something to draw, and matplotlib is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"bench-{report.bench}.json"
    new = file.with_suffix(".json.new")
    new.write_text(_json(msgspec.to_builtins(report), indent=1) + "\n", "utf-8")
    new.replace(file)
    if draw is not None:
        _draw(draw, file.with_suffix(".png"))


def _json(value: Any, indent: int | None = None) -> str:
    """Write JSON that every reader takes: it has no infinity, and a figure that is no number is not known."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
        case float() if not math.isfinite(value):
            return None
    return value


def need_plots() -> None:
    """Refuse `--out` before anything was measured, where the plot could not be drawn in the end.

    Raises:
        MissingError: matplotlib is not installed.
    """
    if _version("matplotlib") is None:
        raise MissingError.of("--out", "matplotlib", from_extra("bench"))


def _draw(draw: Draw, path: Path) -> None:
    need_plots()
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(9, 4), layout="constrained")
    draw(figure)
    new = path.with_suffix(".new.png")
    figure.savefig(new, dpi=120)
    new.replace(path)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name as Linux knows it, with the extensions that matrix products gain by."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(found.get("flags", "").split())
    gains = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in flags]
    return " ".join([found.get("model name", platform.machine()), *gains])
