"""`streamdet bench train`: that modes take turns until they agree, what is skipped, and what is said and written."""

import json
import sys

import msgspec
import pytest
import torch

from streamdet.bench import report
from streamdet.errors import StreamdetError, UsageError
from streamdet_training import bench, bench_cli, bench_steps, model
from streamdet_training.bench import Ask, Cell, Skipped, Steps, Timing


def ask(tiny, **changes) -> Ask:
    fields = {
        "config": tiny.tables()["backbone"]["config"],
        "mode": "lora",
        "batch": 2,
        "window_s": 0.25,
        "device": "cpu",
        "precision": "no",
        "steps": 2,
        "rank": 4,
    }
    return Ask(**{**fields, **changes})


def steps(*seconds: float, peak_bytes: int = 1 << 30, trainable: int = 10) -> Steps:
    timings = [Timing(each / 2, each / 4, each / 4, each * 0.9) for each in seconds]
    return Steps(trainable, 100, 1 << 29, timings=timings, peak_bytes=peak_bytes)


# -- taking turns ----------------------------------------------------------------------------------------------------


def test_modes_take_turns_until_three_of_each_agree(tiny):
    asked = []
    script = {"lora": iter([[1.0], [1.5], [1.05], [1.06]]), "full": iter([[2.0], [2.0], [2.0], [2.0]])}

    def measure(ask: Ask) -> Steps:
        asked.append(ask.mode)
        return steps(*next(script[ask.mode]))

    lora, full = bench.take_turns(ask(tiny), ["lora", "full"], 9, measure)
    assert asked == ["lora", "full"] * 4
    assert (lora.step_s, lora.steps, lora.rounds, lora.agreed) == (pytest.approx(1.055), 4, 4, True)
    assert full.step_s == pytest.approx(2.0)


def test_rounds_are_bounded_and_what_does_not_agree_is_said(tiny, capsys):
    seconds = iter(range(1, 100))
    (cell,) = bench.take_turns(ask(tiny), ["lora"], 3, lambda _ask: steps(2.0 ** next(seconds)))
    assert (cell.rounds, cell.agreed) == (3, False)
    assert "no three turns within 10 %" in shown([cell], capsys)


def test_what_agrees_is_turns_and_not_the_steps_of_one(tiny):
    (cell,) = bench.take_turns(ask(tiny), ["lora"], 9, lambda _ask: steps(1.0, 1.0, 1.0))
    assert (cell.rounds, cell.steps, cell.agreed) == (3, 9, True)


def test_a_cell_without_memory_is_skipped_with_its_reason(tiny, capsys):
    asked = []

    def measure(ask: Ask) -> Steps:
        asked.append(ask.mode)
        return Steps(1, 1, 1, skipped="needs too much") if ask.mode == "full" else steps(1.0, 1.0, 1.0)

    rows = bench.take_turns(ask(tiny), ["lora", "full", "head"], 5, measure)
    assert asked == ["lora", "full", "head", "lora", "head", "lora", "head"]
    assert rows[1] == Skipped("full", 2, "needs too much")
    assert bench.ratios(rows).keys() == {"row", "batch"} | {
        f"ratio_{key}_head_to_lora" for key in ("step", "cpu", "peak", "trainable")
    }
    assert "needs too much" in shown(rows, capsys)


def test_ratios_are_to_lora_or_to_what_there_is(tiny):
    costs = {"full": steps(6.0, peak_bytes=8 << 30, trainable=40), "lora": steps(3.0, peak_bytes=2 << 30)}
    cells = bench.take_turns(ask(tiny), ["full", "lora"], 2, lambda ask: costs[ask.mode])
    assert bench.ratios(cells) == {
        "row": "ratios",
        "batch": 2,
        "ratio_step_full_to_lora": 2.0,
        "ratio_cpu_full_to_lora": 2.0,
        "ratio_peak_full_to_lora": 4.0,
        "ratio_trainable_full_to_lora": 4.0,
    }
    assert bench.ratios(cells[:1]) == {"row": "ratios", "batch": 2}
    assert bench.ratios([Skipped("lora", 4, "why")]) == {"row": "ratios", "batch": 4}


# -- a cell ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", bench.MODES)
def test_a_process_of_its_own_measures_a_cell(tiny, mode):
    found = bench.in_its_own_process(ask(tiny, mode=mode))
    counted = model.count(model.build(bench_steps.recipe(ask(tiny, mode=mode))))
    assert (found.trainable, found.total, found.skipped) == (counted.trainable, counted.total, None)
    assert len(found.timings) == 2
    for timing in found.timings:
        assert timing.step_s == pytest.approx(timing.forward_s + timing.backward_s + timing.optimiser_s)
        assert min(timing.forward_s, timing.backward_s, timing.optimiser_s, timing.cpu_s) > 0
    # Python and torch alone; and a figure in KiB or in pages would be far from it.
    assert 100 << 20 < found.peak_bytes < 8 << 30


def test_a_process_that_breaks_down_is_one_line(tiny):
    with pytest.raises(StreamdetError, match=r"bench train lora batch 2: .*unknown field|expected a process"):
        bench.in_its_own_process(ask(tiny, config={**ask(tiny).config, "hidden_size": 15}))


def test_a_step_trains(tiny):
    asked = ask(tiny, mode="full")
    detector = model.build(bench_steps.recipe(asked)).train()
    before = [values.clone() for values in detector.head.parameters()]
    optimiser = torch.optim.AdamW(detector.parameters(), lr=0.01)
    bench_steps.step(asked, detector, optimiser, 0.1 * torch.randn(2, 4000), torch.tensor([0.0, 1.0]))
    after = list(detector.head.parameters())
    assert not all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(values.grad is None for values in detector.parameters())


@pytest.mark.parametrize("mode", bench.MODES)
def test_estimated_memory_is_weights_gradients_moments_and_what_autograd_keeps(tiny, mode):
    how = bench_steps.recipe(ask(tiny, mode=mode))
    counted, one = bench_steps.estimate(how, 1)
    _, three = bench_steps.estimate(how, 3)
    fixed = bench_steps.LIBRARIES_BYTES + 4 * counted.total + 12 * counted.trainable
    assert (three - fixed) == pytest.approx(3 * (one - fixed), rel=1e-3)
    assert one > fixed


def test_full_fine_tuning_keeps_most_and_the_head_alone_next_to_nothing(tiny):
    def kept(mode):
        how = bench_steps.recipe(ask(tiny, mode=mode))
        counted, estimated = bench_steps.estimate(how, 1)
        return estimated - 4 * counted.total - 12 * counted.trainable - bench_steps.LIBRARIES_BYTES

    assert kept("head") < 0.3 * kept("lora") < 0.3 * kept("full")


def test_a_cell_that_would_not_fit_is_not_begun(tiny, monkeypatch):
    monkeypatch.setattr(bench_steps, "free_bytes", lambda _device: 1 << 20)
    monkeypatch.setattr(bench_steps, "step", lambda *_: pytest.fail("it was begun"))
    found = bench_steps.measure(ask(tiny))
    assert found.skipped == "needs about 0.8 GiB, 0.0 GiB are free"


def test_free_memory_is_the_machines():
    assert 1 << 20 < bench_steps.free_bytes("cpu") < 1 << 45


# -- what is said and written ----------------------------------------------------------------------------------------


def shown(rows, capsys) -> str:
    capsys.readouterr()
    report.show(report.Report.of("train", {}, bench.laid_out(rows)), bench.COLUMNS, as_json=False)
    return capsys.readouterr().out


def test_a_bench_leaves_json_and_a_plot(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "in_its_own_process", lambda _ask: steps(1.0, 1.0, 1.0))
    rows = bench.bench(ask(tiny), ["lora", "full"], [1, 4], 3, tmp_path / "out")
    assert [type(row) for row in rows] == [Cell, Cell, dict] * 2
    found = json.loads((tmp_path / "out" / "bench-train.json").read_text())
    assert found["settings"]["window_s"] == 0.25
    assert not {"mode", "batch"} & found["settings"].keys()
    assert [row["row"] for row in found["rows"]] == ["measured", "measured", "ratios"] * 2
    assert [row["batch"] for row in found["rows"]] == [1, 1, 1, 4, 4, 4]
    assert (tmp_path / "out" / "bench-train.png").read_bytes().startswith(b"\x89PNG")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"bench-train.json", "bench-train.png"}
    counts = [line.split().count("1") for line in shown(rows, capsys).splitlines()[1:5]]
    assert counts == [3, 5, 2, 4]  # step and peak, and two ratios of full; the batch of the first two is 1 as well


def test_rows_are_json_objects_with_ratios_named_so(monkeypatch, capsys):
    seen = []

    def measure(ask: Ask) -> Steps:
        seen.append((ask.mode, ask.batch, ask.rank, ask.window_s, ask.precision, ask.device))
        return steps(1.0, 1.0, 1.0)

    monkeypatch.setattr(bench, "in_its_own_process", measure)
    bench_cli.train(
        batches="2,1", modes="head,lora", rank=3, window_s=0.5, precision="bf16", device="cpu", rounds=1, as_json=True
    )
    rows = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["row"], row["batch"]) for row in rows] == [
        (row, batch) for batch in (2, 1) for row in ("measured", "measured", "ratios")
    ]
    assert rows[2]["ratio_step_head_to_lora"] == 1
    assert seen[:2] == [("head", 2, 3, 0.5, "bf16", "cpu"), ("lora", 2, 3, 0.5, "bf16", "cpu")]


@pytest.mark.parametrize(
    ("option", "value"),
    [("modes", "lora,half"), ("modes", "lora,lora"), ("batches", "1,x"), ("batches", "0"), ("precision", "fp8")],
)
def test_a_word_that_is_none_of_them_is_named(option, value):
    with pytest.raises(UsageError, match=f"--{option}"):
        bench_cli.train(**{option: value, "device": "cpu"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="--device: 'cuda'"):
        bench_cli.train(device="cuda")


def test_the_parent_imports_no_torch():
    """Or each cell would begin with the parent's peak of memory as its own."""
    import subprocess

    code = "import sys; from streamdet_training import bench, backbones; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
