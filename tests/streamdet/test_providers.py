"""What onnxruntime is told of a provider; checked here because no GPU is there to do it."""

from pathlib import Path

import pytest

from streamdet import providers
from streamdet.errors import ConfigError
from streamdet.providers import CPU, CUDA, TENSORRT
from streamdet.scorer import Scorer


def options(name, **changes):
    asked = {"precision": "fp16", "row": ("audio", 64_000), "batch_max": 16, "engines": "/cache/x", "graphs": False}
    return providers.options(name, **{**asked, **changes})


def test_auto_goes_by_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(providers, "_NVIDIA_DEVICE", tmp_path / "nvidiactl")
    assert providers.wanted("auto") == CPU
    (tmp_path / "nvidiactl").touch()
    assert [providers.wanted(name) for name in ("auto", "cpu", "cuda", "tensorrt")] == [CUDA, CPU, CUDA, TENSORRT]
    assert [providers.on_card(name) for name in (CPU, CUDA, TENSORRT)] == [False, True, True]


def test_the_cpu_stands_alone_and_a_card_has_the_cpu_for_shapes():
    assert options(CPU) == [(CPU, {})]
    assert [name for name, _ in options(CUDA)] == [CUDA, CPU]
    assert [name for name, _ in options(TENSORRT)] == [TENSORRT, CUDA, CPU]


@pytest.mark.parametrize("graphs", [False, True])
def test_cuda_graphs_are_asked_for_by_name(graphs):
    (_, found), _ = options(CUDA, graphs=graphs)
    assert ("enable_cuda_graph" in found) == graphs
    assert found["cudnn_conv_algo_search"] == "HEURISTIC"


def test_tensorrt_builds_for_the_sizes_that_come_and_keeps_what_it_built():
    (_, found), *_ = options(TENSORRT)
    assert found["trt_profile_min_shapes"] == "audio:1x64000"
    assert found["trt_profile_max_shapes"] == found["trt_profile_opt_shapes"] == "audio:16x64000"
    assert found["trt_engine_cache_enable"] == "1"
    assert found["trt_engine_cache_path"] == found["trt_timing_cache_path"] == "/cache/x"


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", "0"), ("fp16", "1"), ("int8", "0")])
def test_tensorrt_may_halve_precision_only_where_the_bundle_did(precision, allowed):
    (_, found), *_ = options(TENSORRT, precision=precision)
    assert found["trt_fp16_enable"] == allowed


def test_an_option_of_onnxruntime_is_text():
    for name in (CPU, CUDA, TENSORRT):
        for _, found in options(name, graphs=True):
            assert all(isinstance(value, str) for value in found.values())


def test_engines_are_kept_by_model_version_and_card(tmp_path, monkeypatch):
    cards = tmp_path / "gpus"
    (cards / "0000:01:00.0").mkdir(parents=True)
    (cards / "0000:01:00.0" / "information").write_text("Model: \t NVIDIA H200\nIRQ: 1\n")
    monkeypatch.setattr(providers, "_NVIDIA_CARDS", cards)
    assert providers.card() == "NVIDIA H200"
    monkeypatch.setattr(providers, "tensorrt_version", lambda: "10.14")
    folder = providers.engine_folder(tmp_path, "a" * 64, "1.31.1")
    assert folder == tmp_path / "tensorrt" / f"{'a' * 16}-1.31.1-10.14-NVIDIA_H200"
    others = [("b" * 64, "1.31.1"), ("a" * 64, "1.32.0")]
    assert folder not in {providers.engine_folder(tmp_path, *other) for other in others}
    monkeypatch.setattr(providers, "_NVIDIA_CARDS", tmp_path / "none")
    assert providers.engine_folder(tmp_path, "a" * 64, "1.31.1").name.endswith("-none")


def test_a_version_that_nobody_installed_is_no_error(monkeypatch):
    installed = {"tensorrt-cu13": "10.14"}

    def version(package):
        if package not in installed:
            raise providers.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(providers, "version", version)
    assert providers.tensorrt_version() == "10.14"
    installed.clear()
    assert providers.tensorrt_version() == ""


def test_the_cache_is_the_services_else_the_users(tmp_path, monkeypatch):
    def place():
        return providers.engine_folder(None, "a" * 64, "1").parents[1]

    monkeypatch.setenv("CACHE_DIRECTORY", f"{tmp_path}/service:/second")
    assert place() == tmp_path / "service"
    monkeypatch.delenv("CACHE_DIRECTORY")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert place() == tmp_path / "mine" / "streamdet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place() == tmp_path / ".cache" / "streamdet"


def test_a_user_without_a_home_is_asked_for_a_folder(monkeypatch):
    """systemd's DynamicUser is one."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match=r"scoring\.cache: '', expected a folder"):
        providers.engine_folder(None, "a" * 64, "1")


def test_a_user_without_a_home_scores_on_the_cpu(tiny_bundle, monkeypatch):
    """Only TensorRT keeps anything."""
    monkeypatch.setattr(providers, "engine_folder", lambda *_: pytest.fail("asked for a folder"))
    Scorer(tiny_bundle, provider="cpu", threads=1, batch_max=1)


@pytest.mark.parametrize(
    "message",
    [
        "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access was encountered ; GPU=0",
        "CUDA error cudaErrorIllegalAddress:an illegal memory access was encountered",
        "CUBLAS failure 14: CUBLAS_STATUS_INTERNAL_ERROR ; GPU=0 ; file=cublas.cc ; expr=cublasGemmEx",
        "CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR ; GPU=0",
        "[ONNXRuntimeError] : 11 : EP_FAIL : TensorRT EP execution context enqueue failed.",
    ],
)
def test_a_fault_of_the_card_is_told_from_its_message(message):
    assert providers.is_fault(message)


@pytest.mark.parametrize(
    "message",
    [
        "Non-zero status code returned while running Gather node. Status Message: indices element out of data bounds",
        "Failed to allocate memory for requested buffer of size 1048576",
        "CM score: nan, expected a finite number from the model",
        "",
    ],
)
def test_another_error_is_no_fault_of_the_card(message):
    assert not providers.is_fault(message)
