"""Whole runs of four steps: what they leave, and that a broken one goes on where it stood."""

import json
import logging
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file

from streamdet.errors import DataError, MissingError, StreamdetError, UsageError
from streamdet.window import score_windows
from streamdet_training import calls, checkpoint, data, dev, metrics, model, run, train
from streamdet_training.scores import by_class, score_clips

AUDIO = 0.1 * torch.randn(3, 8000, generator=torch.Generator().manual_seed(1))


def scores(detector):
    training = detector.training
    with torch.inference_mode():
        found = detector.eval()(AUDIO)
    detector.train(training)
    return found


def found(out):
    return json.loads((out / run.METRICS).read_text())


def untimed(row):
    return {key: value for key, value in row.items() if key not in {"audio_s_per_s", "wall_s"}}


def names(folder):
    return {path.name for path in folder.iterdir()}


def toml(tables, head=""):
    """Tables as TOML; their values read the same in JSON."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    inner = {f"{head}{key}": value for key, value in tables.items() if isinstance(value, dict)}
    return "\n".join([*lines, *(f"[{key}]\n{toml(value, key + '.')}" for key, value in inner.items()), ""])


@pytest.fixture
def saved_scores(monkeypatch):
    """What the detector said each time that its weights were saved."""
    seen, save = [], run.save_weights

    def spy(path, detector):
        seen.append(scores(detector))
        save(path, detector)

    monkeypatch.setattr(run, "save_weights", spy)
    return seen


# -- what a run leaves -----------------------------------------------------------------------------------------------


def test_a_run_leaves_its_folder(tiny, manifest_csv, tmp_path, saved_scores, caplog):
    caplog.set_level(logging.INFO)
    how, out = tiny.recipe(), tmp_path / "run"
    assert train.train(how, out, data=[manifest_csv]) == out
    assert names(out) == {"recipe.json", "adapter", "backbone", "head.safetensors", "metrics.json", run.CHECKPOINT}
    # --data is part of what was run: export finds it there.
    assert run.load_recipe(out) == tiny.recipe(data={"path": str(manifest_csv)})

    kept = found(out)
    counted = model.count(model.build(how))
    assert (kept["recipe"], kept["mode"]) == ("tiny", "lora")
    assert kept["trainable_parameters"] == counted.trainable
    assert kept["backbone_trainable_parameters"] == counted.backbone_trainable == 2 * 2 * 2 * 16 * 4
    assert kept["head_parameters"] == counted.head
    assert kept["total_parameters"] == counted.total
    assert kept["clips"] == {"train": 4, "dev": 4}
    assert kept["voices"] == calls.voices(data.read_manifest(manifest_csv, "train"))
    assert [row["step"] for row in kept["history"]] == [2, 4]
    assert kept["best"] == min(kept["history"], key=lambda row: (row["dev_eer"], row["dev_min_cllr"]))
    assert kept["saved"]["steps"] == [kept["best"]["step"]]
    assert all(row["audio_s_per_s"] > 0 for row in kept["history"])
    assert kept["wall_s"] == kept["history"][-1]["wall_s"] >= kept["history"][0]["wall_s"]
    assert kept["peak_memory_bytes"] > 50e6  # torch alone is more
    assert kept["seed"] == 1
    assert kept["made_with"]["torch"] == torch.__version__
    assert "tiny: step 4 of 4" in caplog.text

    # What was saved last is what is loaded, and it is as good as the figures say.
    detector = run.load_run(out)
    assert torch.equal(scores(detector), saved_scores[-1])

    def score(windows):
        with torch.inference_mode():
            return score_windows(windows, how.draft(), lambda audio: detector(torch.from_numpy(audio)).numpy())

    trials = score_clips(data.read_manifest(manifest_csv, "dev"), how.draft(), score)
    assert metrics.eer(*by_class(trials)) == kept["best"]["dev_eer"]


def test_adapters_that_are_no_safetensors_are_not_looked_for(tiny, manifest_csv, tmp_path):
    """peft would take pickled ones in their place."""
    out = train.train(tiny.recipe(), tmp_path / "run", data=[manifest_csv])
    weights = out / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_name("adapter_model.bin"))
    weights.unlink()
    with pytest.raises(MissingError, match=r"run adapter: .*a folder with adapter_model\.safetensors"):
        run.load_run(out)


def test_training_moves_adapters_and_leaves_the_backbone(tiny, manifest_csv, tmp_path):
    out = train.train(tiny.recipe(train={"lr": 0.01}), tmp_path / "run", data=[manifest_csv])
    adapters = load_file(out / "adapter" / "adapter_model.safetensors")
    assert len(adapters) == 2 * 2 * 2
    assert all(values.any() for name, values in adapters.items() if "lora_B" in name)
    start = load_file(out / "backbone" / "model.safetensors")
    end = run.load_run(out).backbone.unload().state_dict()
    start.pop("masked_spec_embed", None)  # of no use where nothing is masked
    assert start.keys() <= end.keys()
    assert all(torch.equal(values, end[name]) for name, values in start.items())


def test_full_mode_saves_the_backbone_that_it_trained(tiny, manifest_csv, tmp_path, saved_scores):
    out = train.train(tiny.recipe(mode="full"), tmp_path / "run", data=[manifest_csv])
    assert names(out) == {"recipe.json", "backbone", "head.safetensors", "metrics.json", run.CHECKPOINT}
    assert found(out)["trainable_parameters"] == found(out)["total_parameters"]
    assert torch.equal(scores(run.load_run(out)), saved_scores[-1])
    assert not torch.equal(saved_scores[0], scores(model.build(tiny.recipe(mode="full"))))


@pytest.mark.parametrize("head", ["mean", "nested"])
@pytest.mark.parametrize("layer_sum", [False, True])
def test_every_head_and_the_sum_over_layers_come_back_from_a_run(
    tiny, manifest_csv, tmp_path, saved_scores, head, layer_sum
):
    how = tiny.recipe(head={"kind": head}, backbone={"layer_sum": layer_sum}, train={"lr": 0.01})
    out = train.train(how, tmp_path / "run", data=[manifest_csv])
    assert torch.equal(scores(run.load_run(out)), saved_scores[-1])
    assert ("layer_sum.weights" in load_file(out / run.HEAD)) == layer_sum


def test_it_learns_what_is_plain(tiny, manifest_csv, tmp_path):
    """Two tones."""
    how = tiny.recipe(
        mode="full", train={"steps": 60, "batch": 8, "lr": 5e-3, "warmup": 5, "check_every": 30, "crop_s": [0.1]}
    )
    kept = found(train.train(how, tmp_path / "run", data=[manifest_csv]))
    assert kept["best"]["dev_eer"] == 0
    assert kept["history"][-1]["loss"] < 0.6


def test_the_recipe_of_the_backbone_is_trained_first(tiny, manifest_csv, tmp_path, saved_scores):
    first = tmp_path / "first.toml"
    first.write_text(toml(tiny.tables(name="first", mode="full")))
    how = tiny.recipe(backbone={"config": None, "recipe": str(first)})
    out = train.train(how, tmp_path / "run", data=[manifest_csv])
    assert found(out / "first")["recipe"] == "first"
    assert torch.equal(scores(run.load_run(out)), saved_scores[-1])
    trained, frozen = run.load_run(out / "first").backbone, run.load_run(out).backbone.unload()
    assert all(torch.equal(values, frozen.state_dict()[name]) for name, values in trained.state_dict().items())
    assert run.load_recipe(out).backbone.source == str(out / "first" / "backbone")


# -- resuming --------------------------------------------------------------------------------------------------------


class PowerCutError(Exception):
    """What no run expects."""


@pytest.fixture
def how(tiny):
    """With all that a checkpoint has to keep: averages, and masks from numpy's global state."""
    return tiny.recipe(train={"average": 0.5, "lr": 0.01}, augment={"mask_frames": 0.3, "noise": 0.5})


@pytest.fixture
def broken_run(how, manifest_csv, tmp_path, monkeypatch):
    """A run that ended after its first checkpoint."""
    write = checkpoint.save

    def write_and_break(*args):
        write(*args)
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", write_and_break)
        with pytest.raises(PowerCutError):
            train.train(how, tmp_path / "broken", data=[manifest_csv])
    assert not (tmp_path / "broken" / run.METRICS).exists()
    return tmp_path / "broken"


def test_a_resumed_run_ends_like_one_that_never_broke(how, manifest_csv, tmp_path, broken_run):
    """Without dropout nothing is left to chance."""
    train.train(how, broken_run, data=[manifest_csv], resume=True)
    whole = train.train(how, tmp_path / "whole", data=[manifest_csv])
    for out in (broken_run, whole):
        assert [row["step"] for row in found(out)["history"]] == [2, 4]
    measured = [[untimed(row) for row in found(out)["history"]] for out in (broken_run, whole)]
    assert measured[0] == measured[1]
    assert found(broken_run)["saved"] == found(whole)["saved"]
    assert torch.equal(scores(run.load_run(broken_run)), scores(run.load_run(whole)))
    # The last step's weights; those of the run are averages, and the best step's.
    ends = [load_file(out / run.CHECKPOINT) for out in (broken_run, whole)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(values, ends[1][name]) for name, values in ends[0].items())


def test_a_finished_run_resumes_to_itself(how, manifest_csv, tmp_path):
    out = train.train(how, tmp_path / "run", data=[manifest_csv])
    before = found(out)
    train.train(how, out, data=[manifest_csv], resume=True)
    assert found(out) == before


def test_an_average_is_what_is_saved(tiny, manifest_csv, tmp_path, saved_scores):
    """After one step the decay is 1/11, whatever the recipe says: what is saved is not quite the last step."""
    outs = [
        train.train(
            tiny.recipe(train={"steps": 1, "lr": 0.01, "average": average}),
            tmp_path / str(average),
            data=[manifest_csv],
        )
        for average in (0.0, 0.9)
    ]
    last, mean = (load_file(out / run.HEAD)["linear.bias"] for out in outs)
    step = load_file(outs[1] / run.CHECKPOINT)["weights/head.linear.bias"]
    assert torch.equal(last, step)
    assert 0 < (last - mean).abs().item() == pytest.approx(0.01 / 11, rel=1e-2)  # Adam's first step is lr long
    assert torch.equal(scores(run.load_run(outs[1])), saved_scores[1])


def test_an_existing_run_is_not_overwritten(tiny, manifest_csv, broken_run):
    before = (broken_run / run.RECIPE).read_bytes()
    with pytest.raises(UsageError, match="expected a new folder, or --resume"):
        train.train(tiny.recipe(seed=5), broken_run, data=[manifest_csv])
    assert (broken_run / run.RECIPE).read_bytes() == before


def test_another_recipe_is_refused(how, manifest_csv, broken_run):
    other = how.model_copy(update={"train": how.train.model_copy(update={"lr": 0.5})})
    with pytest.raises(DataError, match=r"recipe train\.lr: 0\.5, expected 0\.01, with which the run began"):
        train.train(other, broken_run, data=[manifest_csv], resume=True)


def test_other_data_are_refused(how, manifest_csv, broken_run):
    text = manifest_csv.read_text().splitlines()
    manifest_csv.write_text("\n".join([text[0], *reversed(text[1:])]) + "\n")
    with pytest.raises(DataError, match=r"data: .*, expected the clips with which the run began"):
        train.train(how, broken_run, data=[manifest_csv], resume=True)


def test_another_backbone_is_refused(tiny, manifest_csv, tmp_path):
    """Adapters that were trained beside other weights would be of no use, and nobody would notice."""
    for seed in (1, 2):
        torch.manual_seed(seed)
        model.load_backbone(tiny.recipe().backbone).save_pretrained(tmp_path / str(seed))
    source = tmp_path / "source"
    shutil.copytree(tmp_path / "1", source)
    how = tiny.recipe(backbone={"config": None, "source": str(source)})
    out = train.train(how, tmp_path / "run", data=[manifest_csv])
    (out / run.METRICS).unlink()
    shutil.copytree(tmp_path / "2", source, dirs_exist_ok=True)
    with pytest.raises(DataError, match=r"frozen weights: .* expected those with which the run began"):
        train.train(how, out, data=[manifest_csv], resume=True)


def test_a_run_that_had_no_checkpoint_begins_again(tiny, manifest_csv, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    how = tiny.recipe(data={"path": str(manifest_csv)})
    run.begin(tmp_path / "run", how, model.build(how))
    train.train(how, tmp_path / "run", resume=True)
    assert "had not come to a checkpoint, so it begins again" in caplog.text
    whole = train.train(how, tmp_path / "whole")
    assert (tmp_path / "run" / run.HEAD).read_bytes() == (whole / run.HEAD).read_bytes()


def test_nothing_is_pickled(tiny, manifest_csv, tmp_path):
    """A pickle begins with its protocol, a zip archive of torch's with PK."""
    out = train.train(tiny.recipe(), tmp_path / "run", data=[manifest_csv])
    begin = {path.name: path.read_bytes()[:2] for path in out.rglob("*") if path.is_file()}
    assert not [name for name, first in begin.items() if first[:1] == b"\x80" or first == b"PK"]
    assert {name.rpartition(".")[2] for name in begin} <= {"json", "safetensors", "md"}


def test_nothing_to_resume_is_said(tiny, manifest_csv, tmp_path):
    with pytest.raises(MissingError, match="a run that has begun; without --resume a new one begins"):
        train.train(tiny.recipe(), tmp_path / "new", data=[manifest_csv], resume=True)


# -- which weights are kept --------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch):
    """Let dev give these figures, one pair a check."""

    def give(*pairs):
        left = iter(pairs)
        monkeypatch.setattr(dev, "measure", lambda *_args: next(left))

    return give


def weights(out, part="weights"):
    return {name: value for name, value in load_file(out / run.CHECKPOINT).items() if name.startswith(f"{part}/head.")}


@pytest.mark.parametrize(("select", "best"), [("eer", 4), ("min_cllr", 2)])
def test_the_best_check_is_what_the_recipe_selects(tiny, manifest_csv, tmp_path, measured, select, best):
    measured((0.3, 0.5), (0.2, 0.6), (0.4, 0.9))
    how = tiny.recipe(train={"steps": 6, "select": select})
    kept = found(train.train(how, tmp_path / "run", data=[manifest_csv]))
    assert (kept["best"]["step"], kept["saved"]["steps"]) == (best, [best])


def test_training_stops_when_nothing_has_become_better_for_long_enough(tiny, manifest_csv, tmp_path, measured):
    measured((0.3, 0.5), (0.2, 0.5), (0.2, 0.5), (0.25, 0.1), (0.1, 0.1))
    how = tiny.recipe(train={"steps": 10, "patience": 2})
    kept = found(train.train(how, tmp_path / "run", data=[manifest_csv]))
    assert [row["step"] for row in kept["history"]] == [2, 4, 6, 8]
    assert kept["best"]["step"] == 4
    (tmp_path / "run" / run.METRICS).unlink()  # killed just before the end
    train.train(how, tmp_path / "run", data=[manifest_csv], resume=True)
    assert [row["step"] for row in found(tmp_path / "run")["history"]] == [2, 4, 6, 8]


def test_the_mean_of_the_best_checkpoints_is_what_is_left(tiny, manifest_csv, tmp_path, measured):
    measured((0.3, 0.5), (0.4, 0.5), (0.2, 0.5), (0.125, 0.25))  # the last is the mean's
    how = tiny.recipe(train={"steps": 6, "lr": 0.01, "average_best": 2})
    out = train.train(how, tmp_path / "run", data=[manifest_csv])
    assert found(out)["saved"] == {"steps": [6, 2], "dev_eer": 0.125, "dev_min_cllr": 0.25}
    one, other = weights(out, "kept.0"), weights(out, "kept.1")
    left = load_file(out / run.HEAD)
    for name, value in left.items():
        assert torch.allclose(value, (one[f"kept.0/head.{name}"] + other[f"kept.1/head.{name}"]) / 2, atol=1e-7)
    assert not torch.equal(one["kept.0/head.linear.weight"], other["kept.1/head.linear.weight"])


def test_dev_can_be_measured_in_part(tiny, manifest_csv, tmp_path):
    assert (
        found(train.train(tiny.recipe(train={"dev_clips": 2}), tmp_path / "run", data=[manifest_csv]))["dev_clips"] == 2
    )


# -- what goes wrong on the way ----------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_run(tiny, manifest_csv, tmp_path, monkeypatch):
    real, seen = train.objectives.loss, []

    def breaks(*args):
        seen.append(1)
        return real(*args) * (float("nan") if len(seen) == 3 else 1)

    monkeypatch.setattr(train.objectives, "loss", breaks)
    with pytest.raises(StreamdetError, match=r"loss of step 3: nan, expected a finite number; a lower train\.lr than"):
        train.train(tiny.recipe(), tmp_path / "run", data=[manifest_csv])
    assert [check.step for check in checkpoint.load(tmp_path / "run" / run.CHECKPOINT)[1].history] == [2]
    run.load_run(tmp_path / "run")


def test_a_gradient_that_is_no_number_ends_the_run(tiny, manifest_csv, tmp_path, monkeypatch):
    real = train.objectives.loss
    monkeypatch.setattr(train.objectives, "loss", lambda *args: real(*args) + (0 * args[0].sum()).sqrt())
    with pytest.raises(StreamdetError, match="gradient of step 1: nan"):
        train.train(tiny.recipe(), tmp_path / "run", data=[manifest_csv])


@pytest.mark.parametrize("limit", [1, 3000])
def test_a_full_disk_is_one_line(tiny, manifest_csv, tmp_path, limit):
    """No file may grow beyond `limit` bytes: too few for a recipe, or for a checkpoint."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(StreamdetError, match=r"out: .* expected a folder that can be written to"):
            train.train(tiny.recipe(mode="full"), tmp_path / "run", data=[manifest_csv])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "run" / run.CHECKPOINT).exists()
    assert (tmp_path / "run" / run.RECIPE).exists() == (limit > 1)


def test_a_file_in_the_place_of_the_folder_is_one_line(tiny, manifest_csv, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StreamdetError, match=r"out: .* expected a folder that can be written to"):
        train.train(tiny.recipe(), tmp_path / "file" / "run", data=[manifest_csv])


@pytest.mark.parametrize("kind", ["focal", "oc_softmax", "am_softmax"])
def test_every_loss_learns_what_is_plain_and_comes_back(tiny, manifest_csv, tmp_path, saved_scores, kind):
    loop = {"steps": 60, "batch": 8, "lr": 5e-3, "warmup": 5, "check_every": 30, "crop_s": [0.1], "shortest_s": 0.1}
    out = train.train(tiny.recipe(mode="full", loss={"kind": kind}, train=loop), tmp_path / "run", data=[manifest_csv])
    assert found(out)["best"]["dev_eer"] == 0
    assert torch.equal(scores(run.load_run(out)), saved_scores[-1])


# -- what is refused -------------------------------------------------------------------------------------------------


def test_data_must_be_named(tiny, tmp_path):
    with pytest.raises(UsageError, match="--data"):
        train.train(tiny.recipe(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_lines_data_go_before_the_recipes(tiny, manifest_csv, tmp_path):
    how = tiny.recipe(data={"path": "nowhere.csv"})
    with pytest.raises(MissingError, match=r"nowhere\.csv"):
        train.train(how, tmp_path / "run")
    train.train(how, tmp_path / "run", data=[manifest_csv])


def test_a_folder_that_is_no_run_is_refused(tiny, tmp_path):
    with pytest.raises(MissingError, match="a folder that `streamdet train` wrote"):
        run.load_run(tmp_path)
    how = tiny.recipe()
    run.begin(tmp_path / "begun", how, model.build(how.model_copy(update={"mode": "full"})))
    with pytest.raises(MissingError, match=r"run head: .* expected the weights that a finished run has"):
        run.load_run(tmp_path / "begun")


def test_weights_of_another_head_are_refused(tiny, tmp_path):
    how = tiny.recipe()
    detector = model.build(how)
    run.begin(tmp_path, how, detector)
    run.save_weights(tmp_path, detector)
    other = model.build(tiny.recipe(head={"hidden": 5}))
    run.save_weights(tmp_path / "other", other)
    (tmp_path / "other" / run.HEAD).rename(tmp_path / run.HEAD)
    with pytest.raises(DataError, match=r"weights that fit recipe\.json"):
        run.load_run(tmp_path)


def test_the_learning_rate_rises_along_a_line_and_falls_along_a_cosine(tiny):
    how = tiny.recipe(train={"steps": 110, "warmup": 10})
    rates = [train._rate(step, how) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0)
    assert max(rates) == rates[9] == 1


def test_a_system_that_trains_and_judges_is_refused(tiny, manifest_csv, tmp_path):
    manifest_csv.write_text(manifest_csv.read_text("utf-8").replace(",a1,", ",a0,"), "utf-8")
    with pytest.raises(DataError, match="in train and dev: 'system:a0'"):
        train.train(tiny.recipe(), tmp_path / "run", data=[manifest_csv])
    assert not (tmp_path / "run").exists()
    allowed = tiny.recipe(data={"allow_overlap": ["system:a0"]}, train={"steps": 1})
    train.train(allowed, tmp_path / "run", data=[manifest_csv])
