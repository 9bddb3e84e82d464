"""The bundles that break on purpose do break, and only then."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from streamdet.audio import encode, fill, resample
from streamdet.errors import BundleError
from streamdet.records import ENCODINGS, RATES_HZ, AudioFormat, Window
from streamdet.scorer import Scorer
from tests.faults import bundles

PATIENCE_S = 30.0
# A run of an ordinary window takes under a millisecond: this is long beside it, and short enough to sit out.
HANGS_S = 2.0
KINDS = {"hanging": bundles.hanging, "failing": bundles.failing}


@pytest.fixture(params=KINDS)
def broken(request, tmp_path) -> Scorer:
    return Scorer(KINDS[request.param](tmp_path / "bundle"), provider="cpu", threads=1, batch_max=4)


def rows(*samples: np.ndarray) -> np.ndarray:
    return np.stack([fill(row, 4 * bundles.RATE_HZ) for row in samples])


def window(samples: np.ndarray, form: AudioFormat) -> Window:
    data = encode(resample(samples, bundles.RATE_HZ, form.rate_hz), form.encoding)
    return Window(form, data, 0, len(data) // form.sample_bytes, 0.0)


def test_ordinary_windows_are_scored_by_their_loudness(broken):
    audio = rows(bundles.ordinary(), 0.5 * bundles.ordinary())
    assert broken.run(audio) == pytest.approx(2 - 20 * np.abs(audio).mean(axis=1), abs=1e-4)
    assert broken.warm_up()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_the_gate_takes_both_sounds_for_speech_and_one_is_loud_in_every_format(rate_hz, encoding, tmp_path):
    form = AudioFormat(rate_hz, encoding)
    scorer = Scorer(bundles.failing(tmp_path / "bundle"), provider="cpu", threads=1)
    assert scorer.score([window(bundles.ordinary(), form)])[0].llr is not None
    with pytest.raises(Exception, match="out of data bounds"):
        scorer.score([window(bundles.loud(), form)])


def test_a_loud_window_fails_its_run_whoever_else_is_in_it_and_no_other(tmp_path):
    scorer = Scorer(bundles.failing(tmp_path / "bundle"), provider="cpu", threads=1)
    with pytest.raises(Exception, match="out of data bounds") as failure:
        scorer.run(rows(bundles.ordinary(), bundles.loud()))
    assert type(failure.value).__module__.startswith("onnxruntime")
    assert np.isfinite(scorer.run(rows(bundles.ordinary()))).all()


def test_a_loud_window_keeps_its_run_for_ever(tmp_path):
    """In a process of its own: a thread that hangs in onnxruntime cannot be ended."""
    path = tmp_path / "bundle"
    bundles.hanging(path)
    script = f"""
import sys
import numpy as np
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from streamdet import bundle
from streamdet.scorer import Scorer
from tests.faults import bundles
scorer = Scorer(bundle.load(Path({str(path)!r})), provider="cpu", threads=1)
scorer.run(bundles.ordinary()[None])
print("scored", flush=True)
scorer.run(np.stack([bundles.ordinary(), bundles.loud()]))
print("came back", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ended = threading.Timer(PATIENCE_S, process.kill)
            ended.start()
            assert process.stdout.readline() == "scored\n"
            ended.cancel()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(HANGS_S)
        finally:
            process.kill()
        assert process.stdout.read() == ""


def test_as_a_script_it_writes_a_bundle(tmp_path):
    file = Path(bundles.__file__)
    subprocess.run([sys.executable, file, "hanging", tmp_path / "bundle"], check=True, timeout=PATIENCE_S)
    assert Scorer(bundles.bundle.load(tmp_path / "bundle"), provider="cpu", threads=1).manifest.name == "hanging"
    with pytest.raises(BundleError):
        bundles.bundle.load(tmp_path / "absent")
