"""What a reload would bring: settings read again, the bundle verified, warmed and held against the old one.

Everything here may take its time, in a thread beside the loop, and changes nothing: a candidate that is bad is an
error, and the old model goes on.
"""

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
import numpy as np

from streamdet import bundle
from streamdet.audio import encode
from streamdet.bundle import Bundle, Calibration, Manifest
from streamdet.config import Config, settings
from streamdet.engine import check_hop
from streamdet.errors import BundleError
from streamdet.records import AudioFormat, Window
from streamdet.scorer import Scorer
from streamdet.scoring import Loaded, load
from streamdet.track import Timeline
from streamdet.window import score_windows

T = TypeVar("T")

# Keys whose new values a reload applies; docs/config.md has the list for users. The rest is bound to sockets, processes
# and devices that live as long as the process.
LIVE: Final = frozenset(
    {
        "bundle.path",
        "bundle.signed_by",
        "scoring.threads",
        "scoring.batch_max",
        "scoring.min_window_s",
        "scoring.hop",
        "scoring.deadline_s",
        "scoring.cuda_graphs",
        "scoring.cache",
        "streams.idle_timeout_s",
        "streams.stalled_after_s",
        "streams.max_streams",
        "decision.prior_spoof",
        "daemon.drain_timeout_s",
        "daemon.log_level",
    }
)
# What a scorer is built from; other keys of the section change without another one.
BUILT_FROM: Final = ("provider", "threads", "batch_max", "cuda_graphs", "cache")
# As long as the unit gives to a start (TimeoutStartSec). A model that hangs must not keep a reload under way for ever.
LOAD_S: Final = 180.0
# The same weights on the same device differ in the order of their sums only, when threads or batches are others: under
# 1e-4 in a score. What differs more is not the same model any more, whatever its hash says.
PARITY: Final = 5e-3
THREAD: Final = "reload"
GIVEN_UP: Final = "reload, given up"


class Changes(msgspec.Struct, frozen=True):
    """How settings that were read again differ from those in force."""

    live: tuple[str, ...]
    restart: tuple[str, ...]
    """Keys that wait for the next start."""


class Candidate(msgspec.Struct, frozen=True):
    """What is to be in force."""

    config: Config
    changes: Changes
    bundle: Bundle
    loaded: Loaded | None
    """None where what scores now is what the bundle and the settings say."""


def compare(given: Config, read: Config) -> Changes:
    """Sort the keys whose values differ."""
    differ = [setting.name for setting in settings() if _value(given, setting.name) != _value(read, setting.name)]
    return Changes(
        live=tuple(name for name in differ if name in LIVE),
        restart=tuple(name for name in differ if name not in LIVE),
    )


def merge(in_force: Config, read: Config, names: tuple[str, ...]) -> Config:
    """Take the values of these keys from what was read, and the rest from what is in force."""
    for name in names:
        section, _, key = name.partition(".")
        changed = getattr(in_force, section).model_copy(update={key: _value(read, name)})
        in_force = in_force.model_copy(update={section: changed})
    return in_force


def prepare(given: Config, in_force: Config, read: Callable[[], Config], old: Loaded, old_bundle: Bundle) -> Candidate:
    """Read everything again and make it ready.

    Args:
        given: the settings as they were read last, in force as far as they can be.
        in_force: the settings as they are, with addresses of sockets that others have opened.
        read: reads them again, as they were read at the start.
        old: what scores now.
        old_bundle: its bundle.

    Raises:
        StreamdetError: the settings or the bundle are bad.
    """
    fresh = read()
    changes = compare(given, fresh)
    config = merge(in_force, fresh, changes.live)
    found = bundle.chosen(config.bundle)
    check_hop(found.manifest, adaptive=config.scoring.hop == "adaptive")
    built_alike = all(getattr(config.scoring, key) == getattr(in_force.scoring, key) for key in BUILT_FROM)
    if built_alike and found.manifest == old_bundle.manifest:
        found.read_verified()  # what is on the disk is still what runs
        return Candidate(config, changes, found, None)
    loaded = load(found, config.scoring)
    check_parity(old.scorer, loaded.scorer)
    return Candidate(config, changes, found, loaded)


def check_parity(old: Scorer, new: Scorer) -> None:
    """Refuse a model whose score of a probe window is no number, or differs from that of the same model before.

    Raises:
        BundleError: with both numbers.
    """
    score = probe(new)
    if not math.isfinite(score):
        raise BundleError.of("score of a probe window", score, "a finite number")
    if not same_model(old.manifest, new.manifest):
        return
    before = probe(old)
    if abs(score - before) > PARITY:
        raise BundleError.of("score of a probe window", score, f"{before} within {PARITY}, as the same model gave it")


def probe(scorer: Scorer) -> float:
    """Score a window of sound, whatever its bundle takes for speech; the raw CM score."""
    manifest = scorer.manifest
    every = msgspec.structs.replace(manifest.decision, min_speech_s=0.0)
    manifest = msgspec.structs.replace(manifest, decision=every, calibration=Calibration())
    try:
        (found,) = score_windows([_probe_window(manifest)], manifest, scorer.run, scorer.head)
    except BundleError:
        raise
    except Exception as error:  # onnxruntime raises a class of its own for each status code; ours is for no number
        raise BundleError(f"score of a probe window: {error}, expected a number") from error
    return math.nan if found.llr is None else found.llr


def same_model(one: Manifest, other: Manifest) -> bool:
    """Whether two bundles are the same files on the same grid; calibrations and thresholds may differ."""
    return (one.files, one.audio, one.model) == (other.files, other.audio, other.model)


async def in_thread(work: Callable[[], T], *, within_s: float | None = None) -> T:
    """Do `work` in a thread that nobody waits for at the end of the process.

    Args:
        work: what takes its time.
        within_s: at most so long (s); LOAD_S where nothing is said.

    Raises:
        BundleError: it takes longer.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: Exception | None) -> None:
        if done.done():
            return  # nobody waits any more
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # it is a T when there is no error

    def call() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, result, failure)

    thread = threading.Thread(target=call, name=THREAD, daemon=True)
    thread.start()
    try:
        async with asyncio.timeout(allowed_s := LOAD_S if within_s is None else within_s):
            return await done
    except TimeoutError:
        if not done.cancelled():
            raise  # of the work itself: a file system over the network
        thread.name = GIVEN_UP
        raise BundleError.of("reload (s)", allowed_s, "a model that is loaded and warmed up by then") from None


def loading() -> bool:
    """Whether a thread of ours is still at work."""
    return any(thread.name in (THREAD, GIVEN_UP) for thread in threading.enumerate())


def hanging() -> bool:
    """Whether one is, although nobody waits for it any more."""
    return any(thread.name == GIVEN_UP for thread in threading.enumerate())


def _value(config: Config, name: str) -> object:
    section, _, key = name.partition(".")
    return getattr(getattr(config, section), key)


def _probe_window(manifest: Manifest) -> Window:
    """Noise that comes and goes four times a second, as syllables do: one window at the model's rate."""
    audio = manifest.audio
    time_s = np.arange(audio.window_samples) / audio.rate_hz
    noise = np.random.default_rng(1).uniform(-1, 1, time_s.size)
    samples = (0.3 * np.clip(np.sin(2 * np.pi * 4 * time_s), 0, 1) * noise).astype(np.float32)
    form = AudioFormat(audio.rate_hz, "f32le")
    line = Timeline.of(manifest, form, 0.5, lossless=True)
    ends = line.block_ends(audio.window_samples, 0)
    return Window(form, encode(samples, "f32le"), 0, audio.window_samples, 0.0, None, ends)
