"""The commands as somebody uses them: processes, sockets, files, pipes."""

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile

from streamdet import bundle
from streamdet.bundle import Audio, Bundle

STREAMDET = str(Path(sys.executable).with_name("streamdet"))
# Against a hang only: nothing here takes more than a few seconds.
PATIENCE_S = 60.0
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("STREAMDET_")} | {
    "OMP_NUM_THREADS": "1"
}

# What the packages of the extras bring.
HEAVY = ("torch", "torchaudio", "transformers", "peft", "accelerate", "safetensors", "scipy", "matplotlib")
HEAVY_TO_EXPORT = ("onnx", "onnxscript")

Result = subprocess.CompletedProcess[str]


def streamdet(*args: object, stdin: bytes = b"", environment: dict[str, str] | None = None) -> Result:
    """Run a command to its end."""
    done = subprocess.run(
        [STREAMDET, *map(str, args)],
        input=stdin,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        env=ENVIRONMENT | (environment or {}),
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def complaint(done: Result, exit_code: int) -> str:
    """The one line that a failed command says."""
    assert done.returncode == exit_code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("streamdet: ")
    return line


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class Running:
    """A command that goes on in the background; what it says goes to files, so that no pipe fills."""

    def __init__(self, folder: Path, args: Sequence[object], stdin: bytes = b"") -> None:
        folder.mkdir()
        self._out, self._err = folder / "stdout", folder / "stderr"
        (folder / "stdin").write_bytes(stdin)
        with self._out.open("wb") as out, self._err.open("wb") as err, (folder / "stdin").open("rb") as source:
            self.process = subprocess.Popen(
                [STREAMDET, *map(str, args)], stdin=source, stdout=out, stderr=err, env=ENVIRONMENT
            )

    @property
    def out(self) -> str:
        """Whole lines that it has written so far."""
        text = self._out.read_text("utf-8")
        return text[: text.rfind("\n") + 1]

    @property
    def err(self) -> str:
        return self._err.read_text("utf-8")

    def until(self, seen: Callable[[], object], again: Callable[[], object] = lambda: None) -> None:
        """Wait until `seen`, doing something `again` and again meanwhile."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not seen():
            assert time.monotonic() < deadline_s, f"{self.process.args}: {self.out}{self.err}"
            assert self.process.poll() is None or seen(), f"ended: {self.process.args}: {self.out}{self.err}"
            again()
            time.sleep(0.05)

    def done(self) -> Result:
        """Wait for its end."""
        code = self.process.wait(PATIENCE_S)
        return subprocess.CompletedProcess(self.process.args, code, self._out.read_text("utf-8"), self.err)

    def stop(self, number: int = signal.SIGTERM) -> Result:
        self.process.send_signal(number)
        return self.done()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts commands, and ends those that still run."""
    started: list[Running] = []

    def begin(*args: object, stdin: bytes = b"") -> Running:
        started.append(Running(tmp_path / f"process-{len(started)}", args, stdin))
        return started[-1]

    yield begin
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait(PATIENCE_S)


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def config_file(tmp_path: Path, tiny_bundle: Bundle) -> Path:
    """A daemon of one's own."""
    names = ("audio", "verdicts", "control", "http", "pcm")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    lines = [f'{name} = "tcp://127.0.0.1:{ports[name]}"' for name in names[:3]]
    lines += [f'http = "127.0.0.1:{ports["http"]}"', f'pcm = ["tcp://127.0.0.1:{ports["pcm"]}"]']
    file = tmp_path / "streamdet.toml"
    file.write_text("\n".join(["[endpoints]", *lines, "[bundle]", f'path = "{tiny_bundle.path}"\n']), "utf-8")
    return file


def pcm_port(config_file: Path) -> int:
    return int(config_file.read_text("utf-8").partition("pcm =")[2].partition('"]')[0].rpartition(":")[2])


@pytest.fixture
def daemon(start, config_file) -> Running:
    running = start("run", "-c", config_file)
    running.until(lambda: "ready" in running.err)
    return running


@pytest.fixture
def wav(tmp_path, babble) -> Path:
    """Two seconds at 16 kHz."""
    file = tmp_path / "call.wav"
    soundfile.write(file, babble[:32_000], 16_000)
    return file


def called(config_file: Path, stream: str) -> socket.socket:
    """A call that goes on until the socket is closed."""
    connection = socket.create_connection(("127.0.0.1", pcm_port(config_file)))
    greeting = {"stream": stream, "rate": 16_000, "encoding": "s16le", "channels": 1}
    connection.sendall(b"STREAMDET " + json.dumps(greeting).encode() + b"\n" + bytes(3200))
    return connection


def tailing(start, config_file: Path, *args: object) -> Running:
    """A `tail` that has been heard by the daemon: calls are made until it tells of one."""
    tail = start("tail", "-c", config_file, *args)
    numbers = iter(range(10_000))

    def knock() -> None:
        with contextlib.suppress(ConnectionError):
            called(config_file, f"knock-{next(numbers)}").close()

    tail.until(lambda: "knock" in tail.out, knock)
    return tail


def closed(tail: Running, *streams: str) -> list[dict[str, Any]]:
    """All that `tail --json` tells of the streams until they have ended, in order."""

    def mine() -> list[dict[str, Any]]:
        return [record for record in objects(tail.out) if record["stream"] in streams]

    tail.until(lambda: sum(record["type"] == "close" for record in mine()) == len(streams))
    return mine()


def of(stream: str, kind: str, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if (record["stream"], record["type"]) == (stream, kind)]


# -- run, send, tail, status -----------------------------------------------------------------------------------------


def frames_taken(config_file: Path) -> float:
    """Messages that the daemon has taken so far."""
    address = config_file.read_text("utf-8").partition('http = "')[2].partition('"')[0]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE_S) as answer:
        rows = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
    return float(rows.get('streamdet_frames_total{transport="zeromq"}', 0))


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(("words", "frames"), [((), 20), (("--frame-ms", "40"), 50)])
def test_a_message_holds_100_ms_or_what_is_asked_for(start, config_file, wav, words, frames):
    tail = tailing(start, config_file, "--json")
    assert streamdet("send", wav, "-c", config_file, *words).returncode == 0
    closed(tail, "call")
    assert frames_taken(config_file) == frames + 1  # and the empty one that ends it


def test_a_call_in_real_time_is_scored_and_told_of(start, config_file, daemon, wav):
    tail = tailing(start, config_file, "--json")
    done = streamdet("send", wav, "-c", config_file, "--encoding", "mulaw")
    assert (done.returncode, done.stdout) == (0, "")
    assert len(done.stderr.splitlines()) == 1
    records = closed(tail, "call")
    assert [record["type"] for record in records if record["type"] in ("open", "close")] == ["open", "close"]
    (opened,), (ended,) = of("call", "open", records), of("call", "close", records)
    assert (opened["detail"]["encoding"], opened["detail"]["rate_hz"]) == ("mulaw", 8000)
    assert (ended["detail"]["reason"], ended["detail"]["seconds"]) == ("end", 2.0)
    verdicts = of("call", "verdict", records)
    assert verdicts
    assert verdicts[0]["model"].startswith("level")
    assert daemon.stop().returncode == 0


@pytest.mark.usefixtures("daemon")
def test_without_loss_every_way_to_send_gives_the_verdicts_of_score(start, config_file, wav):
    tail = tailing(start, config_file, "--json")
    samples, _ = soundfile.read(wav, dtype="int16")
    raw = samples.astype("<i2").tobytes()
    common = ("send", "-c", config_file)
    sending = [
        start(*common, wav, "--speed", 0, "--stream", "fast"),
        start(*common, wav, "--pcm", "--stream", "slow"),
        start(*common, wav, "--speed", 0, "--calls", 3, "--stream", "many"),
        start(*common, "-", "--speed", 0, "--rate", 16_000, "--stream", "raw", stdin=raw),
        start(*common, "-", "--speed", 0, "--stream", "header", stdin=wav.read_bytes()),
    ]
    for each in sending:
        assert each.done().returncode == 0, each.err
    streams = ("fast", "slow", "many-1", "many-2", "many-3", "raw", "header")
    records = closed(tail, *streams)
    expected = objects(streamdet("score", wav, "--json", "-c", config_file).stdout)
    assert [verdict["end_s"] for verdict in expected] == [1.0, 2.0]
    for stream in streams:
        got = of(stream, "verdict", records)
        for name in ("start_s", "end_s", "llr", "rolling_llr", "state", "speech_s", "seq"):
            assert [verdict[name] for verdict in got] == [verdict[name] for verdict in expected], (stream, name)


@pytest.mark.usefixtures("daemon")
def test_tail_tells_a_pipe_lines_and_only_of_the_streams_that_it_was_asked_for(start, config_file, wav):
    tail = tailing(start, config_file, "knock", "wanted")
    for stream in ("other", "wanted-1"):
        assert streamdet("send", wav, "-c", config_file, "--speed", 0, "--stream", stream).returncode == 0
    tail.until(lambda: "wanted-1  close" in tail.out)
    lines = [line for line in tail.out.splitlines() if "knock" not in line]
    assert all("wanted-1" in line for line in lines)
    assert [line.split()[2] for line in lines if "P(spoof)" in line] == ["wanted-1/0", "wanted-1/0"]
    assert "\x1b" not in tail.out
    assert tail.err == ""


def test_tail_goes_on_after_the_daemon_came_back(start, config_file, daemon):
    tail = tailing(start, config_file, "--json")
    assert daemon.stop().returncode == 0
    again = start("run", "-c", config_file)
    again.until(lambda: "ready" in again.err)
    numbers = iter(range(10_000))
    tail.until(lambda: "later" in tail.out, lambda: called(config_file, f"later-{next(numbers)}").close())
    assert tail.err == ""


@pytest.mark.usefixtures("daemon")
def test_a_reader_that_has_had_enough_is_no_error(config_file):
    tail = subprocess.Popen(
        [STREAMDET, "tail", "-c", config_file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    with tail, subprocess.Popen([str(shutil.which("head")), "-1"], stdin=tail.stdout, stdout=subprocess.PIPE) as head:
        try:
            assert tail.stdout is not None
            tail.stdout.close()  # head has it now
            numbers, deadline_s = iter(range(10_000)), time.monotonic() + PATIENCE_S
            while tail.poll() is None and time.monotonic() < deadline_s:
                called(config_file, f"knock-{next(numbers)}").close()
                time.sleep(0.05)
            assert tail.poll() == 0
            assert head.stdout is not None
            assert len(head.stdout.read().splitlines()) == 1
            assert tail.stderr is not None
            assert tail.stderr.read() == b""
        finally:
            tail.kill()
            head.kill()


@pytest.mark.parametrize("args", [("score", "FILE"), ("score", "--json", "FILE"), ("config",)])
def test_a_reader_that_has_gone_is_no_error(args, config_file, wav):
    filled = [str(wav) if arg == "FILE" else arg for arg in args]
    if args[0] == "score":
        filled += ["-c", str(config_file)]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(
            [STREAMDET, *filled], stdout=gone, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False, env=ENVIRONMENT
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.usefixtures("daemon")
def test_an_interrupt_ends_tail_quietly(start, config_file):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits "ignored"
    try:
        tail = tailing(start, config_file)
    finally:
        signal.signal(signal.SIGINT, before)
    done = tail.stop(signal.SIGINT)
    assert (done.returncode, done.stderr) == (130, "")


def test_status_says_how_the_daemon_is_and_lists_open_tracks(config_file, daemon):
    with called(config_file, "call[/]7"):  # square brackets are nothing special in a stream id
        daemon.until(lambda: "call[/]7" in streamdet("status", "-c", config_file, "--json").stdout)
        health, track = objects(streamdet("status", "-c", config_file, "--json").stdout)
        assert (track["type"], track["stream"], track["channel"]) == ("track", "call[/]7", 0)
        assert track["state"] == "listening"
        assert (health["type"], health["ready"], health["streams"]) == ("health", True, 1)
        assert health["pid"] == daemon.process.pid
        done = streamdet("status", "-c", config_file)
        assert (done.returncode, done.stderr) == (0, "")
        head, calls, _, empty, _, row = done.stdout.splitlines()
        assert "ready, level@" in head
        assert calls.startswith("1 of 1000 calls, 1 tracks")
        assert empty == ""
        assert row.split()[:3] == ["call[/]7", "0", "listening"]


def test_control_pauses_resumes_and_closes(config_file, daemon):
    def of_call() -> dict[str, Any]:
        found = objects(streamdet("top", "call", "-c", config_file, "--json").stdout)
        return next((each for each in found if each["type"] == "track"), {})

    with called(config_file, "call"):
        daemon.until(of_call)
        done = streamdet("control", "pause", "call", "-c", config_file)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "pause call: done\n")
        assert of_call()["paused"]
        assert streamdet("control", "resume", "call", "-c", config_file).returncode == 0
        assert not of_call()["paused"]
        assert streamdet("control", "close", "call", "-c", config_file).returncode == 0
        daemon.until(lambda: not of_call())
    assert "'nobody'" in complaint(streamdet("control", "pause", "nobody", "-c", config_file), 65)


@pytest.mark.usefixtures("daemon")
def test_control_reloads_and_says_what_was_wrong(config_file, tiny_bundle):
    done = streamdet("control", "reload", "-c", config_file)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("reload level@")
    assert done.stderr.endswith(": done\n")
    (tiny_bundle.path / "model.onnx").write_bytes(b"another")
    assert "model.onnx" in complaint(streamdet("control", "reload", "-c", config_file), 78)
    health = objects(streamdet("status", "-c", config_file, "--json").stdout)[0]
    assert "model.onnx" in health["reload"]["error"]
    assert "reload refused" in streamdet("status", "-c", config_file).stdout


@pytest.mark.parametrize("words", [("fly", "call"), ("pause",), ("reload", "call")])
def test_control_wants_an_operation_and_what_it_is_for(words):
    complaint(streamdet("control", *words), 64)


def test_top_prints_once_where_there_is_no_terminal(config_file, daemon):
    with called(config_file, "b-call"), called(config_file, "a-call"):
        daemon.until(lambda: len(streamdet("top", "-c", config_file).stdout.splitlines()) == 7)
        lines = streamdet("top", "-c", config_file, "--sort", "name").stdout.splitlines()
        assert [line.split()[0] for line in lines[5:]] == ["a-call/0", "b-call/0"]
        found = objects(streamdet("top", "b-", "-c", config_file, "--json").stdout)
        assert [each.get("stream") for each in found] == [None, "b-call"]
        assert "\x1b" not in "".join(lines)
    assert "--sort" in complaint(streamdet("top", "--sort", "colour"), 64)


class Terminal:
    """A program in a terminal that is read as a person would read it."""

    def __init__(self, folder: Path, *args: object) -> None:
        self._tmux = [str(shutil.which("tmux")), "-S", str(folder / "tmux"), "-f", "/dev/null"]
        command = shlex.join([STREAMDET, *map(str, args)])
        # `cat` keeps the terminal open, so that its last screen can be read.
        self._do("new-session", "-d", "-x", "120", "-y", "24", f"{command}; echo ended with $?; cat")

    def _do(self, *words: str) -> str:
        return subprocess.run([*self._tmux, *words], capture_output=True, text=True, check=True, env=ENVIRONMENT).stdout

    def press(self, *keys: str) -> None:
        self._do("send-keys", *keys)

    def until(self, seen: Callable[[list[str]], object]) -> list[str]:
        deadline_s = time.monotonic() + PATIENCE_S
        while not seen(lines := self._do("capture-pane", "-p").splitlines()):
            assert time.monotonic() < deadline_s, "\n".join(lines)
            time.sleep(0.05)
        return lines

    def close(self) -> None:
        self._do("kill-server")


@pytest.fixture
def terminal(tmp_path) -> Iterator[Callable[..., Terminal]]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    made: list[Terminal] = []

    def one(*args: object) -> Terminal:
        made.append(Terminal(tmp_path, *args))
        return made[-1]

    yield one
    for each in made:
        each.close()


def names(lines: Sequence[str]) -> list[str]:
    return [line.split()[0] for line in lines if "/0 " in line]


@pytest.mark.usefixtures("daemon")
def test_top_on_a_terminal_obeys_keys(terminal, config_file):
    with called(config_file, "bob"), called(config_file, "alice"):
        shown = terminal("top", "-c", config_file, "--sort", "duration")
        lines = shown.until(lambda lines: len(names(lines)) == 2)
        assert "ready, level@" in lines[0]
        shown.press("n")
        assert names(shown.until(lambda lines: "by name " in "".join(lines))) == ["alice/0", "bob/0"]
        shown.press("r")
        assert names(shown.until(lambda lines: "backwards" in "".join(lines))) == ["bob/0", "alice/0"]
        shown.press("/", "l", "i", "q", "BSpace")
        shown.until(lambda lines: names(lines) == ["alice/0"])
        shown.press("Escape")
        shown.until(lambda lines: len(names(lines)) == 2)
    shown.until(lambda lines: "(ended)" in "".join(lines))
    shown.press("q")
    shown.until(lambda lines: "ended with 0" in "".join(lines))


def test_top_waits_for_a_daemon_and_for_one_that_comes_back(terminal, start, config_file):
    shown = terminal("top", "-c", config_file)
    shown.until(lambda lines: "waiting for a daemon" in "".join(lines))
    first = start("run", "-c", config_file)
    shown.until(lambda lines: "ready, level@" in "".join(lines))
    assert first.stop().returncode == 0
    shown.until(lambda lines: "nothing heard for" in "".join(lines) or "waiting for" in "".join(lines))
    start("run", "-c", config_file)
    shown.until(lambda lines: "ready, level@" in "".join(lines))


def test_a_daemon_that_is_told_to_end_ends_its_calls(start, config_file, daemon):
    tail = tailing(start, config_file, "--json")
    with called(config_file, "open"):
        tail.until(lambda: of("open", "open", objects(tail.out)))
        assert daemon.stop().returncode == 0
        (ended,) = of("open", "close", closed(tail, "open"))
    assert ended["detail"]["reason"] == "drain"


def test_nobody_there(start, config_file, wav):
    commands = [("send", wav), ("send", wav, "--pcm"), ("send", wav, "--speed", 0, "--calls", 4), ("status",), ("top",)]
    for running in [start(*command, "-c", config_file) for command in commands]:
        done = running.done()
        assert done.returncode == 69, done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("streamdet: ")
        assert "tcp://127.0.0.1:" in last
        assert len(done.stderr.splitlines()) <= 2  # `send` says first what it is about to do


# -- score -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_score_shows_a_timeline_and_a_verdict(suffix, tmp_path, tiny_bundle, babble):
    file = tmp_path / f"a call [red] {'x' * 80}.{suffix}"  # nothing in a name is markup, and a pipe gets whole lines
    soundfile.write(file, babble[:48_000], 16_000)
    done = streamdet("score", file, "--bundle", tiny_bundle.path)
    assert (done.returncode, done.stderr) == (0, "")
    name, *timeline, verdict = done.stdout.splitlines()
    assert name == str(file)
    assert [line.split()[0] for line in timeline] == ["1.0", "2.0", "3.0"]
    assert verdict.startswith("  verdict: bonafide, P(spoof) ")
    assert verdict.endswith(" of speech in 3.0 s, no alarm")


def test_score_tells_channels_apart(tmp_path, tiny_bundle, babble):
    file = tmp_path / "stereo.wav"
    soundfile.write(file, np.stack([babble[:32_000], np.zeros(32_000)], axis=1), 8000)
    done = streamdet("score", file, "--bundle", tiny_bundle.path)
    assert [line for line in done.stdout.splitlines() if "channel" in line] == [f"{file}, channel {n}" for n in (0, 1)]
    verdicts = objects(streamdet("score", "--json", file, "--bundle", tiny_bundle.path).stdout)
    assert {verdict["file"] for verdict in verdicts} == {str(file)}
    assert {verdict["type"] for verdict in verdicts} == {"verdict"}
    last = {verdict["channel"]: verdict for verdict in verdicts}
    assert last[0]["llr"] is not None
    assert (last[1]["llr"], last[1]["state"]) == (None, "listening")


def test_one_bad_file_of_many_is_told_of_and_the_others_are_scored(tmp_path, tiny_bundle, wav):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF, but not for long")
    done = streamdet("score", bad, wav, "--bundle", tiny_bundle.path)
    assert str(bad) in complaint(done, 65)
    assert done.stdout.splitlines()[0] == str(wav)
    done = streamdet("score", wav, tmp_path / "nowhere.wav", "--bundle", tiny_bundle.path)
    assert "nowhere.wav" in complaint(done, 66)
    assert "verdict: " in done.stdout


def test_a_recording_too_short_to_judge(tmp_path, tiny_bundle):
    file = tmp_path / "short [red].wav"
    soundfile.write(file, np.zeros(800), 16_000)
    done = streamdet("score", file, "--bundle", tiny_bundle.path)
    assert (done.returncode, done.stdout) == (0, f"{file}: too short to say anything (0.05 s)\n")


# -- check -----------------------------------------------------------------------------------------------------------


def test_check_says_what_would_run(config_file, tiny_bundle):
    done = streamdet("check", "-c", config_file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("bundle     level@")
    assert f"({tiny_bundle.path})" in done.stdout
    assert " s every 1 s at " in done.stdout
    assert done.stdout.endswith("\nok\n")
    done = streamdet("check", "-c", config_file, "--set", "scoring.hop=adaptive")
    assert " s every 0.5 to 2 s at " in done.stdout


def tampered(made: Bundle) -> None:
    file = made.path / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")


def emptied(made: Bundle) -> None:
    (made.path / "model.onnx").unlink()


def garbled(made: Bundle) -> None:
    (made.path / "manifest.json").write_text("{", "utf-8")


def misfitting(made: Bundle) -> None:
    """Everything is as it was made; the model takes another length than its manifest says."""
    changed = msgspec.structs.replace(made.manifest, audio=Audio(16_000, 32_000, 16_000))
    model = (made.path / "model.onnx").read_bytes()
    shutil.rmtree(made.path)
    bundle.save(made.path, changed, {"model.onnx": model})


@pytest.mark.parametrize("spoil", [tampered, emptied, garbled, misfitting])
def test_a_spoilt_bundle_is_refused(spoil, tiny_bundle):
    spoil(tiny_bundle)
    complaint(streamdet("check", "--bundle", tiny_bundle.path), 78)


def test_a_bundle_that_is_not_there_is_refused_by_all_that_need_one(tmp_path, wav):
    for command in (("check",), ("run",), ("score", wav)):
        assert "nowhere" in complaint(streamdet(*command, "--bundle", tmp_path / "nowhere"), 78)


# -- run: what it refuses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[endpoints\n", "streamdet.toml"),
        ('[endpoints]\naudoi = "tcp://127.0.0.1:5560"\n', "endpoints.audio"),
        ("[scoring]\nthreads = -1\n", "scoring.threads"),
        ('[endpoints]\nverdicts = "tcp://0.0.0.0:5561"\n', "endpoints.insecure"),
        ('[endpoints]\npcm = ["tcp://192.0.2.1:5563"]\n', "192.0.2.1"),
    ],
    ids=["broken", "key", "value", "everybody", "pcm"],
)
def test_a_config_that_the_daemon_does_not_take(text, told, tmp_path, tiny_bundle):
    file = tmp_path / "streamdet.toml"
    file.write_text(text, "utf-8")
    assert told in complaint(streamdet("run", "-c", file, "--bundle", tiny_bundle.path), 78)


def test_flags_and_variables_are_checked_like_the_file(tmp_path, tiny_bundle):
    common = ("check", "--bundle", tiny_bundle.path)
    assert "scoring.threads" in complaint(streamdet(*common, "--set", "scoring.thread=1"), 78)
    assert "--set" in complaint(streamdet(*common, "--set", "scoring.threads"), 64)
    done = streamdet(*common, environment={"STREAMDET_SCORING__THREADS": "many"})
    assert "scoring.threads" in complaint(done, 78)
    assert "nowhere.toml" in complaint(streamdet(*common, "-c", tmp_path / "nowhere.toml"), 66)


@pytest.mark.parametrize("name", ["audio", "http", "pcm"])
def test_an_address_that_is_taken(name, config_file):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        done = streamdet("run", "-c", config_file, "--set", f"endpoints.{name}={address}")
    assert done.returncode == 69, done.stderr
    said = done.stderr.splitlines()
    (line,) = [line for line in said if not line.startswith("INFO ")]  # by then it may have loaded the model
    assert line.startswith("streamdet: ")
    assert "another process" in line


# -- config, version, demo -------------------------------------------------------------------------------------------


def test_config_prints_a_file_that_the_daemon_takes(tmp_path, tiny_bundle):
    done = streamdet("config")
    assert (done.returncode, done.stderr) == (0, "")
    file = tmp_path / "sample.toml"
    file.write_text(done.stdout, "utf-8")
    assert streamdet("check", "-c", file, "--bundle", tiny_bundle.path).returncode == 0


def test_config_prints_what_is_in_force(config_file, tiny_bundle):
    environment = {"STREAMDET_SCORING__THREADS": "3", "STREAMDET_SCORING__BATCH_MAX": "5"}
    done = streamdet("config", "--in-force", "-c", config_file, "--set", "scoring.batch_max=7", environment=environment)
    tree = json.loads(done.stdout)
    assert tree["bundle"]["path"] == str(tiny_bundle.path)
    assert (tree["scoring"]["threads"], tree["scoring"]["batch_max"]) == (3, 7)


def test_version_tells_what_a_bug_report_should_have():
    done = streamdet("version")
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names[:2] == ["streamdet", "python"]
    assert {"pyzmq", "numpy"} < set(names)


def test_demo_plays_a_recording_through_a_daemon_of_its_own(tiny_bundle, wav):
    done = streamdet("demo", wav, environment={"STREAMDET_BUNDLE__PATH": str(tiny_bundle.path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert "1-call  close  reason=end" in done.stdout
    assert "\ncall.wav, channel 0: bonafide, P(spoof) " in done.stdout


def test_demo_complains_in_one_line(tmp_path, tiny_bundle, wav):
    environment = {"STREAMDET_BUNDLE__PATH": str(tiny_bundle.path)}
    assert "nowhere.wav" in complaint(streamdet("demo", tmp_path / "nowhere.wav", environment=environment), 66)
    environment = {"STREAMDET_BUNDLE__PATH": str(tmp_path / "nowhere")}
    assert "nowhere" in complaint(streamdet("demo", wav, environment=environment), 78)


# -- misuse ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("nope",), "'nope'"),
        (("tail", "--jsno"), "streamdet tail --help"),
        (("score",), "FILE"),
        (("send", "x.wav", "--calls", "0"), "--calls"),
        (("send", "x.wav", "--encoding", "opus"), "encoding"),
        (("send", "x.wav", "--set", "endpoints.audio="), "endpoints.audio"),
        (("send", "x.wav", "--pcm", "--set", "endpoints.pcm="), "endpoints.pcm"),
    ],
)
def test_misuse_is_told_in_one_line(args, told):
    assert told in complaint(streamdet(*args), 64)


def test_bad_input_is_told_in_one_line(tmp_path):
    for args, code in (
        (("send", tmp_path / "nowhere.wav"), 66),
        (("send", tmp_path / "nowhere.wav", "--stream", "two words"), 65),
        (("tail", "--address", "nonsense"), 69),
        (("status", "--address", "nonsense"), 69),
    ):
        done = streamdet(*args)
        assert done.returncode == code, done.stderr
        assert done.stderr.splitlines()[-1].startswith("streamdet: ")
        assert "Traceback" not in done.stderr


def test_without_a_command_there_is_help():
    done = streamdet()
    assert done.returncode == 64
    assert "Commands:" in done.stderr
    assert streamdet("--help").stdout.strip() == done.stderr.strip()


# -- extras ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path) -> dict[str, str]:
    """An environment in which the packages of the extras cannot be imported."""
    (tmp_path / "blocked").mkdir()
    code = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {set(HEAVY + HEAVY_TO_EXPORT)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""
    (tmp_path / "blocked" / "sitecustomize.py").write_text(code, "utf-8")
    return {"PYTHONPATH": str(tmp_path / "blocked")}


@pytest.mark.parametrize(
    ("args", "extra"),
    [
        (("train", "x.toml", "--out", "y"), "training"),
        (("evaluate", "x"), "training"),
        (("export", "x", "--out", "y"), "export"),
        (("bench", "train"), "training"),
        (("bench", "precision"), "export"),
        (("bench", "peers"), "export"),
    ],
    ids=["train", "evaluate", "export", "bench train", "bench precision", "bench peers"],
)
def test_a_missing_extra_is_named(args, extra, plain):
    assert f"pip install '.[{extra}]'" in complaint(streamdet(*args, environment=plain), 66)


def test_the_daemons_commands_need_no_extra(plain, tiny_bundle, wav):
    assert streamdet("--help", environment=plain).returncode == 0
    assert streamdet("check", "--bundle", tiny_bundle.path, environment=plain).returncode == 0
    assert streamdet("score", wav, "--bundle", tiny_bundle.path, environment=plain).returncode == 0


def test_the_daemon_imports_nothing_of_the_extras():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import streamdet.cli, streamdet.daemon"],
        capture_output=True,
        timeout=PATIENCE_S,
        check=True,
        env=ENVIRONMENT,
    )
    lines = io.StringIO(done.stderr.decode())
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
    assert {"streamdet", "zmq"} <= imported
    assert imported & {*HEAVY, *HEAVY_TO_EXPORT, "pandas", "sklearn"} == set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_failure_that_cannot_be_told_still_has_its_exit_code():
    with Path("/dev/full").open("wb") as full:
        command = [STREAMDET, "check", "--set", "endpoints.audio=nonsense"]
        done = subprocess.run(command, stderr=full, timeout=PATIENCE_S, check=False, env=ENVIRONMENT)
    assert done.returncode == 78


def test_doctor_says_what_is_wrong_and_how_to_mend_it(config_file, daemon):
    done = streamdet("doctor", "-c", config_file, "--json")
    found = {each["check"]: each for each in objects(done.stdout)}
    assert {"settings", "runtime", "model", "clock", "daemon"} <= set(found)
    assert f"pid {daemon.process.pid}" in found["daemon"]["why"]
    assert done.returncode == (78 if "fail" in [each["status"] for each in objects(done.stdout)] else 0)
    done = streamdet("doctor", "-c", config_file, "--set", "scoring.provider=cuda")
    if not Path("/dev/nvidiactl").exists():
        assert done.returncode == 78
        assert "fail card" in done.stdout
        assert "→ install NVIDIA's driver" in done.stdout


def test_doctor_looks_at_a_config_that_is_broken():
    done = streamdet("doctor", "--set", "scoring.threds=1", "--json")
    assert (done.returncode, done.stderr) == (78, "")
    (finding,) = objects(done.stdout)
    assert (finding["check"], finding["status"]) == ("settings", "fail")
    assert "scoring.threads" in finding["why"]
