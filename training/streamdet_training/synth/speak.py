"""Sentences through text-to-speech programs: one process at a time, each with a time-out, from where a run stood."""

import hashlib
import logging
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import soundfile

from streamdet.audio import Samples
from streamdet.errors import DataError, StreamdetError
from streamdet_training.synth import listing, sources
from streamdet_training.synth.listing import Row
from streamdet_training.synth.match import speech_span
from streamdet_training.synth.programs import Program, sentences

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 30.0  # a sentence takes the slowest of them about a second
GIVE_UP_AFTER: Final = 5  # failures in a row: a program without a voice would fail on every sentence
ENDS_S: Final = (0.05, 0.4)
DITHER: Final = 2**-15


def speak(programs: Sequence[Program], text: str, out: Path, *, takes: int, split: str, seed: int) -> int:
    """Have every sentence spoken by every program, and list it in the manifest of `out`.

    Args:
        programs: who speaks.
        text: `built-in`, or a file with a sentence a line.
        out: the folder.
        takes: how often each sentence is spoken, each time with another voice, rate and pitch.
        split: what the clips are said to be of.
        seed: of voices, rates and pitches.

    Returns:
        0, or the exit code of the last failure.

    Raises:
        MissingError, UsageError: there are no sentences.
    """
    rows = listing.read(out)
    code = 0
    for program in programs:
        failed = made = 0
        for sentence in sentences(text, program.language):
            for take in range(takes):
                tag = hashlib.sha256(sentence.encode()).digest()
                path = out / f"tts-{program.name}" / f"{tag.hex()[:10]}-{take}-{seed}.flac"
                key = path.relative_to(out).as_posix()
                if failed >= GIVE_UP_AFTER or key in rows:
                    continue
                try:
                    rng = np.random.default_rng((seed, take, *tag[:8]))
                    rows[key] = _row(path, key, program, _say(program, sentence, path, rng), split)
                    made, failed = made + 1, 0
                except StreamdetError as error:
                    log.error("tts-%s: %s", program.name, error)
                    code, failed = error.exit_code, failed + 1
        log.info("tts-%s: %d clips%s", program.name, made, ", given up" if failed >= GIVE_UP_AFTER else "")
        listing.write(out, rows.values())
    return code


def _say(program: Program, sentence: str, path: Path, rng: np.random.Generator) -> str:
    """Write one clip.

    Returns:
        The voice.
    """
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "said.wav"
        order = program.say(sentence, wav, rng)
        _run(order.words, order.stdin, program.name)
        if not wav.is_file() or wav.stat().st_size == 0:
            raise DataError.of(f"{program.name} voice {order.voice}", "no audio", "a WAV file")
        samples, rate_hz = sources.read(wav)
    listing.save(path, _with_ends(samples, rate_hz, rng), rate_hz)
    return order.voice


def _run(words: Sequence[str], stdin: str, name: str) -> None:
    try:
        # The words are the user's own or this package's; the sentence is one of them, and no shell reads it.
        done = subprocess.run(  # noqa: S603
            words, input=stdin.encode(), capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise DataError.of(name, f"no end after {TIMEOUT_S:.0f} s", "a sentence in less") from None
    except OSError as error:
        raise DataError.of(name, str(error), "a program that can be run") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise DataError.of(name, f"exit code {done.returncode}", f"0 ({said or 'it says nothing'})")


def _with_ends(samples: Samples, rate_hz: int, rng: np.random.Generator) -> Samples:
    """Cut the silence at both ends to a drawn length and put a last bit of noise under it all.

    Programs begin and end with digital silence, each with its own length of it: no voice is needed to hear that.
    """
    first, last = speech_span(samples, rate_hz)
    before, after = (round(rng.uniform(*ENDS_S) * rate_hz) for _ in range(2))
    padded = np.pad(samples[max(0, first - before) : last + after], (max(0, before - first), 0))
    dither = rng.triangular(-DITHER, 0, DITHER, padded.size)
    heard: Samples = np.clip(padded + dither, -1, 1).astype(np.float32)
    return heard


def _row(path: Path, key: str, program: Program, voice: str, split: str) -> Row:
    about = soundfile.info(path)
    return Row(
        path=key,
        label="spoof",
        speaker=f"{program.name}:{voice}",
        system=f"tts-{program.name}",
        source_repo=program.name,
        rate_hz=about.samplerate,
        duration_s=round(about.duration, 3),
        split=split,
    )
