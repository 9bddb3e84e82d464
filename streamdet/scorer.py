"""The only place where the daemon meets onnxruntime, but for a block model's head: windows in, scores out.

A scorer is built from bytes that were hashed, runs on the provider that was asked for or refuses, and has met every
batch size it will ever use before it is called ready.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Self

import numpy as np
import onnxruntime as ort

from streamdet import providers, sessions
from streamdet.audio import Samples
from streamdet.bundle import Bundle, Manifest
from streamdet.config import Scoring
from streamdet.errors import BundleError, ConfigError
from streamdet.head import Head
from streamdet.providers import Provider
from streamdet.records import Score, Window
from streamdet.window import score_windows

# Windows in one run. Powers of two: few shapes to warm, and any number of windows is the sum of a few.
BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# On a card: one batch runs while the next one is copied there.
ON_CARD: Final = 2
# A window that takes one thread less than this share of a hop is not worth sharing: waking other threads and waiting
# for them costs more than it saves when each has a window of its own. A slower one would be late for its next hop.
ALONE_HOPS: Final = 0.05
TRIES: Final = 3


class Scorer:
    """One onnxruntime session; `run` and `score` may be called from `runs` threads at once."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: Provider = "auto",
        threads: int = 0,
        batch_max: int = 16,
        cache: Path | None = None,
        cuda_graphs: bool = False,
        at_once: bool = False,
    ) -> None:
        """Load a bundle.

        Args:
            bundle: its files are verified here.
            provider: `cuda` and `tensorrt` refuse to fall back; `auto` is `cuda` where there is an NVIDIA device, else
                `cpu`.
            threads: that run the model on the CPU; 0 = one a core that this process may use.
            batch_max: most windows in one run.
            cache: folder for what TensorRT builds; None = the service's or the user's.
            cuda_graphs: replay each bucket's run as one launch.
            at_once: for several callers, as the pump has: runs of a fast model have one CPU thread each and go side by
                side. A single caller is served best by runs that have all threads.

        Raises:
            BundleError: the files are not what the manifest says, or the model is not.
            ConfigError: the provider is not to be had.
        """
        self.manifest: Final = bundle.manifest
        most = batch_max if bundle.manifest.model.batches else 1  # or calls would change each other's scores
        self.buckets: Final = (*(size for size in BUCKETS if size < most), most)
        name = providers.wanted(provider)
        threads = threads or len(os.sched_getaffinity(0))
        contents = bundle.read_verified(*(file for file in self.manifest.files if file != self.manifest.model.head))

        def open_with(run_threads: int) -> ort.InferenceSession:
            return _open(contents, self.manifest, name, run_threads, most, cache, cuda_graphs)

        self._session = open_with(1 if at_once else threads)
        self.provider: Final[str] = self._session.get_providers()[0]
        """What it runs on, in onnxruntime's words."""
        if self.provider != name:
            # onnxruntime falls back without an error: a GPU box would score on its CPU and be late for ever.
            raise ConfigError.of("scoring.provider", provider, f"{name}, but onnxruntime fell back to {self.provider}")
        self._check_shapes()
        self._card: Final = Card(self._session, self.manifest, self.buckets) if providers.on_card(name) else None
        self.runs, self.run_threads = 1, threads
        """Runs that may go at once, and the CPU threads of each."""
        if self._card:
            self.runs = ON_CARD
        elif at_once and threads > 1 and not self._is_fast():
            del self._session  # or a large model would be in memory twice
            self._session = open_with(threads)
        elif at_once:
            self.runs, self.run_threads = threads, 1
        self.head: Final = Head(bundle) if bundle.manifest.blocks else None
        """Of a block model: what merges the sums of blocks, which `run` gives, into scores."""

    @classmethod
    def of(cls, bundle: Bundle, scoring: Scoring, *, at_once: bool = False) -> Self:
        """Load a bundle as the settings say."""
        return cls(
            bundle,
            provider=scoring.provider,
            threads=scoring.threads,
            batch_max=scoring.batch_max,
            cache=scoring.cache,
            cuda_graphs=scoring.cuda_graphs,
            at_once=at_once,
        )

    def warm_up(self) -> dict[int, float]:
        """Run every bucket twice, so that no call ever waits for a first time.

        Returns:
            bucket -> milliseconds of its last run.

        Raises:
            BundleError: the model gives something else than one score a window, or sums a block.
        """
        taken_ms = {}
        row = (self.head.sums,) if self.head else ()
        for size in self.buckets:
            silence = np.zeros((size, self.manifest.input_samples), np.float32)
            for _ in range(2 * (ON_CARD if self._card else 1)):  # a card has buffers for two of each
                began_s = time.perf_counter()
                if (shape := self.run(silence).shape) != (size, *row):
                    wanted = "the sums of each block" if row else "one score a window"
                    raise BundleError.of("model output shape", shape, f"{(size, *row)}: {wanted}")
                taken_ms[size] = 1e3 * (time.perf_counter() - began_s)
        if self.head is not None:
            self.head.warm_up(self.buckets)
        return taken_ms

    def run(self, *parts: Samples) -> Samples:
        """Run the model on ready windows, or blocks.

        Args:
            parts: float32 `(B, input_samples)` in [-1, 1] at the bundle's rate, one after the other; any B.

        Returns:
            raw CM scores of all `(B,)`, higher = more bona fide; of a block model, pooling sums `(B, S)`.
        """
        audio = parts[0] if len(parts) == 1 else np.concatenate(parts)
        scores, at = [], 0
        while at < audio.shape[0]:
            # Never a row of padding: a CPU would pay for it as for any other.
            size = max(bucket for bucket in self.buckets if bucket <= audio.shape[0] - at)
            scores.append(self._run(audio[at : at + size]))
            at += size
        return np.concatenate(scores) if scores else np.empty(0, np.float32)

    def bare(self, audio: Samples) -> Callable[[], object]:
        """Return what runs the session on these rows again and again, and does nothing else: a bench's measure.

        On a card the rows lie there already, and only one such call may be under way.
        """
        if self._card is not None:
            return self._card.bare(audio)
        model = self.manifest.model
        return lambda: self._session.run([model.output], {model.input: audio})

    def score(self, windows: Sequence[Window]) -> list[Score]:
        """Score the bytes of windows with this session."""
        return score_windows(windows, self.manifest, self.run, self.head)

    def _run(self, audio: Samples) -> Samples:
        if self._card is not None:
            return self._card.run(audio)
        model = self.manifest.model
        scores: Samples = self._session.run([model.output], {model.input: audio})[0]
        return scores

    def _is_fast(self) -> bool:
        """Whether a window takes less than ALONE_HOPS, in any of some tries: at a reload others use the core too."""
        silence = np.zeros((1, self.manifest.input_samples), np.float32)
        self._run(silence)
        for _ in range(TRIES):
            began_s = time.perf_counter()
            self._run(silence)
            if time.perf_counter() - began_s <= ALONE_HOPS * self.manifest.audio.hop_s:
                return True
        return False

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


class Buffers:
    """Memory of one batch size with fixed addresses, and the binding of the model's input and output to them."""

    def __init__(self, session: ort.InferenceSession, manifest: Manifest, size: int, number: int) -> None:
        """Allocate.

        Args:
            session: on any provider.
            manifest: of the model.
            size: rows.
            number: tells these buffers from all others of the session; CUDA graphs are kept by it.
        """
        model = manifest.model
        kind = "cuda" if providers.on_card(session.get_providers()[0]) else "cpu"
        shape = (size, manifest.input_samples)
        self._session: Final = session
        self._host: Final = _host_memory(session, shape)
        self._input: Final = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, kind)
        (output,) = [node for node in session.get_outputs() if node.name == model.output]
        self._output: Final = ort.OrtValue.ortvalue_from_shape_and_type((size, *output.shape[1:]), np.float32, kind)
        self._binding: Final = session.io_binding()
        self._binding.bind_ortvalue_input(model.input, self._input)
        self._binding.bind_ortvalue_output(model.output, self._output)
        self._options: Final = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(number))

    def load(self, audio: Samples) -> None:
        """Copy rows `(size, T)` to where the model reads them."""
        np.copyto(self._host.numpy(), audio)
        self._input.update_inplace(self._host)

    def run(self) -> Samples:
        """Run on what was loaded."""
        self._session.run_with_iobinding(self._binding, self._options)
        scores: Samples = self._binding.copy_outputs_to_cpu()[0]
        return scores


class Card:
    """A session on a GPU: one thread runs it, and the next batch is loaded meanwhile."""

    def __init__(self, session: ort.InferenceSession, manifest: Manifest, buckets: Sequence[int]) -> None:
        """Allocate the buffers of every bucket, twice."""
        # A CUDA graph belongs to the thread that captured it, and onnxruntime wants all runs from that one.
        self._thread: Final = ThreadPoolExecutor(1, "card")
        self._free: Final[dict[int, SimpleQueue[Buffers]]] = {size: SimpleQueue() for size in buckets}
        sizes = [size for size in buckets for _ in range(ON_CARD)]
        for number, size in enumerate(sizes, 1):
            self._free[size].put(Buffers(session, manifest, size, number))

    def run(self, audio: Samples) -> Samples:
        """Score `(B, T)`, B a bucket; from at most `ON_CARD` threads at once."""
        free = self._free[audio.shape[0]]
        buffers = free.get()
        try:
            buffers.load(audio)
            return self._thread.submit(buffers.run).result()
        finally:
            free.put(buffers)

    def bare(self, audio: Samples) -> Callable[[], object]:
        """Load `(B, T)`, and return what runs on it."""
        buffers = self._free[audio.shape[0]].get()
        buffers.load(audio)
        self._free[audio.shape[0]].put(buffers)
        return lambda: self._thread.submit(buffers.run).result()


def _open(
    contents: Mapping[str, bytes],
    manifest: Manifest,
    name: str,
    threads: int,
    batch_max: int,
    cache: Path | None,
    cuda_graphs: bool,
) -> ort.InferenceSession:
    """Open a session on the provider `name` from bytes that were verified."""
    external = {file: content for file, content in contents.items() if file != manifest.model.file}
    engines = None
    if name == providers.TENSORRT:  # nobody else is asked for a folder: a service's user has no home
        engines = providers.engine_folder(cache, manifest.files[manifest.model.file].sha256, ort.__version__)
        engines.mkdir(parents=True, exist_ok=True)
    row = manifest.model.input, manifest.input_samples
    order = providers.options(
        name,
        precision=manifest.model.precision,
        row=row,
        batch_max=batch_max,
        engines=engines,
        graphs=cuda_graphs,
    )
    if providers.on_card(name):
        sessions.find_libraries()
    graph = contents[manifest.model.file]
    return sessions.load("model", manifest.model.file, graph, sessions.settings(threads, external), order)


def _host_memory(session: ort.InferenceSession, shape: tuple[int, int]) -> ort.OrtValue:
    """Memory of this machine that the provider's card can read by itself (pinned), or plain where it has none."""
    for device in ort.get_ep_devices():
        if device.ep_name == session.get_providers()[0]:
            pinned = device.memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
            if pinned is not None:
                return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, memory_info=pinned)
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
