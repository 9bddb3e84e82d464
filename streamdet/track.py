"""One channel of one stream: its ring, its place on the hop grid, and its verdict.

Windows end at whole hops of audio time, counted from the stream's first sample. A live track has at most one due
window, the newest; a lossless one has every window, in order.

With an adaptive hop windows end at half hops, and the tracker's last word says how many of them the next window is
away: a settled track is scored every other hop, a doubtful one every half. What is not due by choice is no skip.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from streamdet.audio import SILENCE
from streamdet.bundle import Manifest
from streamdet.records import AudioFormat, Score, Sums, Verdict, Window
from streamdet.ring import Ring
from streamdet.verdict import Pace, Tracker

# A lossless reader is told to stop this far ahead of its next window: enough to keep batches coming, little to hold.
FULL_HOPS: Final = 2
# Beside the window itself. Live: a frame holds at most one hop. Lossless: what may wait, and two frames on top.
LIVE_SPARE_HOPS: Final = 1
LOSSLESS_SPARE_HOPS: Final = FULL_HOPS + 2
# With an adaptive hop: steps in a hop, and steps to the next window. None is more than FULL_HOPS away, or a reader that
# was told to wait would wait for ever.
ADAPTIVE_STEPS: Final = 2
STRIDES: Final[dict[Pace, int]] = {"settled": 4, "usual": 2, "doubtful": 1}


class Timeline(msgspec.Struct, frozen=True):
    """The grid at a stream's own rate, in integers: step k ends at sample k * hop * rate // (model rate * steps)."""

    rate_hz: int
    model_rate_hz: int
    hop_model_samples: int
    """At the model's rate."""
    window_samples: int
    """At the stream's rate, as the others below."""
    min_window_samples: int
    lossless: bool
    steps: int = 1
    """In a hop: 1, or ADAPTIVE_STEPS."""
    blocks: int = 0
    """In a window, each ending at a hop; 0 where windows are scored whole."""
    block_samples: int = 0
    """A hop and what its block hears before it, rounded up."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        form: AudioFormat,
        min_window_s: float,
        *,
        lossless: bool,
        adaptive: bool = False,
    ) -> "Timeline":
        """Lay the bundle's grid over a stream's rate."""
        audio = manifest.audio
        return cls(
            rate_hz=form.rate_hz,
            model_rate_hz=audio.rate_hz,
            hop_model_samples=audio.hop_samples,
            window_samples=audio.window_samples * form.rate_hz // audio.rate_hz,
            min_window_samples=min(
                round(min_window_s * form.rate_hz), audio.window_samples * form.rate_hz // audio.rate_hz
            ),
            lossless=lossless,
            steps=ADAPTIVE_STEPS if adaptive else 1,
            blocks=manifest.blocks,
            block_samples=-(-manifest.input_samples * form.rate_hz // audio.rate_hz) if manifest.blocks else 0,
        )

    @property
    def reach_samples(self) -> int:
        """How far back from its end a window may want audio."""
        return max(self.window_samples, (self.blocks - 1) * self.hop_samples + self.block_samples)

    @property
    def ring_samples(self) -> int:
        """What a track on this grid has to hold."""
        spare_hops = LOSSLESS_SPARE_HOPS if self.lossless else LIVE_SPARE_HOPS
        return self.reach_samples + spare_hops * self.hop_samples

    @property
    def hop_samples(self) -> int:
        """Samples of one hop at the stream's rate, rounded up: no two ends are further apart."""
        return -(-self.hop_model_samples * self.rate_hz // self.model_rate_hz)

    def end_sample(self, step: int) -> int:
        """Where step number `step` ends; a step is a hop, unless the hop is adaptive."""
        return step * self.hop_model_samples * self.rate_hz // (self.model_rate_hz * self.steps)

    def newest(self, clock_sample: int) -> int:
        """The newest step that has ended by `clock_sample`."""
        # The largest k with k * a // b <= clock, that is k * a < (clock + 1) * b.
        a, b = self.hop_model_samples * self.rate_hz, self.model_rate_hz * self.steps
        return ((clock_sample + 1) * b - 1) // a

    def block_ends(self, end_sample: int, origin_sample: int) -> tuple[int, ...]:
        """Where the blocks of a window end, the oldest first; what lies before `origin_sample` is none of it.

        On the hop grid, so that windows share them; a rest at a stream's end counts hops back from its own end.
        """
        hop = self.newest(end_sample)
        on_grid = self.end_sample(hop) == end_sample
        ends = [
            self.end_sample(hop - back) if on_grid else end_sample - self.end_sample(back)
            for back in range(self.blocks)
        ]
        # A track may begin anywhere in a hop. Less than half of one, repeated to a block, is a buzz and no voice.
        return tuple(
            end for end in reversed(ends) if end == end_sample or 2 * (end - origin_sample) >= self.hop_samples
        )


class Job(msgspec.Struct, frozen=True):
    """A window on its way through the scorer."""

    track: Any  # a Track; msgspec cannot name what is defined below
    window: Window
    advance_samples: int
    """New audio since the previous window of the track."""
    skipped: int
    timeline: Timeline
    """The grid on which it was cut."""


class Track:
    """A byte ring and a verdict, and which of the ring's windows is due."""

    def __init__(
        self,
        stream: Any,
        channel: int,
        timeline: Timeline,
        tracker: Tracker,
        form: AudioFormat,
        origin_sample: int,
    ) -> None:
        """Begin at `origin_sample`: 0, or wherever a stream stood when its first frame reached this daemon."""
        self.stream: Final = stream
        self.channel: Final = channel
        self.timeline = timeline
        self.tracker = tracker
        self._format: Final = form
        self._origin_sample: Final = origin_sample
        self.ring = Ring(timeline.ring_samples, SILENCE[form.encoding], origin_sample)
        self.queued = False
        self.in_flight = False
        self._cut_step = timeline.newest(origin_sample + timeline.min_window_samples - 1)
        """The newest step that needs no window any more: cut, skipped, or too early to have one."""
        self._stride = 1
        """Steps from there to the next window."""
        self._cut_end_sample = origin_sample
        self._begin_sample = origin_sample
        """Windows reach back no further."""
        self._late = False
        """Whether windows were skipped before the newest one."""
        self._keeps = False
        """Whether no window gives way to a newer one any more."""
        self._held: deque[Job] = deque()
        """Windows cut ahead of being taken, because their audio will not stay in the ring."""
        self._sums: dict[int, Sums] = {}
        """Of the newest blocks, by where they end: what a next window need not encode again."""
        self._read: deque[tuple[int, float, float | None]] = deque()  # (step, read_at_s, transit_s)
        self._last_read: tuple[float, float | None] = (0.0, None)
        self._dropped_samples = self._dropped = 0
        """Audio and windows of runs that failed since the last verdict."""
        self._taken_skips = 0
        """What the window that is in flight tells of."""
        self._ended = False
        self._windows = self._skipped = 0
        self._total_speech_s = 0.0
        self._last: Verdict | None = None

    # -- audio in ---------------------------------------------------------------------------------------------------

    def append(self, data: bytes | bytearray | memoryview, now_s: float, transit_s: float | None) -> None:
        """Take audio read at `now_s`."""
        self.ring.append(data)
        self._mark(now_s, transit_s)
        if self._keeps and self._is_due():
            self._held.append(self._cut_newest())

    def append_silence(self, samples: int, now_s: float, transit_s: float | None) -> None:
        """Let time pass without audio (a pause)."""
        self.ring.append_silence(samples)
        self._mark(now_s, transit_s)

    def gap(self, samples: int, now_s: float, transit_s: float | None) -> None:
        """Fill a gap with silence.

        The newest window that still holds something from before the gap is cut on the way, since a long gap would
        push it out of the ring. Windows wholly inside the gap are passed over: they say nothing, and are no skips.
        """
        line, began, end = self.timeline, self.ring.end_sample, self.ring.end_sample + samples
        step = line.newest(min(end, began + line.window_samples - 1))
        if step > self._cut_step:
            skipped = max(0, min(line.newest(began), step - 1) - self._cut_step) // self._stride
            self.append_silence(max(0, line.end_sample(step) - began), now_s, transit_s)
            self._hold(self._cut(step, skipped))
        self.append_silence(end - self.ring.end_sample, now_s, transit_s)
        self._cut_step = max(self._cut_step, line.newest(end))
        self._cut_end_sample = max(self._cut_end_sample, min(end, line.end_sample(self._cut_step)))

    def keep(self) -> None:
        """Let no window give way to a newer one: the end comes, and what was not behind must not lose one to it.

        A track that is behind goes on with its newest window, since it would not be done in time.
        """
        if not self.timeline.lossless and not self._late:
            self._keeps = True
            if self._is_due():
                self._held.append(self._cut_newest())

    def finish(self) -> None:
        """The stream has ended: what is due and a rest of at least half a hop are still to be taken."""
        self._ended = True
        if not self.timeline.lossless and self._is_due():
            self._held.append(self._cut_newest())  # and not the rest in its place

    # -- windows out ------------------------------------------------------------------------------------------------

    def has_due(self) -> bool:
        """Whether `take` has a window to give."""
        return bool(self._held) or self._is_due() or self._has_rest()

    @property
    def full(self) -> bool:
        """Whether a lossless reader should wait."""
        waiting = self.ring.end_sample - self._cut_end_sample
        # Only what is due can be taken, and only taking makes room: a reader must not wait for a first window.
        return self.timeline.lossless and self.has_due() and waiting >= FULL_HOPS * self.timeline.hop_samples

    def take(self) -> Job:
        """Cut the due window; there must be one."""
        self.in_flight = True
        if self._is_due() and not self.timeline.lossless:
            self._hold(self._cut_newest())
        job = self._held.popleft() if self._held else self._cut_next()
        self._taken_skips = job.skipped
        sums = tuple(self._sums.get(end) for end in job.window.block_ends)
        return msgspec.structs.replace(job, window=msgspec.structs.replace(job.window, sums=sums)) if sums else job

    def settle(self, job: Job, score: Score, now_s: float, model: str) -> Verdict:
        """Make a verdict of a taken window's score."""
        window, rate_hz = job.window, self._format.rate_hz
        length = window.end_sample - window.start_sample
        end_s = window.end_sample / rate_hz
        advance_samples = min(job.advance_samples + self._dropped_samples, length)
        standing = self.tracker.update(score.llr, end_s, advance_samples / rate_hz)
        # The gate hears whole windows, and windows overlap: count the new share of each.
        self._total_speech_s += score.speech_s * advance_samples / length
        self._last = Verdict(
            stream=self.stream.name,
            channel=self.channel,
            opened=self.stream.opened,
            seq=self._windows,
            start_s=window.start_sample / rate_hz,
            end_s=end_s,
            speech_s=score.speech_s,
            total_speech_s=self._total_speech_s,
            llr=score.llr,
            rolling_llr=standing.rolling_llr,
            p_spoof=standing.p_spoof,
            state=standing.state,
            state_since_s=standing.state_since_s,
            skipped=job.skipped + self._dropped,
            lag_ms=1e3 * (now_s - window.read_at_s),
            transit_ms=None if window.transit_s is None else 1e3 * window.transit_s,
            model=model,
        )
        if score.sums and job.timeline is self.timeline:
            self._remember(window, score.sums)
        if self.timeline.steps > 1:
            self._stride = STRIDES[self.tracker.pace]
        self._windows += 1
        self._skipped += job.skipped
        self._dropped_samples = self._dropped = 0
        self.in_flight = False
        return self._last

    def drop(self, job: Job) -> None:
        """Give up a taken window, since its run failed: it is skipped, and what was new in it is news in the next."""
        self._dropped_samples += job.advance_samples
        self._dropped += job.skipped + 1
        self._skipped += job.skipped + 1
        self.in_flight = False

    def abandon(self) -> int:
        """Give up whatever is due or taken, since nothing will be scored any more; return how many windows that are."""
        given_up = int(self.in_flight)
        self._skipped += self._taken_skips if self.in_flight else 0
        while self.has_due():
            given_up += self.take().skipped + 1
        self.in_flight = False
        self._skipped += given_up
        return given_up

    def go_on_with(self, timeline: Timeline, tracker: Tracker, *, same_model: bool) -> None:
        """Go on with another bundle: its thresholds, its grid; clock, verdicts so far and the audio that is here stay.

        Args:
            timeline: the grid from here on.
            tracker: which knows what the one before it knew.
            same_model: whether what is remembered of blocks still holds, if the grid does.
        """
        self.tracker = tracker
        if timeline == self.timeline and same_model:
            return
        before, self.timeline = self.timeline, timeline
        self._sums.clear()  # and those of windows in flight are not taken: they were cut on another timeline
        if timeline != before:
            self._lay_ring()
            self._lay_grid(before)

    def wipe(self) -> None:
        """Nothing of a call stays in memory after it."""
        self.ring.wipe()
        self._sums.clear()

    def status(self) -> dict[str, Any]:
        """What a person asks of a track."""
        standing, last = self.tracker.standing, self._last
        return {
            "channel": self.channel,
            "state": standing.state,
            "state_since_s": standing.state_since_s,
            "p_spoof": standing.p_spoof,
            "rolling_llr": standing.rolling_llr,
            "seconds": (self.ring.end_sample - self._origin_sample) / self._format.rate_hz,
            "windows": self._windows,
            "skipped": self._skipped,
            "total_speech_s": self._total_speech_s,
            "lag_ms": None if last is None else last.lag_ms,
        }

    # -- inside -----------------------------------------------------------------------------------------------------

    def _mark(self, now_s: float, transit_s: float | None) -> None:
        """Remember when the newest step's last byte was read: lag counts from there."""
        self._last_read = (now_s, transit_s)
        newest = self.timeline.newest(self.ring.end_sample)
        if newest > self._cut_step and (not self._read or newest > self._read[-1][0]):
            if not self.timeline.lossless:
                self._read.clear()  # only the newest can still become a window
            self._read.append((newest, now_s, transit_s))

    def _lay_ring(self) -> None:
        """Make a ring for the grid, and keep as much audio as it can use and there is."""
        old, line = self.ring, self.timeline
        # A lossless reader may be further ahead than it would be let on this grid: all of it is still to be cut.
        waiting = old.end_sample - self._cut_end_sample if line.lossless else 0
        capacity = max(line.ring_samples, line.reach_samples + waiting + FULL_HOPS * line.hop_samples)
        first = max(old.start_sample, old.end_sample - capacity)
        self.ring = Ring(capacity, SILENCE[self._format.encoding], first)
        self.ring.append(old.window(first, old.end_sample))
        self._begin_sample = max(self._begin_sample, first)
        old.wipe()

    def _lay_grid(self, before: Timeline) -> None:
        """Find the place on the grid, and cut what is held to its windows."""
        line = self.timeline
        begun = line.newest(self._origin_sample + line.min_window_samples - 1)
        self._cut_step = max(begun, line.newest(self._cut_end_sample))
        self._stride = STRIDES[self.tracker.pace] if line.steps > 1 else 1
        self._late = False
        read = [
            (line.newest(before.end_sample(step)), read_at_s, transit_s) for step, read_at_s, transit_s in self._read
        ]
        self._read = deque(entry for entry in read if entry[0] > self._cut_step)
        self._held = deque(self._cut_again(job) for job in self._held)

    def _cut_again(self, job: Job) -> Job:
        """A held window's audio, as a window on the grid of now: no longer than it may be, nor than what was held."""
        window, line, size = job.window, self.timeline, self._format.sample_bytes
        held_from = window.end_sample - len(window.data) // size
        start_sample = max(window.start_sample, window.end_sample - line.window_samples)
        ends = line.block_ends(window.end_sample, start_sample)
        left_sample = ends[0] - line.block_samples if ends else start_sample
        data = window.data[(max(held_from, min(start_sample, left_sample)) - held_from) * size :]
        cut = msgspec.structs.replace(window, data=data, start_sample=start_sample, block_ends=ends, sums=())
        return msgspec.structs.replace(job, window=cut, timeline=line)

    def _is_due(self) -> bool:
        """Whether a step has ended whose window is wanted."""
        return self.timeline.newest(self.ring.end_sample) >= self._cut_step + self._stride

    def _has_rest(self) -> bool:
        """Whether a stream that has ended has half a hop that no window heard."""
        waiting = self.ring.end_sample - self._cut_end_sample
        return self._ended and 2 * waiting >= self.timeline.hop_samples

    def _cut_newest(self) -> Job:
        """Cut a live track's due window; what would have been due before it is skipped."""
        newest = self.timeline.newest(self.ring.end_sample)
        return self._cut(newest, (newest - self._cut_step) // self._stride - 1)

    def _cut_next(self) -> Job:
        """Cut a lossless track's due window, or any track's rest."""
        if self._is_due():
            return self._cut(self._cut_step + self._stride, 0)
        self._cut_step = self.timeline.newest(self.ring.end_sample)
        return self._job(self.ring.end_sample, *self._last_read, skipped=0)

    def _cut(self, step: int, skipped: int) -> Job:
        while self._read and self._read[0][0] < step:
            self._read.popleft()
        read = self._read.popleft()[1:] if self._read else self._last_read
        self._cut_step = step
        if self._late and skipped and self.timeline.blocks:
            # Blocks of skipped hops cost what skipping saved. Once late they are made up for; who is late again begins
            # anew with one block, as at a stream's start, or hops would stretch to a whole window at a time.
            self._begin_sample = self.timeline.end_sample(step - 1)
        self._late = skipped > 0
        return self._job(self.timeline.end_sample(step), *read, skipped=skipped)

    def _job(self, end_sample: int, read_at_s: float, transit_s: float | None, *, skipped: int) -> Job:
        start_sample = max(self._begin_sample, end_sample - self.timeline.window_samples)
        ends = self.timeline.block_ends(end_sample, self._begin_sample)
        left_sample = ends[0] - self.timeline.block_samples if ends else start_sample
        data = self.ring.window(max(self.ring.origin_sample, min(start_sample, left_sample)), end_sample)
        window = Window(self._format, data, start_sample, end_sample, read_at_s, transit_s, ends)
        advance_samples = end_sample - self._cut_end_sample
        self._cut_end_sample = end_sample
        return Job(self, window, advance_samples, skipped, self.timeline)

    def _remember(self, window: Window, sums: Sequence[Sums | None]) -> None:
        """Keep the sums of those blocks that the next window can hold too."""
        self._sums.update((end, of) for end, of in zip(window.block_ends, sums, strict=True) if of is not None)
        gone = window.end_sample - (self.timeline.blocks - 1) * self.timeline.hop_samples
        self._sums = {end: of for end, of in self._sums.items() if end > gone}

    def _hold(self, job: Job) -> None:
        """Keep a live track's newest window; one that waited for its turn until now is skipped."""
        if self._held and not self._keeps:
            older = self._held.popleft()
            # What the skipped window had that was new is news in this one.
            job = msgspec.structs.replace(
                job,
                advance_samples=job.advance_samples + older.advance_samples,
                skipped=job.skipped + older.skipped + 1,
            )
        self._held.append(job)
