"""Rooms that never were: a box's first echoes, one by one, then a tail that dies away, high notes first.

Early echoes are Allen and Berkley's image sources (J. Acoust. Soc. Am. 65, 1979) of low order. The tail is noise whose
level follows from the diffuse field (Kuttruff, Room Acoustics): energy beside the direct sound (distance / critical
distance)^2, -60 dB after the reverberation time of its band.
"""

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import oaconvolve

from streamdet.audio import Samples

SOUND_M_S: Final = 343.0
# From a booth or a car to an office; a voice from a handset's to a conference telephone's distance.
SIDES_M: Final = ((2.0, 8.0), (1.5, 6.0), (2.0, 3.5))
DISTANCE_M: Final = (0.05, 1.5)
# Edges of the bands (Hz), and how long they ring beside the asked reverberation time: walls and air swallow treble.
EDGES_HZ: Final = (500.0, 2000.0)
BAND_RT60: Final = ((1.0, 1.6), (1.0, 1.0), (0.4, 0.9))
ORDER: Final = 2  # image sources up to two pairs of rooms away: every echo of the first two lengths of a room


def add_room(samples: Samples, rate_hz: int, rt60_s: float, rng: np.random.Generator) -> Samples:
    """Hear `(T,)` in a room that rings for `rt60_s` at 500 Hz to 2 kHz; the direct sound keeps its place and level."""
    heard: NDArray[np.floating] = oaconvolve(samples, impulse_response(rate_hz, rt60_s, rng))
    return heard[: samples.size].astype(np.float32)


@dataclass(frozen=True)
class _Box:
    """A rectangular room with a voice and a microphone in it."""

    sides_m: NDArray[np.float64]
    """`(3,)`."""
    voice_m: NDArray[np.float64]
    """`(3,)`, from a corner."""
    microphone_m: NDArray[np.float64]
    """`(3,)`, from the same corner."""

    @property
    def distance_m(self) -> float:
        return float(np.linalg.norm(self.microphone_m - self.voice_m))

    @property
    def volume_m3(self) -> float:
        return float(self.sides_m.prod())

    @property
    def surface_m2(self) -> float:
        one, two, three = self.sides_m
        return float(2 * (one * two + two * three + one * three))

    @property
    def mixed_s(self) -> float:
        """Past this time images of a higher order than ours come in; the tail takes their place."""
        return float(2 * self.sides_m.min() / SOUND_M_S)


def impulse_response(rate_hz: int, rt60_s: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a room, a voice and a microphone; return what a click becomes: a 1, then echoes, then the tail."""
    box = _draw_box(rng)
    time_s = np.arange(round(1.2 * rt60_s * rate_hz) + 1) / rate_hz
    hertz = np.fft.rfftfreq(2 * time_s.size, 1 / rate_hz)
    response = np.zeros(time_s.size)
    for band, ratio in enumerate(BAND_RT60):
        band_rt60_s = rt60_s * rng.uniform(*ratio)
        echoes = _early(box, band_rt60_s, time_s) + _late(box, band_rt60_s, time_s, rng)
        response += np.fft.irfft(np.fft.rfft(echoes, 2 * time_s.size) * _band(hertz, band))[: time_s.size]
    response[0] += 1.0
    return response.astype(np.float32)


def _draw_box(rng: np.random.Generator) -> _Box:
    """Place the voice anywhere from which the microphone, at a drawn distance and direction, is in the room too."""
    sides_m = np.array([rng.uniform(*side) for side in SIDES_M])
    direction = rng.standard_normal(3)
    reach_m = np.exp(rng.uniform(*np.log(DISTANCE_M))) * direction / np.linalg.norm(direction)
    voice_m = rng.uniform(0.1, 0.9, 3) * (sides_m - abs(reach_m)) + np.maximum(-reach_m, 0)
    return _Box(sides_m, voice_m, voice_m + reach_m)


def _early(box: _Box, rt60_s: float, time_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Echoes before `mixed_s`, each weaker by its longer path and by what every bounce leaves of it."""
    paths_m, bounces = _images(box)
    at = np.searchsorted(time_s, (paths_m - box.distance_m) / SOUND_M_S)
    heard = at < np.searchsorted(time_s, box.mixed_s)
    # Eyring: rt60 = 0.161 V / (-S ln(1 - absorption)), and a bounce leaves the root of 1 - absorption of the amplitude.
    left = np.exp(-0.161 * box.volume_m3 / (box.surface_m2 * rt60_s) / 2)
    echoes = np.zeros(time_s.size)
    np.add.at(echoes, at[heard], (box.distance_m / paths_m * left**bounces)[heard])
    return echoes


def _images(box: _Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return path (m) and number of bounces of every image source but the voice itself."""
    mirrored = np.array(list(product((0, 1), repeat=3)))[:, None]  # (8, 1, 3)
    rooms = np.array(list(product(range(-ORDER, ORDER + 1), repeat=3)))  # (343, 3)
    images_m = (1 - 2 * mirrored) * box.voice_m + 2 * rooms * box.sides_m  # (8, 343, 3)
    bounces = (abs(rooms - mirrored) + abs(rooms)).sum(-1)
    paths_m = np.linalg.norm(images_m - box.microphone_m, axis=-1)
    return paths_m[bounces > 0], bounces[bounces > 0].astype(np.float64)


def _late(box: _Box, rt60_s: float, time_s: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise that dies away, from `mixed_s` on."""
    decay = 6 * np.log(10) / rt60_s  # of energy, a second
    critical_m = 0.057 * np.sqrt(box.volume_m3 / rt60_s)
    step_s = time_s[1] - time_s[0]
    energy = (box.distance_m / critical_m) ** 2 * decay * step_s * np.exp(-decay * time_s)
    tail: NDArray[np.float64] = rng.standard_normal(time_s.size) * np.sqrt(energy) * (time_s >= box.mixed_s)
    return tail


def _band(hertz: NDArray[np.floating], band: int) -> NDArray[np.floating]:
    """Gain of one of three bands over frequency; the three sum to 1 everywhere."""
    below = [1 / (1 + (hertz / edge) ** 4) for edge in EDGES_HZ]
    gain: NDArray[np.floating] = (below[0], below[1] - below[0], 1 - below[1])[band]
    return gain
