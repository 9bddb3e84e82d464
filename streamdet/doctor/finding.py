"""What a check finds, and what it looks at."""

import ctypes
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from streamdet.config import Config

Status = Literal["ok", "warn", "fail"]
# A program that tells nothing in this time (s) has nothing to tell.
PATIENCE_S: Final = 5.0


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line for a person."""

    check: str
    status: Status
    why: str
    """What was found."""
    mend: str = ""
    """What to do; nothing where all is well."""


def ok(check: str, why: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", why)


def warn(check: str, why: str, mend: str) -> Finding:
    """It runs, but not as it should."""
    return Finding(check, "warn", why, mend)


def fail(check: str, why: str, mend: str) -> Finding:
    """It will not run, or not safely."""
    return Finding(check, "fail", why, mend)


def _output(*command: str) -> str | None:
    """What a program says; None where there is none, or it fails."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        # Programs of the system by fixed names, without a shell.
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=PATIENCE_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _clock_state() -> int:
    """State of the kernel's clock, as adjtimex(2) gives it: 5 is not synchronised."""
    return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)))


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a check may look at; a test puts something else in its place."""

    config: Config
    config_file: Path | None = None
    changed: Mapping[str, str] = {}
    """Settings that are not at their defaults -> where they come from."""
    root: Path = Path("/")
    environment: Mapping[str, str] = os.environ
    version: Callable[[str], str | None] = _version
    output: Callable[..., str | None] = _output
    limit: Callable[[int], tuple[int, int]] = resource.getrlimit
    clock_state: Callable[[], int] = _clock_state
    wall_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic
    cores: Callable[[], int] = lambda: len(os.sched_getaffinity(0))
    may: Callable[[Path, int], bool] = os.access
    ask: Callable[[], dict[str, Any] | None] = lambda: None
    """Asks a running daemon for its status; None where none answers."""

    def path(self, name: str) -> Path:
        """A path of the system."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        """Content of a small file of the kernel's, empty where there is none."""
        try:
            return self.path(name).read_text("utf-8", "replace")
        except OSError:
            return ""

    def cgroup(self, name: str) -> str:
        """Content of a file of our cgroup (v2), or of the topmost that we see; empty where there is none."""
        group = self.text("/proc/self/cgroup").rpartition("::")[2].strip()
        return (self.text(f"/sys/fs/cgroup{group}/{name}") or self.text(f"/sys/fs/cgroup/{name}")).strip()

    def glob(self, pattern: str) -> list[Path]:
        """Paths of the system that look like this."""
        return sorted(self.root.glob(pattern.lstrip("/")))


Check = Callable[[Machine], Iterator[Finding]]
