"""Streaming evaluation: what a call that is listened to live would have heard, and when.

Everything here goes through the daemon's own engine and tracker. The calls are simulated: clips of one voice on one
channel, strung together. There are three kinds: bona fide talk (whose alarms are false), spoof from the first second,
and talk of a speaker that turns, at the onset, into the spoof of one system on the same channel. Corpora of short clips
give short calls, and a call that ends before its alarm does not say that there would have been none; so delays are
estimated as survival times are (E. L. Kaplan and P. Meier, JASA 1958).
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, Literal

import msgspec
import numpy as np

from streamdet.audio import Samples
from streamdet.bundle import Manifest
from streamdet.errors import DataError
from streamdet.records import Score, State, Verdict, Window
from streamdet.replay import replay_samples
from streamdet.speech import speech_s
from streamdet.verdict import Tracker
from streamdet_training import bootstrap, metrics
from streamdet_training.bootstrap import Interval
from streamdet_training.calls import CALL_MAX_S, pieces, strung, voice
from streamdet_training.data import Clip, Label
from streamdet_training.metrics import Floats
from streamdet_training.scores import ScoreWindows

Kind = Literal["bonafide", "spoof", "turning"]
Voice = tuple[Label, str, str]
"""Label, speaker or system, channel."""

# What the talk before an onset is cut to, and the spoof after it. Under a window of either there is nothing to hear.
BEFORE_S: Final = 15.0
AFTER_S: Final = 30.0
LEAST_S: Final = 4.0
# A corpus may have hours of one voice; these minutes of it tell as much.
VOICE_S: Final = 5 * CALL_MAX_S
STRETCHES_A_VOICE: Final = 3
# Seconds of speech after which the verdict is looked at; the stretches of speech are as long as the last.
SPEECH_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
# Delays are averaged over this many seconds after the onset: what is found later counts as this.
HORIZON_S: Final = 20.0
# Seconds after the onset by which the share of calls found is told.
FOUND_S: Final = (4.0, 8.0, 16.0)
# Alarm heights of the curve, in the bundle's own: from many alarms to hardly any.
HEIGHTS: Final = tuple(float(factor) for factor in np.geomspace(1 / 16, 8, 29))
# A probability that rounds to 0 or 1 is a large LLR, not an infinite one.
LEAST_P: Final = 1e-12


class Call(msgspec.Struct, frozen=True):
    """A simulated call and all that the daemon would have said of it."""

    kind: Kind
    speaker: str
    """`-` where there is no bona fide part."""
    system: str
    channel: str
    onset_s: float
    """Where the spoof begins; 0 when it is all there is, the call's length when there is none."""
    seconds: float
    verdicts: tuple[Verdict, ...]

    @property
    def speech_s(self) -> float:
        """Speech in the call (s), as the gate counts it."""
        return self.verdicts[-1].total_speech_s if self.verdicts else 0.0


class Point(msgspec.Struct, frozen=True):
    """What one alarm height does."""

    height: float
    alarms: int
    """On bona fide calls."""
    false_alarms_per_hour: float
    """Of bona fide speech."""
    upper_95: float
    """With 95 % confidence it is no more than this."""
    early: int
    """Turning calls with an alarm before their onset; the figures below leave them out."""
    calls: int
    """Turning calls without."""
    mean_delay_s: float | None
    """From the onset to the alarm, over the first HORIZON_S after the onset; None without calls."""
    median_delay_s: float | None
    """None where half of the calls are not found as long as there are any."""
    found: tuple[float, ...]
    """Share found by FOUND_S; empty without calls."""


class Steadiness(msgspec.Struct, frozen=True):
    """How a voice that does not change is judged over time, at the bundle's own heights."""

    kind: Kind
    calls: int
    voices: int
    hours: float
    """Of audio."""
    speech_hours: float
    windows_per_minute: float
    """Scored, a minute of audio: what it costs."""
    flips_per_hour: float
    """Changes between bonafide, uncertain and spoof, an hour of audio."""
    shares: dict[State, float]
    """Of the time after each window."""
    first_verdict_s: float | None
    """Median time to the first state that is not `listening`, of the calls that reach one."""


class Heard(msgspec.Struct, frozen=True):
    """How well bona fide and spoof are told apart after some seconds of speech."""

    seconds: float
    bonafide: int
    spoof: int
    eer: float
    interval: Interval | None
    """95 %; None where no resamples were asked for."""


class Streaming(msgspec.Struct, frozen=True):
    """All that `--streaming` says of a bundle."""

    operating: Point
    """At the bundle's own heights."""
    curve: list[Point]
    spoof: Point
    """The same for calls that are spoof from their start."""
    steadiness: list[Steadiness]
    heard: list[Heard]
    """Of every stretch that is long enough."""
    heard_same: list[Heard]
    """Of the stretches that are long enough for the last, so that lengths can be compared."""


def evaluate(
    clips: Sequence[Clip],
    manifest: Manifest,
    score: ScoreWindows,
    *,
    line: str | None = None,
    adaptive: bool = False,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = bootstrap.SEED,
    step: Callable[[str], None] = lambda doing: None,  # noqa: ARG005 - its name is the signature's documentation
) -> Streaming:
    """Simulate calls of labelled clips and listen to them.

    Args:
        clips: of one split, both labels.
        manifest: whose windows, calibration and decision hold.
        score: the model.
        line: they come over, a key of `lines.LINES`.
        adaptive: whether the hop is. The curve's other heights are then those of windows chosen for the bundle's own.
        resamples: behind the intervals; 0 for none.
        seed: of the choice of speakers that turn, and of the resamples.
        step: is told what is being listened to.

    Raises:
        DataError: a label is missing, or no spoof system shares a channel with bona fide speech.
    """
    remembered = remember(score)
    groups = _groups(clips)
    calls = []
    for call, samples in _scripts(groups, manifest.audio.rate_hz, line, np.random.default_rng(seed)):
        step(f"{call.kind} call, {call.speaker} {call.system}")
        calls.append(listen(call, samples, manifest, remembered, adaptive=adaptive))
    turning = [call for call in calls if call.kind == "turning"]
    if not turning:
        raise DataError.of("calls that turn", 0, f"a spoof system and a speaker with {LEAST_S} s on one channel")
    bonafide = [call for call in calls if call.kind == "bonafide"]
    spoof = [call for call in calls if call.kind == "spoof"]
    trials: list[SpeechTrial] = []
    for who, members in groups.items():
        step(f"by seconds of speech, {who[1]}")
        trials += _by_speech(
            who, strung(members, manifest.audio.rate_hz, line, VOICE_S), manifest, remembered, adaptive
        )
    enough = [trial for trial in trials if len(trial[1]) == len(SPEECH_S)]
    return Streaming(
        operating=point(bonafide, turning, manifest, 1.0),
        curve=[point(bonafide, turning, manifest, factor) for factor in HEIGHTS],
        spoof=point(bonafide, spoof, manifest, 1.0),
        steadiness=[steadiness("bonafide", bonafide), steadiness("spoof", spoof)],
        heard=_heard(trials, resamples, seed),
        heard_same=_heard(enough, resamples, seed),
    )


def listen(call: Call, samples: Samples, manifest: Manifest, score: ScoreWindows, *, adaptive: bool = False) -> Call:
    """Replay `(T,)` at the bundle's rate and keep the verdicts."""
    said = replay_samples("call", samples[:, None], manifest.audio.rate_hz, manifest, score, adaptive=adaptive)
    verdicts = tuple(record for record in said if isinstance(record, Verdict))
    return msgspec.structs.replace(call, verdicts=verdicts)


def remember(score: ScoreWindows) -> ScoreWindows:
    """Score the same bytes once only: a window is a pure function of them."""
    known: dict[bytes, Score] = {}

    def from_memory(windows: Sequence[Window]) -> list[Score]:
        keys = [hashlib.blake2b(window.data, digest_size=16).digest() for window in windows]
        new = {key: window for key, window in zip(keys, windows, strict=True) if key not in known}
        known.update(zip(new, score(list(new.values())), strict=True))
        return [known[key] for key in keys]

    return from_memory


def point(bonafide: Sequence[Call], turned: Sequence[Call], manifest: Manifest, factor: float) -> Point:
    """Measure an alarm height, `factor` times the bundle's; the height that clears an alarm goes with it."""
    hours = sum(call.speech_s for call in bonafide) / 3600
    alarms = sum(len(alarms_s(call, manifest, factor)) for call in bonafide)
    sounded = [(call, alarms_s(call, manifest, factor)) for call in turned]
    timely = [(call, found) for call, found in sounded if not found or found[0] > call.onset_s]
    delays = [(found[0] if found else call.seconds) - call.onset_s for call, found in timely]
    times, missing = survival(delays, [bool(found) for _, found in timely])
    return Point(
        height=manifest.decision.alarm * factor,
        alarms=alarms,
        false_alarms_per_hour=alarms / hours if hours else 0.0,
        upper_95=metrics.upper_95(alarms, hours) if hours else math.inf,
        early=len(sounded) - len(timely),
        calls=len(timely),
        mean_delay_s=mean_within(times, missing, HORIZON_S) if timely else None,
        median_delay_s=next((float(time) for time, left in zip(times, missing, strict=True) if left <= 0.5), None),
        found=tuple(1 - _at(times, missing, seconds) for seconds in FOUND_S if timely),
    )


def alarms_s(call: Call, manifest: Manifest, factor: float = 1.0) -> list[float]:
    """Audio times at which the daemon's tracker turns to `spoof`, its heights taken `factor` times."""
    decision = manifest.decision
    decision = msgspec.structs.replace(decision, alarm=decision.alarm * factor, clear=decision.clear * factor)
    tracker = Tracker(decision, manifest.calibration, manifest.audio)
    found, before_s, state = [], 0.0, tracker.standing.state
    for verdict in call.verdicts:
        standing = tracker.update(verdict.llr, verdict.end_s, verdict.end_s - before_s)
        if standing.state == "spoof" != state:
            found.append(verdict.end_s)
        before_s, state = verdict.end_s, standing.state
    return found


def survival(times: Sequence[float], found: Sequence[bool]) -> tuple[Floats, Floats]:
    """Kaplan and Meier's estimate of the share of calls without an alarm.

    Args:
        times: to the alarm, or to the end of a call without one (s).
        found: whether there was one.

    Returns:
        the times of alarms, ascending, and the share that is still without one from each of them on.
    """
    all_times, events = np.asarray(times, dtype=np.float64), np.asarray(found, dtype=bool)
    at = np.unique(all_times[events])
    at_risk = (all_times[None] >= at[:, None]).sum(axis=1)
    lost = (all_times[None][:, events] == at[:, None]).sum(axis=1)
    return at, np.cumprod(1 - lost / np.maximum(at_risk, 1))


def mean_within(times: Floats, left: Floats, horizon_s: float) -> float:
    """Mean time to the alarm when those without one by then count as `horizon_s`: the area under the estimate."""
    within = times < horizon_s
    edges = np.concatenate([[0.0], times[within], [horizon_s]])
    return float(np.diff(edges) @ np.concatenate([[1.0], left[within]]))


def steadiness(kind: Kind, calls: Sequence[Call]) -> Steadiness:
    """Count flips and states on calls of one voice each."""
    flips, windows, seconds, first_s = 0, 0, defaultdict[State, float](float), []
    for call in calls:
        states = [verdict.state for verdict in call.verdicts]
        windows += sum(verdict.llr is not None for verdict in call.verdicts)
        flips += sum(one != other and "listening" not in (one, other) for one, other in pairwise(states))
        first_s += [verdict.end_s for verdict in call.verdicts if verdict.state != "listening"][:1]
        ends_s = [0.0, *(verdict.end_s for verdict in call.verdicts)]
        for verdict, advance_s in zip(call.verdicts, np.diff(ends_s), strict=True):
            seconds[verdict.state] += float(advance_s)
    hours, total_s = sum(call.seconds for call in calls) / 3600, sum(seconds.values())
    states_known: tuple[State, ...] = ("listening", "bonafide", "uncertain", "spoof")
    return Steadiness(
        kind=kind,
        calls=len(calls),
        voices=len({(call.speaker, call.system) for call in calls}),
        hours=hours,
        speech_hours=sum(call.speech_s for call in calls) / 3600,
        windows_per_minute=windows / hours / 60 if hours else 0.0,
        flips_per_hour=flips / hours if hours else 0.0,
        shares={state: seconds[state] / total_s if total_s else 0.0 for state in states_known},
        first_verdict_s=float(np.median(first_s)) if first_s else None,
    )


def speech_ends(samples: Samples, rate_hz: int, seconds: Sequence[float]) -> Iterator[int]:
    """After how many of the samples `(T,)` the gate has counted so many seconds of speech, as far as they reach.

    To a tenth of a second, the grain below which the gate's own frames and hangover lie.
    """
    end, counted_s = 0, 0.0
    for wanted_s in seconds:
        while counted_s < wanted_s:
            # What is lacking takes at least as long to say, so no step passes the place by.
            end += max(rate_hz // 10, round((wanted_s - counted_s) * rate_hz))
            if end > samples.size:
                return
            counted_s = speech_s(samples[:end], rate_hz)
        yield end


def _groups(clips: Sequence[Clip]) -> dict[Voice, list[Clip]]:
    """Clips by voice and channel; one whose voice is not known is a voice of its own."""
    groups: dict[Voice, list[Clip]] = defaultdict(list)
    for clip in clips:
        name = voice(clip)
        groups[clip.label, name if name != "-" else clip.path.stem, clip.channel].append(clip)
    return dict(sorted(groups.items()))


def _scripts(
    groups: Mapping[Voice, Sequence[Clip]], rate_hz: int, line: str | None, rng: np.random.Generator
) -> Iterator[tuple[Call, Samples]]:
    """Every call that is to be simulated, and its audio `(T,)`."""
    least, before = round(LEAST_S * rate_hz), round(BEFORE_S * rate_hz)
    speakers: dict[str, list[tuple[str, Samples]]] = defaultdict(list)  # by channel
    for (label, name, channel), members in groups.items():
        whole = strung(members, rate_hz, line, VOICE_S)
        if label == "bonafide":
            for part in pieces(whole, CALL_MAX_S, rate_hz):
                yield Call("bonafide", name, "-", channel, part.size / rate_hz, part.size / rate_hz, ()), part
            if whole.size >= least:
                speakers[channel].append((name, whole[:before]))
            continue
        for part in pieces(whole, CALL_MAX_S, rate_hz):
            yield Call("spoof", "-", name, channel, 0.0, part.size / rate_hz, ()), part
        for part in pieces(whole, AFTER_S, rate_hz):
            if part.size >= least and speakers[channel]:
                speaker, talk = speakers[channel][rng.integers(len(speakers[channel]))]
                both = np.concatenate([talk, part])
                yield Call("turning", speaker, name, channel, talk.size / rate_hz, both.size / rate_hz, ()), both


SpeechTrial = tuple[Voice, list[float]]
"""A stretch's voice, and an LLR after each of SPEECH_S that it reaches."""


def _by_speech(
    who: Voice, samples: Samples, manifest: Manifest, score: ScoreWindows, adaptive: bool
) -> Iterator[SpeechTrial]:
    """Cut a voice into stretches of as much speech as is ever looked at, and judge each as it goes on."""
    rate_hz, begin = manifest.audio.rate_hz, 0
    for _ in range(STRETCHES_A_VOICE):
        rest = samples[begin : begin + round(CALL_MAX_S * rate_hz)]
        ends = list(speech_ends(rest, rate_hz, SPEECH_S))
        if not ends:
            return
        yield who, [_llr_of(rest[:end], manifest, score, adaptive) for end in ends]
        begin += ends[-1]


def _llr_of(samples: Samples, manifest: Manifest, score: ScoreWindows, adaptive: bool) -> float:
    """The verdict of a call that ends here, its prior taken out; 0 while there is none."""
    said = replay_samples("stretch", samples[:, None], manifest.audio.rate_hz, manifest, score, adaptive=adaptive)
    verdicts = [record for record in said if isinstance(record, Verdict)]
    p_spoof = verdicts[-1].p_spoof if verdicts else None
    if p_spoof is None:
        return 0.0
    prior = manifest.decision.prior_spoof
    bounded = min(max(p_spoof, LEAST_P), 1 - LEAST_P)
    return math.log(prior / (1 - prior)) - math.log(bounded / (1 - bounded))


def _heard(trials: Sequence[SpeechTrial], resamples: int, seed: int) -> list[Heard]:
    """EER at each of SPEECH_S that trials of both labels reach."""
    rows = []
    for at, seconds in enumerate(SPEECH_S):
        reached = [(who, llrs[at]) for who, llrs in trials if len(llrs) > at]
        bonafide, spoof = ([(who, llr) for who, llr in reached if who[0] == label] for label in ("bonafide", "spoof"))
        if not bonafide or not spoof:
            break
        scores = [llr for _, llr in bonafide], [llr for _, llr in spoof]
        found = None
        if resamples:
            draws = bootstrap.draw([who[1] for who, _ in bonafide], [who[1] for who, _ in spoof], resamples, seed)
            found = bootstrap.intervals(*scores, draws, ["eer"])["eer"]
        rows.append(Heard(seconds, len(bonafide), len(spoof), metrics.eer(*scores), found))
    return rows


def _at(times: Floats, left: Floats, seconds: float) -> float:
    """Share without an alarm `seconds` after the onset."""
    before = left[times <= seconds]
    return float(before[-1]) if before.size else 1.0
