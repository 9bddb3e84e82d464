"""Does it pay to keep the feature frames of the overlap?   python tests/bench/frame_reuse.py [--layers 6,12,24]

wav2vec2's convolutions are local: a feature frame hears 400 samples, the next one begins 320 later, and with
`feat_extract_norm="layer"` nothing is normalised over time. Of two windows of 4 s that lie 1 s apart, 149 of 199 frames
are therefore the same, if windows begin at multiples of 320 samples, at the model's own rate, and are not normalised
each for itself. This script says how exactly, what computing only the 50 new ones saves at some numbers of layers (in
onnxruntime, fp32, random weights), and what normalising or resampling would make of the kept ones.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from streamdet.audio import read_recording, resample
from streamdet.bench.steady import take_turns
from streamdet.bundle import starter_path
from streamdet_export.graph import fold_weight_norm
from streamdet_export.untrained import recipe_of
from streamdet_training import model

WINDOW, HOP, RATE_HZ = 64_000, 16_000, 16_000


class Grid:
    """Where feature frames lie."""

    def __init__(self, kernels: Sequence[int], strides: Sequence[int]) -> None:
        stride, reach = 1, 1
        for kernel, step in zip(kernels, strides, strict=True):
            reach, stride = reach + (kernel - 1) * stride, stride * step
        assert HOP % stride == 0
        self.frames, self.new = (WINDOW - reach) // stride + 1, HOP // stride
        # The new frames of a window, and the samples that they hear: for XLS-R one hop, and 80 samples more.
        self.first = (self.frames - self.new) * stride
        self.heard = (self.new - 1) * stride + reach


class Front(nn.Module):
    """Audio `(B, T)` to feature frames `(B, F, 512)`."""

    def __init__(self, detector: model.Detector) -> None:
        super().__init__()
        self.convolutions = detector.backbone.feature_extractor

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return self.convolutions(audio).transpose(1, 2)


class Rest(nn.Module):
    """Feature frames `(B, F, 512)` to scores `(B,)`."""

    def __init__(self, detector: model.Detector) -> None:
        super().__init__()
        self.projection, self.encoder = detector.backbone.feature_projection, detector.backbone.encoder
        self.head = detector.head

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.projection(frames)
        return self.head([self.encoder(hidden).last_hidden_state])


def session(part: nn.Module, example: torch.Tensor, folder: Path, name: str, threads: int) -> ort.InferenceSession:
    """Export a part and open it."""
    path = folder / f"{name}.onnx"
    program = torch.onnx.export(part.eval(), (example,), dynamo=True, verbose=False, input_names=["x"])
    program.save(path, external_data=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(part: ort.InferenceSession, given: np.ndarray) -> np.ndarray:
    return part.run(None, {"x": np.ascontiguousarray(given, np.float32)})[0]


def cpu_ms(part: ort.InferenceSession, given: np.ndarray) -> Callable[[], float]:
    """A measure: milliseconds of CPU for one run, which other work on the machine moves least."""

    def measure() -> float:
        began_s = time.process_time()
        run(part, given)
        return 1e3 * (time.process_time() - began_s)

    return measure


def normalised(audio: np.ndarray) -> np.ndarray:
    return (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)


def exactness(front: ort.InferenceSession, new: ort.InferenceSession, rest: ort.InferenceSession, grid: Grid) -> None:
    """Hold frames that were kept against frames computed anew, hop after hop."""
    samples, rate_hz = read_recording(min(starter_path().glob("*.flac")))
    original, native = samples[:, 0], resample(samples[:, 0], rate_hz, RATE_HZ)
    spread = float(run(front, native[None, :WINDOW]).std())
    print(f"feature frames have a standard deviation of {spread:.2g}; largest differences over 4 hops:")
    cases = {
        "native 16 kHz, not normalised": lambda at: native[at : at + WINDOW],
        "each window normalised": lambda at: normalised(native[at : at + WINDOW]),
        "each window resampled from 8 kHz": lambda at: resample(
            original[at // 2 : (at + WINDOW) // 2], rate_hz, RATE_HZ
        ),
    }
    for said, window in cases.items():
        kept = run(front, window(0)[None])
        frames_off, scores_off = 0.0, 0.0
        for at in range(HOP, 5 * HOP, HOP):
            fresh = run(new, window(at)[None, grid.first : grid.first + grid.heard])
            kept = np.concatenate([kept[:, grid.new :], fresh], axis=1)  # never computed again
            anew = run(front, window(at)[None])
            frames_off = max(frames_off, float(np.abs(kept - anew).max()))
            scores_off = max(scores_off, float(np.abs(run(rest, kept) - run(rest, anew)).max()))
        print(f"  {said}: frames {frames_off:.1e}, scores {scores_off:.1e}")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="xlsr-300m")
    parser.add_argument("--layers", default="6,12,24")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    counts = [int(word) for word in args.layers.split(",")]
    torch.manual_seed(1)
    detector = model.build(recipe_of(args.config, max(counts))).eval()
    how = detector.backbone.config
    assert how.feat_extract_norm == "layer", f"feat_extract_norm is {how.feat_extract_norm}: it normalises over time"
    grid = Grid(how.conv_kernel, how.conv_stride)
    fold_weight_norm(detector)
    audio = 0.1 * torch.randn(1, WINDOW)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        frames = Front(detector)(audio)
        assert frames.shape[1] == grid.frames
        whole = session(Front(detector), audio, folder, "front", args.threads)
        new = session(Front(detector), audio[:, : grid.heard], folder, "new", args.threads)
        rests = {}
        for count in sorted(counts, reverse=True):  # the same layers, cut off from above
            detector.backbone.encoder.layers = detector.backbone.encoder.layers[:count]
            rests[count] = session(Rest(detector), frames, folder, f"rest{count}", args.threads)
        exactness(whole, new, rests[min(counts)], grid)
        measures = {"front": cpu_ms(whole, audio.numpy()), "new": cpu_ms(new, audio[:, : grid.heard].numpy())}
        measures |= {str(count): cpu_ms(rest, frames.numpy()) for count, rest in rests.items()}
        found = {key: steady.median for key, steady in take_turns(measures, rounds=args.rounds).items()}
    front, fresh, width = found["front"], found["new"], frames.shape[2]
    print(f"front-end of a window {front:.0f} ms of CPU, of the new second {fresh:.0f} ms ({args.threads} threads)")
    for count in counts:
        total = front + found[str(count)]
        spared = front - fresh
        print(
            f"{count} layers: {total:.0f} ms a window, {100 * front / total:.0f} % of it front-end; kept frames save "
            f"{100 * spared / total:.0f} %: {total / (total - spared):.2f} times as many windows"
        )
    print(f"state: {grid.frames} x {width} floats, {4 * grid.frames * width / 1000:.0f} kB a track")


if __name__ == "__main__":
    main()
