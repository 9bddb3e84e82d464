"""What packet networks do to a voice: frames that never come and are concealed, and buffers that stretch and shrink.

All of it keeps the length, and keeps every sample within a jitter buffer's depth of its place.
"""

from collections.abc import Callable, Iterator
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from streamdet.audio import Samples

Concealment = Literal["period", "frame", "noise", "silence"]

FRAME_MS: Final = (10, 20, 30)  # what RTP packets carry; 20 by far the most often
# Losses come in bursts, with survivors: mean stay in the bad state, in frames, and the share of them that is lost.
BURST_FRAMES: Final = (1.0, 4.0)
LOST_IN_BAD: Final = 0.8
# G.711 Appendix I: pitch between 66 and 200 Hz; full level for 10 ms, silent after 60.
PITCH_S: Final = (0.005, 0.015)
FADE_S: Final = (0.010, 0.060)
BLEND_S: Final = 0.004
# How deep a jitter buffer gets before it only shrinks again, and how often it changes.
DEPTH_S: Final = 0.1
CHANGES_PER_S: Final = (0.5, 4.0)


def lose_packets(samples: Samples, rate_hz: int, share: float, rng: np.random.Generator) -> Samples:
    """Lose `share` of the frames, on average and in bursts, and conceal them in one of the ways of receivers."""
    frame = max(1, int(rng.choice(FRAME_MS)) * rate_hz // 1000)
    ways = get_args(Concealment)
    lost = gilbert_elliott(-(-samples.size // frame), share, rng.uniform(*BURST_FRAMES), rng)
    return conceal(samples, rate_hz, lost, frame, ways[int(rng.integers(len(ways)))], rng)


def gilbert_elliott(frames: int, share: float, burst: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw which frames are lost: a Markov chain of a good state that loses none and a bad one that loses most.

    Args:
        frames: how many frames there are.
        share: of frames lost in the long run; at most `LOST_IN_BAD` can be.
        burst: mean stay in the bad state (frames).
        rng: where chance comes from.
    """
    bad_share = min(share / LOST_IN_BAD, 0.99)
    into_bad = bad_share / (1 - bad_share) / burst
    chance, losing = rng.random(frames + 1), rng.random(frames) < LOST_IN_BAD
    bad = np.empty(frames, bool)
    state = bool(chance[-1] < bad_share)
    for number in range(frames):
        bad[number] = state
        state = bool(chance[number] < (1 - 1 / burst if state else into_bad))
    return bad & losing


def conceal(
    samples: Samples,
    rate_hz: int,
    lost: NDArray[np.bool_],
    frame_samples: int,
    how: Concealment,
    rng: np.random.Generator,
) -> Samples:
    """Put something in the place of the lost frames that is made from what came before, then blend into what follows.

    Args:
        samples: `(T,)`.
        rate_hz: their rate.
        lost: `(frames,)`, True for each lost one.
        frame_samples: length of a frame; the last one may be shorter.
        how: what is put there; `period` repeats the last pitch period with a fade (after G.711 Appendix I), `frame` the
            last frame, `noise` has the level and the spectrum of the last frame, `silence` is silent.
        rng: where the noise comes from.
    """
    heard = samples.copy()
    for first, end in _bursts(lost):
        start, stop = first * frame_samples, min(end * frame_samples, samples.size)
        blend = min(round(BLEND_S * rate_hz), samples.size - stop)
        # What was received must not be heard before it comes: the history is what has been played so far.
        made = MAKERS[how](heard[:start], stop - start + blend, frame_samples, rate_hz, rng)
        lead = made.size - (stop - start) - blend  # what a receiver that plays a little late can still change
        heard[start - lead : stop] = made[: made.size - blend]
        rise = (np.arange(blend) + 1) / (blend + 1)
        heard[stop : stop + blend] = rise * samples[stop : stop + blend] + (1 - rise) * made[made.size - blend :]
    return heard


def _bursts(lost: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First frame and the one behind the last of each run of lost frames."""
    edges = np.flatnonzero(np.diff(lost.astype(np.int8), prepend=0, append=0))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _repeat_period(
    history: Samples, length: int, _frame: int, rate_hz: int, _rng: np.random.Generator
) -> NDArray[np.floating]:
    """Behind the end of what was heard, which is blended into it, as Appendix I does with its delay of 3.75 ms."""
    period = pitch_period(history, rate_hz)
    if not 0 < period <= history.size:
        return np.zeros(length)
    cycle = history[-period:].copy()
    # Its end is blended with what came before its start, or each repetition would begin with a click.
    blend = min(period // 4, history.size - period)
    if blend:
        rise = (np.arange(blend) + 1) / (blend + 1)
        cycle[-blend:] = (1 - rise) * cycle[-blend:] + rise * history[-period - blend : -period]
    return np.concatenate([cycle[cycle.size - blend :], np.resize(cycle, length) * _fade(length, rate_hz)])


def _repeat_frame(
    history: Samples, length: int, frame: int, rate_hz: int, _rng: np.random.Generator
) -> NDArray[np.floating]:
    return np.resize(history[-frame:], length) * _fade(length, rate_hz)  # of nothing np.resize makes zeros


def _comfort_noise(
    history: Samples, length: int, frame: int, _rate_hz: int, rng: np.random.Generator
) -> NDArray[np.floating]:
    """White noise through the last frame as a filter has that frame's spectrum."""
    last = history[-frame:]
    white = rng.standard_normal(length + frame)
    if not last.any():
        return np.zeros(length)
    noise = np.convolve(white, last)[frame : frame + length]
    return np.asarray(noise * (_rms(last) / max(_rms(noise), 1e-9) / 2))  # half: background, not voice


def _silence(
    _history: Samples, length: int, _frame: int, _rate_hz: int, _rng: np.random.Generator
) -> NDArray[np.floating]:
    return np.zeros(length)


MAKERS: Final[dict[Concealment, Callable[[Samples, int, int, int, np.random.Generator], NDArray[np.floating]]]] = {
    "period": _repeat_period,
    "frame": _repeat_frame,
    "noise": _comfort_noise,
    "silence": _silence,
}


def pitch_period(history: Samples, rate_hz: int) -> int:
    """Return the lag (samples) at which the newest 20 ms are most like what came before, or all there is."""
    shortest, longest = (round(limit_s * rate_hz) for limit_s in PITCH_S)
    window = round(0.020 * rate_hz)
    if history.size < window + longest:
        return history.size
    past = history[-window - longest :].astype(np.float64)
    alike = np.correlate(past, past[-window:])[: longest - shortest + 1]  # from the longest lag to the shortest
    energy = np.cumsum(np.concatenate(([0.0], np.square(past))))
    size = np.sqrt(np.maximum(energy[window:] - energy[:-window], 1e-12))[: alike.size]
    return longest - int(np.argmax(alike / size))


def _fade(length: int, rate_hz: int) -> NDArray[np.floating]:
    time_s = np.arange(length) / rate_hz
    return np.asarray(np.interp(time_s, FADE_S, (1.0, 0.0)))


def _rms(samples: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean()))


def jitter(samples: Samples, rate_hz: int, rng: np.random.Generator) -> Samples:
    """Play through a jitter buffer that repeats a pitch period when it runs low and drops one when it is too full.

    It starts empty, so it can only get later than the sender, by at most `DEPTH_S`; the end that is pushed out is cut.
    """
    times = _change_times(samples.size, rate_hz, rng)
    longest = round(PITCH_S[1] * rate_hz)
    pieces, at, late = [], 0, 0
    for time in times:
        period = pitch_period(samples[:time], rate_hz)
        if time - at < 2 * longest or samples.size - time < longest or period > longest:
            continue  # no room to blend, or too early in the clip to know a period
        grow = late < period or (late + period < DEPTH_S * rate_hz and rng.random() < 0.5)
        resume = time - period if grow else time + period
        pieces.append(_leading_to(samples, at, time, resume, blend=max(1, period // 2)))
        late += time - resume
        at = resume
    return np.concatenate([*pieces, samples[at:]])[: samples.size]


def _change_times(length: int, rate_hz: int, rng: np.random.Generator) -> list[int]:
    count = rng.poisson(rng.uniform(*CHANGES_PER_S) * length / rate_hz)
    return sorted(rng.integers(0, length, count).tolist())


def _leading_to(samples: Samples, start: int, stop: int, resume: int, blend: int) -> Samples:
    """Return `samples[start:stop]` with an end that turns into what stands before `resume`."""
    piece = samples[start:stop].copy()
    rise = (np.arange(blend) + 1) / (blend + 1)
    piece[-blend:] = (1 - rise) * piece[-blend:] + rise * samples[resume - blend : resume]
    return piece
