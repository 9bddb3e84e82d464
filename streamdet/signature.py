"""Who made a bundle: an Ed25519 signature (RFC 8032) over the exact bytes of its manifest, 64 bytes beside it.

The manifest has the sha256 of every file, so they vouch for the whole folder. Keys are PEM files as `openssl genpkey
-algorithm ed25519` writes them; a public one may also be given by value, as 44 characters of base64.
"""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from streamdet.errors import BundleError, ConfigError, DataError, MissingError, from_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE: Final = "manifest.sig"
SIGNATURE_BYTES: Final = 64
KEY_BYTES: Final = 32
# A PEM file of one key has about 120 bytes; room for comments around it.
KEY_FILE_MAX_BYTES: Final = 16 << 10


def check(folder: Path, manifest: bytes, signature: bytes | None, signed_by: Sequence[str]) -> None:
    """Refuse a manifest that nobody of `signed_by` has signed.

    Args:
        folder: of the bundle, for the message.
        manifest: as it was read, byte for byte.
        signature: what lies beside it; None where nothing does.
        signed_by: public keys, files or values.

    Raises:
        BundleError: there is no signature, or none by these keys.
        ConfigError: one of the keys is none.
    """
    keys = [_public_key(given) for given in signed_by]
    file = str(folder / SIGNATURE)
    if signature is None:
        raise BundleError.of("bundle signature", file, "a file: bundle.signed_by takes only signed bundles")
    if not any(_verifies(key, manifest, signature) for key in keys):
        expected = f"a signature of {folder / 'manifest.json'} by a key of bundle.signed_by ({len(keys)})"
        raise BundleError.of("bundle signature", file, expected)


def sign(manifest: bytes, key: Path) -> bytes:
    """Sign the bytes of a manifest with the private key in a PEM file.

    Raises:
        MissingError: there is no such file.
        DataError: it holds no private Ed25519 key, or one with a passphrase.
    """
    return _private_key(key).sign(manifest)


def public_text(key: Path) -> str:
    """Return the public half of a private key in a PEM file, as `bundle.signed_by` takes it by value.

    Raises:
        MissingError: there is no such file.
        DataError: it holds no private Ed25519 key, or one with a passphrase.
    """
    return base64.b64encode(_private_key(key).public_key().public_bytes_raw()).decode()


def _verifies(key: bytes, manifest: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, manifest)
    except InvalidSignature:
        return False
    return True


def _public_key(given: str) -> bytes:
    """The 32 bytes of a public key that is given by value or as a file.

    Raises:
        ConfigError: it is neither, or the package that could tell is absent.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ModuleNotFoundError:
        expected = f"cryptography, to check signatures with: {from_extra('signing')}"
        raise ConfigError.of("bundle.signed_by", given, expected) from None
    if (value := _value(given)) is not None:
        return value
    try:
        key = load_pem_public_key(_read(Path(given)))
    except OSError as error:
        expected = f"a readable PEM file ({error.strerror}), or 44 characters of base64"
        raise ConfigError.of("bundle.signed_by", given, expected) from None
    except Exception:  # cryptography raises several classes with no common base
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError.of("bundle.signed_by", given, "a PEM file with a public Ed25519 key")
    return key.public_bytes_raw()


def _value(given: str) -> bytes | None:
    """A key as base64; None where it must be a path."""
    try:
        value = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        return None
    return value if len(value) == KEY_BYTES else None


def _private_key(path: Path) -> "Ed25519PrivateKey":
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ModuleNotFoundError:
        expected = from_extra("signing")
        raise MissingError.of("streamdet sign", "cryptography", expected) from None
    try:
        key = load_pem_private_key(_read(path), None)
    except FileNotFoundError:
        raise MissingError.of("signing key", str(path), "a file that exists") from None
    except OSError as error:
        raise DataError.of("signing key", str(path), f"a readable file ({error.strerror})") from None
    except Exception:  # cryptography raises several classes with no common base
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError.of("signing key", str(path), "a PEM file with a private Ed25519 key without a passphrase")
    return key


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(KEY_FILE_MAX_BYTES)
