"""`streamdet bench precision`: one model in float32, fp16 and both kinds of int8: what each gains, and what it costs.

All of them are made of the float32 graph here and now, so they have one set of weights and one export behind them. No
torch is needed, unless a run is to be exported first. Shapes: B windows of T samples.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec
import numpy as np

from streamdet import bundle
from streamdet.audio import Samples
from streamdet.bench.steady import Steady, take_turns
from streamdet.bundle import Bundle, Calibration
from streamdet.errors import UsageError
from streamdet.providers import Provider
from streamdet.records import Score, Window
from streamdet.scorer import Scorer
from streamdet.window import score_windows
from streamdet_export import passes
from streamdet_export.ears import some_windows
from streamdet_export.passes import Precision, Quantization
from streamdet_training import metrics
from streamdet_training.clips import Clip
from streamdet_training.scores import Trial, by_class, score_clips

Form = Literal["fp32", "fp16", "int8-static", "int8-dynamic"]
FORMS: Final[tuple[Form, ...]] = get_args(Form)
_MADE: Final[Mapping[Form, tuple[Precision, Quantization]]] = {
    "fp32": ("fp32", "static"),
    "fp16": ("fp16", "static"),
    "int8-static": ("int8", "static"),
    "int8-dynamic": ("int8", "dynamic"),
}
# A turn runs batches for this long: long enough that the clock's steps do not show.
TURN_S: Final = 0.3
# Windows that are scored alone and in company, to see whether it matters.
COMPANY: Final = 16


class Quality(msgspec.Struct, frozen=True):
    """What a form's scores are worth."""

    eer: float | None
    """Of the clips, each by the mean of its windows; None where they are not of both classes."""
    scores: Samples
    """Raw CM scores of all windows, clip by clip."""
    company: float
    """Largest difference that a batch makes to its windows' raw scores; of a block model, to its sums."""


def make(source: Bundle, form: Form, clips: Sequence[Clip], out: Path) -> Bundle:
    """Write a bundle of a float32 bundle in another form.

    Args:
        source: the bundle.
        form: of the new one.
        clips: real speech: static int8 takes its scales from it.
        out: folder of the new one.

    Raises:
        UsageError: the source is not in float32.
    """
    manifest = source.manifest
    if manifest.model.precision != "fp32":
        raise UsageError.of("bundle precision", manifest.model.precision, "fp32: the others are made of it")
    precision, quantization = _MADE[form]
    work = out.with_name(f"{out.name}.work")
    work.mkdir(parents=True)
    for name, content in source.read_verified().items():
        (work / name).write_bytes(content)
    windows = some_windows(clips, manifest) if form == "int8-static" else ()
    passes.reduce(work / manifest.model.file, precision, quantization, windows)
    described = passes.described(manifest.model, precision, quantization)
    contents = {file.name: file.read_bytes() for file in work.iterdir()}
    for file in work.iterdir():
        file.unlink()
    work.rmdir()
    return bundle.save(out, msgspec.structs.replace(manifest, model=described), contents)


def bench(
    made: Mapping[Form, Bundle],
    clips: Sequence[Clip],
    *,
    batches: Sequence[int],
    provider: Provider = "cpu",
    threads: int = 0,
    rounds: int = 8,
) -> list[dict[str, Any]]:
    """Measure every form at every batch, and hold its scores against those in float32.

    Args:
        made: the same model in every form; float32 among them.
        clips: what quality is measured on.
        batches: windows a run, one size after another; dynamic int8 knows only 1.
        provider: where the model runs.
        threads: of a run on the CPU; 0 = one a core.
        rounds: turns of each at the most.
    """
    most = max(batches)
    scorers = {form: Scorer(found, provider=provider, threads=threads, batch_max=most) for form, found in made.items()}
    audio = _audio(scorers["fp32"], clips, max(most, COMPANY))
    measures = {
        f"{form} {batch}": partial(_rate, scorer.run, audio[:batch])
        for form, scorer in scorers.items()
        for batch in batches
        if batch in scorer.buckets
    }
    speeds = take_turns(measures, rounds=rounds)
    qualities = {form: _quality(scorer, clips, audio) for form, scorer in scorers.items()}
    return summary(made, speeds, qualities)


def summary(
    made: Mapping[Form, Bundle], speeds: Mapping[str, Steady], qualities: Mapping[Form, Quality]
) -> list[dict[str, Any]]:
    """Return a row a form and batch; ratios are to float32 at the same batch."""
    rows = []
    exact = qualities["fp32"]
    size = {form: sum(entry.bytes for entry in found.manifest.files.values()) for form, found in made.items()}
    for name, speed in speeds.items():
        form, batch = next((known, name.removeprefix(f"{known} ")) for known in FORMS if name.startswith(f"{known} "))
        quality = qualities[form]
        rows.append(
            {
                "form": form,
                "batch": int(batch),
                "windows_per_s": speed.median,
                "ratio_speed_to_fp32": speed.median / speeds[f"fp32 {batch}"].median,
                "bytes": size[form],
                "ratio_size_to_fp32": size[form] / size["fp32"],
                "eer": quality.eer,
                "largest_difference": float(np.abs(quality.scores - exact.scores).max()),
                "spread_fp32": float(exact.scores.std()),
                "largest_difference_in_batch": quality.company,
                "agreed": speed.agreed,
            }
        )
    return rows


def _audio(scorer: Scorer, clips: Sequence[Clip], count: int) -> Samples:
    """What the model hears at once, `(count, input_samples)`, from real windows, again and again if they are few."""
    heard = [window[-scorer.manifest.input_samples :] for window in some_windows(clips, scorer.manifest, count)]
    return np.stack([heard[at % len(heard)] for at in range(count)])


def _rate(run: Callable[[Samples], Samples], audio: Samples) -> float:
    """Rows a second."""
    began_s, rows = time.perf_counter(), 0
    while True:
        run(audio)
        rows += len(audio)
        if (taken_s := time.perf_counter() - began_s) >= TURN_S:
            return rows / taken_s


def _quality(scorer: Scorer, clips: Sequence[Clip], audio: Samples) -> Quality:
    plain = msgspec.structs.replace(scorer.manifest, calibration=Calibration())

    def score(windows: Sequence[Window]) -> list[Score]:
        return score_windows(windows, plain, scorer.run, scorer.head)

    trials = score_clips(clips, plain, score)
    alone = np.concatenate([scorer.run(row[None]) for row in audio])
    return Quality(_eer(trials), _scores(trials), float(np.abs(scorer.run(audio) - alone).max()))


def _scores(trials: Iterable[Trial]) -> Samples:
    return np.array([score for trial in trials for score in trial.llrs], np.float32)


def _eer(trials: Sequence[Trial]) -> float | None:
    bonafide, spoof = by_class([trial for trial in trials if trial.llrs])
    return metrics.eer(bonafide, spoof) if bonafide and spoof else None


def spread(clips: Sequence[Clip], most: int) -> list[Clip]:
    """Up to `most` clips of each class, from all over the list."""
    found: list[Clip] = []
    for label in ("bonafide", "spoof"):
        mine = [clip for clip in clips if clip.label == label]
        found += mine[:: max(1, -(-len(mine) // most))]
    return found
