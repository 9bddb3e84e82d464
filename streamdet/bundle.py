"""The bundle: a folder with `manifest.json`, `model.onnx`, and the model's external data if it has any.

It is the whole contract between export and daemon. The format is pinned in docs/bundle.md; this module reads it, writes
it, and vouches for the bytes.
"""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from streamdet.errors import BundleError
from streamdet.records import RATES_HZ

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
# A manifest holds a few dozen numbers and some provenance; a larger file is something else.
MANIFEST_MAX_BYTES: Final = 1 << 20


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
        return {name: _verified(self.path / name, files[name]) for name in names or files}


def starter_path() -> Path:
    """Return the folder of the bundle that ships inside this package."""
    return Path(str(files("streamdet.starter")))


def starter_recordings() -> list[Path]:
    """Return the synthetic speech that ships with that bundle."""
    return sorted(starter_path().glob("*.flac"))


def load(path: Path) -> Bundle:
    """Read a bundle's manifest and check its rules; the files' content is checked by `read_verified`.

    Raises:
        BundleError: no such folder, no manifest, or a manifest that breaks a rule.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError.of("bundle", str(path), f"a folder with {MANIFEST}")
    if (size := file.stat().st_size) > MANIFEST_MAX_BYTES:
        raise BundleError.of(f"{file} bytes", size, f"at most {MANIFEST_MAX_BYTES}")
    try:
        manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
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


def _move(new: Path, place: Path, names: Iterable[str]) -> None:
    if not place.exists() or not any(place.iterdir()):
        new.rename(place)  # an empty folder is replaced
        return
    for name in names:
        (new / name).replace(place / name)
    new.rmdir()


def _verified(path: Path, entry: FileEntry) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError.of("bundle file", str(path), f"a readable file ({error.strerror})") from error
    if len(content) != entry.bytes:
        raise BundleError.of(f"{path} bytes", len(content), f"{entry.bytes} as its manifest says")
    if (digest := hashlib.sha256(content).hexdigest()) != entry.sha256:
        raise BundleError.of(f"{path} sha256", digest, f"{entry.sha256} as its manifest says")
    return content


def _must(rule: bool, field: str, value: object, expected: str) -> None:
    if not rule:
        raise BundleError.of(f"{MANIFEST} {field}", value, expected)


def _check(manifest: Manifest) -> None:
    """Refuse what no daemon could run."""
    audio, decision, rolling = manifest.audio, manifest.decision, manifest.calibration.rolling
    _must(manifest.format == FORMAT, "format", manifest.format, str(FORMAT))
    _must(bool(manifest.name) and " " not in manifest.name, "name", manifest.name, "a name without spaces")
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
            name not in ("", ".", "..") and "/" not in name and "\\" not in name,
            "files",
            name,
            "a bare file name",
        )
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
