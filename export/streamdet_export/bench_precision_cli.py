"""`streamdet bench precision`."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from streamdet.lists import numbers, some_of

COLUMNS: Final = {
    "": "form",
    "batch": "batch",
    "windows/s": "windows_per_s",
    "to fp32": "ratio_speed_to_fp32",
    "bytes": "bytes",
    "EER": "eer",
    "difference": "largest_difference",
    "in a batch": "largest_difference_in_batch",
    "agreed": "agreed",
}


def precision(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="SOURCE", help="Folder of a float32 bundle, or of a run; without one, the starter."),
    ] = None,
    manifest: Annotated[
        list[str] | None,
        typer.Option(metavar="[FORMAT:]PATH", help="Clips for EER, difference and scales of int8; repeatable."),
    ] = None,
    split: Annotated[Literal["train", "dev", "test"], typer.Option(help="Of the manifest.")] = "dev",
    clips: Annotated[int, typer.Option(min=1, help="Of each class at the most.")] = 100,
    forms: Annotated[str, typer.Option(help="Any of fp16, int8-static and int8-dynamic, beside fp32.")] = "all",
    batches: Annotated[str, typer.Option(help="Windows a run, one size after another.")] = "1,8",
    threads: Annotated[int, typer.Option(min=0, help="Of a run on the CPU; 0: one a core.")] = 0,
    provider: Annotated[Literal["cpu", "cuda", "tensorrt"], typer.Option(help="Where the model runs.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=3, help="Turns of each at the most.")] = 8,
    keep: Annotated[Path | None, typer.Option(help="Folder in which the bundles of every form are left.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the bench's JSON file and PNG plot.")] = None,
) -> None:
    """Measure one model in fp32, fp16 and int8: speed, size, EER, and how far its scores move."""
    from streamdet.bench import report
    from streamdet_export import bench_precision as bench

    if out is not None:
        report.need_plots()
    heard = _clips(manifest, split)
    with tempfile.TemporaryDirectory() as folder:
        root = keep or Path(folder)
        exact = _float32(source, root / "source")
        made = {form: bench.make(exact, form, heard, root / form) for form in _forms(forms)}
        sizes = numbers("--batches", batches, 1)
        some = bench.spread(heard, clips)
        rows = bench.bench(made, some, batches=sizes, provider=provider, threads=threads, rounds=rounds)
    settings = {"model": exact.manifest.model_id, "provider": provider, "threads": threads, "clips": len(some)}
    found = report.Report.of("precision", {**settings, "split": split if manifest else None}, rows)
    report.show(found, COLUMNS, as_json=as_json)
    if out is not None:
        report.write(found, out, lambda figure: draw(figure, rows))


def _clips(manifest: Sequence[str] | None, split: Literal["train", "dev", "test"]) -> list[Any]:
    """Load the clips of a manifest, or the recordings that come with the starter, which are of one class."""
    from streamdet.bundle import starter_recordings
    from streamdet_training import data
    from streamdet_training.clips import Clip

    if manifest:
        return list(data.load("csv", manifest, split, classes=("bonafide", "spoof")))
    return [Clip(path=file, label="spoof") for file in starter_recordings()]


def _float32(source: Path | None, out: Path) -> Any:
    """Load a bundle, or export a run to one without calibration."""
    from streamdet import bundle

    path = source or bundle.starter_path()
    if (path / bundle.MANIFEST).is_file():
        return bundle.load(path)
    import msgspec

    from streamdet_export.graph import MODEL, to_onnx  # here it takes torch
    from streamdet_training import model, run

    detector = model.merge(run.load_run(path))
    draft = run.load_recipe(path).draft()
    draft = msgspec.structs.replace(draft, model=msgspec.structs.replace(draft.model, file=MODEL))
    return bundle.save(out, draft, to_onnx(detector, draft.audio.window_samples, "fp32"))


def _forms(text: str) -> list[Any]:
    from streamdet_export.bench_precision import FORMS

    others = [form for form in FORMS if form != "fp32"]
    return ["fp32", *(others if text == "all" else some_of("--forms", text, others))]


def draw(figure: Any, rows: list[dict[str, Any]]) -> None:
    """Draw speed beside how far scores move."""
    speed, moved = figure.subplots(1, 2)
    names = [f"{row['form']}, {row['batch']}" for row in rows]
    speed.barh(names, [row["windows_per_s"] for row in rows])
    speed.set(xlabel="windows a second")
    once = {row["form"]: row["largest_difference"] for row in rows}
    moved.barh(list(once), list(once.values()))
    moved.set(xlabel="largest difference of a score from fp32")
