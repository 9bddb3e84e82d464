"""Where a model may run, and what onnxruntime is told of each place: one table.

Nothing here imports onnxruntime, so what is asked of a GPU can be checked on a machine without one.
"""

import contextlib
import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from streamdet.errors import ConfigError

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
Options = list[tuple[str, dict[str, str]]]
"""onnxruntime's own: providers in order of preference, each with its settings."""

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"

# What onnxruntime's CUDA_CALL, CUBLAS_CALL, CUDNN_CALL and their like write, and TensorRT's provider of its own runs.
_FAULT: Final = re.compile(
    r"\b(?:CUDA|CUBLAS|CUDNN|CURAND|CUFFT|CUSPARSE) (?:failure|error)\b|\bTensorRT EP\b.*\bfailed\b"
)

_NVIDIA_DEVICE: Final = Path("/dev/nvidiactl")
_NVIDIA_CARDS: Final = Path("/proc/driver/nvidia/gpus")

_CUDA: Final = {
    # The default, EXHAUSTIVE, benchmarks every convolution at first sight: seconds for each new shape.
    "cudnn_conv_algo_search": "HEURISTIC",
    # The default doubles the arena each time it grows.
    "arena_extend_strategy": "kSameAsRequested",
}
# One launch a run in place of some hundred. Wants fixed addresses, fixed shapes, and every run from one thread; the
# scorer's buffers give it all three.
_GRAPHS: Final = {"enable_cuda_graph": "1"}
_TENSORRT: Final = {
    # Building engines takes minutes; they are kept, and so are the timings that another bucket can use.
    "trt_engine_cache_enable": "1",
    "trt_timing_cache_enable": "1",
}


def wanted(provider: Provider) -> str:
    """Say in onnxruntime's words where a model shall run; `auto` is CUDA on a machine with an NVIDIA device."""
    if provider == "tensorrt":
        return TENSORRT
    if provider == "cpu" or (provider == "auto" and not _NVIDIA_DEVICE.exists()):
        return CPU
    return CUDA


def on_card(name: str) -> bool:
    """Whether a provider runs on a GPU."""
    return name != CPU


def options(
    name: str, *, precision: str, row: tuple[str, int], batch_max: int, engines: Path | None, graphs: bool = False
) -> Options:
    """Say what onnxruntime is to be told, last resorts last.

    Args:
        name: what `wanted` gave.
        precision: of the bundle; TensorRT chooses precisions by itself and has to be allowed fp16.
        row: name of the model's input and samples of one of its rows.
        batch_max: rows of the largest batch.
        engines: folder where TensorRT, and nobody else, keeps what it built for this model, card and version.
        graphs: CUDA graphs; onnxruntime refuses a model of which a node that computes stays on the CPU.
    """
    if name == CPU:
        return [(CPU, {})]
    # A dynamic batch leaves a few shape nodes that belong on the CPU, and TensorRT leaves to CUDA what it lacks.
    if name == CUDA:
        return [(CUDA, _CUDA | (_GRAPHS if graphs else {})), (CPU, {})]
    audio, samples = row
    shapes = {
        f"trt_profile_{which}_shapes": f"{audio}:{batch}x{samples}"
        for which, batch in (("min", 1), ("opt", batch_max), ("max", batch_max))
    }
    folder = {"trt_engine_cache_path": str(engines), "trt_timing_cache_path": str(engines)}
    fp16 = {"trt_fp16_enable": "1" if precision == "fp16" else "0"}
    return [(TENSORRT, _TENSORRT | shapes | folder | fp16), (CUDA, dict(_CUDA)), (CPU, {})]


def is_fault(message: str) -> bool:
    """Whether an error of onnxruntime's tells of a card that must not be trusted any more.

    "CUDA failure 700: an illegal memory access was encountered", "CUBLAS failure 14: CUBLAS_STATUS_INTERNAL_ERROR" and
    the like. Such an error stays with the process: what runs after it fails too, or gives wrong scores without a word
    (onnxruntime issue 26312).
    """
    return _FAULT.search(message) is not None


def engine_folder(cache: Path | None, model_sha256: str, onnxruntime: str) -> Path:
    """Say where TensorRT's engines of one model, version and card lie: none of them fits another.

    Args:
        cache: the folder from the settings; None is the service's CacheDirectory, or the user's cache.
        model_sha256: of the model's file.
        onnxruntime: its version.
    """
    words = [model_sha256[:16], onnxruntime, tensorrt_version(), card()]
    return (cache or _cache()) / "tensorrt" / "-".join(map(_plain, words))


def tensorrt_version() -> str:
    """Version of the TensorRT that pip installed, empty where it came another way."""
    for package in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"):
        with contextlib.suppress(PackageNotFoundError):
            return version(package)
    return ""


def card() -> str:
    """Name of the first NVIDIA card as its driver tells it, empty without one."""
    for file in sorted(_NVIDIA_CARDS.glob("*/information")):
        found = re.search(r"^Model:\s*(.+)$", file.read_text("utf-8", "replace"), re.MULTILINE)
        if found:
            return found[1].strip()
    return ""


def _cache() -> Path:
    """CacheDirectory= as systemd says it, else where a user's programs keep theirs."""
    given = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamdet"
    except RuntimeError:  # systemd's DynamicUser has no home
        raise ConfigError.of("scoring.cache", "", "a folder for TensorRT's engines: this user has no home") from None


def _plain(text: str) -> str:
    """Only what may stand in a folder's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", text) or "none"
