"""Who goes first: the tracks that have a due window, in three lines."""

from collections import deque
from typing import Final

from streamdet.track import Track

# When many calls end at once, as when a trunk fails, those that go on must not wait for the last words of those that do
# not: ended tracks get one place in so many, and what is left over.
ENDED_SHARE: Final = 16
# But what waits holds a window in memory, 32 kB of mu-law: the more there are, the larger their share; here it is all.
ENDED_MOST: Final = 4096


class Line:
    """Tracks that wait for their turn.

    Live windows go first; lossless ones get the places left over and at least one, so that neither starves. The last
    windows of streams that have ended wait behind the live ones too, and get one place in ENDED_SHARE.
    """

    def __init__(self) -> None:
        """Begin with nobody."""
        self._live: Final[deque[Track]] = deque()
        self._lossless: Final[deque[Track]] = deque()
        self._ended: Final[deque[Track]] = deque()
        self._owed = 0.0
        """To ended tracks, in windows."""
        self._lossless_next = False

    def join(self, track: Track) -> None:
        """Put a track at the end of its line; it must stand in none."""
        track.queued = True
        self._of(track).append(track)

    def clear(self) -> list[Track]:
        """Let all tracks go, those that would be next first."""
        tracks = [*self._live, *self._lossless, *self._ended]
        for line in (self._live, self._lossless, self._ended):
            line.clear()
        for track in tracks:
            track.queued = False
        return tracks

    def take(self, limit: int, *, reserve: bool) -> list[Track]:
        """Let at most `limit` tracks go, the longest waiting first.

        Args:
            limit: places.
            reserve: whether one of them is kept for a lossless track.
        """
        tracks = self._take_from(self._ended, self._owed_to_ended(limit))
        limit -= len(tracks)
        reserved = 1 if self._lossless and reserve and limit else 0
        if reserved and limit == 1 and self._live:
            # One place for two lines: they take turns.
            self._lossless_next = not self._lossless_next
            reserved = int(self._lossless_next)
        for line, places in ((self._live, limit - reserved), (self._lossless, limit), (self._ended, limit)):
            more = self._take_from(line, min(places, limit))
            limit -= len(more)
            tracks += more
        return tracks

    def _of(self, track: Track) -> deque[Track]:
        """Where a track stands in line."""
        if track.timeline.lossless:
            return self._lossless
        return self._live if track.stream.reason is None else self._ended

    def _owed_to_ended(self, limit: int) -> int:
        """How many of the next places go to ended tracks, whoever else waits."""
        if not self._ended:
            self._owed = 0.0
            return 0
        self._owed += limit * max(1 / ENDED_SHARE, len(self._ended) / ENDED_MOST)
        places = min(int(self._owed), limit)
        self._owed -= places
        return places

    def _take_from(self, line: deque[Track], limit: int) -> list[Track]:
        tracks: list[Track] = []
        while line and len(tracks) < limit:
            track = line.popleft()
            if (now := self._of(track)) is not line:
                now.append(track)  # its stream ended while it stood in line
                continue
            track.queued = False
            tracks.append(track)
        return tracks
