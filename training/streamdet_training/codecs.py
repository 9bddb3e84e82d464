"""Codecs that speech meets on its way: telephone lines, mobile networks, voice over IP, headsets, recordings.

The coders are those of libsndfile and of ffmpeg's libraries (through PyAV), in process. Each one's delay is taken away,
so that what comes out lies where it went in; otherwise a model could learn the delay, and labels of a change in
mid-call would move. Speex, iLBC, G.729, AMR-WB and EVS are absent: no library that this package keeps can encode them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from io import BytesIO
from typing import Any, Final, Literal

import numpy as np
import soundfile
from av import AudioFrame
from av.audio.codeccontext import AudioCodecContext
from av.codec import CodecContext
from numpy.typing import NDArray

from streamdet.audio import Samples, decode, encode, resample
from streamdet_training.recipe import CodecName

NARROW_HZ: Final = 8000
WIDE_HZ: Final = 16000

# Of AMR's eight modes those that networks use from a crowded cell (4.75) to a quiet one (12.2 kbit/s).
AMR_BPS: Final = (4750, 5150, 5900, 6700, 7400, 7950, 10200, 12200)
# ITU-T G.726 at 40, 32 and 24 kbit/s; libsndfile still calls them by the numbers of the older standards.
G726: Final = ("G723_40", "G721_32", "G723_24")


@dataclass(frozen=True)
class Codec:
    """One codec at its own rate, and the settings of which one is drawn."""

    rate_hz: int
    settings: tuple[Callable[[Samples], Samples], ...]
    """Each codes `(T,)` at `rate_hz` and decodes it again, in place; a little silence may follow."""


def through(samples: Samples, rate_hz: int, name: CodecName, rng: np.random.Generator) -> Samples:
    """Code and decode `(T,)` in [-1, 1] by one setting of a codec: resampled to its rate and back."""
    codec = CODECS[name]
    code = codec.settings[rng.integers(len(codec.settings))]
    sent = resample(samples, rate_hz, codec.rate_hz)
    heard = fit(code(sent), sent.size)
    return fit(resample(heard, codec.rate_hz, rate_hz), samples.size)


def fit(samples: Samples, length: int) -> Samples:
    """Cut to `length`, or fill up with silence."""
    return np.pad(samples[:length], (0, max(0, length - samples.size)))


def _g711(samples: Samples, law: Literal["mulaw", "alaw"]) -> Samples:
    return decode(encode(samples, law), law)


def _sndfile(samples: Samples, rate_hz: int, container: str, coding: str, level: float | None = None) -> Samples:
    """Write a file in memory and read it back: formats that have no delay."""
    samples = np.pad(samples, (0, samples.size % 2))  # Dialogic's has two samples a byte and takes no half
    file = BytesIO()
    how = {"format": container, "subtype": coding}
    soundfile.write(file, samples.clip(-1, 1), rate_hz, **how, compression_level=level)
    file.seek(0)
    if container == "RAW":
        return _first(soundfile.read(file, dtype="float32", samplerate=rate_hz, channels=1, **how))
    return _first(soundfile.read(file, dtype="float32"))


def _first(read: tuple[Any, int]) -> Samples:
    return np.asarray(read[0], np.float32)


def _ffmpeg(
    samples: Samples,
    rate_hz: int,
    coder: str,
    sample_format: str,
    bps: int | None = None,
    delay_samples: int = 0,
    **options: str,
) -> Samples:
    """Encode and decode frame by frame with a codec of libavcodec, in memory, without a container.

    Args:
        samples: `(T,)` at `rate_hz`.
        rate_hz: the encoder's rate; the decoder may have another.
        coder: libavcodec's name of the encoder.
        sample_format: how the encoder wants its samples, as ffmpeg names it.
        bps: bits a second; codecs with a single rate want none.
        delay_samples: how late the decoder's output is, at the decoder's rate; measured, a test checks it.
        options: private options of the encoder.
    """
    encoder = _context(coder, "w", rate_hz)
    encoder.format = sample_format
    encoder.time_base = Fraction(1, rate_hz)
    encoder.options = options
    if bps is not None:
        encoder.bit_rate = bps
    encoder.open()
    decoder = _context(DECODERS.get(coder, coder), "r", rate_hz)
    decoder.extradata = encoder.extradata
    packets = [packet for frame in _frames(samples, encoder) for packet in encoder.encode(frame)]
    packets += encoder.encode(None)
    heard = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    joined = np.concatenate([_floats(frame.to_ndarray()) for frame in heard])[delay_samples:]
    return resample(joined, heard[0].sample_rate, rate_hz)  # Opus decodes to 48 kHz, whatever went in


DECODERS: Final = {"libmp3lame": "mp3"}  # coders that are not decoded by their own name


def _context(name: str, mode: Literal["r", "w"], rate_hz: int) -> AudioCodecContext:
    context = CodecContext.create(name, mode)
    if not isinstance(context, AudioCodecContext):
        raise TypeError(f"{name} codes no audio")
    context.sample_rate = rate_hz
    context.layout = "mono"
    context.thread_count = 1  # training has its own workers
    return context


def _frames(samples: Samples, encoder: AudioCodecContext) -> list[AudioFrame]:
    """Whole frames as the encoder wants them, with three frames of silence behind to flush its delay and ours."""
    size = encoder.frame_size
    padded = np.pad(samples.clip(-1, 1), (0, -samples.size % size + 3 * size))
    if encoder.format.name.startswith("s16"):
        padded = np.clip(np.rint(padded * 32768), -32768, 32767).astype(np.int16)
    frames = [AudioFrame.from_ndarray(part[None], encoder.format.name, "mono") for part in padded.reshape(-1, size)]
    for number, frame in enumerate(frames):
        frame.sample_rate = encoder.sample_rate
        frame.pts = number * size
    return frames


def _floats(decoded: NDArray[Any]) -> Samples:
    """`(1, T)` as a decoder gives it, integer or float, as `(T,)` float32."""
    if decoded.dtype == np.int16:
        return (decoded.ravel() / 32768).astype(np.float32)
    return decoded.ravel().astype(np.float32)


_g723 = partial(_ffmpeg, rate_hz=NARROW_HZ, coder="g723_1", sample_format="s16", bps=6300, delay_samples=60)
_g722 = partial(_ffmpeg, rate_hz=WIDE_HZ, coder="g722", sample_format="s16", delay_samples=22)
_msbc = partial(_ffmpeg, rate_hz=WIDE_HZ, coder="sbc", sample_format="s16", delay_samples=73, msbc="1")


def _amr(bps: int) -> Callable[[Samples], Samples]:
    return partial(
        _ffmpeg, rate_hz=NARROW_HZ, coder="libopencore_amrnb", sample_format="s16", bps=bps, delay_samples=40
    )


def _opus(rate_hz: int, bps: int) -> Callable[[Samples], Samples]:
    """As telephony sets it; half of the encoder's possible effort, as phones do."""
    opus = partial(_ffmpeg, coder="libopus", sample_format="s16", application="voip", compression_level="5")
    # In its speech mode, which it takes at a low rate, its output is that much later (at 48 kHz).
    delay_samples = 4 if rate_hz == NARROW_HZ else 3 if bps < 12000 else 0
    return partial(opus, rate_hz=rate_hz, bps=bps, delay_samples=delay_samples)


def _mp3(bps: int) -> Callable[[Samples], Samples]:
    return partial(_ffmpeg, rate_hz=WIDE_HZ, coder="libmp3lame", sample_format="s16p", bps=bps, compression_level="7")


def _aac(bps: int) -> Callable[[Samples], Samples]:
    return partial(
        _ffmpeg, rate_hz=WIDE_HZ, coder="aac", sample_format="fltp", bps=bps, delay_samples=1024, aac_coder="fast"
    )


def _file(rate_hz: int, container: str, coding: str, level: float | None = None) -> Callable[[Samples], Samples]:
    return partial(_sndfile, rate_hz=rate_hz, container=container, coding=coding, level=level)


CODECS: Final[dict[CodecName, Codec]] = {
    "mulaw": Codec(NARROW_HZ, (partial(_g711, law="mulaw"),)),
    "alaw": Codec(NARROW_HZ, (partial(_g711, law="alaw"),)),
    "g726": Codec(NARROW_HZ, tuple(_file(NARROW_HZ, "AU", coding) for coding in G726)),
    "g723": Codec(NARROW_HZ, (_g723,)),
    "gsm": Codec(NARROW_HZ, (_file(NARROW_HZ, "WAV", "GSM610"),)),
    "amr": Codec(NARROW_HZ, tuple(map(_amr, AMR_BPS))),
    "opus_nb": Codec(NARROW_HZ, tuple(_opus(NARROW_HZ, bps) for bps in (6000, 8000, 12000, 16000))),
    "opus_wb": Codec(WIDE_HZ, tuple(_opus(WIDE_HZ, bps) for bps in (9000, 12000, 16000, 24000, 32000))),
    "g722": Codec(WIDE_HZ, (_g722,)),
    "msbc": Codec(WIDE_HZ, (_msbc,)),
    "vox": Codec(NARROW_HZ, (_file(NARROW_HZ, "RAW", "VOX_ADPCM"),)),
    "mp3": Codec(WIDE_HZ, tuple(map(_mp3, (16000, 24000, 32000, 64000)))),
    "aac": Codec(WIDE_HZ, tuple(map(_aac, (16000, 24000, 32000, 64000)))),
    # 1.0 is libsndfile's lowest quality of Vorbis, about 17 kbit/s of speech.
    "vorbis": Codec(WIDE_HZ, tuple(_file(WIDE_HZ, "OGG", "VORBIS", level) for level in (0.6, 0.8, 1.0))),
}
