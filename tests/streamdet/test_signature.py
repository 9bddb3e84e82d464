"""Signed bundles: what a trusted key signed is taken, nothing else is."""

import base64
import builtins
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from streamdet import bundle, config, signature
from streamdet.errors import BundleError, ConfigError, DataError, MissingError
from streamdet.signature import SIGNATURE

PLAIN = serialization.NoEncryption()


def write_private(path: Path, key=None, encryption=PLAIN) -> Path:
    key = key or Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return path


@pytest.fixture
def key(tmp_path) -> Path:
    return write_private(tmp_path / "key.pem")


@pytest.fixture
def public(key, tmp_path) -> Path:
    """The same key's public half as a file."""
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    made = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "public.pem").write_bytes(made)
    return tmp_path / "public.pem"


def test_what_was_signed_is_taken_by_value_and_by_file(tiny_bundle, key, public):
    bundle.sign(tiny_bundle.path, key)
    for given_as in (signature.public_text(key), str(public)):
        assert bundle.load(tiny_bundle.path, [given_as]) == tiny_bundle
        settings = config.Bundle(path=tiny_bundle.path, signed_by=(given_as,))
        assert bundle.chosen(settings) == tiny_bundle


def test_one_of_several_keys_is_enough(tiny_bundle, key, tmp_path):
    bundle.sign(tiny_bundle.path, key)
    other = signature.public_text(write_private(tmp_path / "other.pem"))
    assert bundle.load(tiny_bundle.path, [other, signature.public_text(key)])
    with pytest.raises(BundleError, match=r"expected a signature of .*manifest\.json by a key of bundle\.signed_by"):
        bundle.load(tiny_bundle.path, [other])


def test_an_unsigned_bundle_is_taken_only_where_no_key_is_asked_for(tiny_bundle, key):
    assert bundle.load(tiny_bundle.path)
    with pytest.raises(BundleError, match="signed_by takes only signed bundles"):
        bundle.load(tiny_bundle.path, [signature.public_text(key)])


@given(st.data())
def test_any_flipped_bit_of_manifest_or_signature_is_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("signed")
    key = write_private(folder / "key.pem")
    manifest = b'{"a manifest": 1}'
    signed = signature.sign(manifest, key)
    keys = [signature.public_text(key)]
    signature.check(folder, manifest, signed, keys)
    both = bytearray(manifest + signed)
    bit = data.draw(st.integers(0, 8 * len(both) - 1))
    both[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BundleError):
        signature.check(folder, bytes(both[: len(manifest)]), bytes(both[len(manifest) :]), keys)
    for length in (0, 63, 65):
        with pytest.raises(BundleError):
            signature.check(folder, manifest, (signed + b"\0")[:length], keys)


def test_one_space_more_in_the_manifest_is_another_manifest(tiny_bundle, key):
    """The bytes are signed, not what they mean: there is nothing to be read in two ways."""
    bundle.sign(tiny_bundle.path, key)
    file = tiny_bundle.path / bundle.MANIFEST
    file.write_bytes(file.read_bytes() + b" ")
    assert bundle.load(tiny_bundle.path)
    with pytest.raises(BundleError, match="bundle signature"):
        bundle.load(tiny_bundle.path, [signature.public_text(key)])


def test_a_damaged_bundle_is_not_signed(tiny_bundle, key):
    (tiny_bundle.path / "model.onnx").write_bytes(b"something else")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        bundle.sign(tiny_bundle.path, key)
    assert not (tiny_bundle.path / SIGNATURE).exists()


def test_a_bundle_that_is_written_anew_has_no_signature_of_the_old_one(tiny_bundle, key):
    bundle.sign(tiny_bundle.path, key)
    bundle.save(tiny_bundle.path, tiny_bundle.manifest, tiny_bundle.read_verified())
    assert not (tiny_bundle.path / SIGNATURE).exists()


@pytest.mark.parametrize(
    ("given_as", "why"),
    [
        ("/nowhere/public.pem", "a readable PEM file"),
        (base64.b64encode(bytes(31)).decode(), "a readable PEM file"),
        ("{private}", "a PEM file with a public Ed25519 key"),
        ("{other}", "a PEM file with a public Ed25519 key"),
        ("{text}", "a PEM file with a public Ed25519 key"),
    ],
)
def test_a_key_that_is_none_is_refused(tiny_bundle, key, tmp_path, given_as, why):
    other = X25519PrivateKey.generate().public_key()
    pem, public = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "x25519.pem").write_bytes(other.public_bytes(pem, public))
    (tmp_path / "text").write_text("no key")
    given_as = given_as.format(private=key, other=tmp_path / "x25519.pem", text=tmp_path / "text")
    bundle.sign(tiny_bundle.path, key)
    with pytest.raises(ConfigError, match=rf"bundle\.signed_by: .*expected {why}"):
        bundle.load(tiny_bundle.path, [given_as])


def test_what_cannot_sign_is_refused(tiny_bundle, tmp_path):
    with pytest.raises(MissingError, match="signing key"):
        bundle.sign(tiny_bundle.path, tmp_path / "nowhere")
    with pytest.raises(DataError, match="signing key"):
        bundle.sign(tiny_bundle.path, write_private(tmp_path / "x.pem", X25519PrivateKey.generate()))
    locked = write_private(tmp_path / "locked.pem", encryption=serialization.BestAvailableEncryption(b"secret"))
    with pytest.raises(DataError, match="without a passphrase"):
        bundle.sign(tiny_bundle.path, locked)


def test_without_the_package_a_daemon_that_asks_for_signatures_does_not_start(tiny_bundle, key, monkeypatch):
    bundle.sign(tiny_bundle.path, key)
    text = signature.public_text(key)
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.partition(".")[0] == "cryptography":
            raise ModuleNotFoundError(name="cryptography")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"pip install '\.\[signing\]'"):
        bundle.load(tiny_bundle.path, [text])
    assert bundle.load(tiny_bundle.path)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_makes_the_keys_and_checks_the_signature(tiny_bundle, tmp_path):
    """What docs/bundle.md says: nobody needs streamdet to make a key or to verify."""
    key, public = tmp_path / "made.pem", tmp_path / "made.pub"
    run = lambda *args: subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)  # noqa: E731
    run("genpkey", "-algorithm", "ed25519", "-out", key)
    run("pkey", "-in", key, "-pubout", "-out", public)
    bundle.sign(tiny_bundle.path, key)
    assert bundle.load(tiny_bundle.path, [str(public)])
    manifest, signed = tiny_bundle.path / bundle.MANIFEST, tiny_bundle.path / SIGNATURE
    verify = ("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-sigfile", signed, "-in")
    run(*verify, manifest)
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(subprocess.CalledProcessError):
        run(*verify, manifest)
