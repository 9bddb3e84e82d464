"""The scorer: company changes no score, and what is not as its manifest says is refused."""

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from streamdet import bundle
from streamdet.bundle import Model
from streamdet.errors import BundleError, ConfigError, StreamdetError
from streamdet.records import AudioFormat, Window
from streamdet.scorer import Scorer
from streamdet.window import score_windows

S16 = AudioFormat(16_000, "s16le")


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-0.5, 0.5, (count, 64_000)).astype(np.float32)


def altered(tiny_bundle, edit):
    """The bundle with its graph changed and its hashes right."""
    model = onnx.load_from_string((tiny_bundle.path / "model.onnx").read_bytes())
    edit(model.graph)
    return bundle.save(tiny_bundle.path, tiny_bundle.manifest, {"model.onnx": model.SerializeToString()})


def test_neither_company_nor_padding_changes_a_score(tiny_bundle):
    scorer = Scorer(tiny_bundle, provider="cpu", threads=1, batch_max=4)
    assert scorer.buckets == (1, 2, 4)
    audio = noise(11)
    alone = np.concatenate([scorer.run(audio[at : at + 1]) for at in range(11)])
    assert scorer.run(audio) == pytest.approx(alone, abs=1e-6)
    assert scorer.run(audio[:0]).shape == (0,)
    assert set(scorer.warm_up()) == {1, 2, 4}


def test_dynamic_int8_runs_one_window_at_a_time(tiny_bundle):
    manifest = msgspec.structs.replace(tiny_bundle.manifest, model=Model("window", precision="int8"))
    assert Scorer(bundle.Bundle(tiny_bundle.path, manifest), provider="cpu").buckets == (1,)


def test_a_flipped_bit_is_refused(tiny_bundle):
    file = tiny_bundle.path / "model.onnx"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match="sha256"):
        Scorer(tiny_bundle, provider="cpu")


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda graph: setattr(graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 48_000), "input shape"),
        (lambda graph: setattr(graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1), "input shape"),
        (lambda graph: setattr(graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE), "model"),
        (lambda graph: graph.node[0].CopyFrom(helper.make_node("Nothing", ["audio"], ["size"])), "model that loads"),
    ],
)
def test_a_model_that_is_not_what_the_manifest_says_is_refused(tiny_bundle, edit, named):
    with pytest.raises(BundleError, match=named):
        Scorer(altered(tiny_bundle, edit), provider="cpu")


def test_other_names_are_refused(tiny_bundle):
    for field, name in (("input", "sound"), ("output", "logit")):
        model = msgspec.structs.replace(tiny_bundle.manifest.model, **{field: name})
        manifest = msgspec.structs.replace(tiny_bundle.manifest, model=model)
        with pytest.raises(BundleError, match=f"model {field}s"):
            Scorer(bundle.Bundle(tiny_bundle.path, manifest), provider="cpu")


def test_two_scores_a_window_are_refused_before_ready(tiny_bundle):
    def keep_the_dimension(graph):
        graph.node[1].attribute[0].i = 1  # keepdims
        graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1

    with pytest.raises(BundleError, match="model output shape"):
        Scorer(altered(tiny_bundle, keep_the_dimension), provider="cpu").warm_up()


def test_cuda_is_not_replaced_by_the_cpu(tiny_bundle):
    with pytest.raises((ConfigError, BundleError), match=r"CUDA|cuda"):
        Scorer(tiny_bundle, provider="cuda")


def test_what_is_no_number_is_no_evidence(tiny_bundle, babble):
    data = (babble[:64_000] * 32767).astype("<i2").tobytes()
    window = Window(S16, data, 0, 64_000, 0.0)
    (heard,) = score_windows([window], tiny_bundle.manifest, lambda audio: np.zeros(len(audio), np.float32))
    assert heard.llr == 0.0
    with pytest.raises(StreamdetError, match="CM score: nan"):
        score_windows([window], tiny_bundle.manifest, lambda audio: np.full(len(audio), np.nan, np.float32))


def test_a_gated_window_costs_no_run(tiny_bundle):
    window = Window(S16, bytes(128_000), 0, 64_000, 0.0)
    (heard,) = score_windows([window], tiny_bundle.manifest, lambda _: pytest.fail("the model ran"))
    assert (heard.llr, heard.speech_s) == (None, 0.0)
