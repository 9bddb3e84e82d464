"""The report's folder, written whole: into a temporary folder beside it, which then takes its name."""

import base64
import csv
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined

from streamdet.errors import UsageError
from streamdet_training.evaluate import Section
from streamdet_training.report import page

HTML: Final = "report.html"
MARKDOWN: Final = "report.md"
SCORES: Final = "scores.csv"
RECORD: Final = "report.json"
PICTURES: Final = "pictures"
FORMAT: Final = 1
COLUMNS: Final = (
    "split",
    "path",
    "label",
    "speaker",
    "system",
    "channel",
    "source",
    "bundle",
    "llr",
    "scored",
    "gated",
    "llrs",
)


# What is in a folder that may be replaced: nothing, or what a report leaves and nothing else.
ENTRIES: Final[tuple[set[str], set[str]]] = (set(), {HTML, MARKDOWN, PICTURES, SCORES, RECORD})


def check(out: Path) -> None:
    """Refuse a folder that a report would destroy, before any work goes into one.

    Raises:
        UsageError: there is something at `out` that is no earlier report.
    """
    if out.exists() and not (out.is_dir() and {entry.name for entry in out.iterdir()} in ENTRIES):
        raise UsageError.of("--out", str(out), "a new folder, or that of an earlier report, which it replaces")
    place = next(folder for folder in out.absolute().parents if folder.exists())
    if not place.is_dir():
        raise UsageError.of("--out", str(out), f"a folder; {place} is a file")


def write(out: Path, sections: Sequence[Section], resamples: int, seed: int) -> None:
    """Write the report.

    Args:
        out: its folder; an earlier report there is replaced once this one is whole.
        sections: one a split.
        resamples: behind the intervals.
        seed: of them.
    """
    check(out)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    chapters = [page.chapter(section, resamples, seed) for section in sections]
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    facts = {"created": created, "version": version("streamdet"), "resamples": resamples, "seed": seed}
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.absolute().parent) as temporary:
        whole = Path(temporary) / "report"
        (whole / PICTURES).mkdir(parents=True)
        for chapter in chapters:
            for part in chapter.parts:
                for picture in part.pictures:
                    (whole / PICTURES / f"{picture.name}.svg").write_bytes(picture.svg)
        for name in (HTML, MARKDOWN):
            (whole / name).write_text(_rendered(name, chapters, facts), "utf-8")
        _write_scores(whole / SCORES, sections)
        record = {"format": FORMAT, **facts, "sections": [_record(section) for section in sections]}
        (whole / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
        earlier = Path(temporary) / "earlier"
        if out.exists():
            out.rename(earlier)
        try:
            whole.rename(out)
        except OSError:
            if earlier.exists():
                earlier.rename(out)
            raise


def _rendered(name: str, chapters: Sequence[page.Chapter], facts: dict[str, Any]) -> str:
    """One of the two templates; HTML escapes, Markdown does not."""
    loader = PackageLoader("streamdet_training.report", "")
    templates = Environment(loader=loader, autoescape=name == HTML, undefined=StrictUndefined, trim_blocks=True)  # noqa: S701 - Markdown has no tags to escape
    templates.filters["base64"] = lambda data: base64.b64encode(data).decode()
    templates.filters["cell"] = lambda text: text.replace("|", "\\|")
    return templates.get_template(f"{name}.j2").render(chapters=chapters, pictures=PICTURES, **facts)


def _write_scores(path: Path, sections: Sequence[Section]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for section in sections:
            rows.writerows(_score_rows(section))


def _score_rows(section: Section) -> Iterator[list[object]]:
    """One row a clip and entry; where only the clip's score is known, nothing is said of windows."""
    for entry in section.entries:
        for it in entry.scored:
            clip, llrs = it.clip, [llr for _, llr in it.windows if llr is not None]
            counts = [len(llrs), len(it.windows) - len(llrs)] if it.windows else ["", ""]
            words = [section.split, clip.path, clip.label, clip.speaker, clip.system, clip.channel, clip.source]
            yield [*words, entry.name, f"{it.llr:.6f}", *counts, " ".join(f"{llr:.4f}" for llr in llrs)]


def _record(section: Section) -> dict[str, Any]:
    """Everything of a section but its trials, which scores.csv has."""
    entries = [
        {
            "entry": entry.name,
            "model": None if entry.manifest is None else entry.manifest.model_id,
            "decision": None if entry.manifest is None else msgspec.to_builtins(entry.manifest.decision),
            **msgspec.to_builtins(evaluation),
            "streaming": None if entry.streaming is None else msgspec.to_builtins(entry.streaming),
        }
        for entry, evaluation in zip(section.entries, section.evaluations, strict=True)
    ]
    differences = [
        {"of": second, "minus": first, **msgspec.to_builtins(found)} for first, second, found in section.differences
    ]
    return {"split": section.split, "entries": entries, "eer_differences": differences}
