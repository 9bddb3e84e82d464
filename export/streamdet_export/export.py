"""The way from a run to a bundle, from top to bottom."""

import json
import logging
import platform
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from streamdet import bundle
from streamdet.bundle import Bundle
from streamdet.errors import UsageError
from streamdet.scorer import Scorer
from streamdet_export import parity, passes
from streamdet_export.ears import some_windows
from streamdet_export.fit import FALSE_ALARMS_PER_HOUR, Fitted, fit, listen, marks, refuse_met
from streamdet_export.graph import MODEL, to_onnx
from streamdet_export.passes import Precision, Quantization
from streamdet_training import model, run
from streamdet_training.data import load
from streamdet_training.recipe import Recipe

log = logging.getLogger(__name__)


def export(
    path: Path,
    out: Path,
    *,
    precision: Precision = "fp32",
    quantization: Quantization = "static",
    data: Sequence[str | Path] = (),
    name: str | None = None,
    false_alarms_per_hour: float = FALSE_ALARMS_PER_HOUR,
    allow_overlap: Sequence[str] = (),
) -> Bundle:
    """Make a bundle of a run.

    Args:
        path: the run's folder.
        out: the bundle's; it appears only when everything has passed.
        precision: fp32, fp16 or int8.
        quantization: of int8; static takes its scales from windows of dev.
        data: manifests and corpora whose dev split calibrates, instead of the recipe's.
        name: of the bundle; the recipe's without one.
        false_alarms_per_hour: what the alarm height is chosen for.
        allow_overlap: voices (`speaker:NAME`, `system:NAME`) that may calibrate although the model was trained on them,
            beside those of the recipe.

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
    refuse_met(clips, marks(_trained(path).get("voices", {})), [*recipe.data.allow_overlap, *allow_overlap])

    log.info("merging and exporting %s as %s", path, precision)
    detector = run.load_run(path)
    counted = model.count(detector)
    detector = model.merge(detector)
    draft = recipe.draft()
    draft = msgspec.structs.replace(
        draft,
        name=name or recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        model=passes.described(msgspec.structs.replace(draft.model, file=MODEL), precision, quantization),
    )
    windows = some_windows(clips, draft) if draft.model.quantization == "static" else ()
    contents = to_onnx(detector, draft.audio.window_samples, precision, quantization=quantization, windows=windows)

    with tempfile.TemporaryDirectory() as folder:
        # onnxruntime gets the very bytes that the bundle will hold, through the scorer that will run them.
        scorer = Scorer(bundle.save(Path(folder), draft, contents), batch_max=8)
        agreed = parity.check(detector, scorer, draft, clips, precision)
        log.info("parity over %d windows: largest score difference %.1e", agreed.windows, agreed.largest_difference)
        evidence = listen(clips, scorer)

    fitted = fit(evidence, draft, false_alarms_per_hour)
    provenance = _provenance(path, recipe, counted, agreed, fitted)
    return bundle.save(out, msgspec.structs.replace(fitted.manifest, provenance=provenance), contents)


def _provenance(
    path: Path,
    recipe: Recipe,
    counted: model.Parameters,
    agreed: parity.Parity,
    fitted: Fitted,
) -> dict[str, Any]:
    """Where the bundle comes from, and what was measured on the way."""
    trained = _trained(path)
    lora = recipe.lora.model_dump(mode="json") if recipe.mode == "lora" else {}
    return {
        "base": _base(path, recipe),
        "mode": recipe.mode,
        "lora": lora,
        "trainable_parameters": counted.trainable,
        "total_parameters": counted.total,
        "data": {"format": recipe.data.format, "clips": trained.get("clips", {})},
        "voices": marks(trained.get("voices", {})),
        "metrics": {"dev": msgspec.to_builtins(fitted.report), "parity": msgspec.to_builtins(agreed)},
        "calibration": {"split": "dev", **fitted.facts},
        "made_with": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("streamdet", "torch", "transformers", "peft")},
        },
    }


def _trained(path: Path) -> dict[str, Any]:
    """What the run says of itself."""
    file = path / run.METRICS
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found


def _base(path: Path, recipe: Recipe) -> str:
    """What the backbone was before this run: another run's name, a hub id, a folder's name, or random."""
    if (path / run.FIRST / run.RECIPE).is_file():
        return run.load_recipe(path / run.FIRST).name
    source = recipe.backbone.source
    if source is None:
        return "random"
    return Path(source).name if Path(source).is_dir() else source
