"""The detector: what is trained, where the backbone comes from, what merging leaves."""

from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2Model

from streamdet.errors import ConfigError, MissingError
from streamdet_training import model
from streamdet_training.recipe import Backbone

AUDIO = 0.1 * torch.randn(3, 8000, generator=torch.Generator().manual_seed(1))


def scores(detector):
    with torch.inference_mode():
        return detector.eval()(AUDIO)


def shake(detector):
    """Give the adapters something to say: B begins at zero."""
    with torch.no_grad():
        for name, values in detector.named_parameters():
            if "lora_B" in name:
                values.normal_(generator=torch.Generator().manual_seed(2))
    return detector


@pytest.fixture
def saved(tiny, tmp_path):
    """A backbone in a folder, as transformers writes it."""
    torch.manual_seed(3)
    backbone = model.load_backbone(tiny.recipe().backbone)
    backbone.save_pretrained(tmp_path / "saved")
    return backbone, str(tmp_path / "saved")


# -- LoRA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "targets"), [(4, ("q_proj", "v_proj")), (3, ("q_proj", "k_proj", "v_proj"))])
def test_lora_trains_as_many_numbers_as_it_should(tiny, rank, targets):
    """Each matrix of width 16 gets A `(rank, 16)` and B `(16, rank)`."""
    detector = model.build(tiny.recipe(lora={"rank": rank, "targets": targets}))
    counted = model.count(detector)
    assert counted.backbone_trainable == 2 * len(targets) * 2 * 16 * rank
    assert counted.head == (16 * 8 + 8) + (8 + 1) + (2 * 16 + 1)
    assert counted.trainable == sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert counted.total == sum(p.numel() for p in detector.parameters())


def test_only_adapters_and_head_are_trained(tiny):
    detector = model.build(tiny.recipe())
    trained = {name for name, values in detector.named_parameters() if values.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {
        f"head.{name}" for name, _ in detector.head.named_parameters()
    }
    before = {name: values.clone() for name, values in detector.named_parameters()}
    optimiser = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1)
    shake(detector)(AUDIO).sum().backward()
    optimiser.step()
    changed = {name for name, values in detector.named_parameters() if not torch.equal(values, before[name])}
    # All scores shift alike with the bias of the attention's last layer, and the softmax takes that away.
    assert trained - changed <= {"head.attention.2.bias"}
    assert changed <= trained


def test_full_mode_trains_everything(tiny):
    counted = model.count(model.build(tiny.recipe(mode="full")))
    assert counted.trainable == counted.total


def test_fresh_adapters_change_nothing(tiny):
    detector = model.build(tiny.recipe())
    with detector.backbone.disable_adapter():
        plain = scores(detector)
    assert torch.equal(scores(detector), plain)


def test_merging_keeps_the_scores(tiny):
    detector = model.build(tiny.recipe())
    fresh = scores(detector)
    adapted = scores(shake(detector))
    assert (adapted - fresh).abs().max() > 1e-3
    merged = model.merge(detector)
    assert isinstance(merged.backbone, Wav2Vec2Model)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert (scores(merged) - adapted).abs().max() < 1e-5


def test_alpha_scales_the_update(tiny):
    torch.manual_seed(5)
    one = model.build(tiny.recipe(lora={"alpha": 4}))
    torch.manual_seed(5)
    none = model.build(tiny.recipe(lora={"alpha": 1e-9}))
    fresh = scores(one)
    assert (scores(shake(one)) - fresh).abs().max() > 1e-3
    assert (scores(shake(none)) - fresh).abs().max() < 1e-5


def test_an_unknown_target_is_named(tiny):
    with pytest.raises(ConfigError, match=r"lora\.targets: 'query', expected the name of a linear layer"):
        model.build(tiny.recipe(lora={"targets": ["q_proj", "query"]}))


# -- backbones -------------------------------------------------------------------------------------------------------


def test_a_saved_backbone_is_found(saved):
    backbone, folder = saved
    loaded = model.load_backbone(Backbone(source=folder))
    for name, values in backbone.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], values), name


def test_a_loaded_backbone_drops_no_layers_and_masks_nothing(saved):
    """Either would make the scores of a training step random beyond the recipe's own dropout."""
    loaded = model.load_backbone(Backbone(source=saved[1]))
    assert (loaded.config.layerdrop, loaded.config.apply_spec_augment) == (0, False)
    loaded.train()
    with torch.no_grad():
        assert torch.equal(loaded(AUDIO).last_hidden_state, loaded(AUDIO).last_hidden_state)


@pytest.mark.parametrize("share", ["mask_frames", "mask_features"])
def test_masks_act_in_training_alone(tiny, share):
    detector = model.build(tiny.recipe(augment={share: 0.3}))
    assert torch.equal(scores(detector), scores(detector))
    detector.train()
    with torch.no_grad():
        drawn = [detector(AUDIO) for _ in range(20)]  # a draw may leave all as it is
    assert not all(torch.equal(drawn[0], other) for other in drawn)


def test_layers_are_kept_from_below(saved):
    backbone, folder = saved
    (kept,) = model.load_backbone(Backbone(source=folder, layers=1)).encoder.layers
    lowest, highest = (layer.state_dict() for layer in backbone.encoder.layers)
    assert all(torch.equal(values, lowest[name]) for name, values in kept.state_dict().items())
    assert not all(torch.equal(values, highest[name]) for name, values in kept.state_dict().items())


def test_layers_of_random_weights_are_as_many_as_asked(tiny):
    assert len(model.load_backbone(tiny.recipe(backbone={"layers": 1}).backbone).encoder.layers) == 1


def test_a_missing_source_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for source in ("./nowhere/at/all", "./empty"):
        with pytest.raises(
            MissingError, match=rf"backbone\.source: '{source}', expected a model on the hub or a folder"
        ):
            model.load_backbone(Backbone(source=source))


def test_pickled_weights_are_not_loaded(saved):
    """They can run code when they are read; safetensors cannot."""
    backbone, folder = saved
    (weights,) = Path(folder).glob("*.safetensors")
    weights.unlink()
    torch.save(backbone.state_dict(), Path(folder) / "pytorch_model.bin")
    with pytest.raises(MissingError, match=r"backbone\.source: .*in safetensors"):
        model.load_backbone(Backbone(source=folder))


def test_an_unknown_field_of_the_config_is_named(tiny):
    with pytest.raises(ConfigError, match=r"backbone\.config: 'hidden_sizes'"):
        model.load_backbone(tiny.recipe(backbone={"config": {"hidden_sizes": 16}}).backbone)


# -- the network -----------------------------------------------------------------------------------------------------


def test_normalised_scores_do_not_depend_on_level_or_offset(tiny):
    detector = model.build(tiny.recipe(window={"normalise": True}))
    plain = model.build(tiny.recipe())
    with torch.inference_mode():
        expected = detector.eval()(AUDIO)
        assert torch.allclose(detector(AUDIO * 0.2 + 0.1), expected, atol=1e-4)
        assert not torch.allclose(plain.eval()(AUDIO * 0.2 + 0.1), plain(AUDIO), atol=1e-4)
        assert detector(torch.zeros(1, 8000)).isfinite().all()


def test_a_score_does_not_depend_on_the_rest_of_the_batch(tiny):
    detector = model.build(tiny.recipe()).eval()
    with torch.inference_mode():
        assert torch.allclose(detector(AUDIO)[1], detector(AUDIO[1:2])[0], atol=1e-6)


# -- the sum over layers ---------------------------------------------------------------------------------------------


def test_the_sum_over_layers_is_trained_with_the_head_and_counted_there(tiny):
    detector = model.build(tiny.recipe(backbone={"layer_sum": True}))
    assert detector.head.layer_sum.weights.shape == (3,)  # the input and two layers
    assert detector.head.layer_sum.weights.requires_grad
    plain = model.count(model.build(tiny.recipe()))
    assert model.count(detector).head == plain.head + 3
    assert model.count(detector).backbone_trainable == plain.backbone_trainable


def test_it_hears_the_input_and_every_layer(tiny):
    """As transformers' own hidden states, of which the last is taken before the final layer norm."""
    detector = model.build(tiny.recipe(mode="full", backbone={"layer_sum": True})).eval()
    with torch.inference_mode():
        heard = detector._states(AUDIO)
        expected = detector.backbone(AUDIO, output_hidden_states=True).hidden_states
        features = detector.backbone(AUDIO).last_hidden_state
        last = detector.backbone.encoder.layer_norm(heard[2])
    assert len(heard) == 3
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(heard[:2], expected[:2], strict=True))
    assert torch.equal(last, features)


def test_it_hears_adapters_and_keeps_its_scores_when_they_are_merged(tiny):
    detector = model.build(tiny.recipe(backbone={"layer_sum": True, "layers": 1}))
    fresh = scores(detector)
    adapted = scores(shake(detector))
    assert (adapted - fresh).abs().max() > 1e-4
    assert (scores(model.merge(detector)) - adapted).abs().max() < 1e-5


def test_counts_read_as_in_papers():
    text = str(model.Parameters(backbone_trainable=1_572_864, head=27_136, total=316_800_000))
    assert text == "trainable 1,600,000 (1,572,864 in the backbone, 27,136 in the head) of 316,800,000: 1 in 198.0"


# -- blocks ----------------------------------------------------------------------------------------------------------

# A window of two hops of 0.25 s with 0.1 s before it; feature frames are 0.02 s.
BLOCKS = {"kind": "block", "window_s": 0.5, "hop_s": 0.25, "left_s": 0.1}
PAST = 0.1 * torch.randn(3, 9600, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def block_detector(tiny):
    torch.manual_seed(5)
    return model.build(tiny.recipe(mode="full", window=BLOCKS)).eval()


def test_a_block_detector_pools_the_frames_of_its_hops_alone(block_detector):
    with torch.inference_mode():
        features = block_detector.features(PAST)
        assert features.shape == (3, 2 * 12, 16)  # 5,600 samples make 17 frames, of which 5 belong to the past
        assert torch.allclose(features[:, 12:], block_detector.features(PAST[:, 4000:]), atol=1e-6)


def test_encoder_and_merger_together_are_the_detector(block_detector):
    encoder, merger = model.Encoder(block_detector), model.Merger(block_detector)
    with torch.inference_mode():
        sums = torch.stack([encoder(PAST[:, :5600]), encoder(PAST[:, 4000:])], 1)
        assert torch.allclose(merger(sums), block_detector(PAST), atol=1e-6)


def test_blocks_are_counted_back_from_the_end(block_detector):
    with torch.inference_mode():
        assert torch.equal(block_detector(PAST[:, 1000:]), block_detector(PAST[:, 4000:]))


def test_a_head_that_pools_by_no_sums_is_refused_for_blocks(tiny):
    with pytest.raises(ConfigError, match=r"head.kind: 'nested', expected pool or mean for blocks"):
        model.build(tiny.recipe(window=BLOCKS, head={"kind": "nested"}))
