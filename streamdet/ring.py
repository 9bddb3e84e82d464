"""The newest audio of one channel as the raw bytes that arrived, addressed by sample index since the stream's start."""

from typing import Final

# Half a second at 8 kHz. A connection that brings a few bytes of nothing must not cost what a call does.
FIRST_SAMPLES: Final = 4000


class Ring:
    """A fixed number of bytes that remembers the last `capacity_samples` samples.

    Samples are numbered from the start of the stream, so a position never wraps, drifts or needs a float. What has been
    overwritten cannot be read: asking for it is a bug of the caller, not an input error, and asserts.

    Memory is taken as audio comes, up to all of it: sample number `origin + n` lies at place `n`, so that the first
    round only ever appends.
    """

    __slots__ = ("_bytes", "_capacity", "_silence", "_size", "end_sample", "origin_sample")

    def __init__(self, capacity_samples: int, silence: bytes, origin_sample: int = 0) -> None:
        """Hold `capacity_samples` samples; `silence` is the bytes of one silent sample and so gives their size."""
        self._silence: Final = silence
        self._size: Final = len(silence)
        self._capacity: Final = capacity_samples
        self._bytes = bytearray(silence * min(capacity_samples, FIRST_SAMPLES))
        self.origin_sample: Final = origin_sample
        """Index of the first sample that was ever appended."""
        self.end_sample = origin_sample
        """Index after the newest sample: the track's clock."""

    @property
    def start_sample(self) -> int:
        """Index of the oldest sample still here."""
        return max(self.origin_sample, self.end_sample - self._capacity)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Take whole samples; the oldest make room."""
        count, rest = divmod(len(data), self._size)
        assert rest == 0, f"{len(data)} bytes are not whole samples of {self._size}"
        first = (self.end_sample - self.origin_sample) % self._capacity * self._size
        if (end := first + len(data)) <= len(self._bytes):  # a frame is short: nearly always
            self._bytes[first:end] = data
        else:
            # More than fits: only the newest end can survive, but the clock advances by all of it.
            self._write(self.end_sample + max(0, count - self._capacity), data[-self._capacity * self._size :])
        self.end_sample += count

    def append_silence(self, count: int) -> None:
        """Advance the clock by `count` silent samples."""
        kept = min(count, self._capacity)
        self._write(self.end_sample + count - kept, self._silence * kept)
        self.end_sample += count

    def window(self, start_sample: int, end_sample: int) -> bytes:
        """Copy out the bytes of samples `start_sample` to `end_sample`, both still here."""
        assert self.start_sample <= start_sample <= end_sample <= self.end_sample, (
            f"samples {start_sample}..{end_sample} of {self.start_sample}..{self.end_sample}"
        )
        first = (start_sample - self.origin_sample) % self._capacity * self._size
        length = (end_sample - start_sample) * self._size
        head = bytes(self._bytes[first : first + length])
        return head + bytes(self._bytes[: length - len(head)])

    def wipe(self) -> None:
        """Overwrite the audio with silence: nothing of a call stays in memory after it."""
        self._bytes[:] = self._silence * (len(self._bytes) // self._size)

    def _write(self, at_sample: int, data: bytes | bytearray | memoryview) -> None:
        first = (at_sample - self.origin_sample) % self._capacity * self._size
        if len(self._bytes) < self._capacity * self._size:
            self._grow(at_sample - self.origin_sample + len(data) // self._size)
        head = min(len(data), len(self._bytes) - first)
        self._bytes[first : first + head] = data[:head]
        self._bytes[: len(data) - head] = data[head:]

    def _grow(self, samples: int) -> None:
        """Make room for `samples`, or for all that it may ever hold: doubled each time, so a call copies little."""
        have = len(self._bytes) // self._size
        if samples <= have:
            return
        new = bytearray(self._silence * min(self._capacity, max(samples, 2 * have)))
        new[: len(self._bytes)] = self._bytes
        self.wipe()  # what is given back to the C library holds no audio
        self._bytes = new
