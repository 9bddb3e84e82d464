"""Raw bytes to float32 mono, and from any rate to the model's.

Everything that listens goes through these functions: the daemon, `streamdet score`, training and evaluation. That is
what makes the same bytes give the same score on every path.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from streamdet.errors import DataError, MissingError
from streamdet.records import Encoding

Samples = NDArray[np.float32]


def _mulaw_table() -> Samples:
    """ITU-T G.711 mu-law: 256 codes to s16 / 32768."""
    code = ~np.arange(256, dtype=np.uint8)
    magnitude = (((code & 0x0F).astype(np.int32) << 3) + 0x84 << ((code & 0x70) >> 4)) - 0x84
    return (np.where(code & 0x80, -magnitude, magnitude) / 32768).astype(np.float32)


def _alaw_table() -> Samples:
    """ITU-T G.711 A-law: 256 codes to s16 / 32768."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    step = ((code & 0x70) >> 4).astype(np.int32)
    mantissa = (code & 0x0F).astype(np.int32) << 4
    magnitude = np.where(step == 0, mantissa + 8, (mantissa + 0x108) << np.maximum(step - 1, 0))
    return (np.where(code & 0x80, magnitude, -magnitude) / 32768).astype(np.float32)


_MULAW: Final = _mulaw_table()
_ALAW: Final = _alaw_table()

_DECODERS: Final[dict[Encoding, Callable[[bytes], Samples]]] = {
    "s16le": lambda data: np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768),
    # A float sample can be anything, a model must not: NaN counts as silence, the rest is held in range.
    "f32le": lambda data: np.clip(np.nan_to_num(np.frombuffer(data, "<f4")), -1, 1).astype(np.float32),
    # A byte is never beyond 256 levels, so "wrap" changes nothing but the time: half of what an index takes.
    "mulaw": lambda data: _MULAW.take(np.frombuffer(data, np.uint8), mode="wrap"),
    "alaw": lambda data: _ALAW.take(np.frombuffer(data, np.uint8), mode="wrap"),
}


def _ladder(table: Samples) -> tuple[Samples, NDArray[np.uint8]]:
    """Levels of a G.711 table in ascending order and their codes; of mu-law's two zeros the later, 0xff."""
    levels, index = np.unique(table[::-1], return_index=True)
    return levels, (255 - index).astype(np.uint8)


_LADDERS: Final = {"mulaw": _ladder(_MULAW), "alaw": _ladder(_ALAW)}

# The bytes of one silent sample. A-law has no code for exactly zero; this is its smallest step.
SILENCE: Final[dict[Encoding, bytes]] = {
    "s16le": b"\0\0",
    "f32le": b"\0\0\0\0",
    "mulaw": b"\xff",
    "alaw": b"\xd5",
}


def decode(data: bytes, encoding: Encoding) -> Samples:
    """Decode the bytes of one channel.

    Args:
        data: whole samples of one channel.
        encoding: how they are coded; `mulaw` and `alaw` are ITU-T G.711.

    Returns:
        float32 `(T,)` in [-1, 1].
    """
    return _DECODERS[encoding](data)


def encode(samples: Samples, encoding: Encoding) -> bytes:
    """Encode `(T,)` (or interleaved `(T, channels)`): to the nearest code, beyond [-1, 1] to the outermost."""
    flat = np.clip(samples.ravel(), -1, 1)
    if encoding == "f32le":
        return flat.astype("<f4").tobytes()
    if encoding == "s16le":
        return np.clip(np.rint(flat * 32768), -32768, 32767).astype("<i2").tobytes()
    levels, codes = _LADDERS[encoding]
    return codes[np.searchsorted((levels[1:] + levels[:-1]) / 2, flat)].tobytes()


def resample(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """Resample `(T,)` from one rate to another in one shot (libsoxr, high quality); the same rate passes through."""
    if from_hz == to_hz or samples.size == 0:
        return samples
    return np.asarray(soxr.resample(samples, from_hz, to_hz, quality="HQ"), dtype=np.float32)


def fill(samples: Samples, length: int) -> Samples:
    """Return exactly `length` samples: the newest ones, or what there is repeated from its start until full.

    Args:
        samples: `(T,)`, T at least 1.
        length: samples wanted.

    Raises:
        DataError: there is nothing to repeat.
    """
    if samples.size == 0:
        raise DataError.of("samples", 0, "at least one sample to fill a window with")
    if samples.size >= length:
        return samples[-length:]
    return np.resize(samples, length)  # np.resize repeats; ndarray.resize would pad with zeros


def read_recording(path: Path) -> tuple[Samples, int]:
    """Read a recording that libsndfile knows (WAV, FLAC, Ogg, MP3, ...).

    Returns:
        float32 `(T, channels)` in [-1, 1], and the rate in Hz.

    Raises:
        MissingError: there is no such file.
        DataError: it is empty or not audio.
    """
    if not path.is_file():
        raise MissingError.of("recording", str(path), "a file that exists")
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        raise DataError.of("recording", str(path), f"audio that libsndfile can read ({error})") from error
    if samples.shape[0] == 0:
        raise DataError.of("recording", str(path), "at least one sample")
    return samples, int(rate_hz)
