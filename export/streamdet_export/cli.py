"""`streamdet export` and `streamdet calibrate`."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from streamdet.lists import one_of

AllowOverlap = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND:NAME", help="speaker:NAME or system:NAME, to calibrate although trained on; repeatable."
    ),
]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `streamdet train` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    quantization: Annotated[
        str, typer.Option(help="Of int8: static (scales from dev, any batch) or dynamic (one window at a time).")
    ] = "static",
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="[FORMAT:]PATH", help="Manifest CSV or corpus folder, before the recipe's; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the bundle; the recipe's without one.")] = None,
    false_alarms_per_hour: Annotated[float, typer.Option(min=0.01, help="What the alarm height is chosen for.")] = 1.0,
    allow_overlap: AllowOverlap = None,
) -> None:
    """Merge a run, export it to ONNX, check parity, calibrate, and write a bundle."""
    from streamdet_export.export import export as make  # torch takes seconds to import, --help should not
    from streamdet_export.passes import PRECISIONS, QUANTIZATIONS
    from streamdet_training.terminal import settle

    settle()
    made = make(
        run,
        out,
        precision=one_of("--precision", precision, PRECISIONS),
        quantization=one_of("--quantization", quantization, QUANTIZATIONS),
        data=data or (),
        name=name,
        false_alarms_per_hour=false_alarms_per_hour,
        allow_overlap=allow_overlap or (),
    )
    typer.echo(made.manifest.model_id)


def calibrate(
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    bundle: Annotated[Path | None, typer.Argument(help="Folder of the bundle; without one, the starter.")] = None,
    manifest: Annotated[
        list[str] | None,
        typer.Option(metavar="[FORMAT:]PATH", help="Manifest CSV, or the folder of a corpus; repeatable."),
    ] = None,
    split: Annotated[str, typer.Option(help="train, dev, test or all.")] = "dev",
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="What a plain PATH is.")] = "csv",
    name: Annotated[str | None, typer.Option(help="Of the new bundle; the old one's with -calibrated.")] = None,
    false_alarms_per_hour: Annotated[float, typer.Option(min=0.01, help="What the alarm height is chosen for.")] = 1.0,
    prior: Annotated[
        float, typer.Option(min=0.001, max=0.999, help="P(spoof), after costs, where the LLRs shall be best.")
    ] = 0.5,
    heights_only: Annotated[
        bool, typer.Option("--heights-only", help="Fit the alarm height alone; bona fide speech is enough.")
    ] = False,
    allow_overlap: AllowOverlap = None,
) -> None:
    """Fit a bundle to your own audio: LLRs, rolling verdict, alarm height. The model stays as it is."""
    from datetime import UTC, datetime

    from streamdet import bundle as bundles
    from streamdet.errors import UsageError
    from streamdet_export.recalibrate import recalibrate
    from streamdet_training import data
    from streamdet_training.terminal import narrate

    narrate()
    if not manifest:
        raise UsageError.of("--manifest", None, "a manifest CSV or a corpus")
    splits: dict[str, data.Split | None] = {**{name: name for name in get_args(data.Split)}, "all": None}
    if split not in splits:
        raise UsageError.of("--split", split, f"one of {', '.join(splits)}")
    clips = data.load(form, manifest, splits[split], classes=("bonafide",))
    facts = {
        "manifest": [Path(given.rpartition(":")[2]).name for given in manifest],  # no path: a bundle travels
        "split": split,
        "date": datetime.now(UTC).date().isoformat(),
    }
    made = recalibrate(
        bundles.load(bundle or bundles.starter_path()),
        clips,
        out,
        name=name,
        false_alarms_per_hour=false_alarms_per_hour,
        prior_spoof=prior,
        heights_only=heights_only,
        allow_overlap=allow_overlap or (),
        facts=facts,
    )
    typer.echo(made.manifest.model_id)
