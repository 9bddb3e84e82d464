"""Everything that the daemons of a run published, and what of it is missing: per track, per second of its audio.

A second of audio that reached a daemon is accounted for by a verdict, or by the `skipped` of the verdict after it.
`histories` is a function of the records alone, so that a control can take one away and see that it is missed.
"""

import math
import threading
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple, Self

import msgspec
import zmq

from streamdet.records import Event, Verdict
from streamdet.wire import verdicts
from tests.faults.harness import wait_for

TOPICS: Final = ("v.", "e.", "hb", "daemon")
# Of the starter and of the tests' own bundle.
WINDOW_S: Final = 4.0
MIN_WINDOW_S: Final = 1.0
# Sample counts become seconds and come back: a sample of the fastest rate is 2e-5 s.
SAME_S: Final = 1e-5


class Heard(NamedTuple):
    """A message and when it was here (monotonic s)."""

    at_s: float
    record: Any
    """A Verdict, an Event, a Heartbeat, or the dict of a `daemon` message."""


class Opening:
    """What one daemon said of one channel of one opening of a stream."""

    def __init__(self, opened: str, channel: int) -> None:
        self.opened: Final = opened
        self.channel: Final = channel
        self.heard: Final[list[tuple[float, Verdict]]] = []
        """(when it was here, verdict), no snapshots, in the order of their coming."""
        self.gaps: Final[list[tuple[float, float]]] = []
        """(from, to) in audio time (s), of known length."""
        self.close: Event | None = None

    @property
    def origin_s(self) -> float:
        """Where its audio begins: its first window reaches back to there."""
        if self.close is not None:
            of_channel = self.close.detail["channels"][self.channel]
            return self.close.at_s - float(of_channel["seconds"])
        return self.heard[0][1].start_s if self.heard else math.nan

    @property
    def end_s(self) -> float:
        """How far its audio is known to have come: to the close, or to the last verdict."""
        return self.close.at_s if self.close is not None else self.heard[-1][1].end_s if self.heard else math.nan

    @property
    def skipped(self) -> int:
        """Windows that the daemon says it passed over because scoring was behind."""
        return sum(verdict.skipped for _, verdict in self.heard)

    @property
    def duplicates(self) -> int:
        """Verdicts that came twice."""
        return len(self.heard) - len({verdict.seq for _, verdict in self.heard})

    @property
    def holes(self) -> list[int]:
        """Missing `seq`: published, as far as the daemon knows, but not heard."""
        seen = {verdict.seq for _, verdict in self.heard}
        said = max(seen, default=-1) + 1
        if self.close is not None:
            said = max(said, int(self.close.detail["channels"][self.channel]["windows"]))
        return [seq for seq in range(said) if seq not in seen]

    @property
    def missing(self) -> list[float]:
        """Ends (s) of windows that neither came nor are counted as skipped, though their audio was there."""
        found: list[float] = []
        before_s, first = self.origin_s, self.origin_s + MIN_WINDOW_S
        for _, verdict in self.heard:
            due = [end for end in _hops(before_s, verdict.end_s) if end >= first - SAME_S and not self._in_gap(end)]
            due = [end for end in due if end < verdict.end_s - SAME_S]
            found += due[: max(0, len(due) - verdict.skipped)]
            before_s = max(before_s, verdict.end_s)
        if self.close is None:
            return found
        found += [end for end in _hops(before_s, self.end_s) if end >= first - SAME_S and not self._in_gap(end)]
        cut_s = found[-1] if found and found[-1] > before_s else before_s
        if self.end_s - cut_s >= 0.5 - SAME_S:
            found.append(self.end_s)  # the rest at a stream's end
        return found

    def _in_gap(self, end_s: float) -> bool:
        """Whether a gap passes a window over: of those that end in it, one is cut, the newest that holds audio."""
        return any(
            begin < end_s <= end + SAME_S and end_s != math.floor(min(end + SAME_S, begin + WINDOW_S - SAME_S))
            for begin, end in self.gaps
        )


class History:
    """What all daemons of a run said of one track, opening after opening."""

    def __init__(self, stream: str, channel: int) -> None:
        self.stream: Final = stream
        self.channel: Final = channel
        self.openings: Final[list[Opening]] = []

    @property
    def missing(self) -> list[float]:
        """Of all openings."""
        return [end_s for opening in self.openings for end_s in opening.missing]

    @property
    def unread_s(self) -> list[float]:
        """Audio (s) between two openings that no daemon has accounted for; negative: heard by both."""
        return [round(after.origin_s - before.end_s, 5) for before, after in pairwise(self.openings)]

    def longest_wait_s(self, since_s: float = -math.inf, until_s: float = math.inf) -> float:
        """Return the longest time (s) between two of its verdicts."""
        times = [at_s for opening in self.openings for at_s, _ in opening.heard if since_s <= at_s <= until_s]
        return max((after - before for before, after in pairwise(times)), default=0.0)


class Account(NamedTuple):
    """All tracks summed up."""

    tracks: int
    openings: int
    verdicts: int
    skipped: int
    missing: int
    duplicates: int
    holes: int
    unclosed: int
    """Openings without a `close`."""


def histories(heard: Iterable[Heard], prefix: str = "") -> dict[tuple[str, int], History]:
    """Sort records into tracks, those of streams whose id begins with `prefix`."""
    tracks: dict[tuple[str, int], History] = {}
    openings: dict[tuple[str, int], Opening] = {}
    for at_s, record in heard:
        stream = getattr(record, "stream", None)
        if stream is None or not stream.startswith(prefix):
            continue
        if isinstance(record, Verdict):
            if not record.snapshot:
                _opening(tracks, openings, stream, record.channel, record.opened).heard.append((at_s, record))
        elif record.type == "open":
            for channel in range(record.detail["channels"]):
                _opening(tracks, openings, stream, channel, record.detail["opened"])
        elif record.type == "close":
            for of_channel in record.detail["channels"]:
                channel = of_channel["channel"]
                _opening(tracks, openings, stream, channel, record.detail["opened"]).close = record
        elif record.type == "gap" and record.detail["seconds"] is not None:
            for channel in {channel for name, channel in tracks if name == stream}:
                end_s = record.at_s + record.detail["seconds"]
                tracks[stream, channel].openings[-1].gaps.append((record.at_s, end_s))
    return tracks


def account(tracks: Iterable[History]) -> Account:
    """Sum tracks up."""
    found = list(tracks)
    all_ = [opening for track in found for opening in track.openings]
    return Account(
        tracks=len(found),
        openings=len(all_),
        verdicts=sum(len(opening.heard) for opening in all_),
        skipped=sum(opening.skipped for opening in all_),
        missing=sum(len(opening.missing) for opening in all_),
        duplicates=sum(opening.duplicates for opening in all_),
        holes=sum(len(opening.holes) for opening in all_),
        unclosed=sum(opening.close is None for opening in all_),
    )


def without(heard: Sequence[Heard], at: int) -> list[Heard]:
    """Leave out the verdict number `at`, counted from 0: what a control feeds `histories`."""
    places = [
        place for place, each in enumerate(heard) if isinstance(each.record, Verdict) and not each.record.snapshot
    ]
    return [each for place, each in enumerate(heard) if place != places[at]]


class Recorder(threading.Thread):
    """Hears everything that is published at an address, whoever publishes there, while entered."""

    def __init__(self, address: str, topics: Sequence[str] = TOPICS) -> None:
        super().__init__(name="recorder", daemon=True)
        self.heard: Final[list[Heard]] = []
        self._address: Final = address
        self._topics: Final = topics
        self._done: Final = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        """Take messages until left; the socket connects again by itself."""
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.RECONNECT_IVL, 20)
            for topic in self._topics:
                socket.subscribe(topic)
            socket.connect(self._address)
            while not self._done.is_set():
                if socket.poll(50):
                    parts = socket.recv_multipart()
                    at_s = time.monotonic()
                    own = parts[0] == b"daemon"
                    self.heard.append(Heard(at_s, msgspec.json.decode(parts[1]) if own else verdicts.parse(parts)))

    def await_beat(self) -> None:
        """Wait until the daemon that runs now is heard."""
        count = len(self.heard)
        wait_for(lambda: len(self.heard) > count, why="for a heartbeat")

    def events(self, kind: str, prefix: str = "") -> list[Event]:
        """Return the events of a kind."""
        return [
            each.record
            for each in list(self.heard)
            if isinstance(each.record, Event) and each.record.type == kind and each.record.stream.startswith(prefix)
        ]

    def told(self, kind: str) -> list[dict[str, Any]]:
        """Return what the daemon told of itself, of a kind."""
        own = [each.record for each in list(self.heard) if isinstance(each.record, dict)]
        return [record for record in own if record["type"] == kind]

    def verdicts(self, prefix: str = "") -> list[Verdict]:
        """Return all verdicts that are no snapshots."""
        found = [each.record for each in list(self.heard) if isinstance(each.record, Verdict)]
        return [verdict for verdict in found if verdict.stream.startswith(prefix) and not verdict.snapshot]

    def await_verdicts(self, streams: Iterable[str], count: int = 1, since_s: float = -math.inf) -> None:
        """Wait until each of these streams has had so many verdicts since a time."""
        wanted = set(streams)

        def all_there() -> bool:
            seen: dict[str, int] = dict.fromkeys(wanted, 0)
            for at_s, record in list(self.heard):
                if at_s >= since_s and isinstance(record, Verdict) and record.stream in seen and not record.snapshot:
                    seen[record.stream] += 1
            return min(seen.values(), default=count) >= count

        wait_for(all_there, 2 * 30.0, f"for {count} verdicts of each of {len(wanted)} streams")

    def await_closed(self, streams: Iterable[str]) -> None:
        """Wait until each of these streams has a `close` as its last opening's end."""
        wanted = set(streams)

        def closed() -> bool:
            last: dict[str, str] = {}
            for each in list(self.heard):
                if isinstance(each.record, Event) and each.record.type in ("open", "close"):
                    last[each.record.stream] = each.record.type
            return all(last.get(stream) == "close" for stream in wanted)

        wait_for(closed, 2 * 30.0, f"for the end of {len(wanted)} streams")

    def histories(self, prefix: str = "") -> dict[tuple[str, int], History]:
        """Sort what was heard so far into tracks."""
        return histories(list(self.heard), prefix)


def _hops(after_s: float, until_s: float) -> list[float]:
    """Whole seconds in (after, until]."""
    return [float(end) for end in range(math.floor(after_s + SAME_S) + 1, math.floor(until_s + SAME_S) + 1)]


def _opening(
    tracks: dict[tuple[str, int], History],
    openings: dict[tuple[str, int], Opening],
    stream: str,
    channel: int,
    opened: str,
) -> Opening:
    found = openings.get((opened, channel))
    if found is None:
        found = openings[opened, channel] = Opening(opened, channel)
        tracks.setdefault((stream, channel), History(stream, channel)).openings.append(found)
    return found
