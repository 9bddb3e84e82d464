"""What a hop costs and what it finds: fixed ones and the adaptive one on simulated calls.

python tests/bench/hops.py CORPUS [--bundle FOLDER] [--split dev]

The windows of all of them are scored once. A hop that is not the bundle's pays its drift by the second, as the tracker
does; heights are the bundle's.
"""

import argparse
import time
from pathlib import Path

import msgspec

from streamdet import bundle as bundles
from streamdet.scorer import Scorer
from streamdet_training import data, streaming


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--split", default="dev", choices=["dev", "train"])
    args = parser.parse_args()
    loaded = bundles.load(args.bundle or bundles.starter_path())
    if loaded.manifest.blocks:
        parser.error("a windowed bundle: the hop of a block model is part of it")
    scorer = Scorer(loaded, provider="cpu", threads=1)
    clips = data.read_manifest(args.corpus / "manifest.csv", args.split)
    manifest, remembered = loaded.manifest, streaming.remember(scorer.score)
    hop = manifest.audio.hop_samples
    for name, samples, adaptive in (
        ("fixed, half", hop // 2, False),
        ("fixed", hop, False),
        ("fixed, double", 2 * hop, False),
        ("adaptive", hop, True),
    ):
        began_s = time.process_time()
        decision, audio = manifest.decision, manifest.audio
        changed = msgspec.structs.replace(
            manifest,
            audio=msgspec.structs.replace(audio, hop_samples=samples),
            decision=msgspec.structs.replace(decision, drift=decision.drift * samples / hop),
        )
        found = streaming.evaluate(clips, changed, remembered, adaptive=adaptive, resamples=0)
        point, spoof, (bonafide, fake) = found.operating, found.spoof, found.steadiness
        delays = f"{point.mean_delay_s} s of {streaming.HORIZON_S:g}, by {streaming.FOUND_S} s {point.found}"
        print(f"{name}: turning {point.calls} calls, {point.early} early, mean delay {delays}")
        print(f"  spoof from the start: {spoof.mean_delay_s} s, {spoof.found}")
        print(f"  false alarms {point.alarms}, {point.false_alarms_per_hour:.2f} an hour, at most {point.upper_95:.2f}")
        print(f"  windows a minute: bona fide {bonafide.windows_per_minute:.1f}, spoof {fake.windows_per_minute:.1f}")
        print(f"  flips an hour {bonafide.flips_per_hour:.0f}, {fake.flips_per_hour:.0f}; shares {bonafide.shares}")
        print(f"  {time.process_time() - began_s:.0f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
