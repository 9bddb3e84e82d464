"""What the speech gate lets through: made-up sounds, music, and 4 s windows of the corpus.

python tests/bench/speech_gate.py CORPUS [--music FOLDER] [--split dev]

Everything is at 8 kHz and has been through mu-law. `--music` is a folder of recordings that libsndfile reads, 60 s from
each, 10 s after its beginning. docs/benchmarks.md says where a hundred of them come from.
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamdet.audio import Samples, read_recording, resample
from streamdet.speech import speech_s

RATE_HZ = 8000
SIZE = 4 * RATE_HZ
MIN_SPEECH_S = 0.5
time_s = np.arange(20 * RATE_HZ) / RATE_HZ
MU = 255.0


def sine(*hertz: float) -> NDArray[np.float64]:
    """Sines of equal strength, 20 s."""
    return np.sum([np.sin(2 * np.pi * each * time_s) for each in hertz], axis=0)


def dtmf(on_s: float, every_s: float) -> NDArray[np.float64]:
    """Keys at random."""
    rng, sound = np.random.default_rng(0), np.zeros_like(time_s)
    for at in np.arange(0.013, 20, every_s):
        key = sine(rng.choice([697, 770, 852, 941]), rng.choice([1209, 1336, 1477, 1633]))
        sound += key * ((at <= time_s) & (at + on_s > time_s))
    return sound


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
    """What is neither speech nor music that somebody made."""
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
        "DTMF, a key of 0.1 s a second": 0.2 * dtmf(0.1, 1),
        "DTMF, 0.1 s on, 0.1 s off": 0.2 * dtmf(0.1, 0.2),
        "DTMF, 0.05 s on, 0.05 s off, noise": 0.2 * dtmf(0.05, 0.1) + 0.001 * white,
        "plucked strings, two notes a second": 0.1 * arpeggio(rng),
    }


def through_mulaw(samples: NDArray[np.floating]) -> Samples:
    """Quantised as by G.711, near enough: eight bits on a logarithmic scale."""
    compressed = np.sign(samples) * np.log1p(MU * np.minimum(np.abs(samples), 1)) / np.log1p(MU)
    steps = np.round(compressed * 127) / 127
    return (np.sign(steps) * np.expm1(np.abs(steps) * np.log1p(MU)) / MU).astype(np.float32)


def read(path: Path, from_s: float = 0, most_s: float = 60) -> Samples:
    """A recording's first channel at 8 kHz."""
    samples, rate_hz = read_recording(path)
    part = samples[round(from_s * rate_hz) : round((from_s + most_s) * rate_hz), 0]
    return resample(part, rate_hz, RATE_HZ) if part.size else np.zeros(0, np.float32)


def cut(samples: NDArray[np.floating], hop_s: float = 1.0) -> Iterator[NDArray[np.floating]]:
    """Windows of 4 s."""
    for at in range(0, samples.size - SIZE + 1, round(hop_s * RATE_HZ)):
        yield samples[at : at + SIZE]


def pink(rng: np.random.Generator) -> NDArray[np.float64]:
    """A window of noise that falls by 3 dB an octave above 5 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(SIZE))
    return np.fft.irfft(spectrum / np.sqrt(np.arange(spectrum.size) + 20), SIZE)


def beside(ratio_db: float, other: Callable[[], NDArray[np.floating]]) -> Callable[[Samples], NDArray[np.floating]]:
    """Put something else so far below a window."""

    def mixed(window: Samples) -> NDArray[np.floating]:
        sound = other()
        louder = np.sqrt(np.square(window).mean() / max(float(np.square(sound).mean()), 1e-12))
        return np.clip(window + sound * louder * 10 ** (-ratio_db / 20), -1, 1)

    return mixed


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--music", type=Path)
    parser.add_argument("--split", default="dev", choices=["dev", "train"])
    args = parser.parse_args()
    for name, sound in sounds().items():
        report(name, list(cut(sound)))
    music: list[Samples] = []
    if args.music:
        for group in sorted(path for path in args.music.iterdir() if path.is_dir()):
            found = [window for path in sorted(group.iterdir()) for window in cut(read(path, 10), 2)]
            report(f"music, {group.name}", found)
            music += found
    with (args.corpus / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == args.split]
    speech: list[Samples] = []
    for name, wanted in {
        "bona fide": lambda row: row["label"] == "bonafide",
        "spoof": lambda row: row["label"] == "spoof",
        "GSM (also above)": lambda row: "gsm" in row["note"],
    }.items():
        clips = [read(args.corpus / row["path"]) for row in rows if wanted(row) and float(row["duration_s"]) >= 4]
        found = [window for clip in clips for window in cut(clip)]
        report(f"{args.split}, {name}, {len(clips)} clips", found)
        speech += found if "above" not in name else []
    rng = np.random.default_rng(0)
    changes: dict[str, Callable[[Samples], NDArray[np.floating]]] = {"20 dB quieter": lambda window: 0.1 * window}
    for ratio_db in (20, 10, 5):
        changes[f"white noise {ratio_db} dB below"] = beside(ratio_db, lambda: rng.standard_normal(SIZE))
        changes[f"pink noise {ratio_db} dB below"] = beside(ratio_db, lambda: pink(rng))
    for ratio_db in (20, 15, 10, 5, 0) if music else ():
        changes[f"music {ratio_db} dB below"] = beside(ratio_db, lambda: music[rng.integers(len(music))])
    for name, change in changes.items():
        report(f"{args.split}, {name}", [change(window) for window in speech])
    for seconds in (1, 2, 3):
        report(f"{args.split}, the first {seconds} s", [window[: seconds * RATE_HZ] for window in speech])


def report(name: str, windows: list[NDArray[np.floating]]) -> None:
    """Print one line."""
    coded = [through_mulaw(window) for window in windows]
    began_s = time.process_time()
    seconds = [speech_s(window, RATE_HZ) for window in coded]
    spent_ms = 1e3 * (time.process_time() - began_s) / max(1, len(coded))
    low, middle, high = np.percentile(seconds, [5, 50, 95])
    gated = 100 * np.mean(np.array(seconds) < MIN_SPEECH_S)
    heard = f"speech p5 {low:.2f}  median {middle:.2f}  p95 {high:.2f} s"
    print(f"{name:42} {len(windows):5} windows  {heard}  {gated:5.1f} % gated  {spent_ms:.3f} ms", flush=True)


if __name__ == "__main__":
    main()
