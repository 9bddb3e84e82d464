"""What is fuzzed: one function a parser, which takes any bytes and fails when a promise is broken.

The same functions serve the coverage-guided fuzzers (`atheris_all.py`), the replay of what those found
(`test_corpus.py`) and hypothesis (`test_codecs.py`). The promises: no exception but the declared ones, messages of one
printable and bounded line, what is read can be written and read back, and where bytes are cut makes no difference.
"""

import functools
import os
import re
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast
from unittest import mock

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from streamdet import activation, addresses, bundle, config, keys, signature
from streamdet.bundle import Manifest
from streamdet.control import Control
from streamdet.engine import Engine
from streamdet.errors import LINE_CHARS, BundleError, ConfigError, ProtocolError, StreamdetError
from streamdet.publish import Publisher
from streamdet.records import ENCODINGS, AudioFormat, Event, Frame, Heartbeat, Verdict
from streamdet.verdict import Tracker
from streamdet.wire import frames, verdicts
from streamdet.wire.pcm import Opening, PcmParser

Target = Callable[[bytes], None]

# Made for this; nobody has them.
KEY_PAIR: Final = (b"Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID", b"D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs")
PUBLIC: Final = "6Omok+KK4uEZ1s051r3I2A5Cl9MkI+9fuVKDIxneGdM="
# Of the control socket to a request of at most 1 KiB, with one open stream: `id` comes back, its letters escaped.
ANSWER_MAX_BYTES: Final = 16 << 10


def told(error: StreamdetError) -> str:
    """Check an error's line as a log and a terminal would like it."""
    line = str(error)
    assert line.isprintable(), ascii(line)
    assert 0 < len(line) <= LINE_CHARS, len(line)
    return line


# -- frames over ZeroMQ ------------------------------------------------------------------------------------------------


def parts_of(data: bytes) -> list[bytes]:
    """Cut bytes into a message: how many parts there are, then the length of each but the last, which is the rest."""
    count, data, parts = sum(data[:1]) % 6, data[1:], []
    while len(parts) < count - 1:
        length = int.from_bytes(data[:2], "little") % (frames.HEADER_MAX_BYTES + 2)
        parts.append(data[2 : 2 + length])
        data = data[2 + length :]
    return [*parts, data] if count else []


def message_of(parts: Sequence[bytes]) -> bytes:
    """Join parts into bytes that `parts_of` cuts again."""
    heads = b"".join(len(part).to_bytes(2, "little") + part for part in parts[:-1])
    return bytes([len(parts)]) + heads + parts[-1]


def frame_outcome(parts: Sequence[bytes], parse: Callable[[Sequence[bytes]], Frame]) -> Frame | str:
    """Give the frame or the line that says why there is none."""
    try:
        return parse(parts)
    except ProtocolError as error:
        return told(error)


def check_message(parts: list[bytes]) -> None:
    """Check that a message is a frame or an error, the same for both readings, and that a frame survives the wire."""
    found = frame_outcome(parts, frames.parse)
    assert repr(found) == repr(frame_outcome(parts, frames.parse_carefully))
    if isinstance(found, Frame):
        assert frames.parse(frames.build(found)) == found
        assert frames.stream_of(parts) == found.stream
        assert found.stream.isprintable()
    else:
        frames.stream_of(parts)


def fuzz_frames(data: bytes) -> None:
    """Read bytes as a message of up to six parts."""
    check_message(parts_of(data))


def fuzz_header(data: bytes) -> None:
    """Read bytes as the header of a message that is good otherwise."""
    check_message([b"a", data, b"\xff"])


# -- raw PCM -----------------------------------------------------------------------------------------------------------

LISTENERS: Final = [AudioFormat(8000, encoding, channels) for encoding in ENCODINGS for channels in (1, 2, 8)]


def pcm_outcome(pieces: Sequence[bytes], form: AudioFormat) -> tuple[Opening | None, bytes, str]:
    """Read a connection to its end: what it opened, the samples, and the error's line where there was one."""
    parser, heard, line = PcmParser(form), b"", ""
    opening = None
    try:
        for number, piece in enumerate([*pieces, b""]):
            parser.feed(piece)
            opening = parser.opening(ended=number == len(pieces))
            while opening is not None and (samples := parser.samples(1000)):
                assert len(samples) % opening.format.block_bytes == 0
                heard += samples
        parser.finish()
    except ProtocolError as error:
        line = told(error)
    return opening, heard, line


def fuzz_pcm(data: bytes) -> None:
    """Read bytes as a connection: the first two say of which listener and how it is cut."""
    form, cut, stream = LISTENERS[sum(data[:1]) % len(LISTENERS)], 1 + sum(data[1:2]), data[2:]
    whole = pcm_outcome([stream], form)
    cuts = [stream[at : at + cut] for at in range(0, len(stream), cut)]
    opened, heard, line = pcm_outcome(cuts, form)
    assert (opened, heard) == whole[:2]
    assert bool(line) == bool(whole[2])
    assert len(heard) <= len(stream)


# -- verdicts ----------------------------------------------------------------------------------------------------------


def fuzz_verdicts(data: bytes) -> None:
    """Read bytes as a message of the daemon: a topic's line, then JSON."""
    topic, _, body = data.partition(b"\n")
    try:
        record = verdicts.parse([topic, body])
    except ProtocolError as error:
        told(error)
        return
    assert verdicts.parse(verdicts.build(record)) == record


# -- files -------------------------------------------------------------------------------------------------------------


@functools.cache
def folder() -> Path:
    """Give a folder for files that are written over and over."""
    made = tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    folder.held = made  # type: ignore[attr-defined]  # it lives as long as the process
    return Path(made.name)


def written(name: str, data: bytes) -> Path:
    """Write a file."""
    path = folder() / name
    path.write_bytes(data)
    return path


def fuzz_manifest(data: bytes) -> None:
    """Read bytes as manifest.json; what is accepted is loaded again, and gives verdicts with numbers."""
    try:
        found = bundle.load(written(bundle.MANIFEST, data).parent).manifest
    except BundleError as error:
        told(error)
        return
    again = written(bundle.MANIFEST, msgspec.json.encode(found))
    assert bundle.load(again.parent).manifest == found
    assert found.model_id.isprintable()
    check_tracker(found)


def check_tracker(manifest: Manifest) -> None:
    """Check that a manifest's thresholds make states and probabilities, whatever the model says."""
    tracker = Tracker(manifest.decision, manifest.calibration, manifest.audio)
    for number, llr in enumerate((None, 1e30, -1e30, 0.0)):
        standing = tracker.update(llr, manifest.audio.window_s + number, manifest.audio.hop_s)
        assert standing.p_spoof is None or 0 <= standing.p_spoof <= 1, standing


def fuzz_config(data: bytes) -> None:
    """Read bytes as a config file; what is accepted is the same tree when it is given again."""
    try:
        found = config.load(written("streamdet.toml", data))
    except ConfigError as error:
        told(error)
        return
    assert config.Config.model_validate(found.model_dump()) == found
    check_addresses(found)


def check_addresses(settings: config.Config) -> None:
    """Check that any address is taken or refused."""
    try:
        addresses.check_endpoints(settings)
    except ConfigError as error:
        told(error)


def settings_of(data: bytes) -> dict[str, str]:
    """Cut bytes into `name=value` lines, as an environment has them: what is no UTF-8 comes as surrogates."""
    lines = (line.partition("=") for line in data.decode("utf-8", "surrogateescape").split("\n"))
    return {name: value for name, equals, value in lines if equals}


def fuzz_settings(data: bytes) -> None:
    """Read lines as `--set section.key=value`, and as the variables of an environment."""
    given = settings_of(data)
    variables = {config.ENV_PREFIX + name.replace(".", "__", 1): value for name, value in given.items()}
    for environment, overrides in (({}, given), (variables, {})):
        with mock.patch.object(config.os, "environ", environment):
            try:
                check_addresses(config.load(None, overrides))
            except ConfigError as error:
                told(error)


def fuzz_clients(data: bytes) -> None:
    """Read bytes as the file of clients; whoever it has may do what it says, nobody else anything."""
    try:
        clients = keys.Clients(written("clients.toml", data))
    except ConfigError as error:
        told(error)
        return
    for name, client in clients:
        assert name.isascii()
        assert name.isprintable()
        for role in keys.ROLES:
            allowed = name if role in client.roles else None
            assert client.curve is None or clients.may(role, curve=client.curve) == allowed
    assert clients.may("send", curve="", token="") is None
    assert clients.may("send", token="\ud800") is None


def fuzz_identity(data: bytes) -> None:
    """Read bytes as a key file; what is wrong with it is told without a word of it."""
    path = written("identity.toml", data)
    path.chmod(keys.SECRET_MODE)
    try:
        found = keys.Identity.read(path)
    except ConfigError as error:
        told(error)
        return
    assert keys.is_key(found.public)
    assert keys.is_key(found.secret)
    assert found.secret not in repr(found)


def fuzz_activation(data: bytes) -> None:
    """Read lines as what systemd says of the sockets that it hands over, of which there is none."""
    count, _, names = data.decode("utf-8", "surrogateescape").partition("\n")
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": names}
    # Far above any descriptor of ours, or those of the test would be taken for systemd's.
    with mock.patch.object(activation, "FIRST_FD", 1 << 20), mock.patch.object(activation.os, "environ", environment):
        try:
            inherited = activation.Inherited.of_environment()
        except ConfigError as error:
            told(error)
            return
    assert inherited.endpoints(config.Endpoints()) == config.Endpoints()
    assert environment == {}


def fuzz_signature(data: bytes) -> None:
    """Read bytes as a signature and what it is of: only one thing was ever signed."""
    try:
        signature.check(folder(), data[64:], data[:64], [PUBLIC])
    except BundleError as error:
        told(error)
    else:
        assert data == signed()


def fuzz_key(data: bytes) -> None:
    """Read bytes as `bundle.signed_by` has a key: by value, or as a path."""
    try:
        key = signature._public_key(data.decode("utf-8", "surrogateescape"))
    except ConfigError as error:
        told(error)
    else:
        assert len(key) == signature.KEY_BYTES


def signed() -> bytes:
    """Give a signature of an empty object, and the object."""
    return Ed25519PrivateKey.from_private_bytes(b"streamdet fuzzes its signatures.").sign(b"{}") + b"{}"


# -- control -----------------------------------------------------------------------------------------------------------


def small_manifest() -> Manifest:
    """Give the starter's manifest: any will do."""
    return bundle.load(bundle.starter_path()).manifest


@functools.cache
def engine() -> Engine:
    """Give an engine whose only stream is opened again by whoever needs it."""
    return Engine(small_manifest(), lambda _: None)


def fuzz_control(data: bytes) -> None:
    """Read bytes as a request; the answer is one object of bounded size, and the engine goes on."""
    form = AudioFormat(8000, "mulaw")
    if not engine().is_open("a"):
        engine().feed(Frame("a", form, b"\xff" * 80), 0.0)
    answered: list[list[bytes]] = []
    with mock.patch.object(Control, "send", lambda _, parts: answered.append(parts)):
        Control("", engine(), Publisher(""))._take_request([b"\0peer", b"", data])
    (parts,) = answered
    answer: dict[str, Any] = msgspec.json.decode(parts[-1])
    assert parts[:-1] == [b"\0peer", b""]
    assert len(parts[-1]) <= ANSWER_MAX_BYTES
    assert answer["ok"] or (answer["error"].isprintable() and len(answer["error"]) <= LINE_CHARS)
    engine().take(8)
    engine().counts()


TARGETS: Final[dict[str, Target]] = {
    name.removeprefix("fuzz_"): cast(Target, function)
    for name, function in list(globals().items())
    if name.startswith("fuzz_")
}


def small_seeds() -> dict[str, list[bytes]]:
    """Give good inputs of each target: where fuzzing begins, and what hypothesis tampers with."""
    form, header = AudioFormat(8000, "s16le"), b'{"rate":8000,"encoding":"mulaw","seq":1,"start":160,"sent_at":1.5}'
    frame = Frame("a", form, b"\1\2" * 4, seq=3, start=480, sent_at_s=1.5e9, end=True)
    fmt = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16_000, 2, 16)
    wav = b"RIFF\0\0\0\0WAVELIST\3\0\0\0abc\0" + fmt + b"data\4\0\0\0\1\2\3\4more"
    records = (
        Verdict("a", 0, "0f", 0, 0.0, 4.0, 1.0, 1.0, -0.5, -0.5, 0.5, "uncertain", 4.0, 0, 1.0, None, "m@0"),
        Event("close", "a", None, 1.5, {"reason": "end", "channels": [{"windows": 1}]}),
        Heartbeat("0f", 0, 1, 1, 1, 0, None, False),
    )
    manifest = msgspec.structs.replace(small_manifest(), provenance={})
    lines = (line.removeprefix("# ") for line in config.sample().splitlines())
    sample = "\n".join(line for line in lines if re.match(r"\[|\w+ = (?!\(not set\))", line))
    settings = (
        b'pcm.rate=16000\nendpoints.pcm=unix:/a, tcp://[::1]:0\nendpoints.pcm=["tcp://localhost:1"]\nbundle.path=b\n'
    )
    key, secret = KEY_PAIR
    return {
        "frames": [message_of(frames.build(frame))],
        "header": [header, b'{"rate":48000,"encoding":"f32le","channels":8,"event":"end"}'],
        "pcm": [b"\0\7" + head + tail for head in (b"", b"STREAMDET " + header + b"\n") for tail in (b"ab" * 20, wav)],
        "verdicts": [b"\n".join(verdicts.build(record)) for record in records],
        "manifest": [msgspec.json.encode(manifest)],
        "config": [sample.encode(), b'[bundle]\npath = "b"\n[endpoints]\npcm = []\n'],
        "settings": [settings, b"daemon.log_level=debug\nstreams.idle_timeout_s=0.5\nscoring.cuda_graphs=true\n"],
        "clients": [
            b'[recorder]\nroles = ["send", "read"]\ncurve = "%s"\n' % key + b'token_sha256 = "%s"\n' % (b"0f" * 32)
        ],
        "identity": [b'public = "%s"\nsecret = "%s"\nserver = "%s"\ntoken = "t"\n' % (key, secret, key)],
        "activation": [b"0\n"],
        "signature": [signed()],
        "key": [PUBLIC.encode()],
        "control": [b'{"id":1,"op":"%s","stream":"a"}' % op for op in (b"status", b"snapshot", b"pause", b"close")],
    }


def words() -> list[bytes]:
    """Give what inputs are made of, and what parsers have stumbled over elsewhere."""
    keys = {
        name
        for kind in (Verdict, Event, Heartbeat, Manifest, *parts_of_a_manifest())
        for name in kind.__struct_fields__
    }
    keys |= {key for setting in config.settings() for key in setting.name.split(".")}
    keys |= {"rate", "encoding", "channels", "seq", "start", "sent_at", "event", "id", "op", "stream", "type", "token"}
    odd = ["1e999", "-0", "9" * 400, "9007199254740993", "NaN", "inf", "0x", "1979-05-27", "[" * 600, "{", "}", '""']
    letters = [
        "\\ud800",
        "\\u0000",
        "\u202e",
        "\u2028",
        "\x1b[2J",
        "\0",
        "\r\n",
        "true",
        "null",
        "[[a]]",
        "a.b=",
        "tcp://[",
    ]
    return [word.encode() for word in (*sorted(keys), *odd, *letters)]


def parts_of_a_manifest() -> list[type[msgspec.Struct]]:
    """Give the kinds of table that a manifest has."""
    return [bundle.Audio, bundle.Model, bundle.Calibration, bundle.Decision, bundle.FileEntry]


# -- controls ----------------------------------------------------------------------------------------------------------

# What each target reads with: replaced by something broken, the target must fail.
PARSERS: Final[dict[str, tuple[Any, str]]] = {
    "frames": (frames, "parse_stream"),
    "header": (frames, "parse_fields"),
    "pcm": (PcmParser, "feed"),
    "verdicts": (verdicts.msgspec.json, "decode"),
    "manifest": (bundle.json, "loads"),
    "config": (config, "parse_toml"),
    "settings": (config, "_parsed"),
    "clients": (config, "parse_toml"),
    "identity": (config, "parse_toml"),
    "activation": (activation, "_by_name"),
    "signature": (signature, "check"),
    "key": (signature, "_public_key"),
    "control": (Control, "_answer"),
}


@contextmanager
def broken(target: str, bug: Callable[[bytes | str], None]) -> Iterator[None]:
    """Let a target's parser look at its input with `bug`, which raises what no parser may, before it reads it."""
    owner, name = PARSERS[target]
    parse = getattr(owner, name)

    def planted(*args: Any, **options: Any) -> Any:
        for value in args:
            if isinstance(value, bytes | bytearray | str):
                bug(value if isinstance(value, str) else bytes(value))
        return parse(*args, **options)

    with mock.patch.object(owner, name, planted):
        yield
