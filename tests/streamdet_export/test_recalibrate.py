"""A bundle is fitted to somebody's own audio, and its model stays as it is."""

import hashlib
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile

from streamdet import bundle
from streamdet.bundle import Bundle
from streamdet.errors import BundleError, DataError, UsageError
from streamdet.scorer import Scorer
from streamdet_export import fit
from streamdet_export.recalibrate import recalibrate
from streamdet_training.clips import Clip
from streamdet_training.data import load

ROOT = Path(__file__).parents[2]
RATE_HZ = 8_000


@pytest.fixture
def audio(tmp_path) -> Callable[..., Path]:
    """A folder of recordings whose level is what the tests' model hears: bona fide quiet, spoof loud."""

    def write(bonafide: int = 24, spoof: int = 24, speakers: int = 6, systems: int = 3) -> Path:
        rng, rows = np.random.default_rng(1), ["path,label,speaker,system,split,note"]
        folder = tmp_path / "audio"
        folder.mkdir()
        for number in range(bonafide + spoof):
            label = "bonafide" if number < bonafide else "spoof"
            time_s = np.arange(3 * RATE_HZ) / RATE_HZ
            envelope = np.clip(np.sin(2 * np.pi * 4 * time_s), 0, 1)
            level = 0.05 * np.exp(rng.normal(0.0 if label == "bonafide" else 0.8, 0.4))
            soundfile.write(folder / f"{number}.wav", level * envelope * rng.standard_normal(time_s.size), RATE_HZ)
            row = (f"p{number % speakers}", "") if label == "bonafide" else ("", f"tts{number % systems}")
            rows.append(f"{number}.wav,{label},{','.join(row)},dev,chan=line")
        (folder / "calls.csv").write_text("\n".join(rows) + "\n")
        return folder / "calls.csv"

    return write


def clips(path: Path) -> list[Clip]:
    return load("csv", [path], "dev", classes=())


def made(source: Bundle, path: Path, out: Path, **how: object) -> Bundle:
    return recalibrate(source, clips(path), out, **how)


def test_the_model_stays_and_what_follows_it_is_fitted(tiny_bundle, audio, tmp_path):
    new = made(tiny_bundle, audio(), tmp_path / "new", false_alarms_per_hour=30.0, facts={"manifest": ["calls.csv"]})
    old = tiny_bundle.manifest
    assert bundle.load(new.path).read_verified() == tiny_bundle.read_verified()
    assert new.manifest.files == old.files
    assert (new.manifest.audio, new.manifest.model) == (old.audio, old.model)
    assert new.manifest.calibration != old.calibration
    assert new.manifest.decision.speakers == 6
    assert new.manifest.decision.hours == pytest.approx(24 * 3 / 3600, abs=1e-4)
    assert new.manifest.model_id.startswith(f"{old.name}-calibrated@")

    said = new.manifest.provenance["calibration"]
    assert said["manifest"] == ["calls.csv"]
    assert said["bundle"] == old.model_id
    assert said["bonafide"] == {"clips": 24, "scored": 24, "minutes": 1.2, "voices": 6}
    assert said["spoof"] == {"clips": 24, "scored": 24, "minutes": 1.2, "voices": 3}
    assert said["fitted"] == ["scale", "offset", "rolling", "drift", "alarm"]
    assert said["metrics"]["cllr"] < said["before"]["cllr"]
    assert said["detection"]["calls"] == 3
    assert str(tmp_path) not in (new.path / bundle.MANIFEST).read_text()


def test_it_does_not_depend_on_the_calibration_before(tiny_bundle, audio, tmp_path):
    """Fitting twice gives the same numbers, and the same name but one suffix."""
    path = audio()
    first = made(tiny_bundle, path, tmp_path / "first")
    second = made(bundle.load(first.path), path, tmp_path / "second")
    assert second.manifest.calibration == first.manifest.calibration
    assert second.manifest.decision == first.manifest.decision
    assert second.manifest.name == first.manifest.name


def test_bona_fide_speech_alone_gives_heights_and_nothing_else(tiny_bundle, audio, tmp_path):
    path = audio(spoof=0)
    with pytest.raises(DataError, match=r"spoof clips with enough speech: 0, expected some: .*--heights-only"):
        made(tiny_bundle, path, tmp_path / "new")
    new = made(tiny_bundle, path, tmp_path / "new", heights_only=True, false_alarms_per_hour=60.0)
    old = tiny_bundle.manifest
    assert new.manifest.calibration == old.calibration
    assert new.manifest.decision.drift == old.decision.drift
    assert new.manifest.decision.speakers == 6
    assert new.manifest.provenance["calibration"]["fitted"] == ["alarm"]


@pytest.mark.parametrize(
    ("amount", "complaint"),
    [
        ({"bonafide": 10}, "bonafide clips with enough speech: 10, expected 20 or more"),
        ({"spoof": 10}, "spoof clips with enough speech: 10, expected 20 or more"),
        ({"speakers": 4}, "speakers of bonafide clips: 4, expected 5 or more"),
        ({"systems": 1}, "systems of spoof clips: 1, expected 2 or more"),
    ],
)
def test_too_little_to_fit_on_is_refused_and_leaves_nothing(tiny_bundle, audio, tmp_path, amount, complaint):
    with pytest.raises(DataError, match=complaint):
        made(tiny_bundle, audio(**amount), tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"audio", "bundle"}


def test_a_voice_without_a_name_is_refused(tiny_bundle, audio, tmp_path):
    path = audio()
    path.write_text(path.read_text().replace(",p3,", ",,"))
    with pytest.raises(DataError, match=r"speaker of \d+.wav: '-', expected a name"):
        made(tiny_bundle, path, tmp_path / "new")


def test_the_old_bundle_is_never_written_over(tiny_bundle, audio):
    path = audio()
    before = (tiny_bundle.path / bundle.MANIFEST).read_bytes()
    with pytest.raises(UsageError, match="--out"):
        made(tiny_bundle, path, tiny_bundle.path)
    assert (tiny_bundle.path / bundle.MANIFEST).read_bytes() == before


def test_a_changed_model_is_refused(tiny_bundle, audio, tmp_path):
    model = tiny_bundle.path / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="sha256"):
        made(tiny_bundle, audio(), tmp_path / "new")


def test_voices_of_training_are_known_again_by_their_marks(tiny_bundle, audio, tmp_path, caplog):
    path = audio()
    made(tiny_bundle, path, tmp_path / "unknown")
    assert "does not say which voices" in caplog.text
    marked = fit.marks({"bonafide": ["p2", "somebody"], "spoof": ["p3"]})
    trained = Bundle(
        tiny_bundle.path,
        msgspec.structs.replace(tiny_bundle.manifest, provenance={"voices": marked}),
    )
    with pytest.raises(DataError, match="trained on: 'speaker:p2', expected others, or --allow-overlap"):
        made(trained, path, tmp_path / "new")
    new = made(trained, path, tmp_path / "new", allow_overlap=["speaker:p2"])
    assert new.manifest.provenance["calibration"]["training_voices"] == "not known to be others"


# -- across folds ----------------------------------------------------------------------------------------------------


def test_no_voice_is_calibrated_by_a_fit_that_has_met_it(tiny_bundle, audio, monkeypatch):
    """Each fit is told apart by its offset; a spliced call leaves out the folds of both its voices."""
    evidence = fit.listen(clips(audio(speakers=6, systems=7)), Scorer(tiny_bundle))  # so that two folds meet in a call
    seen: list[set[str]] = []
    by_scores = {tuple(trial.llrs): fit.voice(trial.clip) for trial in evidence.trials}

    def affine(bonafide, spoof, *_, **__):
        seen.append({by_scores[tuple(clip)] for clip in [*bonafide, *spoof]})
        return fit.calibrate.Fit(1.0, float(len(seen)))  # the offset says which fit it was

    monkeypatch.setattr(fit.calibrate, "affine", affine)
    unmet = fit.cross_fitted(evidence)
    for raw, call in zip(evidence.calls, unmet.calls, strict=True):
        assert call.voice not in seen[fit_number(raw, call)]
    spliced = {call.voice: call for call in evidence.spliced}
    assert unmet.spliced
    for call in unmet.spliced:
        used = seen[fit_number(spliced[call.voice], call)]
        assert used
        assert not used & {call.voice, call.before}


def fit_number(raw, call) -> int:
    pairs = zip(raw.windows, call.windows, strict=True)
    return round(next(after[1] - before[1] for before, after in pairs if before[1] is not None)) - 1


# -- the command -----------------------------------------------------------------------------------------------------


def without_torch() -> str:
    """Run the command line where nothing is installed but the base and the extra `calibration`."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    heavy = {line.split(">")[0].replace("-", "_") for line in extras["training"] + extras["export"]}
    blocked = sorted(heavy - {line.split(">")[0] for line in extras["calibration"]} - {"streamdet[training]"})
    assert {"torch", "transformers", "peft", "matplotlib"} <= set(blocked)
    return f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name + " is not installed", name=name)
sys.meta_path.insert(0, Blocked())
from streamdet.cli import main
main()
"""


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", without_torch(), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_command_works_without_torch(tiny_bundle, audio, tmp_path):
    out = tmp_path / "new"
    options = ("--manifest", audio(), "--out", out, "--name", "mine", "--false-alarms-per-hour", 30)
    done = command("calibrate", tiny_bundle.path, *options)
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256((tiny_bundle.path / "model.onnx").read_bytes()).hexdigest()
    assert done.stdout == f"mine@{digest[:12]}\n"
    assert "before: EER" in done.stderr
    assert "false alarms an hour expected" in done.stderr
    said = bundle.load(out).manifest.provenance["calibration"]
    assert (said["manifest"], said["split"]) == (["calls.csv"], "dev")


def test_training_would_be_noticed_without_torch(tmp_path):
    done = command("train", "starter.toml", "--out", tmp_path / "run")
    assert done.returncode == 66


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ((), 64, "--manifest: None, expected a manifest CSV or a corpus"),
        (("--split", "eval", "--manifest", "x.csv"), 64, "--split: 'eval', expected one of train, dev, test, all"),
        (("--manifest", "nowhere.csv"), 66, "nowhere.csv"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tiny_bundle, tmp_path, arguments, code, complaint):
    done = command("calibrate", tiny_bundle.path, "--out", tmp_path / "new", *arguments)
    assert done.returncode == code
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()
