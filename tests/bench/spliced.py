"""Calls whose voice turns synthetic in the middle: how soon is it noticed?

    python tests/bench/spliced.py CORPUS [--bundle DIR] [--calls 20] [--half-s 20] [--oracle]

Recordings of the test split are spliced: bona fide clips of one speaker, then spoof clips of one system. With
`--oracle` the model is replaced by the truth, twice the alarm height by the label of the window's last second, which
shows what the verdict's own delay is.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streamdet import bundle
from streamdet.audio import Samples, read_recording, resample
from streamdet.records import Score, Verdict, Window
from streamdet.replay import replay_samples
from streamdet.scorer import Scorer

RATE_HZ = 16000


def voices(corpus: Path, label: str, key: str) -> list[list[Path]]:
    """The test split's clips of one label, a list for each speaker or system."""
    found: dict[str, list[Path]] = defaultdict(list)
    with (corpus / "manifest.csv").open() as file:
        for row in csv.DictReader(file):
            if row["split"] == "test" and row["label"] == label and float(row["duration_s"]) >= 2:
                found[row[key]].append(corpus / row["path"])
    return [found[name] for name in sorted(found)]


def half(paths: Sequence[Path], seconds: int) -> Samples:
    """`(T,)` of exactly `seconds`: the clips one after the other, from the first again if they are too few."""
    parts: list[Samples] = []
    while sum(part.size for part in parts) < seconds * RATE_HZ:
        for path in paths:
            samples, rate_hz = read_recording(path)
            parts.append(resample(samples[:, 0], rate_hz, RATE_HZ))
    return np.concatenate(parts)[: seconds * RATE_HZ]


def calls(corpus: Path, count: int, half_s: int) -> list[Samples]:
    """`count` calls; those with the most material of one voice first, so that little is repeated."""
    bonafide = sorted(voices(corpus, "bonafide", "speaker"), key=len, reverse=True)
    spoof = sorted(voices(corpus, "spoof", "system"), key=len, reverse=True)
    return [
        np.concatenate([half(bonafide[at % len(bonafide)], half_s), half(spoof[at % len(spoof)], half_s)])
        for at in range(count)
    ]


def first_alarm_s(verdicts: Sequence[Verdict]) -> float | None:
    """Audio time of the first `spoof`."""
    return next((verdict.end_s for verdict in verdicts if verdict.state == "spoof"), None)


def oracle(half_s: int, alarm: float):
    """Scores by the truth: every window is speech, its LLR twice the alarm height by its last second's label."""

    def score(windows: Sequence[Window]) -> list[Score]:
        return [Score(2 * alarm if w.end_sample <= half_s * RATE_HZ else -2 * alarm, 1.0) for w in windows]

    return score


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--bundle", type=Path, default=bundle.starter_path())
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--half-s", type=int, default=20)
    parser.add_argument("--oracle", action="store_true")
    args = parser.parse_args()
    scorer = Scorer(bundle.load(args.bundle), provider="cpu")
    score = oracle(args.half_s, scorer.manifest.decision.alarm) if args.oracle else scorer.score
    alarms = []
    for at, samples in enumerate(calls(args.corpus, args.calls, args.half_s)):
        said = replay_samples(f"call-{at}", samples[:, None], RATE_HZ, scorer.manifest, score)
        alarms.append(first_alarm_s([it for it in said if isinstance(it, Verdict)]))
        print(f"call {at}: alarm {'none' if alarms[-1] is None else f'{alarms[-1] - args.half_s:+.0f} s'}")
    early = sum(a is not None and a <= args.half_s for a in alarms)
    timely = sum(a is not None and args.half_s < a <= args.half_s + 4 for a in alarms)
    late = sum(a is not None and a > args.half_s + 4 for a in alarms)
    print(f"within 4 s {timely}, later {late}, before the change {early}, never {alarms.count(None)} of {len(alarms)}")


if __name__ == "__main__":
    main()
