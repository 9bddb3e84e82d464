"""The live table of `tail` and `demo`: what is known of every track, and how it looks."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from streamdet.records import Event, Heartbeat, Notice, State, Verdict
from streamdet.wire.verdicts import Record

BARS: Final = "▁▂▃▄▅▆▇█"
TREND: Final = 20  # verdicts in the sparkline: the last twenty seconds
NEW_ALARM_S: Final = 5.0  # how long a new alarm stands out
CLOSED_FOR_S: Final = 8.0  # how long a call that ended stays to be read
# The rolling LLR at which the sparkline is full or empty: five nat are odds of 150 to 1.
FULL_NAT: Final = 5.0

COLOURS: Final[dict[State, str]] = {"spoof": "red", "uncertain": "yellow", "bonafide": "green", "listening": "dim"}
RANK: Final[dict[State, int]] = {"spoof": 0, "uncertain": 1, "bonafide": 2, "listening": 3}

Key = tuple[str, int]
"""Stream and channel."""
Sort = Literal["state", "score", "lag", "skips", "duration", "name"]


class View(msgspec.Struct):
    """What of the table is to be seen, and in which order."""

    sort: Sort = "state"
    backwards: bool = False
    match: str = ""
    """Part of the ids of the calls that are shown."""
    above: int = 0
    """Rows over the upper edge."""


class Row:
    """One track."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.paused = False
        self.seconds = verdict.end_s
        self.lag_ms: float | None = None
        self.trend: deque[float | None] = deque(maxlen=TREND)
        self.skipped = 0
        self.alarm_at_s: float | None = None
        self.closed_at_s: float | None = None

    def update(self, verdict: Verdict, now_s: float) -> None:
        """Take the track's next verdict."""
        if verdict.state == "spoof" and (self.verdict.state != "spoof" or not self.trend):
            self.alarm_at_s = now_s
        self.verdict = verdict
        self.trend.append(None if verdict.llr is None else verdict.rolling_llr)
        self.skipped += verdict.skipped
        self.seconds, self.lag_ms = max(self.seconds, verdict.end_s), verdict.lag_ms

    def know(self, track: Mapping[str, Any]) -> None:
        """Take what `status` says of it."""
        self.paused, self.skipped, self.closed_at_s = track["paused"], track["skipped"], None
        self.seconds, self.lag_ms = max(self.seconds, track["seconds"]), track["lag_ms"]


# Each with what is worth a look on top.
SORTS: Final[dict[Sort, Callable[[Row], float]]] = {
    "state": lambda row: RANK[row.verdict.state],
    "score": lambda row: -1.0 if row.verdict.p_spoof is None else -1.0 - row.verdict.p_spoof,
    "lag": lambda row: -(row.lag_ms or 0.0),
    "skips": lambda row: -row.skipped,
    "duration": lambda row: -row.seconds,
    "name": lambda _: 0.0,
}


class Board:
    """All tracks that a subscriber has heard of."""

    def __init__(self) -> None:
        """Begin with none."""
        self._rows: dict[tuple[str, int], Row] = {}
        self._beat: Heartbeat | None = None
        self._heard_at_s: float | None = None

    def update(self, record: Record, now_s: float) -> None:
        """Take a message that arrived at `now_s` (monotonic, s)."""
        self._heard_at_s = now_s
        if isinstance(record, Heartbeat):
            if self._beat is not None and record.epoch != self._beat.epoch:
                self._rows.clear()  # another daemon: it knows nothing of these calls
            self._beat = record
        elif isinstance(record, Verdict):
            self._verdict(record, now_s)
        elif record.type == "close":
            self._close(record, now_s)

    def know(self, tracks: Sequence[Mapping[str, Any]], now_s: float) -> None:
        """Take `status` of all open tracks: those that had no verdict yet appear, those that are not open end."""
        for track in tracks:
            key = track["stream"], track["channel"]
            row = self._rows.get(key)
            if row is None or row.verdict.opened != track["opened"]:
                row = self._rows[key] = _unheard(track)
            row.know(track)
        still = {track["opened"] for track in tracks}
        for row in self._rows.values():
            if row.verdict.opened not in still and row.closed_at_s is None:
                row.closed_at_s = now_s  # its close event was lost

    def chosen(self, view: View) -> list[tuple[Key, Row]]:
        """Return the rows that match, in the order that is asked for."""
        measure = SORTS[view.sort]
        rows = (item for item in self._rows.items() if view.match in item[0][0])
        return sorted(rows, key=lambda item: (measure(item[1]), item[0]), reverse=view.backwards)

    def render(
        self, now_s: float, height: int = 40, view: View | None = None, head: Sequence[Text] | None = None
    ) -> Group:
        """Draw at most `height` lines: `head`, or one of our own, and the rows that `view` lets through."""
        self._sweep(now_s)
        view, head = view or View(), head or [self.headline(now_s)]
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("call")  # the only column that gives way where the terminal is narrow
        for column in ("state", "P(spoof)", "▁ bona fide  spoof █"):
            table.add_column(column, no_wrap=True)
        for column in ("speech", "of", "lag", "skips"):
            table.add_column(column, justify="right", no_wrap=True)
        rows = self.chosen(view)
        room = max(1, height - len(head) - 2)
        above = view.above = max(0, min(view.above, len(rows) - room))
        for (stream, channel), row in rows[above : above + room]:
            table.add_row(*self._cells(stream, channel, row, now_s), style=None if row.closed_at_s is None else "dim")
        more = [Text(f"… and {len(rows) - room} more")] if len(rows) > room else []
        return Group(*head, table, *more)

    def headline(self, now_s: float) -> Text:
        """Sum up what heartbeats tell."""
        line = Text(no_wrap=True, overflow="ellipsis")
        beat = self._beat
        if self._heard_at_s is None:
            line.append("waiting for a daemon …", style="yellow")
        elif now_s - self._heard_at_s > 3:
            line.append(f"nothing heard for {now_s - self._heard_at_s:.0f} s, still trying …", style="yellow")
        elif beat is not None:
            lag = "–" if beat.lag_ms_p99 is None else f"{beat.lag_ms_p99:.0f} ms"
            counts = f"{beat.streams} calls, {beat.tracks} tracks, {beat.windows} windows, lag p99 {lag}"
            line.append(counts, style="bold")
            if beat.overload:
                line.append(f"   behind: {beat.skipped} windows skipped", style="bold red")
        return line

    def _verdict(self, verdict: Verdict, now_s: float) -> None:
        key = verdict.stream, verdict.channel
        row = self._rows.get(key)
        if row is None or row.verdict.opened != verdict.opened:
            row = self._rows[key] = Row(verdict)
        elif verdict.seq <= row.verdict.seq:
            return  # a repeat for somebody who has just subscribed
        row.update(verdict, now_s)

    def _close(self, close: Event, now_s: float) -> None:
        for row in self._rows.values():
            if row.verdict.stream == close.stream and row.verdict.opened == close.detail.get("opened"):
                row.closed_at_s = now_s

    def _sweep(self, now_s: float) -> None:
        for key, row in list(self._rows.items()):
            if row.closed_at_s is not None and now_s - row.closed_at_s > CLOSED_FOR_S:
                del self._rows[key]

    @staticmethod
    def _cells(stream: str, channel: int, row: Row, now_s: float) -> Iterable[Text | str]:
        verdict = row.verdict
        colour = COLOURS[verdict.state]
        is_new = row.alarm_at_s is not None and now_s - row.alarm_at_s < NEW_ALARM_S
        state = Text(f" {verdict.state} ", style=f"bold reverse {colour}" if is_new else colour)
        ended = " (ended)" if row.closed_at_s is not None else " (paused)" if row.paused else ""
        yield Text(f"{stream}/{channel}{ended}", no_wrap=True, overflow="ellipsis")  # a str would be read as markup
        yield state
        yield Text("–" if verdict.p_spoof is None else f"{verdict.p_spoof:.2f}", style=colour)
        yield Text(sparkline(row.trend).rjust(TREND), style=colour)
        yield f"{verdict.total_speech_s:.0f} s"
        yield f"{row.seconds:.0f} s"
        yield "–" if row.lag_ms is None else f"{row.lag_ms:.0f} ms"
        yield str(row.skipped)


def _unheard(track: Mapping[str, Any]) -> Row:
    """A row of a track of which `status` alone has told: no verdict has this `seq`, so the first one replaces it."""
    known = {name: track[name] for name in ("stream", "channel", "opened", "state", "state_since_s", "p_spoof")}
    row = Row(
        Verdict(
            **known,
            seq=-1,
            start_s=0.0,
            end_s=0.0,
            speech_s=0.0,
            total_speech_s=track["total_speech_s"],
            llr=None,
            rolling_llr=track["rolling_llr"],
            lag_ms=0.0,
            skipped=0,
            transit_ms=None,
            model="",
        )
    )
    row.trend.append(None if track["p_spoof"] is None else track["rolling_llr"])
    return row


def sparkline(rolling_llrs: Iterable[float | None]) -> str:
    """One bar for each verdict: high = evidence for spoof; a dot where too little speech was heard."""
    bars = []
    for llr in rolling_llrs:
        if llr is None:
            bars.append("·")
            continue
        share = (FULL_NAT - min(max(llr, -FULL_NAT), FULL_NAT)) / (2 * FULL_NAT)
        bars.append(BARS[min(int(share * len(BARS)), len(BARS) - 1)])
    return "".join(bars)


def line(record: Record) -> str:
    """A message as one plain line."""
    if isinstance(record, Heartbeat):
        return f"hb {record.streams} streams {record.windows} windows {record.skipped} skipped"
    if isinstance(record, Notice):
        said = record.error or ("" if record.model == record.before else f"from {record.before}")
        return f"daemon  {record.type}  {'ok' if record.ok else 'failed'}  {record.model}  {said}".rstrip()
    if isinstance(record, Event):
        where = record.stream if record.channel is None else f"{record.stream}/{record.channel}"
        detail = " ".join(f"{key}={value}" for key, value in record.detail.items() if not isinstance(value, list))
        return f"{record.at_s:7.1f} s  {where}  {record.type}  {detail}".rstrip()
    p_spoof = "–" if record.p_spoof is None else f"{record.p_spoof:.3f}"
    llr = "too little speech" if record.llr is None else f"LLR {record.llr:+.2f}"
    return (
        f"{record.end_s:7.1f} s  {record.stream}/{record.channel}  {record.state:<9}  P(spoof) {p_spoof}  "
        f"rolling {record.rolling_llr:+.2f}  {llr}  speech {record.speech_s:.1f} s  lag {record.lag_ms:.0f} ms  "
        f"skipped {record.skipped}"
    )
