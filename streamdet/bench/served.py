"""A daemon in a process of its own, or one that runs already, seen from outside: addresses, metrics, CPU, memory."""

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from streamdet.bench.processes import Usage, usage
from streamdet.config import Endpoints
from streamdet.errors import StreamdetError, UnreachableError

Over = Literal["zeromq", "tcp", "unix"]

# Loading and warming up; XLS-R on a busy machine takes a minute.
START_S: Final = 180.0
HTTP_S: Final = 10.0
_SAMPLE: Final = re.compile(r"^(streamdet_\w+?)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


class Daemon(msgspec.Struct, frozen=True):
    """Where a daemon is."""

    audio: str
    """Address that takes the calls' audio."""
    verdicts: str
    http: str
    pid: int | None
    """None: attached, and nobody said which process it is."""

    def metrics(self) -> dict[str, float]:
        """Read its counters, histograms' sums and counts, labels left out and summed up.

        Raises:
            UnreachableError: it does not answer.
        """
        found: dict[str, float] = {}
        for name, _, value in _SAMPLE.findall(_get(self.http, "/metrics")):
            if not name.endswith(("_bucket", "_created")):
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def usage(self) -> Usage | None:
        """Say what it has used so far."""
        return None if self.pid is None else usage(self.pid)


@contextlib.contextmanager
def served(
    over: Over, settings: Mapping[str, str], config: Path | None = None, program: str = "streamdet"
) -> Iterator[Daemon]:
    """Run `streamdet run` on free ports; SIGTERM at the end.

    Args:
        over: which of its ways in will be used.
        settings: `section.key` -> text, as for `--set`.
        config: as for `--config`.
        program: the module that is run.

    Raises:
        StreamdetError: it ended before it was ready; its own words are on stderr.
        UnreachableError: it did not become ready.
    """
    # A descriptor a connection: the usual soft limit of 1,024 is not enough for a thousand calls.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory(prefix="streamdet-bench-") as folder:
        verdicts, control, http, audio, pcm = (f"127.0.0.1:{port}" for port in _free_ports(5))
        way_in = {"zeromq": f"tcp://{audio}", "tcp": f"tcp://{pcm}", "unix": f"unix:{folder}/pcm.sock"}[over]
        own = {
            "endpoints.audio": f"tcp://{audio}",
            "endpoints.verdicts": f"tcp://{verdicts}",
            "endpoints.control": f"tcp://{control}",
            "endpoints.http": http,
            "endpoints.pcm": "" if over == "zeromq" else way_in,
            "streams.max_streams": "100000",
            "daemon.log_level": "warning",
        }
        command = [sys.executable, "-P", "-m", program, "run", *(["--config", str(config)] if config else [])]
        command += [word for name, text in {**own, **settings}.items() for word in ("--set", f"{name}={text}")]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # noqa: S603
        try:
            _await_ready(process, http)
            yield Daemon(way_in, f"tcp://{verdicts}", http, process.pid)
        finally:
            _end(process)


def attached(over: Over, endpoints: Endpoints, pid: int | None) -> Daemon:
    """Find a running daemon by the addresses in its config.

    Raises:
        UnreachableError: it is not ready, or takes no audio in this way.
    """
    scheme = {"tcp": "tcp:", "unix": "unix:"}
    audio = endpoints.audio
    if over != "zeromq":
        audio = next((each for each in endpoints.pcm if each.startswith(scheme[over])), "")
    if not audio:
        raise UnreachableError.of("audio", over, "a daemon whose config has an address for it")
    if not is_ready(endpoints.http):
        raise UnreachableError.of("http", endpoints.http, "a daemon that is ready")
    if pid is not None and not Path(f"/proc/{pid}").exists():
        raise UnreachableError.of("--pid", pid, "a process of this machine")
    return Daemon(audio, endpoints.verdicts, endpoints.http, pid)


def is_ready(http: str) -> bool:
    """Ask whether calls are welcome."""
    try:
        return _get(http, "/readyz") == "ready\n"
    except UnreachableError:
        return False


def _await_ready(process: "subprocess.Popen[bytes]", http: str) -> None:
    deadline_s = time.monotonic() + START_S
    while not is_ready(http):
        if process.poll() is not None:
            raise StreamdetError.of("exit code of streamdet run", process.returncode, "a daemon that starts")
        if time.monotonic() > deadline_s:
            raise UnreachableError.of("http", http, f"a daemon that is ready within {START_S:g} s")
        time.sleep(0.1)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Drain it; a second signal where that takes too long."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.kill(process.pid, number)
            process.wait(20)
            return


def _get(http: str, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{http}{path}", timeout=HTTP_S) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError):
        raise UnreachableError.of("http", http, "a daemon that answers") from None


def _free_ports(count: int) -> list[int]:
    """Ask the system for ports that nobody uses; all at once, so that they differ."""
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]
