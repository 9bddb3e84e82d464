"""Spectra instead of raw audio: what the bands hear, what they ignore, and that the rest is transformers' own."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamdet.errors import ConfigError
from streamdet_export.graph import to_onnx
from streamdet_training import model, recipe, spectral
from streamdet_training.recipe import Backbone, Spectral
from streamdet_training.spectral import BandEnergies, SpectralEncoder, SpectralWav2Vec2

SMALL = Spectral(bands=20, channels=(4, 8), mask_bands=3)
CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def tone(hertz, seconds=1.0, level=0.1):
    time_s = torch.arange(round(16000 * seconds)) / 16000
    return level * torch.sin(2 * torch.pi * hertz * time_s)


def noise(seconds=1.0, seed=1):
    return 0.1 * torch.randn(round(16000 * seconds), generator=torch.Generator().manual_seed(seed))


def hear(*audio, how=SMALL):
    return BandEnergies(how).eval()(torch.stack(audio))


def backbone():
    torch.manual_seed(1)
    return model.load_backbone(Backbone(config=CONFIG, spectral=SMALL))


@pytest.mark.parametrize("scale", ["mel", "linear"])
def test_a_tone_that_comes_and_goes_is_heard_in_its_band_alone(scale):
    how = Spectral(bands=40, scale=scale)
    heard = hear(torch.cat([tone(1000), noise() * 1e-3]), how=how)[0]
    swing = heard[:, :90].mean(1) - heard[:, 110:].mean(1)
    banks = BandEnergies(how).banks
    assert int(swing.argmax()) == int(banks[:, 32].argmax())  # bin 32 of 512 at 16 kHz is 1000 Hz


@given(st.floats(0.05, 20), st.floats(-0.05, 0.05))
def test_level_and_offset_are_not_heard(gain, offset):
    audio = noise()
    assert torch.allclose(hear(audio), hear(gain * audio + offset), atol=2e-2)


def test_the_frequency_response_of_a_line_is_not_heard():
    """A filter adds a constant to each band's log energy, and the constant is taken away."""
    audio = noise(2.0)
    spectrum = torch.fft.rfft(audio)
    filtered = torch.fft.irfft(spectrum * torch.linspace(1, 0.2, spectrum.numel()), n=audio.numel())
    inside = slice(2, -2)
    assert (hear(audio) - hear(filtered))[..., inside].abs().mean() < 0.05


def test_noise_below_the_range_is_not_heard():
    loud = torch.cat([tone(500, 0.5, 0.5), torch.zeros(8000)])
    far, near = hear(loud + 1e-5 * noise(), loud + 0.3 * noise())
    assert torch.allclose(far, hear(loud)[0], atol=1e-3)
    assert not torch.allclose(near, far, atol=1e-1)


def test_frames_come_every_20_ms():
    """As the config says it to transformers, which counts frames by kernel and stride."""
    made = backbone()
    for samples in (16000, 31999, 32000, 64000):
        frames = made.feature_extractor(torch.zeros(1, samples)).shape[2]
        assert abs(frames - int(made._get_feat_extract_output_lengths(torch.tensor(samples)))) <= 1
    assert made.feature_extractor(torch.zeros(2, 16000)).shape[:2] == (2, spectral.width(SMALL))


def test_masks_only_in_training_and_no_wider_than_they_may_be():
    energies, audio = BandEnergies(SMALL), torch.stack([noise(seed=seed) for seed in range(20)])
    heard, masked = energies.eval()(audio), energies.train()(audio)
    silent = (masked == 0).all(2)  # (B, N)
    assert torch.equal(heard, energies.eval()(audio))
    assert 0 < silent.sum(1).max() <= 2 * SMALL.mask_bands
    assert torch.equal(masked[~silent], heard[~silent])


def test_a_folder_gives_it_back(tmp_path):
    made = backbone().eval()
    made.save_pretrained(tmp_path)
    again = model.load_backbone(Backbone(source=str(tmp_path))).eval()
    assert isinstance(again, SpectralWav2Vec2)
    audio = torch.stack([noise()])
    with torch.inference_mode():
        assert torch.equal(again(audio).last_hidden_state, made(audio).last_hidden_state)


def test_a_frozen_encoder_stops_measuring():
    """Its running means are weights: training adapters on top must leave them as they were saved."""
    encoder = SpectralEncoder(SMALL).requires_grad_(False).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder(torch.stack([noise()]))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    measuring = SpectralEncoder(SMALL).train()
    measuring(torch.stack([noise()]))
    assert not torch.equal(measuring.blocks[0][1].running_mean, torch.zeros(4))


def test_onnxruntime_hears_the_same(tiny):
    detector = model.build(tiny.recipe(mode="full", backbone={"config": CONFIG, "spectral": SMALL.model_dump()})).eval()
    session = ort.InferenceSession(to_onnx(detector, 16000, "fp32")["model.onnx"])
    audio = torch.stack([noise(seed=seed) for seed in range(3)])
    with torch.inference_mode():
        expected = detector(audio).numpy()
    assert np.abs(session.run(None, {"audio": audio.numpy()})[0] - expected).max() < 1e-5


def test_averages_cover_running_statistics(tiny):
    detector = model.build(tiny.recipe(mode="full", backbone={"config": CONFIG, "spectral": SMALL.model_dump()}))
    kept = model.statistics(detector)
    assert len(kept) == 2 * 4  # the first layer, two convolutions and a short cut
    assert model.statistics(model.build(tiny.recipe(backbone={"config": CONFIG, "spectral": SMALL.model_dump()}))) == {}


def test_spectra_need_a_config(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('name = "x"\n[backbone]\nsource = "y"\n[backbone.spectral]\nbands = 20\n')
    with pytest.raises(ConfigError, match=r"backbone\.spectral: \['source'\], expected backbone\.config"):
        recipe.load(file)
