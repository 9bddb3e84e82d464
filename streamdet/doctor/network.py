"""Addresses: may they be used, and who has them?"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from streamdet.addresses import check_endpoints, host_and_port
from streamdet.doctor.finding import Finding, Machine, fail, ok, warn
from streamdet.errors import ConfigError

LISTENING: Final = "0A"
OURS: Final = "streamdet"


def addresses(machine: Machine) -> Iterator[Finding]:
    """Would the daemon take these addresses?"""
    try:
        check_endpoints(machine.config)
    except ConfigError as error:
        yield fail("addresses", str(error), "operations.md, section Keys, says how to let the right peers in")
    for name, address in _endpoints(machine):
        if address.startswith(("unix:", "ipc:")):
            yield from _path(machine, name, Path(re.sub(r"^(unix|ipc):(//)?", "", address)))
        elif address:
            yield from _port(machine, name, address)


def _endpoints(machine: Machine) -> Iterator[tuple[str, str]]:
    for name, value in machine.config.endpoints:
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, tuple):
            yield from ((name, address) for address in value)


def _port(machine: Machine, name: str, address: str) -> Iterator[Finding]:
    try:
        found = holders(name, address, machine)
    except ConfigError as error:
        yield fail("addresses", str(error), "write host:port, or tcp://host:port")
        return
    if not found:
        yield ok("addresses", f"{name} {address} is free")
    elif all(OURS in holder or "systemd" in holder for holder in found):
        yield ok("addresses", f"{name} {address} is held by {found[0]}")
    else:
        mend = f"end it, or set endpoints.{name} to another address"
        yield fail("addresses", f"{name} {address} is held by {', '.join(found)}", mend)


def holders(name: str, address: str, machine: Machine) -> list[str]:
    """Return who listens at the port of an endpoint, by name and pid.

    Raises:
        ConfigError: it is not an address.
    """
    port = host_and_port(f"endpoints.{name}", address)[1]
    return [_holder(machine, inode) for inode in _inodes(machine, port)] if port else []


def _path(machine: Machine, name: str, path: Path) -> Iterator[Finding]:
    place = machine.path(str(path))
    if place.exists() and not place.is_socket():
        mend = f"move it away, or set endpoints.{name} to another path"
        yield fail("addresses", f"{name} {path} is a file and no socket", mend)
    elif not place.parent.is_dir():
        mend = f"mkdir {path.parent} (under systemd, RuntimeDirectory= makes /run/streamdet)"
        yield warn("addresses", f"{name} {path}: there is no folder {path.parent}", mend)
    elif not machine.may(place.parent, os.W_OK):
        yield warn(
            "addresses", f"{name} {path}: this user may not write to {path.parent}", "run doctor as the daemon does"
        )
    else:
        yield ok("addresses", f"{name} {path}")


def _inodes(machine: Machine, port: int) -> set[str]:
    """Of sockets that listen at a TCP port, in the kernel's table."""
    rows = [
        row.split() for table in ("/proc/net/tcp", "/proc/net/tcp6") for row in machine.text(table).splitlines()[1:]
    ]
    return {row[9] for row in rows if row[3] == LISTENING and int(row[1].rpartition(":")[2], 16) == port}


def _holder(machine: Machine, inode: str) -> str:
    """Name and pid of the process with this socket, as far as we may look."""
    for link in machine.root.glob("proc/[0-9]*/fd/*"):
        try:
            found = str(link.readlink()) == f"socket:[{inode}]"
        except OSError:
            continue  # it has just ended, or it is somebody else's
        if found:
            pid = link.parent.parent.name
            words = machine.text(f"/proc/{pid}/cmdline").split("\0")
            name = next((Path(word).name for word in words[:2] if Path(word).name == OURS), Path(words[0]).name)
            return f"{name or 'a process'} (pid {pid})"
    return "a process of another user (look as root)"
