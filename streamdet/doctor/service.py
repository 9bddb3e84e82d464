"""The service as systemd sees it, and a daemon that runs."""

from collections.abc import Iterator
from typing import Final

from streamdet.doctor.finding import Finding, Machine, fail, ok, warn
from streamdet.doctor.network import holders

UNIT: Final = "streamdet.service"
PROPERTIES: Final = "LoadState,ActiveState,SubState,Result,NRestarts,UnitFileState"
# Scoring that is this busy has no room for a burst: at 1 windows are skipped. Places run out likewise.
BUSY: Final = 0.8
# A loop that is this late (ms) makes every verdict so much later.
LATE_MS: Final = 100.0
READ_THE_LOG: Final = f"journalctl -u {UNIT} -n 50"


def unit(machine: Machine) -> Iterator[Finding]:
    """What systemd makes of the service, where there is systemd."""
    if not machine.path("/run/systemd/system").is_dir():
        yield ok("unit", "no systemd runs here")
        return
    said = machine.output("systemctl", "show", UNIT, f"--property={PROPERTIES}")
    known = dict(line.split("=", 1) for line in (said or "").splitlines() if "=" in line)
    if known.get("LoadState") != "loaded":
        yield warn("unit", f"{UNIT} is not installed", "streamdet install-service")
        return
    state = f"{known.get('ActiveState')} ({known.get('SubState')}), {known.get('UnitFileState') or 'not enabled'}"
    restarts = int(known.get("NRestarts") or 0)
    if known.get("ActiveState") == "failed":
        yield fail("unit", f"{state}, {known.get('Result')}", f"{READ_THE_LOG}; then systemctl restart {UNIT}")
    elif restarts:
        yield warn("unit", f"{state}, restarted {restarts} times", f"{READ_THE_LOG} says why")
    elif known.get("ActiveState") != "active":
        yield warn("unit", state, f"systemctl enable --now {UNIT}")
    else:
        yield ok("unit", state)


def daemon(machine: Machine) -> Iterator[Finding]:
    """How a daemon is that runs here."""
    answer = machine.ask()
    if answer is None:
        yield _silent(machine.config.endpoints.control, machine)
        return
    health, counts = answer["health"], answer["counts"]
    ill = []
    if not health["ready"]:
        ill.append(fail("daemon", "it runs, but takes no calls yet or any more", READ_THE_LOG))
    if health["overload"] or health["load"] >= BUSY:
        why = f"scoring is {100 * health['load']:.0f} % busy, {counts['skipped']} windows were skipped"
        ill.append(warn("daemon", why, "fewer calls, a smaller bundle, a faster machine: docs/sizing.md"))
    if health["loop_late_ms"] > LATE_MS:
        why = f"its event loop is {health['loop_late_ms']:.0f} ms late"
        ill.append(warn("daemon", why, "longer frames, fewer connections, or less beside it on this machine"))
    if counts["streams"] >= BUSY * health["streams_max"]:
        why = f"{counts['streams']} streams of {health['streams_max']} are open"
        ill.append(warn("daemon", why, "raise streams.max_streams, or look for senders that never end their calls"))
    if health["reload"] and not health["reload"]["ok"]:
        why = f"the last reload was refused: {health['reload']['error']}"
        ill.append(warn("daemon", why, "mend that (streamdet check tries it), and reload"))
    if health["log_lines_lost"]:
        why = f"{health['log_lines_lost']} log lines were not written"
        ill.append(warn("daemon", why, "look at the log's disk or its reader; docs/operations.md, Logs"))
    yield from ill
    if not ill:
        yield ok(
            "daemon", f"{answer['model']} on {health['provider']}, {counts['streams']} streams, pid {health['pid']}"
        )


def _silent(address: str, machine: Machine) -> Finding:
    """Nobody answers: there is no daemon, or it does not answer us."""
    if not address:
        return ok("daemon", "nobody can be asked: endpoints.control is off")
    if address.startswith("tcp://") and holders("control", address, machine):
        mend = f"give --identity of a client with the role control; else it hangs: {READ_THE_LOG}"
        return warn("daemon", f"something listens at {address} and does not answer", mend)
    return ok("daemon", f"none answers at {address}")
