"""How long each change takes for a clip of 4 s, which decides whether a training run can afford it on the fly.

    python tests/bench/augment_speed.py CORPUS

Eight clips of the train split, each change and each setting of each codec alone, resampling to a codec's rate and back
included; CPU time, since the machine has other work; the fastest of three passes counts.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from streamdet.audio import fill, read_recording, resample
from streamdet_training import augment, noises
from streamdet_training.codecs import CODECS, fit
from streamdet_training.network import jitter, lose_packets
from streamdet_training.rawboost import rawboost
from streamdet_training.rooms import add_room

RATE_HZ = 16_000

CHANGES = {
    "speed": lambda clip, rng: augment.change_speed(clip, RATE_HZ, rng.uniform(0.94, 1.06)),
    "room": lambda clip, rng: add_room(clip, RATE_HZ, rng.uniform(0.1, 0.5), rng),
    **{
        f"noise: {kind}": lambda clip, rng, kind=kind: noises.add(
            clip, noises.make(kind, clip.size, RATE_HZ, rng), rng.uniform(5, 45)
        )
        for kind in noises.MAKERS
    },
    **{f"rawboost: {n}": lambda clip, rng, n=n: rawboost(clip, RATE_HZ, n, rng) for n in range(1, 9)},
    "equaliser": lambda clip, rng: augment.equalise(clip, RATE_HZ, rng),
    "handset": lambda clip, rng: augment.through_handset(clip, RATE_HZ, rng),
    "clipping": lambda clip, rng: augment.overdrive(clip, 0.01, soft=rng.random() < 0.5),
    "resampling": lambda clip, _rng: augment.through_rate(clip, RATE_HZ, 11_025, "HQ"),
    "band_limit": lambda clip, _rng: augment.limit_band(clip, RATE_HZ, 4000),
    "packet_loss": lambda clip, rng: lose_packets(clip, RATE_HZ, 0.1, rng),
    "jitter": lambda clip, rng: jitter(clip, RATE_HZ, rng),
}


def clips(corpus: Path) -> list[np.ndarray]:
    rows = [line.split(",") for line in (corpus / "manifest.csv").read_text("utf-8").splitlines()]
    train = [corpus / row[rows[0].index("path")] for row in rows[1:] if "train" in row]
    recordings = [read_recording(path) for path in train[:: len(train) // 8][:8]]
    return [fill(resample(samples[:, 0], rate, RATE_HZ), 4 * RATE_HZ) for samples, rate in recordings]


def milliseconds(heard: list[np.ndarray], change: Callable[[np.ndarray], np.ndarray]) -> float:
    passes = []
    for _ in range(3):
        start = time.process_time()
        for samples in heard:
            change(samples)
        passes.append((time.process_time() - start) / len(heard))
    return 1000 * min(passes)


def coded(samples: np.ndarray, code: Callable[[np.ndarray], np.ndarray], rate_hz: int) -> np.ndarray:
    sent = resample(samples, RATE_HZ, rate_hz)
    return resample(fit(code(sent), sent.size), rate_hz, RATE_HZ)


def main() -> None:
    heard, rng = clips(Path(sys.argv[1])), np.random.default_rng(1)
    for name, change in CHANGES.items():
        print(f"| {name} | {milliseconds(heard, lambda clip, change=change: change(clip, rng)):.1f} |")
    for name, codec in CODECS.items():
        took = [
            milliseconds(heard, lambda clip, code=code, codec=codec: coded(clip, code, codec.rate_hz))
            for code in codec.settings
        ]
        print(f"| `{name}` | {codec.rate_hz} | {len(took)} | {min(took):.1f} to {max(took):.1f} |")


if __name__ == "__main__":
    main()
