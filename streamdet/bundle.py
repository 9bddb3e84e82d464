"""The bundle: a folder with `manifest.json`, `model.onnx`, and the model's external data if it has any.

It is the whole contract between export and daemon. The format is pinned in docs/bundle.md; this module reads it, writes
it, and vouches for the bytes.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from streamdet import config, signature
from streamdet.errors import BundleError
from streamdet.records import RATES_HZ
from streamdet.signature import SIGNATURE, SIGNATURE_BYTES

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
# A manifest holds a few dozen numbers and some provenance; a larger file is something else.
MANIFEST_MAX_BYTES: Final = 1 << 20
# Every verdict carries the name, and so do logs: room for any name, none for a text.
NAME_MAX_CHARS: Final = 128
# A graph, a head, and weights in parts of 2 GB; a few times that.
FILES_MAX: Final = 64
# Twice what the largest public wav2vec2 has in float32 (XLS-R 2B, 8.6 GB): all of it is read into memory.
BUNDLE_MAX_BYTES: Final = 16 << 30
SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Audio(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model listens to."""

    rate_hz: int
    window_samples: int
    hop_samples: int

    @property
    def window_s(self) -> float:
        """Seconds scored at once."""
        return self.window_samples / self.rate_hz

    @property
    def hop_s(self) -> float:
        """Seconds between the ends of windows."""
        return self.hop_samples / self.rate_hz


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ONNX files, and the names of the first one's input and output."""

    kind: Literal["window", "block"]
    """`window`: windows are scored whole. `block`: hops are encoded one by one, and a window merges what it holds."""
    file: str = "model.onnx"
    input: str = "audio"
    output: str = "score"
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    head: str | msgspec.UnsetType = msgspec.UNSET
    """Of a block model: the ONNX file that merges the sums of a window's blocks into its score."""
    left_samples: int | msgspec.UnsetType = msgspec.UNSET
    """Of a block model: audio that a block hears before its hop."""
    quantization: Literal["static", "dynamic"] | msgspec.UnsetType = msgspec.UNSET
    """How int8 was made; a bundle from before there was a choice does not say, and is dynamic."""

    @property
    def batches(self) -> bool:
        """Whether windows may share a run: dynamic int8 takes one scale over all of them."""
        return self.precision != "int8" or self.quantization == "static"


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From CM score to LLR: `scale * score + offset`, and the rolling sum's correction by seconds of evidence."""

    scale: float = 1.0
    offset: float = 0.0
    rolling: tuple[tuple[float, float, float], ...] = ((0.0, 1.0, 0.0),)
    """Rows (seconds of evidence, scale, offset), ascending; between rows both are interpolated."""


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Thresholds of the rolling verdict and the evidence behind them."""

    prior_spoof: float = 0.05
    min_speech_s: float = 0.5
    rolling_s: float = 10.0
    llr_clip: float = 5.0
    drift: float = 0.0
    alarm: float = 2.0
    clear: float = 2.0
    bonafide_below: float = 0.2
    false_alarms_per_hour: float = 0.0
    upper_95: float = 0.0
    hours: float = 0.0
    speakers: int = 0
    calls_with_alarm: float = 0.0
    extrapolated: bool = True


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file must be, byte for byte."""

    sha256: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """manifest.json."""

    format: int
    name: str
    created: str
    """RFC 3339."""
    audio: Audio
    model: Model
    calibration: Calibration
    decision: Decision
    provenance: dict[str, Any]
    files: dict[str, FileEntry]

    @property
    def model_id(self) -> str:
        """Bundle name and the first 12 hex digits of the model's hash, as verdicts carry it."""
        digest = self.files[self.model.file].sha256
        if self.model.head:
            # The same encoder with another head is another model.
            digest = hashlib.sha256((digest + self.files[self.model.head].sha256).encode()).hexdigest()
        return f"{self.name}@{digest[:12]}"

    @property
    def blocks(self) -> int:
        """Blocks in a window; 0 where windows are scored whole."""
        return self.audio.window_samples // self.audio.hop_samples if self.model.kind == "block" else 0

    @property
    def input_samples(self) -> int:
        """What the model hears at once: a window, or a hop and what lies to its left."""
        audio = self.audio
        return audio.hop_samples + (self.model.left_samples or 0) if self.blocks else audio.window_samples


class Bundle(msgspec.Struct, frozen=True):
    """A manifest and the folder it was read from."""

    path: Path
    manifest: Manifest

    def read_verified(self, *names: str) -> dict[str, bytes]:
        """Read files of the manifest and check size and sha256 on the very bytes that are returned.

        A bit flip in weights loads without complaint and scores nonsense, so what was hashed must be what is run: pass
        these bytes on, never the path.

        Args:
            names: which; none means all of them.

        Returns:
            file name -> content.

        Raises:
            BundleError: a file is missing or differs from the manifest.
        """
        files = self.manifest.files
        return {name: _verified(self.path, name, files[name]) for name in names or files}


def starter_path() -> Path:
    """Return the folder of the bundle that ships inside this package."""
    return Path(str(files("streamdet.starter")))


def starter_recordings() -> list[Path]:
    """Return the synthetic speech that ships with that bundle."""
    return sorted(starter_path().glob("*.flac"))


def chosen(settings: config.Bundle) -> Bundle:
    """Load the bundle that the settings name, or the starter, signed by whom they trust.

    Raises:
        BundleError: as `load`.
        ConfigError: a key of `bundle.signed_by` is none.
    """
    return load(settings.path or starter_path(), settings.signed_by)


def load(path: Path, signed_by: Sequence[str] = ()) -> Bundle:
    """Read a bundle's manifest and check its rules; the files' content is checked by `read_verified`.

    Args:
        path: the folder.
        signed_by: public keys, one of which must have signed the manifest; none takes unsigned bundles too.

    Raises:
        BundleError: no such folder, no manifest, a manifest that breaks a rule, or nobody's signature.
        ConfigError: a key of `signed_by` is none.
    """
    file = path / MANIFEST
    if not file.exists():
        raise BundleError.of("bundle", str(path), f"a folder with {MANIFEST}")
    text, size = _read(path, MANIFEST, MANIFEST_MAX_BYTES)
    if size > MANIFEST_MAX_BYTES:
        raise BundleError.of(f"{file} bytes", size, f"at most {MANIFEST_MAX_BYTES}")
    if signed_by:
        signed = _read(path, SIGNATURE, SIGNATURE_BYTES)[0] if (path / SIGNATURE).exists() else None
        signature.check(path, text, signed, signed_by)
    try:
        json.loads(text, object_pairs_hook=_unique)
        manifest = msgspec.json.decode(text, type=Manifest)
    except (ValueError, RecursionError) as error:  # msgspec's and UTF-8's errors are ValueErrors
        raise BundleError(f"{file}: {error}") from error
    _check(manifest)
    return Bundle(path, manifest)


def save(path: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> Bundle:
    """Write a bundle folder; `manifest.files` is computed from `contents`.

    All of it is written beside the folder and then moved there, the manifest last: a folder with a manifest is a whole
    bundle, whatever was interrupted.
    """
    entries = {
        name: FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        for name, content in contents.items()
    }
    manifest = msgspec.structs.replace(manifest, files=entries)
    _check(manifest)
    place = path.resolve()
    new = place.with_name(f".{place.name}.new")
    shutil.rmtree(new, ignore_errors=True)  # what a run left that was killed
    new.mkdir(parents=True)
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    for name, content in {**contents, MANIFEST: text}.items():
        (new / name).write_bytes(content)
    _move(new, place, [*contents, MANIFEST])
    return Bundle(path, manifest)


def sign(path: Path, key: Path) -> None:
    """Write the signature of a bundle's manifest beside it, once all its files are what the manifest says.

    Args:
        path: the folder.
        key: PEM file with a private Ed25519 key.

    Raises:
        BundleError: the bundle is damaged.
        MissingError: there is no such key.
        DataError: it is none.
    """
    load(path).read_verified()
    (path / SIGNATURE).write_bytes(signature.sign((path / MANIFEST).read_bytes(), key))


def _move(new: Path, place: Path, names: Iterable[str]) -> None:
    if not place.exists() or not any(place.iterdir()):
        new.rename(place)  # an empty folder is replaced
        return
    (place / SIGNATURE).unlink(missing_ok=True)  # of another manifest
    for name in names:
        (new / name).replace(place / name)
    new.rmdir()


def _verified(folder: Path, name: str, entry: FileEntry) -> bytes:
    path = folder / name
    content, size = _read(folder, name, entry.bytes)
    if size != entry.bytes or len(content) != entry.bytes:
        raise BundleError.of(f"{path} bytes", size, f"{entry.bytes} as its manifest says")
    if (digest := hashlib.sha256(content).hexdigest()) != entry.sha256:
        raise BundleError.of(f"{path} sha256", digest, f"{entry.sha256} as its manifest says")
    return content


def _read(folder: Path, name: str, most_bytes: int) -> tuple[bytes, int]:
    """Read a file of the folder, unless it has more than `most_bytes`.

    Returns:
        its content, and its size.

    Raises:
        BundleError: it cannot be read, lies elsewhere, or is no file: a pipe would be waited for.
    """
    path = folder / name
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve()):
            raise BundleError.of("bundle file", str(path), "a file in the bundle's folder, no link out of it")
        if not path.is_file():
            raise BundleError.of("bundle file", str(path), "a regular file")
        size = path.stat().st_size
        with path.open("rb") as file:
            return file.read(size) if size <= most_bytes else b"", size
    except (OSError, RuntimeError) as error:  # links in a circle are a RuntimeError before Python 3.13
        why = getattr(error, "strerror", None) or str(error)
        raise BundleError.of("bundle file", str(path), f"a readable file ({why})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Take a JSON object whose names are its own: of two equal ones, two readers may see different ones."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object, expected once")
    return found


def _must(rule: bool, field: str, value: object, expected: str) -> None:
    if not rule:
        raise BundleError.of(f"{MANIFEST} {field}", value, expected)


def _check(manifest: Manifest) -> None:
    """Refuse what no daemon could run."""
    audio, decision, rolling = manifest.audio, manifest.decision, manifest.calibration.rolling
    _must(manifest.format == FORMAT, "format", manifest.format, str(FORMAT))
    name = manifest.name
    _must(
        name.isprintable() and " " not in name and 0 < len(name) <= NAME_MAX_CHARS,
        "name",
        name,
        f"1 to {NAME_MAX_CHARS} printable characters without spaces",
    )
    _must(audio.rate_hz in RATES_HZ, "audio.rate_hz", audio.rate_hz, f"one of {RATES_HZ}")
    _must(
        0 < audio.window_samples <= 60 * audio.rate_hz,
        "audio.window_samples",
        audio.window_samples,
        "1 to 60 s",
    )
    _must(
        0 < audio.hop_samples <= audio.window_samples,
        "audio.hop_samples",
        audio.hop_samples,
        "1 to window_samples",
    )
    _must(
        manifest.model.precision == "int8" or manifest.model.quantization is msgspec.UNSET,
        "model.quantization",
        manifest.model.quantization,
        "none: only int8 has one",
    )
    _check_blocks(manifest)
    for name in (manifest.model.file, manifest.model.head or manifest.model.file):
        _must(name in manifest.files, "files", list(manifest.files), f"{name} among them")
    for name in manifest.files:
        # A manifest must not reach outside its own folder.
        _must(
            name not in ("", ".", "..") and "/" not in name and "\\" not in name and name.isprintable(),
            "files",
            name,
            "a bare file name",
        )
        _must(name not in (MANIFEST, SIGNATURE), "files", name, "a file that the manifest can vouch for")
    _check_files(manifest.files)
    _must(len(rolling) > 0, "calibration.rolling", rolling, "at least one row")
    seconds = [row[0] for row in rolling]
    _must(seconds == sorted(set(seconds)), "calibration.rolling", seconds, "rows in ascending seconds")
    _must(0 < decision.prior_spoof < 1, "decision.prior_spoof", decision.prior_spoof, "between 0 and 1")
    _must(decision.rolling_s > 0, "decision.rolling_s", decision.rolling_s, "more than 0")
    _must(decision.llr_clip > 0, "decision.llr_clip", decision.llr_clip, "more than 0")
    _must(decision.alarm > 0, "decision.alarm", decision.alarm, "more than 0")
    _must(decision.clear > 0, "decision.clear", decision.clear, "more than 0")
    _must(decision.drift >= 0, "decision.drift", decision.drift, "0 or more")
    _must(
        0 <= decision.min_speech_s <= audio.window_s,
        "decision.min_speech_s",
        decision.min_speech_s,
        "0 to a window",
    )


def _check_files(files: Mapping[str, FileEntry]) -> None:
    """Refuse what would take more memory than any model, and hashes that are none."""
    _must(len(files) <= FILES_MAX, "files", len(files), f"at most {FILES_MAX}")
    for name, entry in files.items():
        _must(bool(SHA256.fullmatch(entry.sha256)), f"files.{name}.sha256", entry.sha256, "64 hex digits in lower case")
        _must(entry.bytes >= 0, f"files.{name}.bytes", entry.bytes, "0 or more")
    total = sum(entry.bytes for entry in files.values())
    _must(total <= BUNDLE_MAX_BYTES, "files bytes", total, f"at most {BUNDLE_MAX_BYTES} in all")


def _check_blocks(manifest: Manifest) -> None:
    """Refuse blocks that do not fit a window, and what only a block model can have."""
    model, audio = manifest.model, manifest.audio
    if model.kind == "window":
        for field in ("head", "left_samples"):
            value = getattr(model, field)
            _must(value is msgspec.UNSET, f"model.{field}", value, "none: only a block model has one")
        return
    most = audio.window_samples
    _must(bool(model.head) and model.head != model.file, "model.head", model.head, "the file of a block model's head")
    _must(
        isinstance(model.left_samples, int) and 0 <= model.left_samples <= most,
        "model.left_samples",
        model.left_samples,
        f"0 to {most}, the audio that a block hears before its hop",
    )
    _must(
        audio.window_samples % audio.hop_samples == 0,
        "audio.window_samples",
        audio.window_samples,
        f"a multiple of {audio.hop_samples}: a window of whole blocks",
    )
