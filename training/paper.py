"""Makes tables (c) and (d) of docs/paper.md: LoRA, full and head-only, ranks, matrices; three seeds each.

    python training/paper.py MANIFEST.csv RUNS [--only NAME]

One run after another, by `streamdet train`'s own loop, with recipes/paper_small.toml and what each row changes. A run
that is finished is skipped, so the queue can be broken off and started again. `python training/paper.py MANIFEST.csv
RUNS --table` prints the tables of what is there.
"""

import argparse
import csv
import json
import logging
import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamdet_training import recipe, run
from streamdet_training.terminal import settle
from streamdet_training.train import train

log = logging.getLogger("streamdet_training.paper")

SEEDS = (1, 2, 3)
# Each mode's learning rate is the better of these on dev, on a seed that no table has. LoRA's is chosen at rank 4 on
# q and v and kept for every rank and matrix, as the paper's must have been.
RATES = {"lora": (1e-3, 4e-3), "full": (1e-4, 5e-4), "head": (1e-3, 4e-3)}
RATE_SEED = 11
RANKS = (1, 2, 4, 8, 16, 32)
MATRICES = {
    "q": ("q_proj",),
    "v": ("v_proj",),
    "qv": ("q_proj", "v_proj"),
    "qkvo": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "qkvo-ffn": ("q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense"),
}


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of both tables: name, and what the recipe changes. alpha / rank stays 2."""
    yield "head", {"mode": "head"}
    yield "full", {"mode": "full"}
    yield "lora-qv-r4", lora(4, "qv")
    for rank in RANKS:
        if rank != 4:
            yield f"lora-qv-r{rank}", lora(rank, "qv")
    for name in MATRICES:
        if name != "qv":
            yield f"lora-{name}-r4", lora(4, name)


def lora(rank: int, matrices: str) -> dict[str, Any]:
    """Return a LoRA row's changes."""
    return {"mode": "lora", "lora": {"rank": rank, "alpha": 2 * rank, "targets": MATRICES[matrices]}}


def changed(seed: int, lr: float, backbone: Path, changes: dict[str, Any]) -> recipe.Recipe:
    """paper_small.toml with a row's changes."""
    tables = recipe.load("paper_small.toml").model_dump()
    tables |= {"seed": seed, "backbone": {"source": str(backbone)}}
    tables["train"]["lr"] = lr
    tables |= {key: value for key, value in changes.items() if key == "mode"}
    tables["lora"] |= changes.get("lora", {})
    return recipe.Recipe.model_validate(tables)


def half(manifest: Path, to: Path) -> Path:
    """Write a manifest with every other training system and source, by size; dev as it is."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kept = set()
    for label, key in (("bonafide", "source_repo"), ("spoof", "system")):
        sizes = Counter(row[key] for row in rows if (row["split"], row["label"]) == ("train", label))
        kept |= {(label, name) for name, _ in sizes.most_common()[::2]}
    chosen = [
        {**row, "path": str((manifest.parent / row["path"]).resolve())}
        for row in rows
        if row["split"] == "dev"
        or (
            row["split"] == "train"
            and (row["label"], row["source_repo" if row["label"] == "bonafide" else "system"]) in kept
        )
    ]
    with to.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    return to


def once(how: recipe.Recipe, out: Path, manifest: Path) -> float:
    """Train unless that is done; returns the EER on dev of the last averaged weights."""
    if not (out / run.METRICS).is_file():
        shutil.rmtree(out, ignore_errors=True)  # a broken run of a minute is not worth resuming
        log.info("--- %s", out.name)
        began_s, cpu_s = time.monotonic(), time.process_time()
        train(how, out, data=[manifest])
        took = {"wall_s": time.monotonic() - began_s, "cpu_s": time.process_time() - cpu_s}
        (out / "took.json").write_text(json.dumps(took) + "\n")
        shutil.rmtree(out / run.CHECKPOINT)
    found = json.loads((out / run.METRICS).read_text())
    return float(found["history"][-1]["dev_eer"])


def queue(manifest: Path, runs: Path, only: str | None) -> None:
    """Train the backbone, choose the learning rates, then every row with every seed."""
    first = runs / "backbone"
    runs.mkdir(parents=True, exist_ok=True)
    once(recipe.load("paper_backbone.toml"), first, half(manifest, runs / "half.csv"))
    backbone, rows = first / run.BACKBONE, dict(settings())
    rates = {}
    for name, row in (("head", rows["head"]), ("full", rows["full"]), ("lora", rows["lora-qv-r4"])):
        eers = {
            lr: once(changed(RATE_SEED, lr, backbone, row), runs / f"rate-{name}-{lr:g}", manifest)
            for lr in RATES[name]
        }
        rates[name] = min(eers, key=lambda lr: eers[lr])
        log.info("learning rate of %s: %g of %s", name, rates[name], eers)
    for name, row in rows.items():
        if only is None or name == only:
            for seed in SEEDS:
                once(changed(seed, rates[row["mode"]], backbone, row), runs / f"{name}-seed{seed}", manifest)


def table(runs: Path) -> None:
    """Print a row for each setting of which any seed is finished."""
    print("| setting | trained in the backbone | with the head | EER % of each seed | mean | best | s of CPU a run |")
    print("|---|---|---|---|---|---|---|")
    for name, _ in settings():
        found = [json.loads(file.read_text()) for file in sorted(runs.glob(f"{name}-seed*/{run.METRICS}"))]
        if not found:
            continue
        eers = [100 * each["history"][-1]["dev_eer"] for each in found]
        took = [json.loads(file.read_text())["cpu_s"] for file in runs.glob(f"{name}-seed*/took.json")]
        counts = f"{found[0]['backbone_trainable_parameters']:,} | {found[0]['trainable_parameters']:,}"
        each = ", ".join(f"{eer:.1f}" for eer in eers)
        best = f"{statistics.mean(eers):.1f} | {min(eers):.1f}"
        print(f"| {name} | {counts} | {each} | {best} | {statistics.median(took):.0f} |")


def main() -> None:
    """Run the queue, or print what it gave."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--only", help="one row, by name")
    parser.add_argument("--table", action="store_true", help="print the tables and train nothing")
    args = parser.parse_args()
    if args.table:
        table(args.runs)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settle()
    queue(args.manifest.resolve(), args.runs, args.only)


if __name__ == "__main__":
    main()
