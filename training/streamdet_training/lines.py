"""Telephone lines that a recording can be heard through, to see what they cost.

Each takes it down to 8 kHz, as a call would arrive, so the daemon's own decoding and resampling does the rest.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Final

import soundfile

from streamdet.audio import Samples, decode, encode, resample
from streamdet.records import Encoding

LINE_HZ: Final = 8000


def through(samples: Samples, rate_hz: int, name: str) -> tuple[Samples, int]:
    """Send `(T,)` over the line of that name, a key of LINES.

    Returns:
        what comes out, float32 `(T,)`, and its rate in Hz.
    """
    return LINES[name](resample(samples, rate_hz, LINE_HZ)), LINE_HZ


def _g711(encoding: Encoding) -> Callable[[Samples], Samples]:
    return lambda samples: decode(encode(samples, encoding), encoding)


def _gsm(samples: Samples) -> Samples:
    """GSM 06.10 full rate, by the coder that libsndfile has; whole blocks of 320 samples come back."""
    file = BytesIO()
    soundfile.write(file, samples.clip(-1, 1), LINE_HZ, format="WAV", subtype="GSM610")
    file.seek(0)
    heard: Samples = soundfile.read(file, dtype="float32")[0][: samples.size]
    return heard


LINES: Final[dict[str, Callable[[Samples], Samples]]] = {"mulaw": _g711("mulaw"), "alaw": _g711("alaw"), "gsm": _gsm}
