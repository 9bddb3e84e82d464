"""Every way of adapting: how many numbers it trains, that merging keeps its scores, and what it refuses."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel

from streamdet.errors import ConfigError, MissingError
from streamdet_training import backbones, model, recipe, run, train
from streamdet_training.recipe import Recipe

AUDIO = 0.1 * torch.randn(3, 8000, generator=torch.Generator().manual_seed(1))

# Of the tiny backbone: 2 layers of width 16 with a feed-forward width of 32; (in, out) of each matrix.
LAYERS = 2
SHAPES = {
    "q_proj": (16, 16),
    "k_proj": (16, 16),
    "v_proj": (16, 16),
    "out_proj": (16, 16),
    "intermediate_dense": (16, 32),
    "output_dense": (32, 16),
}
OPTIONS = {
    "plain": {},
    "one layer": {"layers": [-1]},
    "rank pattern": {"rank_pattern": {"v_proj": 2, r"layers\.0\..*": 3}, "alpha_pattern": {"q_proj": 64}},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora by pattern": {"use_dora": True, "rank_pattern": {"v_proj": 2}, "layers": ["1:"]},
    "gaussian": {"init": "gaussian"},
    "pissa": {"init": "pissa"},
    "feed-forward": {"targets": ["intermediate_dense", "output_dense"]},
}


def scores(detector):
    with torch.inference_mode():
        return detector.eval()(AUDIO)


def shake(detector):
    """Give the adapters something to say."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, values in detector.named_parameters():
            if ".lora_" in name:
                values += 0.2 * torch.randn(values.shape, generator=generator)
    return detector


# -- how many --------------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # it has no state
@given(
    rank=st.integers(1, 40),
    targets=st.sets(st.sampled_from(sorted(SHAPES)), min_size=1),
    layers=st.sampled_from([[], [0], [-1], [":1"], ["-1:"], [0, 1], [":"]]),
    dora=st.booleans(),
)
def test_each_matrix_trains_rank_times_in_and_out_in_each_layer(tiny, rank, targets, layers, dora):
    """And with DoRA a length for each row."""
    lora = {"rank": rank, "targets": sorted(targets), "layers": layers, "use_dora": dora}
    with torch.device("meta"):
        counted = model.count(model.build(tiny.recipe(lora=lora)))
    adapted = 1 if len(layers) == 1 and layers != [":"] else LAYERS
    each = sum(rank * sum(SHAPES[name]) + (SHAPES[name][1] if dora else 0) for name in targets)
    assert counted.backbone_trainable == adapted * each


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranks=st.tuples(*[st.integers(1, 20)] * 3), low=st.sampled_from([r"layers\.0\..*", "encoder.layers.0.attention.*"])
)
def test_a_rank_pattern_is_counted_matrix_by_matrix(tiny, ranks, low):
    """The first pattern that fits counts, and what no pattern fits has the common rank."""
    common, first, value = ranks
    lora = {"rank": common, "rank_pattern": {low: first, "v_proj": value}}
    with torch.device("meta"):
        counted = model.count(model.build(tiny.recipe(lora=lora)))
    assert counted.backbone_trainable == 2 * 16 * (first + first + common + value)


def test_the_head_alone_trains_the_head_alone(tiny):
    detector = model.build(tiny.recipe(mode="head"))
    counted = model.count(detector)
    assert counted.backbone_trainable == 0
    assert counted.trainable == sum(p.numel() for p in detector.head.parameters())
    frozen = {name: values.clone() for name, values in detector.backbone.named_parameters()}
    detector.train()(AUDIO).sum().backward()
    assert all(values.grad is None for values in detector.backbone.parameters())
    torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1).step()
    assert all(torch.equal(values, frozen[name]) for name, values in detector.backbone.named_parameters())


@pytest.mark.parametrize("layer_sum", [False, True])
def test_the_head_alone_may_weigh_layers(tiny, layer_sum):
    detector = model.build(tiny.recipe(mode="head", backbone={"layer_sum": layer_sum}))
    detector.train()(AUDIO).square().sum().backward()
    trained = [name for name, values in detector.named_parameters() if values.requires_grad]
    assert all(name.startswith("head.") for name in trained)
    assert any("layer_sum" in name for name in trained) == layer_sum


@pytest.mark.parametrize("mode", ["lora", "head"])
def test_a_frozen_front_end_keeps_nothing_for_a_backward_pass(tiny, mode):
    """transformers asks for the gradient of the audio itself, unless it is told not to."""
    detector = model.build(tiny.recipe(mode=mode)).train()
    with torch.no_grad():
        features = detector.backbone.feature_extractor(AUDIO)
    assert not features.requires_grad
    seen = []
    detector.backbone.feature_extractor.register_forward_hook(lambda _module, _given, gives: seen.append(gives))
    detector(AUDIO).sum().backward()
    assert [it.requires_grad for it in seen] == [False]
    full = model.build(tiny.recipe(mode="full")).train()
    assert full.backbone.feature_extractor(AUDIO).requires_grad


# -- merging and saving ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", OPTIONS)
def test_merging_keeps_the_scores_of_every_option(tiny, option):
    torch.manual_seed(4)
    detector = model.build(tiny.recipe(lora=OPTIONS[option]))
    fresh = scores(detector)
    adapted = scores(shake(detector))
    assert (adapted - fresh).abs().max() > 1e-3
    merged = model.merge(detector)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert (scores(merged) - adapted).abs().max() < 1e-5


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_starts_from_the_backbones_own_scores(tiny, option):
    torch.manual_seed(6)
    plain = model.build(tiny.recipe(mode="head"))
    torch.manual_seed(6)
    detector = model.build(tiny.recipe(lora=OPTIONS[option]))
    detector.head.load_state_dict(plain.head.state_dict())
    assert (scores(detector) - scores(plain)).abs().max() < 1e-5


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("saved", [False, True], ids=["random start", "from a folder"])
def test_every_option_is_loaded_as_it_was_saved(tiny, tmp_path, option, saved):
    changes = {"lora": OPTIONS[option]}
    if saved:
        torch.manual_seed(3)
        model.load_backbone(tiny.recipe().backbone).save_pretrained(tmp_path / "saved")
        changes["backbone"] = {"config": None, "source": str(tmp_path / "saved")}
    how = tiny.recipe(**changes)
    detector = model.build(how)
    run.begin(tmp_path / "run", how, detector)
    expected = scores(shake(detector))
    run.save_weights(tmp_path / "run", detector)
    loaded = run.load_run(tmp_path / "run")
    assert (scores(loaded) - expected).abs().max() < 1e-5
    assert (scores(model.merge(loaded)) - expected).abs().max() < 1e-5


def test_a_run_of_the_head_alone_names_its_backbone_and_copies_none(tiny, tmp_path):
    model.load_backbone(tiny.recipe().backbone).save_pretrained(tmp_path / "saved")
    for name, backbone in (("config", {}), ("source", {"config": None, "source": str(tmp_path / "saved")})):
        how = tiny.recipe(mode="head", backbone=backbone)
        detector = model.build(how)
        run.begin(tmp_path / name, how, detector)
        run.save_weights(tmp_path / name, detector)
        assert (tmp_path / name / run.BACKBONE).is_dir() == (name == "config")
        assert torch.equal(scores(run.load_run(tmp_path / name)), scores(detector))


def test_the_head_alone_goes_through_the_whole_loop(tiny, manifest_csv, tmp_path):
    how = tiny.recipe(mode="head", train={"lr": 0.01})
    out = train.train(how, tmp_path / "run", data=[manifest_csv])
    start = model.load_backbone(recipe.Backbone(source=str(out / run.BACKBONE)))
    end = run.load_run(out).backbone
    assert all(torch.equal(values, end.state_dict()[name]) for name, values in start.state_dict().items())


def test_rslora_scales_by_the_root_of_the_rank(tiny):
    plain, stable = (
        model.build(tiny.recipe(lora={"rank": 4, "alpha": 8, "use_rslora": on})).backbone for on in (False, True)
    )
    scalings = [
        backbone.get_base_model().encoder.layers[0].attention.q_proj.scaling["default"] for backbone in (plain, stable)
    ]
    assert scalings == [2, 4]


def test_alpha_patterns_scale_what_they_name(tiny):
    lora = {"rank": 4, "alpha": 4, "alpha_pattern": {"v_proj": 12}}
    attention = model.build(tiny.recipe(lora=lora)).backbone.get_base_model().encoder.layers[1].attention
    assert (attention.q_proj.scaling["default"], attention.v_proj.scaling["default"]) == (1, 3)


@pytest.mark.parametrize(
    ("chosen", "numbers"),
    [
        ([], range(24)),
        ([":6"], range(6)),
        (["-6:"], range(18, 24)),
        ([":2", "-2:", 5], [0, 1, 5, 22, 23]),
        ([-1, 23], [23]),
        (["4:-18"], [4, 5]),
    ],
)
def test_layers_are_chosen_as_python_slices(chosen, numbers):
    assert model._numbers(chosen, 24) == list(numbers)


def test_adapters_stand_in_the_chosen_layers_only(tiny):
    detector = model.build(tiny.recipe(lora={"layers": [1]}))
    assert isinstance(detector.backbone, PeftModel)
    adapted = {name.split("layers.")[1][0] for name, _ in detector.backbone.named_parameters() if ".lora_" in name}
    assert adapted == {"1"}


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"layers": [2]}, r"lora\.layers: 2, expected some of 2 layers"),
        ({"layers": [-3]}, r"lora\.layers: -3, expected some of 2 layers"),
        ({"layers": ["5:"]}, r"lora\.layers: '5:', expected some of 2 layers"),
        ({"rank_pattern": {"k_proj": 2}}, r"lora\.rank_pattern: 'k_proj', expected the end of an adapted layer's name"),
        ({"layers": [0], "rank_pattern": {r"layers\.1\..*": 2}}, r"lora\.rank_pattern"),
        ({"alpha_pattern": {"_proj": 2}}, r"lora\.alpha_pattern: '_proj'"),
        ({"rank_pattern": {"layers.(0": 2}}, r"lora\.rank_pattern: .* a regular expression"),
    ],
)
def test_what_fits_nothing_is_named(tiny, lora, message):
    with pytest.raises(ConfigError, match=message):
        model.build(tiny.recipe(lora=lora))


@pytest.mark.parametrize(
    "lora", [{"layers": ["0:2:1"]}, {"layers": ["six"]}, {"rank_pattern": {"q_proj": 0}}, {"init": "olora"}]
)
def test_what_cannot_be_is_refused_by_the_recipe(tiny, lora):
    with pytest.raises(ValueError, match="lora"):
        tiny.recipe(lora=lora)


# -- XLS-R 300M ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "targets", "expected"),
    [
        (4, ("q_proj", "v_proj"), 393_216),
        (16, ("q_proj", "v_proj"), 1_572_864),
        (8, ("q_proj", "k_proj", "v_proj", "out_proj"), 1_572_864),
        (2, ("intermediate_dense", "output_dense"), 491_520),
    ],
)
def test_xlsr_300m_trains_what_arithmetic_says(rank, targets, expected):
    tables = {"name": "x", "backbone": {"config": backbones.XLSR_300M}, "lora": {"rank": rank, "targets": targets}}
    with torch.device("meta"):
        counted = model.count(model.build(Recipe.model_validate(tables)))
    assert counted.backbone_trainable == expected
    assert counted.total - expected - counted.head == 315_438_720


def test_a_shape_is_a_name_or_a_config_json(tmp_path):
    assert backbones.shape("xlsr-300m") is backbones.XLSR_300M
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2", "hidden_size": 8}')
    assert backbones.shape(str(tmp_path / "config.json"))["hidden_size"] == 8
    with pytest.raises(MissingError, match=r"--config: 'xls-r', expected a model's config\.json, or one of xlsr-300m"):
        backbones.shape("xls-r")
    for text, message in (("{", "JSON"), ("[]", "wav2vec2"), ('{"model_type": "bert"}', "'bert', expected wav2vec2")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            backbones.shape(str(tmp_path / "config.json"))
