"""What a process has in its memory, searched for sound that it once heard."""

import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from streamdet.audio import decode, resample
from streamdet.records import AudioFormat

# Of a needle: enough not to be met by chance in all memory there is.
NEEDLE_BYTES = 16
# A piece of silence is everywhere.
SILENT = 0.02
PAGE_BYTES = mmap.PAGESIZE


def needles(payload: bytes, form: AudioFormat, windows_s: Sequence[tuple[float, float]], model_hz: int) -> list[bytes]:
    """Pieces of one channel's audio in every form in which the daemon has it: as it came, decoded, at the model's rate.

    Args:
        payload: all of the audio.
        form: of it.
        windows_s: which windows the daemon cuts (s).
        model_hz: the model's rate.
    """
    size = form.sample_bytes
    found = loud(payload, NEEDLE_BYTES // size, size, form)
    for begin_s, end_s in windows_s:
        cut = payload[round(begin_s * form.rate_hz) * size : round(end_s * form.rate_hz) * size]
        decoded = decode(cut, form.encoding)
        for samples in (decoded, resample(decoded, form.rate_hz, model_hz)):
            found += loud(samples.astype("<f4").tobytes(), NEEDLE_BYTES // 4, 4, AudioFormat(model_hz, "f32le"))
    return sorted(set(found))


def loud(data: bytes, samples: int, size: int, form: AudioFormat, number: int = 4) -> list[bytes]:
    """Up to `number` pieces of `samples` samples, spread over `data`, each the loudest of its part and none silent."""
    level = np.abs(decode(data, form.encoding))
    step = level.size // number
    least = np.lib.stride_tricks.sliding_window_view(level, samples).min(-1)
    at = [begin + int(np.argmax(least[begin : begin + step])) for begin in range(0, least.size - step + 1, step)]
    return [data[size * first : size * (first + samples)] for first in at if least[first] > SILENT]


def found(pid: int, needles: Sequence[bytes]) -> Mapping[bytes, list[str]]:
    """Where each needle that is there lies: addresses, and names of mappings as /proc has them."""
    hits: dict[bytes, list[str]] = {}
    for begin, name, content in _pages(pid):
        for needle in needles:
            at = content.find(needle)
            while at >= 0:
                hits.setdefault(needle, []).append(f"{begin + at:x} {name}")
                at = content.find(needle, at + 1)
    return hits


def _pages(pid: int) -> Iterator[tuple[int, str, bytes]]:
    """Yield every stretch of memory that a process can write to and has written to: address, name, content."""
    with (
        Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory,
        Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap,
    ):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+ *(.*)", line)
            begin, end = int(match[1], 16) // PAGE_BYTES, int(match[2], 16) // PAGE_BYTES
            if "w" not in match[3]:
                continue
            pagemap.seek(8 * begin)
            entries = np.frombuffer(pagemap.read(8 * (end - begin)), "<u8")
            there = np.concatenate([[0], (entries >> 62 != 0).astype(np.int8), [0]])  # in memory, or swapped out
            for first, last in np.flatnonzero(np.diff(there)).reshape(-1, 2):
                at = (begin + int(first)) * PAGE_BYTES
                memory.seek(at)
                yield at, match[4], memory.read(int(last - first) * PAGE_BYTES)
