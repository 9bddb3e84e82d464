"""What the report says, in tables and pictures, once for both report.md and report.html."""

from collections.abc import Sequence
from typing import Final

import msgspec

from streamdet_training import tandem
from streamdet_training.bootstrap import Interval
from streamdet_training.evaluate import Entry, Row, Section, percent_interval
from streamdet_training.report import pictures
from streamdet_training.streaming import FOUND_S, HORIZON_S, Heard, Point, Steadiness

DASH: Final = "–"


class Grid(msgspec.Struct, frozen=True):
    """A table; the first column is words, the others are numbers."""

    header: list[str]
    rows: list[list[str]]


class Picture(msgspec.Struct, frozen=True):
    """A picture and its file's name."""

    name: str
    says: str
    """For those who cannot see it."""
    svg: bytes


class Part(msgspec.Struct, frozen=True):
    """A heading with what stands under it, in this order."""

    title: str
    text: str = ""
    grids: list[Grid] = []
    pictures: list[Picture] = []


class Chapter(msgspec.Struct, frozen=True):
    """All parts of a split."""

    split: str
    parts: list[Part]


def chapter(section: Section, resamples: int, seed: int) -> Chapter:
    """Lay out one split."""
    parts = [_summary(section), *_differences(section), *_drawn(section, resamples, seed)]
    for group in ("system", "channel"):
        parts += _group(section, group)
    if any(entry.streaming for entry in section.entries):
        parts += _streaming(section)
    parts += _worst(section)
    unscored = {name: None for evaluation in section.evaluations for name in evaluation.unscored}
    if unscored:
        text = (
            f"{len(unscored)} clips have not one window with enough speech and count as LLR 0: {', '.join(unscored)}."
        )
        parts.append(Part("Never heard", text))
    return Chapter(section.split, parts)


def _summary(section: Section) -> Part:
    forms = [form for form in tandem.FORMS if _tdcf(section.evaluations[0].rows[0], form) is not None]
    header = ["", "bona fide", "spoof", "EER %", "minDCF", "actDCF", "Cllr", "min Cllr"]
    header += [f"min t-DCF ({form} form)" for form in forms]
    rows = []
    for entry, evaluation in zip(section.entries, section.evaluations, strict=True):
        rows += [
            [f"{entry.name}, {row.name}", *_numbers(row), *(_three(_tdcf(row, form)) for form in forms)]
            for row in evaluation.rows
            if row.group == "pooled"
        ]
    text = (
        "EER: where as many bona fide clips are rejected as spoof is accepted. DCF: expected cost at P(spoof) = 0.05, "
        "1 = a system that does not listen; min at the best threshold, act with the LLRs taken at their word. "
        "Cllr: how good the LLRs are as LLRs (bit), 1 = no information; min after the best monotonic map, so the rest "
        "is calibration."
    )
    if any(row.intervals for row in section.evaluations[0].rows):
        text += " In brackets 95 % intervals, from resampling whole speakers and whole systems."
    return Part("Summary", text, [Grid(header, rows)])


def _differences(section: Section) -> list[Part]:
    if not section.differences:
        return []
    rows = [
        [
            f"{second} minus {first}",
            f"{100 * found.difference:+.1f}",
            " to ".join(f"{100 * bound:+.1f}" for bound in found.interval),
            f"{100 * found.worse_share:.0f} %",
        ]
        for first, second, found in section.differences
    ]
    header = ["", "EER difference (points)", "95 %", "resamples in which it is worse"]
    text = "On the same clips and the same resamples: what is hard for both cancels out."
    return [Part("Side by side", text, [Grid(header, rows)])]


def _drawn(section: Section, resamples: int, seed: int) -> list[Part]:
    """The pictures of all clips."""
    split = section.split
    return [
        Part("DET curves", "", [], [Picture(f"{split}-det", "DET curves", pictures.det(section))]),
        Part(
            "LLRs",
            "Calibrated LLRs have bona fide right of the dashed line and spoof left of it.",
            [],
            [Picture(f"{split}-histograms", "Histograms of the LLRs of both classes", pictures.histograms(section))],
        ),
        Part(
            "Calibration",
            f"Trials in {pictures.BINS} groups of equal size by their LLR. Below the dotted line the LLRs promise more "
            "bona fide than there is.",
            [],
            [
                Picture(
                    f"{split}-reliability",
                    "Share of bona fide against the probability that the LLR gives",
                    pictures.reliability(section, resamples, seed),
                )
            ],
        ),
    ]


def _group(section: Section, group: str) -> list[Part]:
    found = [
        {row.name: row for row in evaluation.rows if row.group == group} for evaluation in section.evaluations
    ]  # fmt: skip
    if not found[0]:
        return []
    grids = []
    for entry, rows in zip(section.entries, found, strict=True):
        header = [entry.name, "bona fide", "spoof", "EER %", "minDCF", "actDCF", "Cllr", "min Cllr"]
        grids.append(Grid(header, [[name, *_numbers(row)] for name, row in rows.items()]))
    against = "Each system's spoof against all bona fide clips." if group == "system" else "Each channel by itself."
    picture = Picture(f"{section.split}-{group}s", f"EER by {group}", pictures.bars(section, group))
    return [Part(f"By {group}", against, grids, [picture])]


def _streaming(section: Section) -> list[Part]:
    heard = [entry for entry in section.entries if entry.streaming is not None]
    return [
        _alarms(section, heard),
        Part("Steadiness", _STEADINESS, [_steady(heard)]),
        Part(
            "EER against seconds of speech",
            "Calls of one voice are cut into stretches of 8 s of speech (as the gate counts it), and the verdict is "
            "looked at as the stretch goes on. Solid: the stretches that reach 8 s, so that lengths compare. "
            "Dashed: all.",
            [_lengths(heard)],
            [Picture(f"{section.split}-speech", "EER against seconds of speech", pictures.by_speech(section))],
        ),
    ]


_STEADINESS: Final = (
    "Calls of one voice that does not change. A flip is a change between bonafide, uncertain and spoof. Shares are of "
    "the call's time."
)


def _alarms(section: Section, heard: Sequence[Entry]) -> Part:
    header = ["at the bundle's own heights", "false alarms / h", "at most (95 %)", "early", "calls", "mean delay (s)"]
    header += ["median (s)", *(f"found in {seconds:g} s" for seconds in FOUND_S)]
    rows = []
    for entry in heard:
        assert entry.streaming is not None
        rows.append([f"{entry.name}, turning in mid-call", *_point(entry.streaming.operating)])
        rows.append([f"{entry.name}, spoof from the start", *_point(entry.streaming.spoof)])
    text = (
        "Simulated calls through the daemon's own engine and tracker: clips of one voice on one channel in a row; "
        "turning calls go from a bona fide speaker to a spoof system on the same channel. The curve moves the alarm "
        "height; the star is the bundle's own. A delay counts from the onset; what is not found in "
        f"{HORIZON_S:g} s counts as that; calls that end before count as far as they go (Kaplan and Meier). Early: "
        "alarms before the onset, left out."
    )
    picture = Picture(
        f"{section.split}-delay", "Delay of the alarm against false alarms an hour", pictures.delays(section)
    )
    return Part("Delay against false alarms", text, [Grid(header, rows)], [picture])


def _point(point: Point) -> list[str]:
    delays = [DASH if delay is None else f"{delay:.1f}" for delay in (point.mean_delay_s, point.median_delay_s)]
    return [
        f"{point.false_alarms_per_hour:.1f}",
        f"{point.upper_95:.1f}",
        str(point.early),
        str(point.calls),
        *delays,
        *([f"{100 * share:.0f} %" for share in point.found] or [DASH] * len(FOUND_S)),
    ]


def _steady(heard: Sequence[Entry]) -> Grid:
    header = ["", "calls", "voices", "hours", "windows / min", "flips / h", "first verdict (s)"]
    header += ["listening", "bonafide", "uncertain", "spoof"]
    rows = []
    for entry in heard:
        assert entry.streaming is not None
        for found in entry.streaming.steadiness:
            kind = "bona fide" if found.kind == "bonafide" else found.kind
            rows.append([f"{entry.name}, {kind} calls", *_steadiness(found)])
    return Grid(header, rows)


def _steadiness(found: Steadiness) -> list[str]:
    first = DASH if found.first_verdict_s is None else f"{found.first_verdict_s:.1f}"
    shares = [f"{100 * share:.0f} %" for share in found.shares.values()]
    rates = [f"{found.windows_per_minute:.1f}", f"{found.flips_per_hour:.0f}"]
    return [str(found.calls), str(found.voices), f"{found.hours:.2f}", *rates, first, *shares]


def _lengths(heard: Sequence[Entry]) -> Grid:
    rows = []
    for entry in heard:
        assert entry.streaming is not None
        for found, which in ((entry.streaming.heard_same, "the same stretches"), (entry.streaming.heard, "all")):
            rows += [[f"{entry.name}, {which}, {row.seconds:g} s", *_length(row)] for row in found]
    return Grid(["", "bona fide", "spoof", "EER %"], rows)


def _length(row: Heard) -> list[str]:
    interval = f" [{percent_interval(row.interval)}]" if row.interval else ""
    return [str(row.bonafide), str(row.spoof), f"{100 * row.eer:.1f}{interval}"]


def _worst(section: Section) -> list[Part]:
    shown = []
    for at, entry in enumerate(section.entries):
        errors = pictures.worst(entry) if entry.manifest is not None else []
        if errors and entry.manifest is not None:
            svg = pictures.timelines(errors, entry.manifest)
            shown.append(Picture(f"{section.split}-worst-{at}", f"Course of the worst errors of {entry.name}", svg))
    if not shown:
        return []
    text = (
        f"The clips furthest on the wrong side, with at least {pictures.WORST_WINDOWS} windows: bona fide first, then "
        "spoof. The band along the bottom is the state."
    )
    return [Part("Worst errors", text, [], shown)]


def _numbers(row: Row) -> list[str]:
    report, found = row.report, row.intervals
    eer = f"{100 * report.eer:.1f}" + (f" [{percent_interval(found['eer'])}]" if "eer" in found else "")
    rest = ("min_dcf", "act_dcf", "cllr", "min_cllr")
    return [
        str(report.bonafide),
        str(report.spoof),
        eer,
        *(_three(getattr(report, name), found.get(name)) for name in rest),
    ]


def _three(number: float | None, interval: Interval | None = None) -> str:
    if number is None:
        return DASH
    return f"{number:.3f}" + (f" [{interval[0]:.3f} to {interval[1]:.3f}]" if interval else "")


def _tdcf(row: Row, form: tandem.Form) -> float | None:
    return row.min_tdcf_2019 if form == "2019" else row.min_tdcf_2021
