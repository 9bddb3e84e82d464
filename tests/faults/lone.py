"""One daemon as a process, on sockets that are files, and what the kernel says of it."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

from streamdet.records import AudioFormat, Frame, Heartbeat
from streamdet.wire import frames, verdicts

STREAMDET = str(Path(sys.executable).with_name("streamdet"))
# Only a daemon that hangs takes this long.
PATIENCE_S = 60.0
ENDPOINTS = ("audio", "verdicts", "control")
# Variables of ours, and those that say where somebody's own files lie.
FOREIGN = ("STREAMDET_", "ORT_", "XDG_")


class Lone:
    """A daemon that is ready; its sockets, its log and nothing else lie in `folder`."""

    def __init__(self, folder: Path, *args: str, before: Callable[[], None] | None = None) -> None:
        """Start `streamdet run` with `args`; `before` runs in the new process first."""
        self.folder = folder
        self.cwd, self.tmp, self.home = folder / "cwd", folder / "tmp", folder / "home"
        for made in (self.cwd, self.tmp, self.home):
            made.mkdir()
        self.log = folder / "log"
        endpoints = [f"--set=endpoints.{name}=ipc://{folder / name}" for name in ENDPOINTS]
        endpoints += [f"--set=endpoints.pcm=unix:{folder / 'pcm'}", "--set=endpoints.http="]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        environment |= {
            "HOME": str(self.home),
            "NOTIFY_SOCKET": str(folder / "notify"),
            "TMPDIR": str(self.tmp),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, self.log.open("wb") as log:
            manager.bind(environment["NOTIFY_SOCKET"])
            self.process = subprocess.Popen(
                [STREAMDET, "run", "--set=scoring.provider=cpu", "--set=scoring.threads=1", *endpoints, *args],
                cwd=self.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=before,
            )
            self._wait_until_ready(manager)
        self._zmq = zmq.Context()
        self.push = self.connect(zmq.PUSH, "audio")
        self.sub = self.connect(zmq.SUB, "verdicts")
        self.sub.subscribe("")
        self.until(lambda it: isinstance(it, Heartbeat))  # or the first events would go out before anybody listens

    def _wait_until_ready(self, manager: socket.socket) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            if select.select([manager], [], [], 0.1)[0] and b"READY=1" in manager.recv(4096):
                return
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline_s, self.log.read_text()

    @property
    def pid(self) -> int:
        return self.process.pid

    def connect(self, kind: int, endpoint: str) -> "zmq.Socket[bytes]":
        made = self._zmq.socket(kind)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RCVTIMEO, int(1000 * PATIENCE_S))
        made.setsockopt(zmq.SNDTIMEO, int(1000 * PATIENCE_S))
        made.connect(f"ipc://{self.folder / endpoint}")
        return made

    def ask(self, **request: Any) -> dict[str, Any]:
        with self.connect(zmq.REQ, "control") as req:
            req.send_json(request)
            answer: dict[str, Any] = req.recv_json()
        assert answer["ok"], answer
        return answer

    def send(self, payload: bytes, stream: str, form: AudioFormat, **fields: Any) -> None:
        self.push.send_multipart(frames.build(Frame(stream, form, payload, **fields)))

    def pcm(self, stream: str, form: AudioFormat) -> socket.socket:
        """Open a raw PCM connection."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE_S)
        connection.connect(str(self.folder / "pcm"))
        opening = {"stream": stream, "rate": form.rate_hz, "encoding": form.encoding, "channels": form.channels}
        connection.sendall(b"STREAMDET " + json.dumps(opening).encode() + b"\n")
        return connection

    def until(self, wanted: Callable[[Any], bool]) -> Any:
        """The next message like this; those before it are gone."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < deadline_s, self.log.read_text()
            record = verdicts.parse(self.sub.recv_multipart())
            if wanted(record):
                return record

    def event(self, kind: str, stream: str) -> Any:
        return self.until(lambda it: (getattr(it, "type", ""), getattr(it, "stream", "")) == (kind, stream))

    def left_behind(self) -> list[Path]:
        """What lies where a process may leave things."""
        return [path for place in (self.cwd, self.tmp, self.home) for path in place.rglob("*")]

    def open_files(self) -> list[str]:
        """Regular files that the process has open for writing."""
        found = []
        for entry in Path(f"/proc/{self.pid}/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):
                flags = int(re.search(r"flags:\s+(\d+)", entry.read_text())[1], 8)
                target = Path(f"/proc/{self.pid}/fd/{entry.name}").readlink()
                if flags & os.O_ACCMODE != os.O_RDONLY and target.is_file():
                    found.append(str(target))
        return sorted(set(found))

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it; return its wait status, which says more than an exit code: `os.WCOREDUMP`."""
        self.process.send_signal(number)
        _, status = os.waitpid(self.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return status

    def close(self) -> None:
        self._zmq.destroy(linger=0)
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="lone-") as name:
        yield Path(name)


def written_bytes(pid: int) -> int:
    """What a process has caused to be written to any disk (proc(5))."""
    return int(re.search(r"^write_bytes: (\d+)", Path(f"/proc/{pid}/io").read_text(), re.MULTILINE)[1])
