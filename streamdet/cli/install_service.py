"""`streamdet install-service`: the systemd units of this very environment, put in place or taken away.

The units lie in the package as `streamdet.units` (systemd/ in the sources). Nothing is started here: what is left to do
is printed, since it is for a person to say when calls may come.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal

import typer

from streamdet import config
from streamdet.errors import UsageError
from streamdet.providers import on_card, wanted

UNITS: Final = Path(str(files("streamdet.units")))
# The program as the unit file in the sources has it.
PROGRAM: Final = "/opt/streamdet/bin/streamdet"
# Local software's units, a package's, and an administrator's, who overrides either with `systemctl mask` and `edit`.
OURS, PACKAGED = PurePosixPath("usr/local/lib/systemd/system"), PurePosixPath("usr/lib/systemd/system")
ADMINS: Final = PurePosixPath("etc/systemd/system")
SETTINGS: Final = PurePosixPath(config.SYSTEM_FILE.as_posix().lstrip("/"))
MODULES: Final = PurePosixPath("etc/modules-load.d/streamdet.conf")
# The first systemd that knows every key of backoff.conf; older ones only warn of them, at every reload.
BACKOFF_SINCE: Final = 254
# What ProtectHome= and PrivateTmp= hide from the service.
UNSEEN: Final = tuple(map(PurePosixPath, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 - no file is made
# The sockets of unix/, for clients, which read the config file and not the unit's environment.
UNIX_ENDPOINTS: Final = {
    "audio": '"ipc:///run/streamdet/audio.sock"',
    "verdicts": '"ipc:///run/streamdet/verdicts.sock"',
    "control": '"ipc:///run/streamdet/control.sock"',
    "http": '"unix:/run/streamdet/http.sock"',
    "pcm": '["unix:/run/streamdet/pcm.sock"]',
}
UNIT_KINDS: Final = frozenset({".service", ".socket", ".target"})
Machine = Literal["gpu", "cpu"]


def install_service(
    gpu: Annotated[bool, typer.Option("--gpu", help="With NVIDIA's devices; refuses to start without.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Never looks for a card.")] = False,
    unix: Annotated[bool, typer.Option("--unix", help="Unix sockets alone, no network at all.")] = False,
    program: Annotated[Path | None, typer.Option(help="What the unit starts; without it, this very streamdet.")] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Lay a package out below DIR instead: usr/lib/systemd, etc.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the units away; settings and keys stay.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Put the systemd units of this environment in place; says what it did and what is next."""
    if gpu and cpu:
        raise UsageError.of("--gpu", "with --cpu", "one of the two")
    base, units = (root, PACKAGED) if root else (Path("/"), OURS)
    machine: Machine | None = "gpu" if gpu else "cpu" if cpu else None if root else this_machine()
    if remove:
        plan, gone = {}, sorted({*everything(units), MODULES})
    else:
        plan = planned(units, visible(program or own_program()), machine, unix=unix, backoff=newest() >= BACKOFF_SINCE)
        gone = sorted({*everything(units), MODULES} - plan.keys())
        plan = {SETTINGS: settings(unix=unix)} | plan
    for line in carried_out(base, plan, gone, dry_run=dry_run):
        typer.echo(line)
    if root is None and not dry_run:
        typer.echo(REMOVED if remove else INSTALLED, err=True, nl=False)


INSTALLED: Final = """
Next:
  streamdet check                          would it start?
  systemctl daemon-reload
  systemctl enable --now streamdet         active means: warmed up and serving
  systemctl status streamdet
Keys, limits, upgrades: docs/operations.md.
"""
REMOVED: Final = """
Next, if it still runs:
  systemctl stop 'streamdet*'
  systemctl daemon-reload
"""


def planned(
    units: PurePosixPath, program: str, machine: Machine | None, *, unix: bool, backoff: bool
) -> dict[PurePosixPath, str]:
    """Say which files the service consists of.

    Args:
        units: folder for units, below the root.
        program: what the unit starts.
        machine: whose drop-in; None is neither.
        unix: unix sockets alone.
        backoff: systemd knows RestartSteps=.

    Returns:
        text by path below the root.
    """
    dropins = [name for name, asked in ((machine, machine is not None), ("backoff", backoff)) if asked]
    plan = {units / name: text for name, text in shipped().items() if PurePosixPath(name).suffix != ".conf"}
    plan |= {units / "streamdet.service.d" / f"{name}.conf": shipped()[f"{name}.conf"] for name in dropins}
    if unix:
        plan |= {units / at: text for at, text in shipped("unix").items()}
    service = units / "streamdet.service"
    plan[service] = plan[service].replace(PROGRAM, program)
    if machine == "gpu":
        # Device names in a unit are looked up once, so the modules must be there before.
        plan[MODULES] = "nvidia\nnvidia-uvm\n"
    return plan


def everything(units: PurePosixPath) -> set[PurePosixPath]:
    """List every file that any choice of options puts into the folder of units."""
    every = (planned(units, PROGRAM, machine, unix=True, backoff=True) for machine in ("gpu", "cpu"))
    return {path for plan in every for path in plan if path.is_relative_to(units)}


def shipped(folder: str = "") -> dict[str, str]:
    """Read the unit files and drop-ins of the package, or of one folder in it: text by path."""
    top = UNITS / folder
    kinds = {*UNIT_KINDS, ".conf"}
    paths = (path for path in (top.rglob("*") if folder else top.iterdir()) if path.suffix in kinds and path.is_file())
    return {path.relative_to(top).as_posix(): path.read_text("utf-8") for path in sorted(paths)}


def settings(*, unix: bool) -> str:
    """Return the config file to begin with: every key at its default, where need be with unix sockets for addresses."""
    text = config.sample()
    for key, value in UNIX_ENDPOINTS.items() if unix else ():
        text, count = re.subn(rf"^# ({key} = ).*$", rf"\g<1>{value}", text, count=1, flags=re.MULTILINE)
        assert count, f"the sample has no {key}"
    return text


def carried_out(
    base: Path, plan: Mapping[PurePosixPath, str], gone: Iterable[PurePosixPath], *, dry_run: bool
) -> Iterator[str]:
    """Write and remove files below `base`, and tell of each; settings that are there are never touched."""
    for path, text in plan.items():
        target = base / path
        old = target.read_text("utf-8") if target.is_file() else None
        kept = old == text or (old is not None and path == SETTINGS)
        if not kept and not dry_run:
            write(target, text)
        yield f"{'kept' if kept else 'new' if old is None else 'changed':<8} {target}"
        if (above := base / ADMINS / path.name) != target and above.is_file() and path.suffix in UNIT_KINDS:
            yield f"{'hidden':<8} {target}, by {above}: delete that, unless you want it so"
    for target in [found for path in gone for found in (*enabled(base, path.name), base / path)]:
        if target.is_file() or target.is_symlink():
            if not dry_run:
                take_away(target)
            yield f"{'removed':<8} {target}"


def enabled(base: Path, unit: str) -> list[Path]:
    """List the links that `systemctl enable` made for a unit."""
    return [link for folder in sorted((base / ADMINS).glob("*.wants")) if (link := folder / unit).is_symlink()]


def take_away(target: Path) -> None:
    """Delete a file, and the folder of drop-ins that held it alone."""
    target.unlink()
    if target.parent.suffix == ".d" and target.parent.name.startswith("streamdet") and not any(target.parent.iterdir()):
        target.parent.rmdir()


def write(target: Path, text: str) -> None:
    """Write a file that everybody may read, whatever the umask: the service's user is nobody's friend."""
    for folder in reversed(target.parents):
        if not folder.exists():
            folder.mkdir()
            folder.chmod(0o755)
    target.write_text(text, "utf-8")
    target.chmod(0o644)


def this_machine() -> Machine:
    """Say which of the two drop-ins suits the machine."""
    return "gpu" if on_card(wanted("auto")) else "cpu"


def own_program() -> Path:
    """Return the `streamdet` that was called, by the path by which it was: a link to the newest version stays a link.

    Raises:
        UsageError: its interpreter lies where the service cannot see it.
    """
    visible(Path(sys.base_prefix))
    called = Path(sys.argv[0])
    return called if called.is_absolute() and called.name == "streamdet" else Path(sys.prefix) / "bin" / "streamdet"


def visible(program: Path) -> str:
    """Return a path as a unit file takes it.

    Raises:
        UsageError: the service cannot see it, or systemd would read it as something else.
    """
    text = program.as_posix()
    hidden = [folder for folder in UNSEEN if PurePosixPath(text).is_relative_to(folder)]
    if hidden:
        expected = f"one outside {hidden[0]}, which the service cannot see (in /opt, or by --program)"
        raise UsageError.of("program", text, expected)
    if not program.is_absolute() or not re.fullmatch(r"[\w/.+-]+", text, re.ASCII):
        raise UsageError.of("program", text, "an absolute path of letters, digits and / . + - _")
    return text


def newest() -> int:
    """Return the version of this machine's systemd; 0 where there is none."""
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return 0
    said = subprocess.run([systemctl, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603 - a fixed command
    found = re.match(r"systemd (\d+)", said)
    return int(found[1]) if found else 0
