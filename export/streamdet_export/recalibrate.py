"""A bundle for somebody's own audio: the same model, byte for byte, with everything after it fitted anew.

Nothing here needs torch.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from streamdet import bundle
from streamdet.bundle import Bundle, Decision
from streamdet.errors import DataError, UsageError
from streamdet.scorer import Scorer
from streamdet_export.fit import (
    FALSE_ALARMS_PER_HOUR,
    PRIOR_SPOOF,
    Evidence,
    Fitted,
    fit,
    fit_heights,
    listen,
    refuse_met,
    reported,
)
from streamdet_training.calls import voice
from streamdet_training.clips import UNKNOWN, Clip, Label
from streamdet_training.metrics import Report

log = logging.getLogger(__name__)

SUFFIX: Final = "-calibrated"
# With fewer clips two numbers follow chance. With fewer voices no fold is like the next: a speaker is one piece of
# evidence however long he talks. Systems are rarer, and two is the least that can be held against each other.
LEAST_CLIPS: Final = 20
LEAST_VOICES: Final[dict[Label, int]] = {"bonafide": 5, "spoof": 2}


def recalibrate(
    source: Bundle,
    clips: Sequence[Clip],
    out: Path,
    *,
    name: str | None = None,
    false_alarms_per_hour: float = FALSE_ALARMS_PER_HOUR,
    prior_spoof: float = PRIOR_SPOOF,
    heights_only: bool = False,
    allow_overlap: Sequence[str] = (),
    facts: dict[str, Any] | None = None,
) -> Bundle:
    """Fit a bundle to labelled recordings.

    Args:
        source: the bundle; it is not changed.
        clips: bona fide and spoof; with `heights_only` bona fide is enough.
        out: folder of the new one; it appears whole, at the end.
        name: of the new one; without one the old name with `SUFFIX`.
        false_alarms_per_hour: what the alarm height is chosen for.
        prior_spoof: P(spoof) where the LLRs shall be best.
        heights_only: keep scale, offset and rolling rows.
        allow_overlap: voices (`speaker:NAME`, `system:NAME`) that may calibrate although the model was trained on them.
        facts: what the caller knows of the recordings, for the manifest's `provenance.calibration`.

    Raises:
        UsageError: `out` is the bundle itself, or holds something.
        BundleError: a file of the bundle is not what its manifest says.
        DataError: too few clips or voices, or some that the model was trained on.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError.of("--out", str(out), "a new folder, or an empty one")
    manifest = source.manifest
    _refuse_nameless(clips)
    trained_on = manifest.provenance.get("voices") or {}
    if trained_on:
        refuse_met(clips, trained_on, allow_overlap)
    else:
        log.warning("%s does not say which voices it was trained on: make sure that these are others", manifest.name)
    contents = source.read_verified()
    evidence = listen(clips, Scorer(source, batch_max=8))
    _refuse_few(evidence, heights_only=heights_only)
    if heights_only:
        fitted = fit_heights(evidence, manifest, false_alarms_per_hour)
    else:
        fitted = fit(evidence, manifest, false_alarms_per_hour, prior_spoof)
    before = (
        None if heights_only else reported(evidence.trials, manifest.calibration.scale, manifest.calibration.offset)
    )
    _tell(before, fitted, false_alarms_per_hour)
    provenance = {
        **manifest.provenance,
        "calibration": {
            **(facts or {}),
            "bundle": manifest.model_id,
            "streamdet": version("streamdet"),
            "training_voices": "others" if trained_on and not allow_overlap else "not known to be others",
            **fitted.facts,
            "before": msgspec.to_builtins(before),
        },
    }
    return bundle.save(out, _renamed(fitted, name or manifest.name.removesuffix(SUFFIX) + SUFFIX, provenance), contents)


def _renamed(fitted: Fitted, name: str, provenance: dict[str, Any]) -> bundle.Manifest:
    """With a name of its own: verdicts of two calibrations must not carry the same id."""
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return msgspec.structs.replace(fitted.manifest, name=name, created=created, provenance=provenance)


def _refuse_nameless(clips: Sequence[Clip]) -> None:
    """Speech whose speaker nobody knows cannot be kept out of a fold."""
    for clip in clips:
        if voice(clip) == UNKNOWN:
            column = "system" if clip.label == "spoof" else "speaker"
            raise DataError.of(f"{column} of {clip.path.name}", UNKNOWN, "a name: calibration holds voices apart by it")


def _refuse_few(evidence: Evidence, *, heights_only: bool) -> None:
    for label, least in LEAST_VOICES.items():
        if heights_only and label == "spoof":
            continue
        scored = [trial.clip for trial in evidence.trials if trial.clip.label == label and trial.llrs]
        found = len({voice(clip) for clip in scored})
        what = "speakers" if label == "bonafide" else "systems"
        if not scored and label == "spoof":
            raise DataError.of(
                "spoof clips with enough speech",
                0,
                "some: LLRs need both classes; --heights-only fits the alarm height to bona fide speech alone",
            )
        if len(scored) < LEAST_CLIPS:
            raise DataError.of(f"{label} clips with enough speech", len(scored), f"{LEAST_CLIPS} or more")
        if found < least:
            raise DataError.of(f"{what} of {label} clips", found, f"{least} or more")


def _tell(before: Report | None, fitted: Fitted, false_alarms_per_hour: float) -> None:
    if before is not None and fitted.report is not None:
        log.info("before: %s", _words(before))
        log.info("after:  %s (each voice by a fit that has not met it)", _words(fitted.report))
        if fitted.report.cllr > before.cllr:
            log.warning("the old calibration does better: it knows such recordings already, or these are too few")
    decision = fitted.manifest.decision
    log.info("%s", _promise(decision))
    if (noticed := fitted.facts["detection"]) is not None:
        median = noticed["delay_median_s"]
        log.info(
            "of %d calls that turn to spoof %.0f %% raise an alarm within 20 s, half of those within %s s",
            noticed["calls"], 100 * noticed["detected"], "-" if median is None else f"{median:.1f}",
        )  # fmt: skip
    if decision.false_alarms_per_hour > false_alarms_per_hour * 1.001:
        log.warning(
            "no height keeps to %g false alarms an hour: this is the lowest rate there is", false_alarms_per_hour
        )


def _promise(decision: Decision) -> str:
    beyond = ", beyond what they can show" if decision.extrapolated else ""
    return (
        f"alarm height {decision.alarm:.2f}, drift {decision.drift:.2f}: {decision.false_alarms_per_hour:.2f} "
        f"false alarms an hour expected, at most {decision.upper_95:.2f} (95 %), "
        f"by {decision.hours:.2f} h of {decision.speakers} speakers{beyond}"
    )


def _words(report: Report) -> str:
    return (
        f"EER {100 * report.eer:.1f} %, Cllr {report.cllr:.3f} (min {report.min_cllr:.3f}), "
        f"actDCF {report.act_dcf:.3f} (min {report.min_dcf:.3f})"
    )
