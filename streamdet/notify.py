"""What systemd wants to know (sd_notify(3)): one datagram to the socket it names.

Fifteen lines of our own, because the Python packages for it are unmaintained or need a compiler, and systemd's own
documentation gives the same few lines.
"""

import os
import socket
import time


def notify(**fields: str | int) -> bool:
    """Send `READY=1`, `STATUS=...`, `WATCHDOG=1` and the like; False where no service manager listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux's abstract namespace
    message = "\n".join(f"{name}={value}" for name, value in fields.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            # A manager that hangs behind a full queue must not stop every call; a sign of life is followed by another.
            sock.sendto(message.encode(), 0 if "READY" in fields else socket.MSG_DONTWAIT, address)
        except OSError:
            return False  # it hangs or restarts: nothing that a daemon should fall over
    return True


def reloading() -> bool:
    """Say that a reload has begun; READY=1 says that it is over, well or not (Type=notify-reload waits for it)."""
    return notify(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)


def watchdog_interval_s() -> float | None:
    """How often systemd wants a `WATCHDOG=1`: half of WatchdogSec; None where it does not watch this process."""
    micros, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not micros.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(micros) / 1e6 / 2
