"""What the fault tests stand on: a daemon as a process of its own, seen from outside, and started again when it ends.

`calls.py` has live calls, `recorder.py` what was heard of them, `chaos.py` a network that breaks on purpose.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import zmq

from streamdet.bench.processes import usage
from tests import pages

# Only what hangs takes this long; nothing here asserts a time.
PATIENCE_S: Final = 30.0
SECOND_TO_LOOK_S: Final = 0.01
# Hands listening sockets over as systemd does.
INHERIT: Final = Path(__file__).parents[1] / "integration" / "inherit.py"


class Memory(NamedTuple):
    """What /proc says of a process's memory (bytes)."""

    rss: int
    pss: int
    """Its share of what it shares with others, which changes when they come and go."""
    swap: int
    own: int
    """Anonymous: heap and stacks, whoever else maps the same libraries. What a leak makes grow."""


def memory(pid: int) -> Memory:
    """Read `smaps_rollup`; zeros for a process that has gone."""
    fields = {"Rss": 0, "Pss": 0, "Swap": 0, "Anonymous": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8").splitlines():
            name, _, rest = line.partition(":")
            if name in fields:
                fields[name] = 1024 * int(rest.split()[0])
    return Memory(*fields.values())


def descriptors(pid: int) -> int:
    """Count a process's open file descriptors; 0 for one that has gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a count, and names are all it needs
    except OSError:
        return 0


def figure(name: str, **values: object) -> None:
    """Print what was measured, as docs/reliability.md quotes it; seen with `pytest -s`."""
    shown = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in values.items()}
    print(f"\nFIGURE {name}", *(f"{key}={value}" for key, value in shown.items()))  # noqa: T201


def wait_for(what: Callable[[], object], patience_s: float = PATIENCE_S, why: str = "") -> Any:
    """Wait until something is true and return it."""
    deadline_s = time.monotonic() + patience_s
    while not (found := what()):
        assert time.monotonic() < deadline_s, f"waited {patience_s:g} s in vain {why}"
        time.sleep(SECOND_TO_LOOK_S)
    return found


def free_ports(count: int) -> list[int]:
    """Ask the system for ports that nobody uses; all at once, so that they differ."""
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


def toml(tree: Mapping[str, Mapping[str, Any]]) -> str:
    """Write sections of plain values; JSON's strings, numbers, booleans and lists are TOML's."""
    lines: list[str] = []
    for section, table in tree.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


class Served:
    """`streamdet run` with a config file, at addresses that stay the same when it is started again."""

    def __init__(
        self,
        folder: Path,
        bundle: Path | None = None,
        *,
        activated: Sequence[str] = (),
        program: Sequence[str] = ("-m", "streamdet"),
        environment: Mapping[str, str] | None = None,
        stderr: Any = None,
        launcher: Sequence[str] = (),
        **sections: Mapping[str, Any],
    ) -> None:
        """Write the config; start nothing yet.

        Args:
            folder: for the config, the log (`daemon.log`) and unix sockets.
            bundle: its folder; None is the starter.
            activated: endpoints (`audio`, `verdicts`, `control`, `http`, `pcm`) whose sockets are held here and handed
                over, as systemd does: nobody is refused while the daemon is away.
            program: what Python runs in place of `-m streamdet`, a broken variant for example.
            environment: on top of this process's.
            stderr: as for `subprocess.Popen`; None is the log file.
            launcher: a command in front of the daemon's, such as `prlimit --nofile=64`.
            sections: of the config, laid over what a test wants.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder: Final = folder
        self.log: Final = folder / "daemon.log"
        audio, verdicts, control, http, pcm = (f"127.0.0.1:{port}" for port in free_ports(5))
        tree: dict[str, dict[str, Any]] = {
            "bundle": {} if bundle is None else {"path": str(bundle)},
            "endpoints": {
                "audio": f"tcp://{audio}",
                "verdicts": f"tcp://{verdicts}",
                "control": f"tcp://{control}",
                "http": http,
                "pcm": [f"tcp://{pcm}", f"unix:{folder}/pcm.sock"],
            },
            "scoring": {"threads": 1, "provider": "cpu", "batch_max": 8},
        }
        if os.geteuid() != 0:
            tree["daemon"] = {"dumpable": True}  # or nobody but root may read what /proc says of its memory
        for name, section in sections.items():
            tree[name] = {**tree.get(name, {}), **section}
        self.endpoints: Final[dict[str, Any]] = tree["endpoints"]
        self.tree: Final = tree
        self.config: Final = folder / "streamdet.toml"
        self.rewrite()
        self.process: subprocess.Popen[bytes] | None = None
        self._program: Final = list(program)
        self._launcher: Final = list(launcher)
        self._environment: Final = dict(environment or {})
        self._stderr: Final = stderr
        self._held: Final = {name: self._hold(name) for name in activated}

    # -- its life ----------------------------------------------------------------------------------------------------

    def rewrite(self, **sections: Mapping[str, Any]) -> None:
        """Change the config file."""
        for name, section in sections.items():
            self.tree[name] = {**self.tree.get(name, {}), **section}
        self.config.write_text(toml(self.tree), "utf-8")

    def start(self) -> Self:
        """Start it; whether it becomes ready is another question."""
        assert self.process is None or self.process.poll() is not None, "it runs"
        command = [sys.executable, "-P", *self._program, "run", "--config", str(self.config)]
        held = [f"{name}={listener.fileno()}" for name, listener in self._held.items()]
        if held:
            command = [sys.executable, str(INHERIT), *held, "--", *command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._launcher, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log if self._stderr is None else self._stderr,
                env={**os.environ, **self._environment},
                pass_fds=[listener.fileno() for listener in self._held.values()],
            )
        return self

    def started(self) -> Self:
        """Start it and wait until calls are welcome."""
        self.start()
        self.await_ready()
        return self

    def await_ready(self) -> None:
        """Wait until calls are welcome."""
        wait_for(lambda: self.ready or self.code is not None, 2 * PATIENCE_S, "for a daemon that is ready")
        assert self.code is None, f"exit {self.code} before it was ready: {self.said()}"

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Wait for its end and return the exit code, negative for a signal."""
        assert self.process is not None
        return self.process.wait(patience_s)

    def terminate(self) -> int:
        """SIGTERM, and wait for the drain."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """End it however it takes, and let go of held sockets."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S / 3)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for held in self._held.values():
            held.close()

    # -- from outside ------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self.process is not None
        return self.process.pid

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs."""
        assert self.process is not None
        return self.process.poll()

    @property
    def ready(self) -> bool:
        """Whether calls are welcome."""
        with contextlib.suppress(OSError):
            return self.http("/readyz")[0] == 200
        return False

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text("utf-8", "replace")

    def http(self, path: str, timeout_s: float = PATIENCE_S) -> tuple[int, str]:
        """GET a page: status and body."""
        return pages.get(self.endpoints["http"], path, timeout_s)

    def metric(self, name: str) -> float:
        """Return the sample of this name and labels; 0 where there is none yet."""
        return pages.sample(self.http("/metrics"), name)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask the control socket."""
        with zmq.Context() as context, context.socket(zmq.REQ) as req:
            req.setsockopt(zmq.LINGER, 0)
            req.setsockopt(zmq.RCVTIMEO, int(1000 * PATIENCE_S))
            req.connect(self.endpoints["control"])
            req.send_json(request)
            answer: dict[str, Any] = req.recv_json()
            return answer

    def memory(self) -> Memory:
        """Of the process that runs now."""
        return memory(self.pid)

    def descriptors(self) -> int:
        """Of the process that runs now."""
        return descriptors(self.pid)

    def cpu_s(self) -> float:
        """User and system time so far (s)."""
        return usage(self.pid).cpu_s

    # -- inside ------------------------------------------------------------------------------------------------------

    def _hold(self, name: str) -> socket.socket:
        """Listen at an endpoint's address, in place of the daemon."""
        address = self.endpoints[name][0] if name == "pcm" else self.endpoints[name]
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        held = socket.create_server((host, int(port)), backlog=4096)
        held.set_inheritable(True)
        return held


class Life(NamedTuple):
    """One process of a supervised daemon."""

    pid: int
    ended_s: float
    """When its end was noticed (monotonic s)."""
    code: int
    ready_s: float
    """When the next one was ready."""


class Supervisor:
    """Starts a daemon again whenever it ends, as systemd does with Restart=always; while entered."""

    def __init__(self, served: Served) -> None:
        """Watch `served`, which runs already."""
        self.served: Final = served
        self.lives: Final[list[Life]] = []
        self._done: Final = threading.Event()
        self._failure: BaseException | None = None
        self._thread: Final = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def restarted(self, count: int) -> Life:
        """Wait until so many lives have ended and the next is ready; return the last that ended."""
        wait_for(lambda: len(self.lives) >= count or self._failure, 3 * PATIENCE_S, "for a restart")
        if self._failure is not None:
            raise self._failure
        return self.lives[count - 1]

    def _run(self) -> None:
        try:
            while not self._done.wait(SECOND_TO_LOOK_S):
                if (code := self.served.code) is not None:
                    ended_s, pid = time.monotonic(), self.served.pid
                    self.served.started()
                    self.lives.append(Life(pid, ended_s, code, time.monotonic()))
        except BaseException as error:
            self._failure = error


class Knocking(threading.Thread):
    """Connects to every TCP endpoint of a daemon again and again, while entered, and counts who is refused."""

    def __init__(self, doors: Mapping[str, str]) -> None:
        """Knock at these addresses, by the names of their endpoints."""
        super().__init__(name="knocking", daemon=True)
        self.refused: Final[list[str]] = []
        self.taken = 0
        self._doors: Final = dict(doors)
        self._done: Final = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        """Knock at one door after the other."""
        for name, address in itertools.cycle(self._doors.items()):
            if self._done.wait(SECOND_TO_LOOK_S):
                return
            host, _, port = address.removeprefix("tcp://").rpartition(":")
            try:
                socket.create_connection((host, int(port)), PATIENCE_S).close()
                self.taken += 1
            except ConnectionRefusedError:
                self.refused.append(name)


@contextlib.contextmanager
def stopped(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """SIGSTOP a process for a while."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
