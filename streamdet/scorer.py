"""The only place that knows onnxruntime: windows in, scores out.

A scorer is built from bytes that were hashed, runs on the provider that was asked for or refuses, and has met every
batch size it will ever use before it is called ready.
"""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnxruntime as ort

from streamdet.audio import Samples
from streamdet.bundle import Bundle
from streamdet.errors import BundleError, ConfigError
from streamdet.head import Head
from streamdet.records import Score, Window
from streamdet.window import score_windows

log = logging.getLogger(__name__)

Provider = Literal["auto", "cpu", "cuda"]

# A batch is padded up to the next of these. Powers of two: at most half of a run is padding, and few shapes to warm.
BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_NVIDIA_DEVICE: Final = Path("/dev/nvidiactl")
_CUDA_OPTIONS: Final = {
    # The default, EXHAUSTIVE, benchmarks every convolution at first sight: seconds for each new shape.
    "cudnn_conv_algo_search": "HEURISTIC",
    # The default doubles the arena each time it grows.
    "arena_extend_strategy": "kSameAsRequested",
}


class Scorer:
    """One onnxruntime session. `score` is called from one thread at a time."""

    def __init__(self, bundle: Bundle, *, provider: Provider = "auto", threads: int = 0, batch_max: int = 16) -> None:
        """Load a bundle.

        Args:
            bundle: its files are verified here.
            provider: `cuda` refuses to fall back; `auto` is `cuda` on a machine with an NVIDIA device, else `cpu`.
            threads: of one run on the CPU; 0 = one a core that this process may use.
            batch_max: most windows in one run.

        Raises:
            BundleError: the files are not what the manifest says, or the model is not.
            ConfigError: the provider is not to be had.
        """
        self.manifest: Final = bundle.manifest
        # Dynamic int8 takes one activation scale over a whole batch: calls would change each other's scores.
        most = 1 if bundle.manifest.model.precision == "int8" else batch_max
        self.buckets: Final = (*(size for size in BUCKETS if size < most), most)
        wanted = _wanted_provider(provider)
        self._session: Final = _session(bundle, wanted, threads or len(os.sched_getaffinity(0)))
        self.provider: Final[str] = self._session.get_providers()[0]
        """What it runs on, in onnxruntime's words."""
        if self.provider != wanted:
            # onnxruntime falls back without an error: a GPU box would score on its CPU and be late for ever.
            raise ConfigError.of(
                "scoring.provider", provider, f"{wanted}, but onnxruntime fell back to {self.provider}"
            )
        self._check_shapes()
        self.head: Final = Head(bundle) if bundle.manifest.blocks else None
        """Of a block model: what merges the sums of blocks, which `run` gives, into scores."""

    def warm_up(self) -> dict[int, float]:
        """Run every bucket twice, so that no call ever waits for a first time.

        Returns:
            bucket -> milliseconds of its second run.

        Raises:
            BundleError: the model gives something else than one score a window, or sums a block.
        """
        taken_ms = {}
        row = (self.head.sums,) if self.head else ()
        for size in self.buckets:
            silence = np.zeros((size, self.manifest.input_samples), np.float32)
            for _ in range(2):
                began_s = time.perf_counter()
                if (shape := self.run(silence).shape) != (size, *row):
                    wanted = "the sums of each block" if row else "one score a window"
                    raise BundleError.of("model output shape", shape, f"{(size, *row)}: {wanted}")
                taken_ms[size] = 1e3 * (time.perf_counter() - began_s)
        if self.head is not None:
            self.head.warm_up(self.buckets)
        return taken_ms

    def run(self, audio: Samples) -> Samples:
        """Run the model on ready windows, or blocks.

        Args:
            audio: float32 `(B, input_samples)` in [-1, 1] at the bundle's rate; any B.

        Returns:
            raw CM scores `(B,)`, higher = more bona fide; of a block model, pooling sums `(B, S)`.
        """
        most = self.buckets[-1]
        parts = [self._run_bucket(audio[at : at + most]) for at in range(0, audio.shape[0], most)]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def score(self, windows: Sequence[Window]) -> list[Score]:
        """Score the bytes of windows with this session."""
        return score_windows(windows, self.manifest, self.run, self.head)

    def _run_bucket(self, audio: Samples) -> Samples:
        count = audio.shape[0]
        bucket = next(size for size in self.buckets if size >= count)
        if bucket > count:
            audio = np.pad(audio, ((0, bucket - count), (0, 0)))
        model = self.manifest.model
        scores: Samples = self._session.run([model.output], {model.input: audio})[0]
        return scores[:count]

    def _check_shapes(self) -> None:
        """Refuse a model that is not what its manifest says."""
        model, wanted = self.manifest.model, self.manifest.input_samples
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if [node.name for node in inputs] != [model.input]:
            raise BundleError.of("model inputs", [node.name for node in inputs], f"only {model.input!r}")
        if model.output not in [node.name for node in outputs]:
            raise BundleError.of("model outputs", [node.name for node in outputs], f"{model.output!r} among them")
        shape, kind = inputs[0].shape, inputs[0].type
        if kind != "tensor(float)":
            raise BundleError.of("model input type", kind, "tensor(float): float32")
        if len(shape) != 2 or isinstance(shape[0], int) or shape[1] != wanted:
            raise BundleError.of("model input shape", shape, f"a dynamic batch of {wanted} samples")


def _wanted_provider(provider: Provider) -> str:
    if provider == "cpu" or (provider == "auto" and not _NVIDIA_DEVICE.exists()):
        return "CPUExecutionProvider"
    return "CUDAExecutionProvider"


def _session(bundle: Bundle, provider: str, threads: int) -> ort.InferenceSession:
    contents = bundle.read_verified(*(name for name in bundle.manifest.files if name != bundle.manifest.model.head))
    model = contents.pop(bundle.manifest.model.file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # warnings about CPU placement of shape nodes are no news to anybody
    # A spinning pool takes whole cores from the calls' own work between runs: 103 % against 4 % of a CPU, measured.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if contents:
        # External data must come from the bytes that were hashed too, not from the disk a second time.
        names, buffers = list(contents), list(contents.values())
        options.add_external_initializers_from_files_in_memory(names, buffers, [len(part) for part in buffers])
    providers: list[Any] = [(provider, _CUDA_OPTIONS) if provider.startswith("CUDA") else provider]
    if provider != "CPUExecutionProvider":
        providers.append("CPUExecutionProvider")  # a dynamic batch leaves a few shape nodes that belong there
    try:
        return ort.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime raises a class of its own for each status code, with no common base
        first_line = str(error).strip().partition("\n")[0]
        raise BundleError.of("model", bundle.manifest.model.file, f"a model that loads ({first_line})") from error
