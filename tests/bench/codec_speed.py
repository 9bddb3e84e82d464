"""How long each codec takes for a clip of 4 s, which decides whether a training run can afford it on the fly.

    python tests/bench/codec_speed.py CORPUS

Eight clips of the train split, each setting of each codec, resampling to the codec's rate and back included; the
fastest of three passes counts.
"""

import sys
import time
from pathlib import Path

import numpy as np

from streamdet.audio import fill, read_recording, resample
from streamdet_training.codecs import CODECS, fit

RATE_HZ = 16_000


def clips(corpus: Path) -> list[np.ndarray]:
    rows = [line.split(",") for line in (corpus / "manifest.csv").read_text("utf-8").splitlines()]
    train = [corpus / row[rows[0].index("path")] for row in rows[1:] if "train" in row]
    recordings = [read_recording(path) for path in train[:: len(train) // 8][:8]]
    return [fill(resample(samples[:, 0], rate, RATE_HZ), 4 * RATE_HZ) for samples, rate in recordings]


def milliseconds(heard: list[np.ndarray], code, rate_hz: int) -> float:
    passes = []
    for _ in range(3):
        start = time.perf_counter()
        for samples in heard:
            sent = resample(samples, RATE_HZ, rate_hz)
            resample(fit(code(sent), sent.size), rate_hz, RATE_HZ)
        passes.append((time.perf_counter() - start) / len(heard))
    return 1000 * min(passes)


def main() -> None:
    heard = clips(Path(sys.argv[1]))
    for name, codec in CODECS.items():
        took = [milliseconds(heard, code, codec.rate_hz) for code in codec.settings]
        print(f"| `{name}` | {codec.rate_hz} | {len(took)} | {min(took):.1f} to {max(took):.1f} |")


if __name__ == "__main__":
    main()
