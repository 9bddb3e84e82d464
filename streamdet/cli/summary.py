"""A daemon's health in a few lines, as `status` and `top` show it."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.text import Text

from streamdet.doctor.service import BUSY, LATE_MS

# Of the descriptors that may be open: beyond this, connections will soon be refused.
FULL: Final = 0.8


def summary(answer: Mapping[str, Any]) -> list[Text]:
    """Say how a daemon is, from its answer to `status`; what an operator should look at is yellow or red."""
    health, counts = answer["health"], answer["counts"]
    lines = [_who(answer["model"], health), _calls(counts, health), _scoring(health)]
    remarks = list(_remarks(health))
    return [*lines, Text("; ".join(remarks), style="yellow")] if remarks else lines


def flat(answer: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the answer as objects of one line each: `health` with model and counts, then each track."""
    yield {"type": "health", "model": answer["model"], **answer["counts"], **answer["health"]}
    for track in answer["tracks"]:
        yield {"type": "track", **track}


def lasted(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 7 min`, `5 d 3 h`."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((index for index, (number, _) in enumerate(parts) if number), len(parts) - 1)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2])


def _who(model: str, health: Mapping[str, Any]) -> Text:
    line = Text(f"streamdet {health['version']}: ", style="bold")
    line.append(*(("ready", "bold green") if health["ready"] else ("not ready", "bold red")))
    provider = (health["provider"] or "nothing yet").removesuffix("ExecutionProvider")
    return line.append(
        f", {model} on {provider}, up {lasted(health['uptime_s'])}, pid {health['pid']}", style="not bold"
    )


def _calls(counts: Mapping[str, Any], health: Mapping[str, Any]) -> Text:
    line = Text()
    full = counts["streams"] >= FULL * health["streams_max"]
    line.append(f"{counts['streams']} of {health['streams_max']} calls", style="yellow" if full else "")
    paused = f" ({counts['paused']} paused)" if counts.get("paused") else ""
    line.append(f"{paused}, {counts['tracks']} tracks, {counts['windows']} windows, ")
    line.append(f"{counts['skipped']} skipped", style="bold red" if health["overload"] else "")
    lag_ms = health["lag_ms_p99"]
    return line.append(f", lag p99 {'–' if lag_ms is None else f'{lag_ms:.0f} ms'}")


def _scoring(health: Mapping[str, Any]) -> Text:
    line = Text("scoring ")
    line.append(f"{100 * health['load']:.0f} % busy", style="yellow" if health["load"] >= BUSY else "")
    if health["batches"]:
        line.append(
            f", batches of {health['batch_windows_mean']:.1f} (at most {health['batch_windows_max']}) "
            f"in {health['batch_ms_mean']:.0f} ms"
        )
    line.append(f", {health['rss_bytes'] / 2**20:.0f} MB")
    few = health["fds"] >= FULL * health["fds_max"]
    return line.append(f", {health['fds']} of {health['fds_max']} files", style="yellow" if few else "")


def _remarks(health: Mapping[str, Any]) -> Iterator[str]:
    if refused := health["refused"]:
        yield "refused: " + ", ".join(f"{number} {reason}" for reason, number in refused.items())
    if health["loop_late_ms"] > LATE_MS:
        yield f"event loop {health['loop_late_ms']:.0f} ms late"
    if health["log_lines_lost"]:
        yield f"{health['log_lines_lost']} log lines not written"
    if (reload := health["reload"]) and not reload["ok"]:
        yield f"reload refused at {reload['at']}: {reload['error']}"
