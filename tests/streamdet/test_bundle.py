"""Bundles: what is written is read back, and nothing damaged gets through."""

import os
import shutil

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet import bundle
from streamdet.errors import BundleError

MANIFEST = bundle.Manifest(
    format=1,
    name="test",
    created="2026-01-01T00:00:00Z",
    audio=bundle.Audio(16000, 64000, 16000),
    model=bundle.Model(kind="window"),
    calibration=bundle.Calibration(),
    decision=bundle.Decision(),
    provenance={"base": "none"},
    files={},
)
CONTENTS = {"model.onnx": b"weights", "model.onnx.data": b"more weights"}


def test_round_trip(tmp_path):
    saved = bundle.save(tmp_path, MANIFEST, CONTENTS)
    loaded = bundle.load(tmp_path)
    assert loaded == saved
    assert loaded.read_verified() == CONTENTS
    assert loaded.manifest.model_id == "test@" + loaded.manifest.files["model.onnx"].sha256[:12]


@given(st.integers(0, len(b"weights") * 8 - 1))
def test_any_flipped_bit_is_refused(tmp_path_factory, bit):
    path = tmp_path_factory.mktemp("bundle")
    bundle.save(path, MANIFEST, CONTENTS)
    flipped = bytearray(CONTENTS["model.onnx"])
    flipped[bit // 8] ^= 1 << bit % 8
    (path / "model.onnx").write_bytes(flipped)
    with pytest.raises(BundleError, match="sha256"):
        bundle.load(path).read_verified()


def test_missing_and_truncated_files_are_refused(tmp_path):
    loaded = bundle.save(tmp_path, MANIFEST, CONTENTS)
    (tmp_path / "model.onnx").write_bytes(b"weight")
    with pytest.raises(BundleError, match="bytes: 6, expected 7"):
        loaded.read_verified()
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(BundleError, match="readable file"):
        loaded.read_verified()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format: 2, expected 1"),
        ({"name": "two words"}, "name: 'two words'"),
        ({"name": "two\nlines"}, r"name: 'two\\nlines'"),
        ({"name": ""}, "name: '', expected 1 to 128 printable characters"),
        ({"name": "x" * 129}, "expected 1 to 128 printable characters"),
        ({"files": {"model.onnx": bundle.FileEntry("", 0), "a\0": bundle.FileEntry("", 0)}}, "a bare file name"),
        ({"audio": bundle.Audio(16001, 64000, 16000)}, "audio.rate_hz: 16001"),
        ({"audio": bundle.Audio(16000, 64000, 64001)}, "audio.hop_samples: 64001"),
        ({"audio": bundle.Audio(16000, 0, 1)}, "audio.window_samples: 0"),
        ({"calibration": bundle.Calibration(rolling=())}, "at least one row"),
        ({"calibration": bundle.Calibration(rolling=((2, 1, 0), (1, 1, 0)))}, "ascending"),
        ({"decision": bundle.Decision(prior_spoof=0)}, "prior_spoof: 0"),
        ({"decision": bundle.Decision(alarm=0)}, "alarm: 0"),
        ({"files": {"../model.onnx": bundle.FileEntry("", 0)}}, "among them"),
        (
            {"files": {"model.onnx": bundle.FileEntry("", 0), "../evil": bundle.FileEntry("", 0)}},
            "a bare file name",
        ),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(tmp_path, change, message):
    bundle.save(tmp_path, MANIFEST, CONTENTS)
    broken = msgspec.structs.replace(bundle.load(tmp_path).manifest, **change)
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(broken))
    with pytest.raises(BundleError, match=message):
        bundle.load(tmp_path)


def block(**changes):
    fields = {"kind": "block", "output": "sums", "head": "head.onnx", "left_samples": 8000}
    return bundle.Model(**{**fields, **changes})


def test_a_block_bundle_has_another_id_with_another_head(tmp_path):
    manifest = msgspec.structs.replace(MANIFEST, model=block())
    ids = set()
    for number, head in enumerate((b"head", b"another head")):
        bundle.save(tmp_path / str(number), manifest, {**CONTENTS, "head.onnx": head})
        loaded = bundle.load(tmp_path / str(number))
        assert (loaded.manifest.blocks, loaded.manifest.input_samples) == (4, 24_000)
        assert loaded.read_verified("head.onnx") == {"head.onnx": head}
        ids.add(loaded.manifest.model_id)
    assert len(ids) == 2


def test_a_windowed_bundle_says_nothing_of_blocks(tmp_path):
    saved = bundle.save(tmp_path, MANIFEST, CONTENTS)
    assert (saved.manifest.blocks, saved.manifest.input_samples) == (0, 64_000)
    text = (tmp_path / "manifest.json").read_text()
    assert "head" not in text
    assert "left_samples" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": block(left_samples=msgspec.UNSET)}, r"model\.left_samples: UNSET, expected 0 to 64000"),
        ({"model": block(left_samples=-1)}, r"model\.left_samples: -1"),
        ({"model": block(left_samples=64_001)}, r"model\.left_samples: 64001"),
        ({"model": block(head=msgspec.UNSET)}, r"model\.head: UNSET, expected the file"),
        ({"model": block(head="")}, r"model\.head: ''"),
        ({"model": block(head="model.onnx")}, r"model\.head: 'model.onnx'"),
        ({"model": block(head="other.onnx")}, r"files: .*expected other.onnx among them"),
        (
            {"audio": bundle.Audio(16_000, 64_000, 15_000)},
            r"audio\.window_samples: 64000, expected a multiple of 15000",
        ),
        ({"model": bundle.Model("window", head="head.onnx")}, r"model\.head: 'head.onnx', expected none"),
        ({"model": bundle.Model("window", left_samples=0)}, r"model\.left_samples: 0, expected none"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(tmp_path, change, message):
    made = msgspec.structs.replace(MANIFEST, model=block())
    bundle.save(tmp_path, made, {**CONTENTS, "head.onnx": b"head"})
    broken = msgspec.structs.replace(bundle.load(tmp_path).manifest, **change)
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(broken))
    with pytest.raises(BundleError, match=message):
        bundle.load(tmp_path)


def test_unknown_fields_and_broken_json_are_refused(tmp_path):
    with pytest.raises(BundleError, match=r"a folder with manifest\.json"):
        bundle.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        bundle.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(BundleError, match="missing required field"):
        bundle.load(tmp_path)


# -- what a folder from somewhere else may hold ----------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    return bundle.save(tmp_path / "bundle", MANIFEST, CONTENTS)


def rewritten(saved, old: str, new: str) -> None:
    file = saved.path / "manifest.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
def test_a_link_out_of_the_folder_is_refused_and_one_within_is_not(saved, name):
    file, inside, outside = saved.path / name, saved.path / "inside", saved.path.parent / "outside"
    for target in (inside, outside):
        shutil.copy(file, target)
    file.unlink()
    file.symlink_to(inside)
    assert bundle.load(saved.path).read_verified() == CONTENTS
    for target in (outside, "../outside"):
        file.unlink()
        file.symlink_to(target)
        with pytest.raises(BundleError, match=rf"{name}.*no link out of it"):
            bundle.load(saved.path).read_verified()


def test_a_bundle_may_itself_be_a_link(saved):
    link = saved.path.with_name("link")
    link.symlink_to(saved.path)
    assert bundle.load(link).read_verified() == CONTENTS


def test_links_in_a_circle_pipes_and_folders_are_refused(saved):
    file = saved.path / "model.onnx"
    file.unlink()
    file.symlink_to("model.onnx")
    with pytest.raises(BundleError, match="a readable file"):
        saved.read_verified()
    file.unlink()
    os.mkfifo(file)  # to open one is to wait for its other end
    with pytest.raises(BundleError, match="a regular file"):
        saved.read_verified()
    file.unlink()
    file.mkdir()
    with pytest.raises(BundleError, match="a regular file"):
        saved.read_verified()


def test_a_file_that_is_too_large_is_not_read(saved):
    with (saved.path / "model.onnx").open("r+b") as file:
        file.truncate(1 << 40)  # a hole: no disk, but more than any memory
    with pytest.raises(BundleError, match=f"bytes: {1 << 40}, expected 7"):
        saved.read_verified()
    with (saved.path / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match=f"bytes: {1 << 40}, expected at most {1 << 20}"):
        bundle.load(saved.path)


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"a":' * 100_000, "[" * 50_000 + "]" * 50_000])
def test_a_manifest_nested_without_end_is_refused(saved, nested):
    rewritten(saved, '"base": "none"', f'"base": {nested}')
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        bundle.load(saved.path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"format": 1', '"format": 2, "format": 1'),
        ('"base": "none"', '"base": "none", "base": "another"'),
        ('"model.onnx": {', '"model.onnx": {"sha256": "", "bytes": 0}, "model.onnx": {'),
    ],
)
def test_names_that_stand_twice_are_refused(saved, old, new):
    """Readers differ in which one they believe, and people read the first."""
    rewritten(saved, old, new)
    with pytest.raises(BundleError, match="stands twice in one object"):
        bundle.load(saved.path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.onnx": bundle.FileEntry("0" * 63, 0)}, r"files\.model\.onnx\.sha256: '0+', expected 64 hex digits"),
        ({"model.onnx": bundle.FileEntry("F" * 64, 0)}, r"files\.model\.onnx\.sha256"),
        ({"model.onnx": bundle.FileEntry("0" * 64, -1)}, r"files\.model\.onnx\.bytes: -1"),
        ({"model.onnx": bundle.FileEntry("0" * 64, (16 << 30) + 1)}, r"files bytes: 17179869185, expected at most"),
        ({f"{at}": bundle.FileEntry("0" * 64, 0) for at in range(64)}, r"files: 65, expected at most 64"),
        ({"manifest.json": bundle.FileEntry("0" * 64, 0)}, r"files: 'manifest.json', expected a file that the"),
        ({"manifest.sig": bundle.FileEntry("0" * 64, 0)}, r"files: 'manifest.sig', expected a file that the"),
    ],
)
def test_files_beyond_the_limits_are_refused(saved, files, message):
    broken = msgspec.structs.replace(saved.manifest, files={"model.onnx": bundle.FileEntry("0" * 64, 0), **files})
    (saved.path / "manifest.json").write_bytes(msgspec.json.encode(broken))
    with pytest.raises(BundleError, match=message):
        bundle.load(saved.path)
