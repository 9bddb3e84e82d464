"""The scorer: company changes no score, and what is not as its manifest says is refused."""

import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from streamdet import bundle
from streamdet import scorer as scorers
from streamdet.blocks import ABSENT_LOGIT
from streamdet.bundle import Model
from streamdet.errors import BundleError, ConfigError, StreamdetError
from streamdet.records import AudioFormat, Window
from streamdet.scorer import ON_CARD, Buffers, Card, Scorer
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


def test_runs_of_a_fast_model_go_side_by_side_and_a_slow_one_gets_all_threads(tiny_bundle, monkeypatch):
    def shape(**options):
        made = Scorer(tiny_bundle, provider="cpu", threads=3, **options)
        return made.runs, made.run_threads, made._session.get_session_options().intra_op_num_threads

    assert shape() == (1, 3, 3)  # one caller
    assert shape(at_once=True) == (3, 1, 1)
    monkeypatch.setattr(scorers, "ALONE_HOPS", 0.0)
    assert shape(at_once=True) == (1, 3, 3)
    monkeypatch.setattr(Scorer, "_is_fast", lambda _: pytest.fail("nothing to choose"))
    assert Scorer(tiny_bundle, provider="cpu", threads=1, at_once=True).runs == 1


def test_callers_side_by_side_get_their_own_scores(tiny_bundle):
    scorer, audio = Scorer(tiny_bundle, provider="cpu", threads=4, batch_max=2, at_once=True), noise(8)
    alone = [scorer.run(audio[at : at + 1])[0] for at in range(8)]
    with ThreadPoolExecutor(scorer.runs) as callers:
        for _ in range(20):
            found = list(callers.map(lambda at: scorer.run(audio[at : at + 1])[0], range(8)))
            assert found == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("kind", ["tiny_bundle", "block_bundle"])
def test_bound_buffers_give_what_a_plain_run_gives(request, kind):
    """What a GPU scores through, on the CPU: fixed buffers, one thread that runs, the next batch loaded meanwhile."""
    made = request.getfixturevalue(kind)
    scorer = Scorer(made, provider="cpu", batch_max=4)
    card = Card(scorer._session, made.manifest, scorer.buckets)
    rows = np.random.default_rng(2).uniform(-0.5, 0.5, (24, made.manifest.input_samples)).astype(np.float32)
    with ThreadPoolExecutor(ON_CARD) as callers:
        for size in scorer.buckets:
            batches = [rows[at : at + size] for at in range(0, 24, size)]
            for found, batch in zip(callers.map(card.run, batches), batches, strict=True):
                assert found == pytest.approx(scorer.run(batch), abs=1e-5)
    assert card.bare(rows[:4])() == pytest.approx(scorer.run(rows[:4]), abs=1e-5)


def test_buffers_keep_their_addresses(tiny_bundle):
    buffers = Buffers(Scorer(tiny_bundle, provider="cpu")._session, tiny_bundle.manifest, 2, 7)
    addresses = [value.data_ptr() for value in (buffers._host, buffers._input, buffers._output)]
    for _ in range(3):
        buffers.load(noise(2))
        buffers.run()
    assert [value.data_ptr() for value in (buffers._host, buffers._input, buffers._output)] == addresses
    assert len(set(addresses)) == 3
    assert buffers._options.get_run_config_entry("gpu_graph_id") == "7"


def test_no_row_is_padding(tiny_bundle, monkeypatch):
    scorer, sizes = Scorer(tiny_bundle, provider="cpu", batch_max=8), []
    run = scorer._run
    monkeypatch.setattr(scorer, "_run", lambda audio: sizes.append(len(audio)) or run(audio))
    assert scorer.run(*(noise(count) for count in (1, 10, 2))).shape == (13,)
    assert sizes == [8, 4, 1]


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


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_card_is_not_replaced_by_the_cpu(tiny_bundle, provider, tmp_path):
    with pytest.raises((ConfigError, BundleError), match=r"(?i)cuda|tensorrt"):
        Scorer(tiny_bundle, provider=provider, cache=tmp_path)


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


# -- blocks ----------------------------------------------------------------------------------------------------------


def pooled(audio: np.ndarray, weights: dict[str, np.ndarray]) -> float:
    """The score of blocks `(N, 24_000)`, pooling over all their frames at once: Okabe et al., Interspeech 2018."""
    frames = np.lib.stride_tricks.sliding_window_view(audio.astype(np.float64), 1600, axis=1)[:, ::160][:, -100:]
    features = np.abs(frames.reshape(-1, 1600) @ weights["kernel"][:, 0].T)
    logits = features @ weights["query"][0, :, 0]
    share = np.exp(logits - logits.max())[:, None] / np.exp(logits - logits.max()).sum()
    mean = (share * features).sum(0)
    spread = (share * (features - mean) ** 2).sum(0)
    return float(np.concatenate([mean, np.sqrt(np.maximum(spread, 1e-6))]) @ weights["linear"][0])


def block_audio(count: int) -> np.ndarray:
    loudness = np.linspace(0.05, 1, count)[:, None]
    return (loudness * np.random.default_rng(2).uniform(-1, 1, (count, 24_000))).astype(np.float32)


@given(blocks=st.integers(1, 4), at=st.integers(0, 12), company=st.integers(0, 8))
def test_merged_sums_are_pooling_over_all_frames_at_once(block_scorer, block_weights, blocks, at, company):
    """Whatever batch the blocks and the windows rode in, and wherever the absent ones are."""
    audio = block_audio(24)
    encoded = block_scorer.run(audio[at : at + blocks + company])
    window = np.zeros((1 + company, 4, encoded.shape[1]), np.float32)
    window[:, :, 0] = ABSENT_LOGIT
    window[:, 0] = encoded[-1]
    window[-1, 0, :] = window[-1, 1, :]
    window[-1, 4 - blocks :] = encoded[:blocks]
    assert block_scorer.head(window)[-1] == pytest.approx(pooled(audio[at : at + blocks], block_weights), abs=1e-4)


def test_a_block_bundle_warms_up_encoder_and_head(block_bundle):
    scorer = Scorer(block_bundle, provider="cpu", threads=1, batch_max=4)
    assert set(scorer.warm_up()) == {1, 2, 4}
    assert scorer.run(block_audio(5)).shape == (5, 8)
    assert Scorer(block_bundle, provider="cpu").head is not None


def test_a_windowed_bundle_has_no_head(tiny_bundle):
    assert Scorer(tiny_bundle, provider="cpu").head is None


def with_head(block_bundle, edit):
    """The block bundle with another head, and its hashes right."""
    contents = block_bundle.read_verified()
    model = onnx.load_from_string(contents["head.onnx"])
    edit(model.graph)
    return bundle.save(block_bundle.path, block_bundle.manifest, {**contents, "head.onnx": model.SerializeToString()})


def rename(graph, old, new):
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for value in (*graph.input, *graph.output):
        value.name = new if value.name == old else value.name


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda graph: setattr(graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 5), "head input shape"),
        (lambda graph: setattr(graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1), "head input shape"),
        (lambda graph: setattr(graph.input[0].type.tensor_type.shape.dim[2], "dim_param", "any"), "head input shape"),
        (lambda graph: setattr(graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE), r"model\.head"),
        (lambda graph: rename(graph, "sums", "pieces"), "head inputs"),
        (lambda graph: rename(graph, "score", "logit"), "head outputs"),
        (lambda graph: graph.node[0].CopyFrom(helper.make_node("Nothing", ["sums"], ["rest"])), r"model\.head"),
    ],
)
def test_a_head_that_is_not_one_is_refused(block_bundle, edit, named):
    with pytest.raises(BundleError, match=named):
        Scorer(with_head(block_bundle, edit), provider="cpu")


def test_sums_that_do_not_fit_the_head_are_refused_before_ready(block_bundle):
    contents = block_bundle.read_verified()
    model = onnx.load_from_string(contents["model.onnx"])
    model.graph.node[-1].input.append("rest")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 15
    changed = bundle.save(
        block_bundle.path, block_bundle.manifest, {**contents, "model.onnx": model.SerializeToString()}
    )
    with pytest.raises(BundleError, match=r"model output shape: \(1, 15\), expected \(1, 8\)"):
        Scorer(changed, provider="cpu").warm_up()


def test_a_head_that_does_not_give_one_score_a_window_is_refused_before_ready(block_bundle):
    def keep_the_dimension(graph):
        graph.node[-1].attribute[0].i = 1
        graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1

    with pytest.raises(BundleError, match="head output shape"):
        Scorer(with_head(block_bundle, keep_the_dimension), provider="cpu").warm_up()


def test_a_flipped_bit_in_the_head_is_refused(block_bundle):
    file = block_bundle.path / "head.onnx"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match="sha256"):
        Scorer(block_bundle, provider="cpu")


def test_for_a_card_nvidias_packages_are_looked_through_first_and_stdout_stays_clean(tiny_bundle, monkeypatch, capsys):
    """onnxruntime does not find them by itself, and would fall back to the CPU."""
    monkeypatch.setattr(scorers.ort, "preload_dlls", lambda: sys.stdout.write("Failed to load libcublas\n"))
    with contextlib.suppress(ConfigError):
        Scorer(tiny_bundle, provider="cuda")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "Failed to load libcublas\n")
    Scorer(tiny_bundle, provider="cpu")
    assert capsys.readouterr().err == ""
