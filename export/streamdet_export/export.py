"""The way from a run to a bundle, from top to bottom."""

import json
import logging
import platform
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from streamdet import bundle
from streamdet.bundle import Bundle
from streamdet.errors import DataError, UsageError
from streamdet.scorer import Scorer
from streamdet_export import calibrate, parity
from streamdet_export.decide import decide
from streamdet_export.graph import MODEL, Precision, to_onnx
from streamdet_training import model, run
from streamdet_training.calls import Call, mapped, simulate
from streamdet_training.data import Clip, load
from streamdet_training.evaluate import Scored, evaluate, score_with_bundle
from streamdet_training.recipe import Recipe
from streamdet_training.scores import Trial

log = logging.getLogger(__name__)

FALSE_ALARMS_PER_HOUR: Final = 1.0


def export(
    path: Path,
    out: Path,
    *,
    precision: Precision = "fp32",
    data: Sequence[str | Path] = (),
    name: str | None = None,
    false_alarms_per_hour: float = FALSE_ALARMS_PER_HOUR,
) -> Bundle:
    """Make a bundle of a run.

    Args:
        path: the run's folder.
        out: the bundle's; it appears only when everything has passed.
        precision: fp32, fp16 or int8.
        data: manifests and corpora whose dev split calibrates, instead of the recipe's.
        name: of the bundle; the recipe's without one.
        false_alarms_per_hour: what the alarm height is chosen for.

    Raises:
        BundleError: the exported model does not score as the trained one.
        UsageError: no data is named, or `out` exists.
        MissingError, DataError: the run or the data are not there or not right.
    """
    recipe = run.load_recipe(path)
    where = data or recipe.data.path
    if not where:
        raise UsageError.of("data", None, "--data, or data.path in the recipe: its dev split calibrates")
    if (out / bundle.MANIFEST).exists():
        raise UsageError.of("out", str(out), "a folder without a bundle in it")
    clips = load(recipe.data.format, where, "dev")

    log.info("merging and exporting %s as %s", path, precision)
    detector = run.load_run(path)
    counted = model.count(detector)
    detector = model.merge(detector)
    draft = recipe.draft()
    draft = msgspec.structs.replace(
        draft,
        name=name or recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        model=msgspec.structs.replace(draft.model, file=MODEL, precision=precision),
    )
    contents = to_onnx(detector, draft.audio.window_samples, precision)

    with tempfile.TemporaryDirectory() as folder:
        # onnxruntime gets the very bytes that the bundle will hold, through the scorer that will run them.
        scorer = Scorer(bundle.save(Path(folder), draft, contents), batch_max=8)
        agreed = parity.check(detector, scorer, draft, clips, precision)
        log.info("parity over %d windows: largest score difference %.1e", agreed.windows, agreed.largest_difference)
        trials = score_with_bundle(clips, scorer)
        calls = simulate(clips, draft, scorer.score)

    fit = calibrate.affine(*_window_scores(trials))
    rows = calibrate.rolling([mapped(call, fit.scale, fit.offset) for call in calls], draft)
    decision = decide(_cross_fitted(trials, calls), draft.decision, draft.audio, false_alarms_per_hour)
    found = calibrate.calibrated(draft, fit, rows)
    provenance = _provenance(path, recipe, counted, agreed, trials, fit)
    manifest = msgspec.structs.replace(found, decision=decision, provenance=provenance)
    return bundle.save(out, manifest, contents)


def _window_scores(trials: Sequence[Trial]) -> tuple[list[list[float]], list[list[float]]]:
    """Windows' scores of the bona fide clips and of the spoof clips."""
    scored = [trial for trial in trials if trial.llrs]
    return (
        [trial.llrs for trial in scored if trial.clip.label == "bonafide"],
        [trial.llrs for trial in scored if trial.clip.label == "spoof"],
    )


def _cross_fitted(trials: Sequence[Trial], calls: Sequence[Call]) -> list[Call]:
    """Calibrate each half of the voices with what the other half gives, so that none has met its own calibration."""
    voices = sorted({(call.label, call.voice) for call in calls})
    half = {voice: number % 2 for number, voice in enumerate(voices)}
    found = []
    for fold in (0, 1):
        others = [trial for trial in trials if half[_voice(trial.clip)] != fold]
        if {trial.clip.label for trial in others if trial.llrs} != {"bonafide", "spoof"}:
            raise DataError.of("dev voices", len(voices), "two or more of either class, to cross-fit thresholds")
        fit = calibrate.affine(*_window_scores(others))
        found += [mapped(call, fit.scale, fit.offset) for call in calls if half[call.label, call.voice] == fold]
    return found


def _voice(clip: Clip) -> tuple[Any, str]:
    return clip.label, clip.system if clip.label == "spoof" else clip.speaker


def _provenance(
    path: Path,
    recipe: Recipe,
    counted: model.Parameters,
    agreed: parity.Parity,
    trials: Sequence[Trial],
    fit: calibrate.Fit,
) -> dict[str, Any]:
    """Where the bundle comes from, and what was measured on the way."""
    dev = (
        evaluate([Scored(trial.clip, fit.scale * trial.llr + fit.offset if trial.llrs else 0.0) for trial in trials])
        .rows[0]
        .report
    )
    trained = json.loads((path / run.METRICS).read_text()) if (path / run.METRICS).is_file() else {}
    lora = recipe.lora.model_dump(mode="json") if recipe.mode == "lora" else {}
    return {
        "base": _base(path, recipe),
        "mode": recipe.mode,
        "lora": lora,
        "trainable_parameters": counted.trainable,
        "total_parameters": counted.total,
        "data": {"format": recipe.data.format, "clips": trained.get("clips", {}), "calibrated_on": "dev"},
        "metrics": {"dev": msgspec.to_builtins(dev), "parity": msgspec.to_builtins(agreed)},
        "made_with": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("streamdet", "torch", "transformers", "peft")},
        },
    }


def _base(path: Path, recipe: Recipe) -> str:
    """What the backbone was before this run: another run's name, a hub id, a folder's name, or random."""
    if (path / run.FIRST / run.RECIPE).is_file():
        return run.load_recipe(path / run.FIRST).name
    source = recipe.backbone.source
    if source is None:
        return "random"
    return Path(source).name if Path(source).is_dir() else source
