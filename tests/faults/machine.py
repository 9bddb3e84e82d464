"""A Debian that boots systemd beside this one, with streamdet installed as `install-service` does it.

systemd-nspawn on a root that mmdebstrap makes. What is not plain about it:

- The container's cgroups are children of this process's own: nothing of the host's is touched, and its limits hold.
- Where the kernel has version 1 controllers, nspawn hands them over read-only; made writable, systemd in there enforces
  MemoryMax= and DeviceAllow=.
- IPAddressDeny= wants bpf(), which nspawn forbids unless asked.
- The environment's packages are bound in read-only; streamdet itself is installed from a wheel of this checkout.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from tests.faults.harness import PATIENCE_S, toml, wait_for

ROOT: Final = Path(__file__).parents[2]
# The Debian whose Python is of the same version as ours, since compiled packages fit no other; trixie was not tried.
SUITES: Final = {(3, 11): "bookworm"}
PACKAGES: Final = ("systemd", "systemd-sysv", "dbus", "python3-minimal", "libpython3-stdlib", "libstdc++6")
PROGRAMS: Final = ("mmdebstrap", "systemd-nspawn", "nsenter", "setpriv", "bash")
# A tar of such a root, to do without mmdebstrap and its half a minute.
TARBALL: Final = "STREAMDET_TEST_ROOT"
CGROUPS: Final = Path("/sys/fs/cgroup")
CONTROLLERS: Final = ("memory", "devices", "pids", "cpu", "cpuacct")
PROPAGATE: Final = Path("/run/systemd/nspawn/propagate")
HOME: Final = Path("opt/streamdet")
UNIT: Final = "streamdet.service"
# Starts nspawn in its cgroups and takes them away when it has ended. It ends nspawn when we end, however we do.
KEEPER: Final = r"""
propagate=$1; shift
while [[ $1 != -- ]]; do groups+=("$1"); shift; done; shift
(for group in "${groups[@]}"; do echo "$BASHPID" >"$group/cgroup.procs" || exit 9; done; exec "$@") & nspawn=$!
trap 'kill -TERM "$nspawn"' TERM
while kill -0 "$nspawn" 2>/dev/null; do wait "$nspawn"; done
for try in {1..200}; do  # the last process's end takes a moment to be noticed
    left=; for group in "${groups[@]}"; do
        [[ ! -d $group ]] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || left=yes
    done
    [[ $left ]] || break; sleep 0.05
done
rmdir "$propagate" 2>/dev/null  # nspawn leaves it where /run is no file system of its own
"""


class CannotBootError(Exception):
    """This machine cannot run the container; `str(error)` says why."""


def build(folder: Path) -> Path:
    """Make a root file system with systemd, Python and streamdet.

    Raises:
        CannotBootError: a program, a right or the network is not there.
    """
    if os.geteuid() != 0:
        raise CannotBootError("root alone may start containers")
    if sys.version_info[:2] not in SUITES:
        raise CannotBootError(f"no Debian here has Python {sys.version_info[0]}.{sys.version_info[1]}")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise CannotBootError(f"not installed: {', '.join(missing)}")
    root = folder / "root"
    if tarball := os.environ.get(TARBALL):
        root.mkdir()
        subprocess.run(["tar", "-C", root, "-xf", tarball], check=True)
    else:
        include = f"--include={','.join(PACKAGES)}"
        plain = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")]
        command = ["mmdebstrap", "-q", "--variant=essential", include, *plain, SUITES[sys.version_info[:2]], str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise CannotBootError(f"mmdebstrap: {done.stderr[-500:]}")
    _install(root, folder)
    return root


def _install(root: Path, folder: Path) -> None:
    """Install a wheel of this checkout as pip would have in a virtual environment, its dependencies beside it."""
    source, wheels = folder / "source", folder / "wheels"
    for name in ("streamdet", "export", "training", "systemd"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "-qq"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *offline, "-w", wheels, source], check=True, stdin=subprocess.DEVNULL)
    (wheel,) = wheels.iterdir()
    site = root / HOME / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    subprocess.run([*pip, "install", *offline[:2], "--target", site, wheel], check=True, stdin=subprocess.DEVNULL)
    # A path file adds the bound folder without reading the path files in it, that of an editable install among them.
    (site / "dependencies.pth").write_text("/opt/dependencies\n", "utf-8")
    home = root / HOME
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to("/usr/bin/python3")
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n", "utf-8")
    program = home / "bin" / "streamdet"
    program.write_text(f"#!/{HOME}/bin/python3\nfrom streamdet.cli import main\nmain()\n", "utf-8")
    program.chmod(0o755)


class Machine:
    """The booted container. While entered, this thread, and what it starts, is in the container's network."""

    def __init__(self, root: Path, console: Path) -> None:
        """Boot nothing yet; `console` gets what the container says."""
        self.root: Final = root
        self._console: Final = console
        self.name: Final = f"streamdet-test-{os.getpid()}"
        self._cgroups: Final[list[Path]] = []

    # -- its life ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Boot.

        Raises:
            CannotBootError: it does not come up.
        """
        with contextlib.ExitStack() as stack:
            self._make_cgroups()
            self._spawn()
            stack.callback(self._power_off)
            self._await_boot()
            self._open_controllers()
            stack.enter_context(_network_of(self._leader))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _make_cgroups(self) -> None:
        """One below our own in every hierarchy: limits that hold for us hold for the container."""
        for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
            _, names, path = line.split(":", 2)
            mount = CGROUPS / (names.removeprefix("name=") if names else "unified")
            if not names and not mount.is_dir():
                mount = CGROUPS  # version 2 alone
            if not mount.is_dir():
                continue
            own = mount / path.lstrip("/") / self.name
            try:
                own.mkdir()
            except OSError as error:
                for made in self._cgroups:
                    made.rmdir()
                raise CannotBootError(f"no cgroup of our own: {error}") from None
            self._cgroups.append(own)
            for setting in ("cpuset.cpus", "cpuset.mems"):  # empty in a new one, which then takes no process
                if (own / setting).is_file() and (own.parent / setting).is_file() and names:
                    (own / setting).write_text((own.parent / setting).read_text("utf-8"), "utf-8")

    def _spawn(self) -> None:
        packages = Path(msgspec.__file__).parents[1]
        keeper = ("setpriv", "--pdeathsig=TERM", "--", "bash", "-c", KEEPER, "keeper", str(PROPAGATE / self.name))
        nspawn = [
            *("systemd-nspawn", "-q", "--boot", f"--directory={self.root}", f"--bind-ro={packages}:/opt/dependencies"),
            *("--register=no", "--keep-unit", f"--machine={self.name}", "--console=pipe", "--private-network"),
            *("--system-call-filter=bpf", "--capability=CAP_BPF"),
        ]
        with self._console.open("wb") as console:
            self._keeper = subprocess.Popen(
                [*keeper, *map(str, self._cgroups), "--", *nspawn],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )

    def _await_boot(self) -> None:
        """Find the container's first process, the keeper's grandchild, and wait until it has started everything."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            if self._keeper.poll() is not None or time.monotonic() > deadline_s:
                raise CannotBootError(f"systemd-nspawn: {self._console.read_text('utf-8', 'replace')[-500:]}")
            found = [leader for nspawn in _children(self._keeper.pid) for leader in _children(nspawn)]
            if found:
                self._leader = found[0]
                if self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded"):
                    return
            time.sleep(0.05)

    def _open_controllers(self) -> None:
        """Let systemd in there write to the controllers of version 1, where there are any."""
        mounts = [f"/sys/fs/cgroup/{name}" for name in CONTROLLERS if (CGROUPS / name).is_dir()]
        for mount in mounts:
            self.run("mount", "-o", "remount,rw,bind", mount)
        if mounts:
            self.run("systemctl", "daemon-reexec")

    def _power_off(self) -> None:
        """As one asks systemd to, and if it does not, as one asks nspawn to; then the keeper tidies up."""
        with contextlib.suppress(ProcessLookupError, AttributeError):
            os.kill(self._leader, signal.SIGRTMIN + 4)
        for ask in (lambda: None, self._keeper.terminate, self._keeper.terminate, self._keeper.kill):
            ask()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(PATIENCE_S / 3)
                return

    # -- what one does in it -----------------------------------------------------------------------------------------

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command inside; what it wrote."""
        inside = ["nsenter", "--target", str(self._leader), "--all", *command]
        done = subprocess.run(
            inside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False
        )
        said = done.stdout.decode("utf-8", "replace")
        assert not check or done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}: {said}"
        return said

    def install(self, *options: str) -> str:
        """Put the service in place as a person would."""
        said = self.run(f"/{HOME}/bin/streamdet", "install-service", *options)
        self.run("systemctl", "daemon-reload")
        return said

    def settle(self, **sections: Mapping[str, Any]) -> None:
        """Write the config file."""
        self.write("etc/streamdet/streamdet.toml", toml({"scoring": {"threads": 1}, **sections}))

    def write(self, path: str, text: str) -> None:
        """Write a file below the root."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")

    @contextlib.contextmanager
    def drop_in(self, text: str, unit: str = UNIT) -> Iterator[None]:
        """Change a unit for a while."""
        path = f"run/systemd/system/{unit}.d/test.conf"
        self.run("mkdir", "-p", f"/{Path(path).parent}")  # /run is a file system of the container's own
        self.run("sh", "-c", f"printf %s '{text}' > /{path}")
        self.run("systemctl", "daemon-reload")
        try:
            yield
        finally:
            self.run("rm", f"/{path}")
            self.run("systemctl", "daemon-reload")

    def show(self, name: str, unit: str = UNIT) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).strip()

    @property
    def pid(self) -> int:
        """Return the daemon's process as this side numbers it; 0 while there is none."""
        inner = self.show("MainPID")
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                text = status.read_text("utf-8")
                (line,) = (line for line in text.splitlines() if line.startswith("NSpid:"))
                if line.split()[2:] == [inner] and _pid_namespace(int(status.parent.name)) == self._pids:
                    return int(status.parent.name)
        return 0

    @property
    def _pids(self) -> str:
        return _pid_namespace(self._leader)

    def journal(self, *fields: str) -> list[dict[str, Any]]:
        """Return what the journal has of the service since it last began to start, field by field."""
        said = self.run("journalctl", "-o", "json", f"_SYSTEMD_INVOCATION_ID={self.show('InvocationID')}", *fields)
        return [msgspec.json.decode(line) for line in said.splitlines() if line.startswith("{")]

    def log(self, *fields: str) -> list[dict[str, Any]]:
        """Return what the journal has of the service and of systemd on it, since the machine booted."""
        said = self.run("journalctl", "-o", "json", "-u", UNIT, *fields)
        return [msgspec.json.decode(line) for line in said.splitlines() if line.startswith("{")]

    @property
    def inside(self) -> Path:
        """The container's root as its processes see it, with what is mounted there."""
        return Path(f"/proc/{self._leader}/root")

    @property
    def limits_memory(self) -> bool:
        """Whether MemoryMax= is enforced."""
        return (CGROUPS / "memory").is_dir() or "memory" in self.run("cat", "/sys/fs/cgroup/cgroup.controllers")

    def await_state(self, *wanted: str, unit: str = UNIT) -> str:
        """Wait for one of some states: active, inactive, failed, ..."""
        return str(wait_for(lambda: (found := self.show("ActiveState", unit)) in wanted and found, why=str(wanted)))


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()]
    except OSError:
        return []


def _pid_namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - a text, and no path


@contextlib.contextmanager
def _network_of(pid: int) -> Iterator[None]:
    """Be in a process's network; threads and processes that are started meanwhile are too, and stay."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    other = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(other)
        try:
            yield
        finally:
            _enter(own)
    finally:
        os.close(own)
        os.close(other)


def _enter(namespace: int) -> None:
    """setns(2), which Python has from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, 0):
        raise OSError(ctypes.get_errno(), "setns")
