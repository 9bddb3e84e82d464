"""Everything that is fitted on labelled recordings, for `export` and for `calibrate`: LLRs, rows, drift, heights.

What is stated about a fit never comes from voices that it has seen. The voices are dealt into folds; each fold's LLRs
come from a calibration of the others, and heights are chosen on those.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import track

from streamdet.bundle import Calibration, Manifest
from streamdet.errors import DataError
from streamdet.records import Score, Window
from streamdet.scorer import Scorer
from streamdet.window import score_windows
from streamdet_export import calibrate
from streamdet_export.decide import decide, detection
from streamdet_training import metrics
from streamdet_training.calls import Call, mapped, simulate, splice, voice, voices
from streamdet_training.clips import Clip, Label
from streamdet_training.metrics import Report
from streamdet_training.scores import Trial, by_class, score_clip
from streamdet_training.splits import is_allowed

log = logging.getLogger(__name__)

FALSE_ALARMS_PER_HOUR: Final = 1.0
PRIOR_SPOOF: Final = 0.5
FOLDS: Final = 5
LABELS: Final[tuple[Label, ...]] = ("bonafide", "spoof")

Key = tuple[Label, str]
FitOf = Callable[[Sequence[Key]], calibrate.Fit | None]
"""The calibration for audio of these voices; None where there is nothing to fit it on."""


class Evidence(msgspec.Struct, frozen=True):
    """CM scores of everything that the clips make."""

    trials: list[Trial]
    calls: list[Call]
    spliced: list[Call]


class Fitted(msgspec.Struct, frozen=True):
    """What came of a fit."""

    manifest: Manifest
    report: Report | None
    """Of clips whose voices the calibration had not met; None where it was not fitted."""
    facts: dict[str, Any]
    """For `provenance.calibration`."""


def listen(clips: Sequence[Clip], scorer: Scorer) -> Evidence:
    """Score clips, and the calls that they make, without any calibration, by the daemon's own path."""
    plain = msgspec.structs.replace(scorer.manifest, calibration=Calibration())

    def score(windows: Sequence[Window]) -> list[Score]:
        return score_windows(windows, plain, scorer.run, scorer.head)

    console = Console(stderr=True)
    shown = track(clips, "scoring", console=console, disable=not console.is_terminal)
    trials = [score_clip(clip, plain, score) for clip in shown]
    log.info("%d clips scored; now the calls that they make", len(trials))
    return Evidence(trials, simulate(clips, plain, score), splice(clips, plain, score))


def fit(
    evidence: Evidence,
    manifest: Manifest,
    false_alarms_per_hour: float = FALSE_ALARMS_PER_HOUR,
    prior_spoof: float = PRIOR_SPOOF,
) -> Fitted:
    """Fit everything: scale, offset and rolling rows on all voices, drift and heights on calls fitted across folds.

    Raises:
        DataError: a class has fewer than two voices with a scored window.
    """
    found = calibrate.affine(*window_scores(evidence.trials), prior_spoof)
    rows = calibrate.rolling([mapped(call, found.scale, found.offset) for call in evidence.calls], manifest)
    unmet = cross_fitted(evidence, prior_spoof)
    decision = decide(_judged(unmet), manifest.decision, manifest.audio, false_alarms_per_hour)
    made = msgspec.structs.replace(calibrate.calibrated(manifest, found, rows), decision=decision)
    report = metrics.report(*by_class(unmet.trials))
    return Fitted(made, report, _facts(evidence, unmet, made, report, prior_spoof))


def fit_heights(evidence: Evidence, manifest: Manifest, false_alarms_per_hour: float = FALSE_ALARMS_PER_HOUR) -> Fitted:
    """Choose the alarm height alone; scale, offset and rolling rows stay, and so does the drift without any spoof.

    False alarms are an affair of bona fide speech, so this needs nothing else. LLRs need both classes: from bona fide
    speech alone nobody can tell how spoof scores.
    """
    old = manifest.calibration
    same = _mapped(evidence, lambda _: calibrate.Fit(old.scale, old.offset))
    decision = decide(_judged(same), manifest.decision, manifest.audio, false_alarms_per_hour)
    made = msgspec.structs.replace(manifest, decision=decision)
    return Fitted(made, None, _facts(evidence, same, made, None, None))


def cross_fitted(evidence: Evidence, prior_spoof: float = PRIOR_SPOOF) -> Evidence:
    """Calibrate each voice with what the other folds' voices give; in a spliced call, each of its two."""
    fold_of = _folds(evidence.trials)
    fits: dict[frozenset[int], calibrate.Fit | None] = {}

    def of(members: frozenset[int]) -> calibrate.Fit | None:
        if members not in fits:
            others = [trial for trial in evidence.trials if fold_of.get(_key(trial.clip)) not in members]
            bonafide, spoof = window_scores(others)
            both = bool(bonafide and spoof)
            fits[members] = calibrate.affine(bonafide, spoof, prior_spoof, quiet=True) if both else None
        return fits[members]

    return _mapped(evidence, lambda keys: of(frozenset(fold_of.get(key, 0) for key in keys)))


def reported(trials: Sequence[Trial], scale: float, offset: float) -> Report:
    """Report on trials of CM scores under a given calibration."""
    return metrics.report(*by_class([_calibrated(trial, calibrate.Fit(scale, offset)) for trial in trials]))


def window_scores(trials: Iterable[Trial]) -> tuple[list[list[float]], list[list[float]]]:
    """Windows' scores of the bona fide clips and of the spoof clips that have any."""
    scored = [trial for trial in trials if trial.llrs]
    return (
        [trial.llrs for trial in scored if trial.clip.label == "bonafide"],
        [trial.llrs for trial in scored if trial.clip.label == "spoof"],
    )


# -- voices ----------------------------------------------------------------------------------------------------------


def marks(named: Mapping[Label, Sequence[str]]) -> dict[str, str]:
    """Voices as a bundle keeps them: enough to know one again, without spelling out who it was."""
    return {label: " ".join(sorted(_mark(label, name) for name in names)) for label, names in named.items()}


def met_before(clips: Iterable[Clip], marked: Mapping[str, str], allowed: Sequence[str] = ()) -> list[str]:
    """The clips' voices that the marks of training hold, as `speaker:NAME` or `system:NAME`, but for those allowed."""
    known = {label: set(text.split()) for label, text in marked.items()}
    met = [
        f"{'system' if label == 'spoof' else 'speaker'}:{name}"
        for label, names in voices(clips).items()
        for name in names
        if _mark(label, name) in known.get(label, ())
    ]
    return [name for name in met if not is_allowed(name, allowed)]


def refuse_met(clips: Iterable[Clip], marked: Mapping[str, str], allowed: Sequence[str] = ()) -> None:
    """Refuse to calibrate on voices that the model was trained on: it knows them, and its LLRs would be too sure.

    Raises:
        DataError: there are some that are not allowed.
    """
    if met := met_before(clips, marked, allowed):
        raise DataError.of(
            "voices that the model was trained on", ", ".join(met), "others, or --allow-overlap for each of them"
        )


def _mark(label: Label, name: str) -> str:
    return hashlib.sha256(f"{label}:{name}".encode()).hexdigest()[:12]


def _key(clip: Clip) -> Key:
    return clip.label, voice(clip)


def _folds(trials: Iterable[Trial]) -> dict[Key, int]:
    """Deal the voices with a scored window into folds, each class by itself."""
    heard = {_key(trial.clip) for trial in trials if trial.llrs}
    dealt = {}
    for label in LABELS:
        mine = sorted(name for of, name in heard if of == label)
        if len(mine) < 2:
            raise DataError.of(f"{label} voices with enough speech", len(mine), "two or more, to cross-fit thresholds")
        dealt.update({(label, name): number % FOLDS for number, name in enumerate(mine)})
    return dealt


def _mapped(evidence: Evidence, fit_of: FitOf) -> Evidence:
    """Calibrate everything by the voices in it; a spliced call whose two voices leave none to fit on is dropped."""
    spliced = []
    for call in evidence.spliced:
        found = fit_of([(call.label, call.voice), ("bonafide", str(call.before))])
        if found is not None:
            spliced.append(mapped(call, found.scale, found.offset))
    calls = [(call, fit_of([(call.label, call.voice)])) for call in evidence.calls]
    trials = [(trial, fit_of([_key(trial.clip)])) for trial in evidence.trials]
    return Evidence(
        [_calibrated(trial, found) for trial, found in trials if found],
        [mapped(call, found.scale, found.offset) for call, found in calls if found],
        spliced,
    )


def _calibrated(trial: Trial, found: calibrate.Fit) -> Trial:
    windows = tuple((end_s, None if cm is None else found.scale * cm + found.offset) for end_s, cm in trial.windows)
    return msgspec.structs.replace(trial, windows=windows)


def _judged(evidence: Evidence) -> list[Call]:
    """What heights are chosen on: bona fide calls, and calls that turn to spoof, or are spoof where none is spliced."""
    bonafide = [call for call in evidence.calls if call.label == "bonafide"]
    return bonafide + (evidence.spliced or [call for call in evidence.calls if call.label == "spoof"])


# -- facts -----------------------------------------------------------------------------------------------------------


def _facts(
    evidence: Evidence, unmet: Evidence, made: Manifest, report: Report | None, prior_spoof: float | None
) -> dict[str, Any]:
    found: dict[str, Any] = {label: _counts(evidence, label) for label in LABELS}
    noticed = detection(unmet.spliced, made.decision, made.audio)
    return {
        **found,
        "fitted": ["alarm"] if report is None else ["scale", "offset", "rolling", "drift", "alarm"],
        "prior_spoof": prior_spoof,
        "folds": None if report is None else FOLDS,
        "metrics": msgspec.to_builtins(report),
        "detection": msgspec.to_builtins(noticed),
    }


def _counts(evidence: Evidence, label: Label) -> dict[str, float]:
    trials = [trial for trial in evidence.trials if trial.clip.label == label]
    minutes = sum(call.seconds for call in evidence.calls if call.label == label) / 60
    return {
        "clips": len(trials),
        "scored": sum(bool(trial.llrs) for trial in trials),
        "minutes": round(minutes, 1),
        "voices": len({voice(trial.clip) for trial in trials}),
    }
