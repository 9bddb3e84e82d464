"""Bundles that break on purpose, so that the daemon needs no hook for it: `bundles.py hanging|failing FOLDER`.

Both score an ordinary window by its loudness, 2 - 20 mean |x|. A run with a sample beyond `LOUD` in any of its windows
does not come back (`hanging`: a loop whose count is read from the audio), or comes back as an error (`failing`: an
index that is out of range). Nothing but the sound decides, so a caller makes a run break at the second it wants.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from streamdet import bundle
from streamdet.bundle import FORMAT, Audio, Bundle, Calibration, Decision, Manifest, Model

RATE_HZ = 16_000
# Below what 8-bit logarithmic samples can say: 0.980 in mu-law, 0.984 in A-law.
LOUD = 0.95

# 2^62 turns of a loop: at ten million a second some ten thousand years.
MODEL = """
<ir_version: 9, opset_import: ["": 18]>
broken (float[batch, 64000] audio) => (float[batch] score)
<int64[1] rows = {1}, int64[1] both = {-1}, int64[1] zeroth = {0}, float gain = {-20.0}, float bias = {2.0},
 float limit = {%(limit)s}, bool yes = {1}, int64 forever = {4611686018427387904}, int64 never = {0}, int64 far = {7}>
{
    size = Abs(audio)
    mean = ReduceMean<keepdims = 0>(size, rows)
    scaled = Mul(mean, gain)
    level = Add(scaled, bias)
    flat = Reshape(size, both)
    largest = ReduceMax<keepdims = 0>(flat, zeroth)
    is_loud = Greater(largest, limit)
%(breaking)s
}
"""
HANGING = """
    turns = Where(is_loud, forever, never)
    score = Loop<body = turn (int64 number, bool go_on, float[batch] before) => (bool still, float[batch] after) {
        still = Identity(go_on)
        after = Sin(before)
    }>(turns, yes, level)
"""
FAILING = """
    index = Where(is_loud, far, never)
    column = Unsqueeze(level, rows)
    score = Gather<axis = 1>(column, index)
"""


def hanging(path: Path) -> Bundle:
    """Write a bundle whose runs do not come back from loud windows."""
    return _saved(path, "hanging", HANGING)


def endless(path: Path) -> Bundle:
    """Write a bundle whose runs never come back, the first of its warm-up included."""
    return _saved(path, "endless", HANGING.replace("Where(is_loud, forever, never)", "Identity(forever)"))


def failing(path: Path) -> Bundle:
    """Write a bundle whose runs fail on loud windows."""
    return _saved(path, "failing", FAILING)


def ordinary(seconds: float = 4.0) -> np.ndarray:
    """Sound at RATE_HZ that the gate takes for speech and both bundles score, `(T,)`.

    Noise that comes and goes four times a second, as syllables do; nowhere near LOUD.
    """
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(7).uniform(-1, 1, time_s.size)
    return (0.3 * np.clip(np.sin(2 * np.pi * 4 * time_s), 0, 1) * noise).astype(np.float32)


def loud(seconds: float = 4.0) -> np.ndarray:
    """The same at full scale, `(T,)`: speech to the gate still, too much for both bundles at any rate and encoding."""
    return np.clip(10 * ordinary(seconds), -1, 1).astype(np.float32)


def _saved(path: Path, name: str, breaking: str) -> Bundle:
    model = onnx.parser.parse_model(MODEL % {"limit": LOUD, "breaking": breaking})
    onnx.checker.check_model(model)
    manifest = Manifest(
        format=FORMAT,
        name=name,
        created="2026-01-01T00:00:00Z",
        audio=Audio(RATE_HZ, 4 * RATE_HZ, RATE_HZ),
        model=Model(kind="window"),
        calibration=Calibration(),
        decision=Decision(alarm=2.0, clear=2.0),
        provenance={},
        files={},
    )
    return bundle.save(path, manifest, {"model.onnx": model.SerializeToString()})


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("kind", choices=("hanging", "failing"))
    asked.add_argument("folder", type=Path)
    given = asked.parse_args()
    {"hanging": hanging, "failing": failing}[given.kind](given.folder)
