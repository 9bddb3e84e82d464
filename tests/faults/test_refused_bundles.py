"""A bundle that is damaged, mixed up or nobody's does not start, and says which file and why."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from streamdet import bundle, signature
from tests.faults.lone import PATIENCE_S, STREAMDET

# Where the encoder's weights are: far behind the names, far before the end.
MIDDLE = 0.5
FLIPPED = 4


def key(folder: Path) -> Path:
    made = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    folder.mkdir(exist_ok=True)
    (folder / "key.pem").write_bytes(made)
    return folder / "key.pem"


@pytest.fixture
def folder(block_bundle) -> Path:
    return block_bundle.path


@pytest.fixture
def other(folder, tmp_path) -> Path:
    """Another bundle of the same make: a head that says the opposite."""
    loaded = bundle.load(folder)
    contents = loaded.read_verified()
    head = contents["head.onnx"]
    at = head.rindex(b"linear") - 24  # six floats that weigh the pooled features
    contents["head.onnx"] = head[: at + 3] + bytes([head[at + 3] ^ 0x80]) + head[at + 4 :]
    return bundle.save(tmp_path / "other", loaded.manifest, contents).path


def command(name: str, *args: str) -> subprocess.CompletedProcess[str]:
    endpoints = [f"--set=endpoints.{each}=" for each in ("audio", "verdicts", "control", "http", "pcm")]
    asked = [STREAMDET, name, "--set=scoring.provider=cpu", "--set=scoring.threads=1", *endpoints, *args]
    return subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def assert_refused(folder: Path, file: str, why: str, *settings: str) -> None:
    for name in ("check", "run"):
        done = command(name, f"--bundle={folder}", *settings)
        assert done.returncode == 78, (name, done.stderr)
        (line,) = done.stderr.splitlines()
        assert file in line, line
        assert why in line, line


def truncated(folder: Path, _: Path) -> tuple[str, str]:
    file = folder / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    return "model.onnx", "as its manifest says"


def tampered(folder: Path, _: Path) -> tuple[str, str]:
    flip(folder / "model.onnx")
    return "model.onnx", "sha256"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    at = int(MIDDLE * len(content))
    content[at : at + FLIPPED] = bytes(byte ^ 0x10 for byte in content[at : at + FLIPPED])
    file.write_bytes(content)


def swapped(folder: Path, _: Path) -> tuple[str, str]:
    one, two = folder / "model.onnx", folder / "head.onnx"
    one.rename(folder / "between")
    two.rename(one)
    (folder / "between").rename(two)
    return "model.onnx", "as its manifest says"


def head_of_another(folder: Path, other: Path) -> tuple[str, str]:
    (folder / "head.onnx").write_bytes((other / "head.onnx").read_bytes())
    return "head.onnx", "sha256"


def missing(folder: Path, _: Path) -> tuple[str, str]:
    (folder / "head.onnx").unlink()
    return "head.onnx", "No such file"


def without_manifest(folder: Path, _: Path) -> tuple[str, str]:
    (folder / "manifest.json").unlink()
    return folder.name, "a folder with manifest.json"


def half_a_manifest(folder: Path, _: Path) -> tuple[str, str]:
    file = folder / "manifest.json"
    file.write_bytes(file.read_bytes()[:200])
    return "manifest.json", ""


def linked_out(folder: Path, _: Path) -> tuple[str, str]:
    (folder / "head.onnx").rename(folder.parent / "elsewhere")
    (folder / "head.onnx").symlink_to(folder.parent / "elsewhere")
    return "head.onnx", "no link out of it"


DAMAGE = [truncated, tampered, swapped, head_of_another, missing, without_manifest, half_a_manifest, linked_out]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_bundle_is_refused_by_name(folder, other, damage: Callable[[Path, Path], tuple[str, str]]):
    file, why = damage(folder, other)
    assert_refused(folder, file, why)


def vouch_again(folder: Path) -> None:
    """Make the manifest fit the files, as somebody who tampers with both would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        entry |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [tampered, head_of_another], ids=lambda damage: damage.__name__)
def test_control_with_a_manifest_that_fits_the_same_bytes_load_without_complaint(folder, other, damage):
    """sha256 alone refused them; onnxruntime sees nothing wrong."""
    damage(folder, other)
    vouch_again(folder)
    done = command("check", f"--bundle={folder}")
    assert done.returncode == 0, done.stderr


def unsigned(_folder: Path, _signing: Path) -> str:
    return "signed_by takes only signed bundles"


def signed_by_somebody_else(folder: Path, signing: Path) -> str:
    bundle.sign(folder, key(signing.parent / "else"))
    return "by a key of bundle.signed_by"


def tampered_after_signing(folder: Path, signing: Path) -> str:
    bundle.sign(folder, signing)
    flip(folder / "model.onnx")
    vouch_again(folder)
    return "by a key of bundle.signed_by"


def half_a_signature(folder: Path, signing: Path) -> str:
    bundle.sign(folder, signing)
    file = folder / signature.SIGNATURE
    file.write_bytes(file.read_bytes()[:32])
    return "by a key of bundle.signed_by"


FORGED = [unsigned, signed_by_somebody_else, tampered_after_signing, half_a_signature]


@pytest.mark.parametrize("forge", FORGED, ids=lambda forge: forge.__name__)
def test_a_bundle_that_nobody_trusted_signed_is_refused(folder, tmp_path, forge):
    signing = key(tmp_path / "keys")
    why = forge(folder, signing)
    assert_refused(folder, "manifest.", why, f"--set=bundle.signed_by={signature.public_text(signing)}")


def test_control_a_signed_one_is_taken(folder, tmp_path):
    signing = key(tmp_path / "keys")
    done = subprocess.run(
        [STREAMDET, "sign", folder, f"--key={signing}"], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    done = command("check", f"--bundle={folder}", f"--set=bundle.signed_by={done.stdout.strip()}")
    assert done.returncode == 0, done.stderr
