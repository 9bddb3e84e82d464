"""What the speech gate lets through: made-up sounds, and 4 s windows of the corpus's dev split.

python tests/bench/speech_gate.py CORPUS
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamdet.audio import Samples, read_recording
from streamdet.speech import speech_s

RATE_HZ = 8000
WINDOW_S = 4
MIN_SPEECH_S = 0.5
time_s = np.arange(20 * RATE_HZ) / RATE_HZ


def sine(*hertz: float) -> NDArray[np.float64]:
    """Sines of equal strength, 20 s."""
    return np.sum([np.sin(2 * np.pi * each * time_s) for each in hertz], axis=0)


def dtmf() -> NDArray[np.float64]:
    """A key of 0.1 s each second."""
    keys = [(697, 1209), (770, 1336), (852, 1477), (941, 1633)] * 5
    return np.sum([sine(*key) * ((time_s >= at) & (time_s < at + 0.1)) for at, key in enumerate(keys)], axis=0)


def arpeggio(rng: np.random.Generator) -> NDArray[np.float64]:
    """Plucked notes of five harmonics, two a second: music on hold."""
    music = np.zeros_like(time_s)
    for note in range(40):
        hertz, began_s = 220 * 2 ** (rng.integers(0, 24) / 12), note / 2
        heard = (time_s >= began_s) & (time_s < began_s + 0.5)
        string = sum(sine(hertz * harmonic) / harmonic for harmonic in range(1, 6))
        music += heard * string * np.exp(-4 * np.maximum(0, time_s - began_s))
    return music


def sounds() -> dict[str, NDArray[np.float64]]:
    """Everything that is not speech."""
    rng = np.random.default_rng(0)
    white = rng.standard_normal(time_s.size)
    brown = np.cumsum(white)
    brown -= np.convolve(brown, np.ones(800) / 800, "same")
    return {
        "silence": 0 * time_s,
        **{f"white noise, {level} dBFS": white * 10 ** (level / 20) for level in (-60, -40, -20)},
        "brown noise, -20 dBFS": 0.1 * brown / brown.std(),
        "1 kHz tone": 0.3 * sine(1000),
        "dial tone, 350 + 440 Hz": 0.1 * sine(350, 440),
        "ringback, 440 + 480 Hz, 2 s on, 4 s off": 0.1 * sine(440, 480) * (time_s % 6 < 2),
        "ringback, 425 Hz, 1 s on, 4 s off, noise": 0.1 * sine(425) * (time_s % 5 < 1) + 0.001 * white,
        "DTMF, a key a second": 0.2 * dtmf(),
        "plucked strings, two notes a second": 0.1 * arpeggio(rng),
    }


def windows(samples: Samples, rate_hz: int) -> list[float]:
    """Speech in each 4 s window, a second apart."""
    size = WINDOW_S * rate_hz
    return [speech_s(samples[at : at + size], rate_hz) for at in range(0, samples.size - size + 1, rate_hz)]


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    args = parser.parse_args()
    for name, sound in sounds().items():
        report(name, windows(sound.astype(np.float32), RATE_HZ))
    with (args.corpus / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "dev" and float(row["duration_s"]) >= WINDOW_S]
    for label in ("bonafide", "spoof"):
        clips = [read_recording(args.corpus / row["path"]) for row in rows if row["label"] == label]
        began_s = time.perf_counter()
        found = [seconds for samples, rate_hz in clips for seconds in windows(samples[:, 0], rate_hz)]
        spent_ms = 1e3 * (time.perf_counter() - began_s)
        report(f"dev, {label}, {len(clips)} clips", found)
        print(f"{spent_ms / len(found):.2f} ms a window")


def report(name: str, seconds: list[float]) -> None:
    """Print one line."""
    low, middle, high = np.percentile(seconds, [5, 50, 95])
    gated = 100 * np.mean(np.array(seconds) < MIN_SPEECH_S)
    print(f"{name:42} speech p5 {low:.2f}  median {middle:.2f}  p95 {high:.2f} s of 4, {gated:.1f} % gated")


if __name__ == "__main__":
    main()
