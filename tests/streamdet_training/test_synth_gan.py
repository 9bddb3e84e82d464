"""The small vocoders that are trained on the spot: shapes, sizes, that they learn, and that their weights are kept."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from streamdet.cli import application
from streamdet.errors import DataError, MissingError
from streamdet_training.clips import Clip
from streamdet_training.synth import gan, gan_training

KINDS = list(gan.NETWORKS)


@pytest.fixture
def speech(tmp_path: Path) -> list[Clip]:
    """Two clips of harmonics that glide, one of them at a telephone's rate."""
    clips = []
    for number, rate_hz in enumerate((8000, 16_000)):
        time_s = np.arange(rate_hz) / rate_hz
        glide = 2 * np.pi * (110 * time_s + 40 * np.square(time_s))
        path = tmp_path / f"clip{number}.wav"
        soundfile.write(path, sum(0.1 / k * np.sin(k * glide) for k in range(1, 9)), rate_hz)
        clips.append(Clip(path=path, label="bonafide", split="train"))
    return clips


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_makes_a_hop_of_every_frame_with_under_a_million_weights(kind):
    network = gan.NETWORKS[kind]()
    assert sum(weights.numel() for weights in network.parameters()) < 1_000_000
    assert network(torch.zeros(2, gan.MELS, 9)).shape == (2, 9 * gan.HOP)


def test_a_mel_spectrogram_has_a_frame_a_hop_and_no_empty_band():
    mel = gan.Mel()(0.1 * torch.randn(1, 20 * gan.HOP))
    assert mel.shape == (1, gan.MELS, 20)
    assert mel.exp().mean(dim=(0, 2)).min() > 2e-4


@pytest.mark.parametrize("kind", KINDS)
def test_training_comes_nearer_and_keeps_weights_at_half_and_at_the_end(kind, speech, tmp_path, caplog):
    caplog.set_level("INFO")
    kept = gan_training.train(kind, speech, tmp_path / "w", steps=40, seed=3)
    assert [path.name for path in kept] == [f"{kind}-3-000020.safetensors", f"{kind}-3-000040.safetensors"]
    assert gan.checkpoints(tmp_path / "w", kind) == kept
    mels = [float(line.partition("mel ")[2].split(",")[0]) for line in caplog.messages if " mel " in line]
    assert len(mels) == 10
    assert np.mean(mels[-3:]) < 0.8 * mels[0]
    assert not list(tmp_path.rglob("*.part"))


def test_a_trained_network_is_not_trained_again(speech, tmp_path):
    kept = gan_training.train("istft", speech, tmp_path, steps=2, seed=1)
    stamps = [path.stat().st_mtime_ns for path in kept]
    assert gan_training.train("istft", speech, tmp_path, steps=2, seed=1) == kept
    assert [path.stat().st_mtime_ns for path in kept] == stamps


def test_training_is_a_function_of_its_seed_and_leaves_the_global_generator_alone(speech, tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    once, again, other = (
        gan_training.train("istft", speech, tmp_path / name, steps=2, seed=seed)[-1].read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert torch.equal(torch.rand(1), expected)
    assert once == again
    assert once != other


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100])
def test_a_vocoder_keeps_the_rate_and_the_length(kind, rate_hz, tmp_path):
    gan.save(path := tmp_path / f"{kind}-1-000001.safetensors", gan.NETWORKS[kind]())
    samples = np.random.default_rng(0).standard_normal(rate_hz // 2 + 7).astype(np.float32)
    made = gan.vocoder(path)(samples, rate_hz, np.random.default_rng(0))
    assert abs(made.size - samples.size) <= 2
    assert made.dtype == np.float32
    assert np.isfinite(made).all()


def test_weights_are_chosen_by_the_clips_name_among_all_that_are_there(tmp_path):
    for name in ("gan-1-000001", "gan-1-000002", "istft-1-000001"):
        (tmp_path / f"{name}.safetensors").touch()
    found = [gan.choose(tmp_path, "gan", f"clip{number}") for number in range(20)]
    assert {path.name[:-12] for path in found} == {"gan-1-000001", "gan-1-000002"}
    assert found == [gan.choose(tmp_path, "gan", f"clip{number}") for number in range(20)]


def test_missing_and_foreign_weights_are_named(tmp_path):
    with pytest.raises(MissingError, match="gan-"):
        gan.choose(tmp_path, "gan", "clip")
    save_file({"x": torch.zeros(1)}, tmp_path / "gan-1-000001.safetensors")
    with pytest.raises(DataError, match="those of a network of this version"):
        gan.vocoder(tmp_path / "gan-1-000001.safetensors")


def test_clips_that_teach_nothing_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    clips = [Clip(path=tmp_path / name, label="bonafide") for name in ("a.wav", "gone.wav")]
    with pytest.raises(DataError, match="clips to train a vocoder on: 0"):
        gan_training.Speech(clips, np.random.default_rng(0))


def test_segments_are_loud_enough_to_hold_speech(speech):
    audio = gan_training.Speech(speech, np.random.default_rng(0)).draw()
    assert audio.shape == (gan_training.BATCH, gan_training.SEGMENT)
    rms = audio.square().mean(dim=1).sqrt()
    assert gan.RMS / 10 < rms.min() <= rms.max() < gan.RMS * 3


def test_the_command_trains_what_is_missing_and_uses_it_again(speech, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = speech[0].path.parent
    run = ["synth", str(folder), "--out", str(tmp_path / "out"), "--systems", "gan,istft", "--gan-steps", "2"]
    assert CliRunner().invoke(application(), run).exit_code == 0
    listed = (tmp_path / "out" / "manifest.csv").read_text()
    assert listed.count("synth-gan") == listed.count("synth-istft") == 2
    assert sum("in its critics" in line for line in caplog.messages) == 2
    again = [*run[:-2], "--vocoders", str(tmp_path / "out" / "vocoders"), "--seed", "2"]
    assert CliRunner().invoke(application(), again).exit_code == 0
    assert sum("in its critics" in line for line in caplog.messages) == 2
    assert (tmp_path / "out" / "manifest.csv").read_text().count("synth-gan") == 4
