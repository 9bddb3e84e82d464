"""XLS-R 300M down the whole line, from its config with random weights: what it costs, and that it works.

    python tests/bench/xlsr.py CORPUS OUT [--clips 3]

Trains one step of LoRA, merges, exports, checks parity, serves a recording. Speed, memory and parity do not
depend on the weights; the scores mean nothing.
"""

import argparse
import csv
import resource
import time
from pathlib import Path

from streamdet import bundle
from streamdet.records import Verdict
from streamdet.replay import replay
from streamdet.scorer import Scorer
from streamdet_export.export import export
from streamdet_training import recipe
from streamdet_training.backbones import XLSR_300M
from streamdet_training.recipe import Backbone
from streamdet_training.terminal import settle
from streamdet_training.train import train


def few(corpus: Path, out: Path, clips: int) -> Path:
    """A manifest of some clips of either class from two voices each, of 2 to 4 s."""
    rows = []
    with (corpus / "manifest.csv").open() as file:
        table = list(csv.DictReader(file))
    for split in ("train", "dev"):
        for label, key in (("bonafide", "speaker"), ("spoof", "system")):
            mine = [r for r in table if (r["split"], r["label"]) == (split, label) and 2 < float(r["duration_s"]) < 4]
            for voice in sorted({r[key] for r in mine})[:2]:
                rows += [r for r in mine if r[key] == voice][:clips]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "few.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "path": str((corpus / row["path"]).resolve())} for row in rows)
    return out / "few.csv"


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=3)
    args = parser.parse_args()
    settle()
    manifest = few(args.corpus, args.out, args.clips)
    paper = recipe.load("xlsr_lora.toml")
    short = paper.train.model_copy(
        update={"steps": 1, "check_every": 1, "batch": 4, "crop_s": (2.0,), "workers": 0, "precision": "no"}
    )
    how = paper.model_copy(
        update={"backbone": Backbone(config=XLSR_300M), "data": recipe.Data(path=(str(manifest),)), "train": short}
    )
    began_s = time.perf_counter()
    train(how, args.out / "run")
    trained_s = time.perf_counter()
    made = export(args.out / "run", args.out / "bundle")
    exported_s = time.perf_counter()
    scorer = Scorer(bundle.load(made.path), provider="cpu", batch_max=1)
    taken_ms = scorer.warm_up()
    with manifest.open() as file:
        clip = Path(next(csv.DictReader(file))["path"])
    verdicts = [it for it in replay(clip, scorer) if isinstance(it, Verdict)]
    provenance = made.manifest.provenance
    print(f"train and one check on dev {trained_s - began_s:.0f} s, export {exported_s - trained_s:.0f} s")
    print(f"trainable {provenance['trainable_parameters']:,} of {provenance['total_parameters']:,}")
    print(f"parity {provenance['metrics']['parity']}")
    print(f"files { {name: entry.bytes for name, entry in made.manifest.files.items()} }")
    print(f"a window {taken_ms[1]:.0f} ms; {len(verdicts)} verdicts for {clip.name}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
