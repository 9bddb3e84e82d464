"""The daemon's settings: one frozen tree, each default written once, each key documented where it stands.

A value comes from a flag (`--set section.key=value`), else from the environment (`STREAMDET_SECTION__KEY`), else from
the TOML file, else from here. An unknown key is an error that names the nearest known one.
"""

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from streamdet.errors import ConfigError, MissingError, shown
from streamdet.records import MAX_CHANNELS, RATES_HZ, Encoding

ENV_PREFIX: Final = "STREAMDET_"
SYSTEM_FILE: Final = Path("/etc/streamdet/streamdet.toml")
# Thousands of clients, or of lines of comment; what is longer is another file, or a device that never ends.
FILE_MAX_BYTES: Final = 1 << 20

AnySection = TypeVar("AnySection", bound="Section")


class Section(BaseModel):
    """A table of settings: unknown keys are errors, a key's docstring is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Bundle(Section):
    """Which model."""

    path: Path | None = None
    """Folder of the bundle; without one, the starter that ships in the package."""
    signed_by: tuple[str, ...] = ()
    """Public Ed25519 keys (PEM files or base64): only bundles that one of them signed are taken; without any, all."""


class Endpoints(Section):
    """Where the daemon listens and speaks. An empty string switches an endpoint off."""

    audio: str = "tcp://127.0.0.1:5560"
    """ZeroMQ PULL, audio in."""
    verdicts: str = "tcp://127.0.0.1:5561"
    """ZeroMQ XPUB, verdicts and events out."""
    control: str = "tcp://127.0.0.1:5562"
    """ZeroMQ ROUTER, status, pause, resume, close."""
    http: str = "127.0.0.1:8560"
    """/livez, /readyz and /metrics."""
    pcm: tuple[str, ...] = ("tcp://127.0.0.1:5563",)
    """Raw PCM listeners, tcp://host:port or unix:/path; one connection is one stream."""
    insecure: bool = False
    """Allow addresses that are not loopback although nothing authenticates their peers."""


class Security(Section):
    """Who may do what. Addresses that leave this machine ask for keys, others only with `everywhere`."""

    clients: Path | None = None
    """File of the clients with their public keys, hashes of tokens, and roles; kept by streamdet keys."""
    server_key: Path | None = None
    """The server's CURVE key, made by streamdet keys new --server; without one, systemd's credential server.key."""
    everywhere: bool = False
    """Ask for keys on loopback, ipc and unix addresses too."""
    tls_cert: Path | None = None
    """TLS certificates for HTTP and raw PCM (PEM); without it, systemd's credential tls.cert."""
    tls_key: Path | None = None
    """Their private key (PEM, mode 0600); without it, systemd's credential tls.key."""


class Pcm(Section):
    """Format of a raw PCM connection that sends neither a WAV header nor a STREAMDET line."""

    rate: int = 8000
    """Samples a second of one channel (Hz)."""
    encoding: Encoding = "s16le"
    """s16le, f32le, mulaw or alaw."""
    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 1
    """Interleaved channels, each scored on its own."""

    @field_validator("rate")
    @classmethod
    def _known_rate(cls, value: int) -> int:
        if value not in RATES_HZ:
            raise ValueError(f"one of {', '.join(map(str, RATES_HZ))}")
        return value


class Scoring(Section):
    """How windows are scored."""

    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    """cuda and tensorrt refuse to start without; auto means cuda where there is an NVIDIA device, else cpu."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Threads that run the model on the CPU; 0 is one a core."""
    batch_max: Annotated[int, Field(ge=1, le=256)] = 16
    """Most windows in one run. Larger batches suit a GPU; on a CPU they only add lag."""
    min_window_s: Annotated[float, Field(ge=0.5, le=60)] = 1.0
    """Audio a track must have before its first window (s); it is repeated to fill one."""
    hop: Literal["fixed", "adaptive"] = "fixed"
    """fixed is the bundle's; adaptive (windowed bundles) scores settled tracks every other hop, doubtful every half."""
    deadline_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """A run of this length hangs: the process ends with code 71 (s); 0 is 20 times the slowest at start, at least 2."""
    cuda_graphs: bool = False
    """cuda replays each batch size as one launch; refuses a model of which a part computes on the CPU."""
    cache: Path | None = None
    """Folder for the engines that TensorRT builds; without one, the service's CacheDirectory or the user's cache."""


class Streams(Section):
    """Limits of what may be open."""

    idle_timeout_s: Annotated[float, Field(gt=0, le=86400)] = 10.0
    """A ZeroMQ stream without a valid frame for this long is closed (s)."""
    stalled_after_s: Annotated[float, Field(gt=0, le=86400)] = 2.0
    """A stream of which no frame came for this long has stalled, which an event tells (s)."""
    max_streams: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Streams open at once; one more is refused."""
    hash_key: Path | None = None
    """File (mode 0600, 32 bytes or more), or credential stream.key: stream ids become pseudonyms made with it."""


class Limits(Section):
    """How much a peer may take, so that none takes it from others; docs/operations.md has the reason of each number."""

    connections: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Connections of one endpoint at once; more wait, or take the place of one that has yet to say what it wants."""
    handshake_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    """From connecting to the first audio, or to the end of a request's head, over raw PCM and HTTP (s)."""
    idle_s: Annotated[float, Field(gt=0, le=86400)] = 10.0
    """A raw PCM connection that brings less than 0.1 s of audio in this time is closed (s)."""
    bytes_per_s: Annotated[int, Field(ge=1000)] = 16 << 20
    """Read from one raw PCM connection (B/s); whoever sends faster waits."""
    subscriptions: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Subscriptions of one ZeroMQ connection; one more, or one longer than any topic, and it is cut off."""
    streams_per_client: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Streams that one client of the clients file may have open."""
    ahead_s: Annotated[float, Field(gt=0, le=1e6)] = 60.0
    """How far a ZeroMQ stream may be ahead of real time (s): what a sender that stalled may make up for."""


class Decision(Section):
    """Overrides of the bundle's decision."""

    prior_spoof: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of calls that you expect to be spoof, for p_spoof; without it, the bundle's."""


class Daemon(Section):
    """The process itself."""

    drain_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 4.0
    """Longest wait for the last verdicts after SIGTERM (s)."""
    dumpable: bool = False
    """Allow core dumps and tracers, which see the calls' audio: for debugging alone."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe message that is logged to stderr."""
    log_format: Literal["text", "logfmt", "json"] = "text"
    """text for people, logfmt or json for programs; in systemd's journal all of them carry priorities."""


class Config(Section):
    """All settings."""

    bundle: Bundle = Bundle()
    endpoints: Endpoints = Endpoints()
    security: Security = Security()
    pcm: Pcm = Pcm()
    scoring: Scoring = Scoring()
    streams: Streams = Streams()
    limits: Limits = Limits()
    decision: Decision = Decision()
    daemon: Daemon = Daemon()


class Setting(msgspec.Struct, frozen=True):
    """One key, for the sample, the docs and their test."""

    name: str
    """`section.key`"""
    default: Any
    help: str


def settings() -> Iterator[Setting]:
    """List every key in the order of the tree."""
    for section, field in Config.model_fields.items():
        for key, leaf in type(field.default).model_fields.items():
            yield Setting(f"{section}.{key}", leaf.default, leaf.description or "")


def load(path: Path | None = None, overrides: Mapping[str, str] | None = None) -> Config:
    """Read the settings.

    Args:
        path: a TOML file; None means /etc/streamdet/streamdet.toml if it is there.
        overrides: `section.key` -> text, from flags; they win over the environment, which wins over the file.

    Raises:
        MissingError: `path` is given and not there.
        ConfigError: broken TOML, an unknown key, or a value that is not allowed.
    """
    tree = _read_file(path)
    for source, given in ((ENV_PREFIX, _environment()), ("--set", overrides or {})):
        for name, text in given.items():
            _put(tree, name, text, source)
    return validated(Config, tree)


def validated(kind: type[AnySection], tree: Mapping[str, Any]) -> AnySection:
    """Make a tree of settings from parsed TOML.

    Raises:
        ConfigError: an unknown key, or a value that is not allowed.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explained(kind, error)) from None


def sample() -> str:
    """Return a config file with every key commented out at its default."""
    lines = ["# streamdet.toml: every key at its default. Uncomment what you change."]
    for section, field in Config.model_fields.items():
        lines += ["", f"# {type(field.default).__doc__}", f"[{section}]"]
        for key, leaf in type(field.default).model_fields.items():
            lines += [f"# {leaf.description}", f"# {key} = {_toml(leaf.default)}"]
    return "\n".join(lines) + "\n"


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        path = SYSTEM_FILE if SYSTEM_FILE.is_file() else None
    return {} if path is None else read_toml(path)


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        MissingError: there is no such file.
        ConfigError: it cannot be read or is not TOML.
    """
    try:
        with path.open("rb") as file:
            text = file.read(FILE_MAX_BYTES + 1)
    except FileNotFoundError:
        raise MissingError.of("config file", str(path), "a file that exists") from None
    except OSError as error:
        raise ConfigError.of("config file", str(path), f"a readable file ({error.strerror})") from None
    if len(text) > FILE_MAX_BYTES:
        raise ConfigError.of("config file", str(path), f"at most {FILE_MAX_BYTES} bytes")
    return parse_toml(text, f"config file {path}")


def parse_toml(text: bytes, what: str) -> dict[str, Any]:
    """Parse TOML; `what` names it in errors.

    Raises:
        ConfigError: it is not TOML.
    """
    try:
        return tomllib.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        # Of UTF-8 and tomllib, and Python's own of a number of thousands of digits or as many brackets.
        raise ConfigError(f"{what}: {error}") from None


def _environment() -> dict[str, str]:
    """STREAMDET_SECTION__KEY -> section.key; variables without `__` belong to the command line."""
    found = {}
    for variable, text in os.environ.items():
        section, double, key = variable.removeprefix(ENV_PREFIX).partition("__")
        if variable.startswith(ENV_PREFIX) and double:
            found[f"{section}.{key}".lower()] = text
    return found


def _put(tree: dict[str, Any], name: str, text: str, source: str) -> None:
    section, dot, key = name.partition(".")
    if not dot:
        raise ConfigError.of(source, name, "section.key=value")
    table = tree.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError.of(section, table, "a table")
    table[key] = _parsed(section, key, text)


def _parsed(section: str, key: str, text: str) -> Any:
    """Text as the key's type wants it: lists are JSON or comma-separated, the rest pydantic reads from text."""
    if not isinstance(_default(section, key), tuple):
        return text
    if text.startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError.of(f"{section}.{key}", text, f"a JSON list ({error})") from None
    return [part.strip() for part in text.split(",") if part.strip()]


def _default(section: str, key: str) -> Any:
    return getattr(getattr(Config(), section, None), key, None)


def _explained(kind: type[Section], error: ValidationError) -> str:
    """Turn pydantic's first complaint into our kind of line."""
    first = error.errors(include_url=False)[0]
    where = [part for part in first["loc"] if isinstance(part, str)]
    if first["type"] == "extra_forbidden":
        return f"{'.'.join(where)}: unknown key, {_nearest(kind, where)}"
    if first["type"] == "missing":
        return f"{'.'.join(where)}: not set, expected a value"
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{'.'.join(where)}: {shown(first['input'])}, expected {expected}"


def _nearest(kind: type[Section], where: list[str]) -> str:
    for section in where[:-1]:
        kind = _section(kind, section)
    known, prefix = list(kind.model_fields), "".join(f"{section}." for section in where[:-1])
    close = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.5)
    return f"did you mean {prefix}{close[0]}?" if close else f"expected one of {', '.join(known)}"


def _section(kind: type[Section], name: str) -> type[Section]:
    """The class of the section `name`, which may be optional."""
    annotation = kind.model_fields[name].annotation
    candidates = (annotation, *get_args(annotation))
    return next(part for part in candidates if isinstance(part, type) and issubclass(part, Section))


def _toml(value: Any) -> str:
    if value is None:
        return "(not set)"
    return json.dumps(list(value) if isinstance(value, tuple) else value)
