"""One recipe by several seeds: what comes of it on average, and at best."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.table import Table

from streamdet.errors import UsageError
from streamdet_training import durable, run
from streamdet_training.recipe import Recipe
from streamdet_training.train import train

JSON = "seeds.json"
PAGE = "seeds.md"


class Seed(msgspec.Struct, frozen=True, kw_only=True):
    """What one run came to; of the weights that it left."""

    seed: int
    steps: tuple[int, ...]
    """Of the checkpoints that went into them."""
    dev_eer: float
    dev_min_cllr: float
    wall_s: float
    peak_memory_bytes: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """All of them."""

    recipe: str
    select: str
    trainable_parameters: int
    seeds: tuple[Seed, ...]
    mean: dict[str, float]
    deviation: dict[str, float]
    """Standard deviation over the seeds, n - 1."""
    best: int
    """The seed whose run is the best on dev. What it gives elsewhere is no fair estimate: it was chosen."""


def numbers(text: str) -> list[int]:
    """Read `1,2,3`.

    Raises:
        UsageError: they are no whole numbers, too few of them, or one is there twice.
    """
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if len(found) < 2 or len(set(found)) != len(found) or min(found) < 0:
        raise UsageError.of("--seeds", text, "two or more different whole numbers with commas between them: 1,2,3")
    return found


def train_seeds(
    how: Recipe, out: Path, seeds: Sequence[int], *, data: Sequence[str | Path] = (), resume: bool = False
) -> Summary:
    """Train one run a seed, in `out/seed-N`, and write seeds.json and seeds.md beside them.

    Args:
        how: the recipe.
        out: folder of the runs' folders.
        seeds: one run each.
        data: manifests and corpora, instead of the recipe's.
        resume: go on with runs that have begun, and pass over those that are finished.
    """
    for seed in seeds:
        folder = out / f"seed-{seed}"
        begun = (folder / run.RECIPE).is_file() or (folder / run.FIRST).is_dir()
        train(how, folder, data=data, resume=resume and begun, seed=seed)
    found = summary(how, out, seeds)
    with durable.saving(out):
        durable.replace_text(out / JSON, msgspec.json.format(msgspec.json.encode(found), indent=1).decode() + "\n")
        durable.replace_text(out / PAGE, page(found))
    return found


def summary(how: Recipe, out: Path, seeds: Sequence[int]) -> Summary:
    """Read what the runs came to."""
    found = [msgspec.json.decode((out / f"seed-{seed}" / run.METRICS).read_bytes()) for seed in seeds]
    rows = tuple(
        Seed(
            seed=each["seed"],
            steps=tuple(each["saved"]["steps"]),
            dev_eer=each["saved"]["dev_eer"],
            dev_min_cllr=each["saved"]["dev_min_cllr"],
            wall_s=each["wall_s"],
            peak_memory_bytes=each["peak_memory_bytes"],
        )
        for each in found
    )
    measures = {name: [getattr(row, name) for row in rows] for name in ("dev_eer", "dev_min_cllr", "wall_s")}
    first, second = ("dev_eer", "dev_min_cllr") if how.train.select == "eer" else ("dev_min_cllr", "dev_eer")
    return Summary(
        recipe=how.name,
        select=how.train.select,
        trainable_parameters=found[0]["trainable_parameters"],
        seeds=rows,
        mean={name: statistics.mean(values) for name, values in measures.items()},
        deviation={name: statistics.stdev(values) for name, values in measures.items()},
        best=min(rows, key=lambda row: (getattr(row, first), getattr(row, second))).seed,
    )


def cells(found: Summary) -> list[list[str]]:
    """Heading and rows of the table: the seeds, then mean and best."""
    heading = ["seed", "step", "dev EER (%)", "dev min Cllr", "time (s)", "memory (MB)"]
    rows = [
        [
            str(row.seed),
            " ".join(map(str, row.steps)),
            f"{100 * row.dev_eer:.2f}",
            f"{row.dev_min_cllr:.3f}",
            f"{row.wall_s:.0f}",
            f"{row.peak_memory_bytes / 1e6:.0f}",
        ]
        for row in found.seeds
    ]
    mean, off = found.mean, found.deviation
    average = [
        f"{100 * mean['dev_eer']:.2f} ± {100 * off['dev_eer']:.2f}",
        f"{mean['dev_min_cllr']:.3f} ± {off['dev_min_cllr']:.3f}",
        f"{mean['wall_s']:.0f}",
    ]
    best = next(row for row in rows if row[0] == str(found.best))
    return [heading, *rows, ["mean", "", *average, ""], [f"best: {found.best}", *best[1:]]]


def table(found: Summary) -> Table:
    """For a terminal."""
    heading, *rows = cells(found)
    shown = Table(*heading, title=f"{found.recipe}: {found.trainable_parameters:,} trained parameters")
    for number, row in enumerate(rows):
        shown.add_row(*row, end_section=number == len(found.seeds) - 1)
    return shown


def page(found: Summary) -> str:
    """The same in Markdown."""
    heading, *rows = cells(found)
    lines = [heading, ["---"] * len(heading), *rows]
    title = f"{found.recipe}: {found.trainable_parameters:,} trained parameters. ± is the standard deviation."
    return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in lines), ""])
