"""`streamdet bench peers`: the same windows and scores each way, and what is said of them."""

import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from streamdet import bundle
from streamdet.bench.steady import Steady
from streamdet.bundle import starter_recordings
from streamdet.errors import StreamdetError, UsageError
from streamdet_export import bench_peers, bench_peers_cli, peers, untrained
from streamdet_export.bench_peers import WAYS, Ask, Turn
from streamdet_export.peers_ours import Ours
from streamdet_export.peers_torch import Torch, windows

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run and a bundle with the same random weights."""
    folder = tmp_path_factory.mktemp("random")
    fields = {
        "conv_dim": [16, 16],
        "conv_kernel": [20, 16],
        "conv_stride": [20, 16],
        "num_feat_extract_layers": 2,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    (folder / "tiny.json").write_text(json.dumps(fields))
    untrained.make(untrained.recipe_of(str(folder / "tiny.json"), layers=1), folder)
    return folder


@pytest.fixture
def ask(made):
    files = tuple(str(file) for file in starter_recordings())
    return Ask(
        run=str(made / "run"),
        bundle=str(made / "fp32"),
        files=files,
        seconds=5.6,
        threads=1,
        batch=4,
        device="cpu",
    )


def test_every_way_scores_the_same_windows_alike(ask):
    recordings = peers.read(ask)
    theirs, ours = Torch(ask), Ours(ask)
    scores = {way: getattr(theirs if way in bench_peers.TORCH else ours, way)(recordings) for way in WAYS}
    # Three recordings of 5.6 s: five whole hops each, and a rest of more than half a hop.
    assert [len(scores[way]) for way in WAYS] == [18, 18, 3, 18, 18]
    for way in ("batched", "call", "calls"):
        assert scores[way].keys() == scores["eager"].keys()
        assert [scores[way][key] for key in scores["eager"]] == pytest.approx(list(scores["eager"].values()), abs=1e-5)
    assert np.std(list(scores["eager"].values())) > 1e-4  # they could have differed


def test_recordings_are_repeated_for_as_many_calls_as_are_wanted(ask):
    recordings = peers.read(msgspec.structs.replace(ask, calls=7, seconds=2))
    assert len(recordings) == 7
    scores = Ours(ask).calls(recordings)
    assert len(scores) == 14
    assert scores["6-" + starter_recordings()[0].stem + " 2.000"] == pytest.approx(
        scores["0-" + starter_recordings()[0].stem + " 2.000"], abs=1e-6
    )


def test_a_pump_that_breaks_ends_the_turn(ask, monkeypatch):
    side = Ours(ask)

    def broken(*_parts):
        raise StreamdetError("the model is gone")

    monkeypatch.setattr(side.scorer, "run", broken)
    with pytest.raises(StreamdetError, match="the model is gone"):
        side.calls(peers.read(ask))


def test_a_recording_in_one_pass_hears_all_of_it(ask):
    side = Torch(ask)
    (name, (samples, rate_hz)), *_ = peers.read(ask).items()
    whole = side.whole({name: (samples, rate_hz)})
    half = side.whole({name: (samples[: samples.size // 2], rate_hz)})
    assert whole[name] != pytest.approx(half[name], abs=1e-6)


def test_windows_are_cut_where_the_daemon_cuts_them():
    samples = np.arange(round(5.4 * 8000), dtype=np.float32)
    audio = bundle.Audio(RATE_HZ, 4 * RATE_HZ, RATE_HZ)
    found = list(windows({"a": (samples, 8000)}, audio))
    assert [key for key, _, _ in found] == ["a 1.000", "a 2.000", "a 3.000", "a 4.000", "a 5.000"]  # 0.4 s are no rest
    assert [cut.size for _, cut, _ in found] == [8000, 16_000, 24_000, 32_000, 32_000]
    assert found[-1][1][0] == 8000


def turned(taken_s, scores, cpu_s=1.0):
    return Turn(taken_s, cpu_s, 6.0, 1 << 20, scores)


def test_rows_hold_each_way_against_ours(ask):
    turns = {
        "eager": [turned(6.0, {"a": 1.0, "b": 2.0}, cpu_s=5.0)],
        "whole": [turned(2.0, {"a": 1.5})],
        "calls": [turned(3.0, {"a": 1.0, "b": 2.25}, cpu_s=2.0)],
    }
    found = {way: Steady((each[0].audio_s / each[0].taken_s,)) for way, each in turns.items()}
    eager, whole, calls = bench_peers.summary(ask, found, turns)
    assert (eager["ratio_calls_to_this"], eager["ratio_cpu_this_to_calls"]) == (2.0, 2.5)
    assert eager["windows_per_s"] == pytest.approx(2 / 6)
    assert whole["windows_per_s"] is None  # one score a recording is no timeline
    assert whole["ratio_calls_to_this"] == pytest.approx(2 / 3)
    assert (calls["largest_difference"], eager["largest_difference"], whole["largest_difference"]) == (0.25, None, None)
    assert "ratio_calls_to_this" not in calls


def test_ways_that_score_other_windows_are_no_comparison():
    turns = {"eager": [turned(1.0, {"a": 1.0})], "calls": [turned(1.0, {"b": 1.0})]}
    with pytest.raises(StreamdetError, match="bench peers windows"):
        bench_peers.difference(turns, "calls")


def test_a_process_that_ends_is_one_line(ask, tmp_path):
    (tmp_path / "empty").mkdir()
    broken = msgspec.structs.replace(ask, run=str(tmp_path / "empty"))
    with (
        bench_peers.Worker(broken, "torch") as worker,
        pytest.raises(StreamdetError, match=r"bench peers, torch: .*run"),
    ):
        worker.run("eager")


def test_our_side_imports_no_torch():
    """Or its peak of memory would be torch's."""
    code = "import sys; from streamdet_export import peers, peers_ours; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_peak_of_memory_is_the_turns_own():
    def hold(_recordings):
        return {"a": float(np.ones(100 << 20, np.uint8)[-1])}

    larger = peers.turn(hold, {})
    smaller = peers.turn(lambda _recordings: {"a": 1.0}, {})
    assert larger.peak_bytes - smaller.peak_bytes > 50 << 20


def test_a_bench_says_all_ways_and_leaves_json_and_a_plot(made, tmp_path, capsys):
    bench_peers_cli.peers(
        run=made / "run",
        bundle=made / "fp32",
        seconds=2,
        threads="1",
        rounds=1,
        as_json=True,
        out=tmp_path,
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["way"] for row in rows] == list(bench_peers.SAID.values())
    assert all(row["audio_s_per_s"] > 0 and row["peak_bytes"] > 50 << 20 for row in rows)
    assert rows[-1]["largest_difference"] < 1e-5
    assert {file.name for file in tmp_path.iterdir()} == {"bench-peers.json", "bench-peers.png"}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ways": "eager,half"}, "--ways: 'half'"),
        ({"threads": "two"}, "--threads: 'two'"),
        ({"device": "tpu"}, "--device: 'tpu'"),
        ({"autocast": "fp8"}, "--autocast: 'fp8'"),
    ],
)
def test_a_word_that_is_none_of_them_is_named(made, options, named):
    with pytest.raises(UsageError, match=named):
        bench_peers_cli.peers(run=made / "run", bundle=made / "fp32", **options)


def test_a_run_without_its_bundle_is_refused(made):
    with pytest.raises(UsageError, match="both or neither"):
        bench_peers_cli.peers(run=made / "run")


def test_every_precision_and_kind_can_be_made(made, tmp_path):
    how = untrained.recipe_of(str(made / "tiny.json"), 1, "block")
    bundles = untrained.make(how, tmp_path, untrained.MADE)
    assert [found.manifest.model.precision for found in bundles] == ["fp32", "fp16", "int8", "int8"]
    assert [found.manifest.model.batches for found in bundles] == [True, True, True, False]
    assert all(bundle.load(tmp_path / name).manifest.model.kind == "block" for name in untrained.MADE)


def test_random_weights_come_of_shapes_and_recipes_alone():
    assert untrained.recipe_of("xlsr-300m", layers=3).backbone.layers == 3
    assert untrained.recipe_of("starter_backbone.toml").backbone.spectral is not None
    with pytest.raises(UsageError, match=r"backbone\.config"):
        untrained.recipe_of("xlsr_lora.toml")
