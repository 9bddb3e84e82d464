"""Text-to-speech programs that may be installed, and how each is asked for a sentence with a voice, rate and pitch.

None of them comes along, and none runs through a shell: a program is a list of words, the sentence is one of them or
goes to its standard input.
"""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

from streamdet.errors import MissingError, UsageError


class Order(NamedTuple):
    """One sentence to be spoken."""

    words: list[str]
    """The command."""
    stdin: str
    voice: str


Say = Callable[[str, Path, np.random.Generator], Order]
"""From a sentence and the WAV file that is wanted; voice, rate and pitch are drawn from the generator."""


class Program(msgspec.Struct, frozen=True):
    """A program, as somebody names it."""

    name: str
    say: Say
    executable: str
    language: str = "en"
    package: str = ""
    """Debian's package, or several."""
    voices: str = ""
    """Where a voice must lie: a pattern of paths."""

    @property
    def installed(self) -> bool:
        """Is it there to be run, with a voice?"""
        return shutil.which(self.executable) is not None and (not self.voices or bool(_found(self.voices)))


def _found(pattern: str) -> list[str]:
    return sorted(map(str, Path("/").glob(pattern.removeprefix("/"))))


def _espeak(executable: str) -> Say:
    variants = ("", "+m1", "+m2", "+m3", "+m4", "+m5", "+m7", "+f1", "+f2", "+f3", "+f4", "+f5", "+croak", "+whisper")
    accents = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029")

    def say(text: str, wav: Path, rng: np.random.Generator) -> Order:
        voice = str(rng.choice(accents[:2] if executable == "espeak" else accents)) + str(rng.choice(variants))
        rate, pitch = int(rng.integers(125, 215)), int(rng.integers(25, 80))
        gap = int(rng.integers(0, 4))
        words = [executable, "-v", voice, "-s", str(rate), "-p", str(pitch), "-g", str(gap), "-w", str(wav), "--stdin"]
        return Order(words, text, voice)

    return say


def _festival(text: str, wav: Path, rng: np.random.Generator) -> Order:
    """Festival's voices are what is installed; its default one is always there."""
    root = Path("/usr/share/festival/voices")
    voice = str(rng.choice(sorted(path.name for path in root.glob("english/*")) or ["default"]))
    stretch = rng.uniform(0.8, 1.3)
    scheme = f"(Parameter.set 'Duration_Stretch {stretch:.2f})"
    if voice != "default":
        scheme = f"(begin (voice_{voice}) {scheme})"
    return Order(["text2wave", "-o", str(wav), "-eval", scheme], text, voice)


def _flite(text: str, wav: Path, rng: np.random.Generator) -> Order:
    voice = str(rng.choice(["kal", "kal16", "awb", "rms", "slt"]))
    stretch = f"duration_stretch={rng.uniform(0.8, 1.3):.2f}"
    pitch = f"int_f0_target_mean={rng.uniform(85, 130) * (1.7 if voice == 'slt' else 1):.0f}"
    words = ["flite", "-voice", voice, "--setf", stretch, "--setf", pitch, "-t", text, "-o", str(wav)]
    return Order(words, "", voice)


def _pico(text: str, wav: Path, rng: np.random.Generator) -> Order:
    voice = str(rng.choice(["en-US", "en-GB"]))
    tags = f"<speed level='{rng.integers(80, 130)}'><pitch level='{rng.integers(80, 130)}'>"
    plain = text.translate({ord("<"): " ", ord("&"): " and "})
    return Order(["pico2wave", "-l", voice, "-w", str(wav), f"{tags}{plain}</pitch></speed>"], "", voice)


def _rhvoice(text: str, wav: Path, rng: np.random.Generator) -> Order:
    voice = str(rng.choice(["alan", "bdl", "clb", "slt"]))
    rate, pitch = str(rng.integers(80, 130)), str(rng.integers(80, 120))
    return Order(["RHVoice-test", "-p", voice, "-r", rate, "-t", pitch, "-o", str(wav)], text, voice)


_HTS_VOICES: Final = "/usr/share/hts-voice/*/*.htsvoice"


def _open_jtalk(text: str, wav: Path, rng: np.random.Generator) -> Order:
    voice = str(rng.choice(_found(_HTS_VOICES)))
    words = ["open_jtalk", "-x", "/var/lib/mecab/dic/open-jtalk/naist-jdic", "-m", voice, "-ow", str(wav)]
    words += ["-r", f"{rng.uniform(0.8, 1.25):.2f}", "-fm", f"{rng.uniform(-4, 4):.1f}"]
    return Order(words, text, Path(voice).stem)


PROGRAMS: Final[dict[str, Program]] = {
    program.name: program
    for program in (
        Program("espeak-ng", _espeak("espeak-ng"), "espeak-ng", package="espeak-ng"),
        Program("espeak", _espeak("espeak"), "espeak", package="espeak"),
        Program("festival", _festival, "text2wave", package="festival"),
        Program("flite", _flite, "flite", package="flite"),
        Program("pico2wave", _pico, "pico2wave", package="libttspico-utils"),
        Program("RHVoice-test", _rhvoice, "RHVoice-test", package="rhvoice rhvoice-english"),
        Program(
            "open_jtalk",
            _open_jtalk,
            "open_jtalk",
            language="ja",
            package="open-jtalk open-jtalk-mecab-naist-jdic hts-voice-nitech-jp-atr503-m001",
            voices=_HTS_VOICES,
        ),
    )
}


def choose(names: str) -> list[Program]:
    """Find programs by their names, separated by commas; `installed` is all that are there.

    Raises:
        UsageError: a name that is not known.
        MissingError: one is not installed, or none is.
    """
    if names == "installed":
        found = [program for program in PROGRAMS.values() if program.installed]
        if not found:
            raise MissingError.of("--tts", names, f"one of {', '.join(PROGRAMS)}; for example apt install espeak-ng")
        return found
    return [_named(name.strip()) for name in names.split(",")]


def _named(name: str) -> Program:
    if name not in PROGRAMS:
        raise UsageError.of("--tts", name, f"installed, some of {', '.join(PROGRAMS)}, or a --tts-command")
    program = PROGRAMS[name]
    if not program.installed:
        raise MissingError.of(
            f"--tts {name}", program.executable, f"it and a voice for it: apt install {program.package}"
        )
    return program


def own(text: str) -> Program:
    """Read a program of the user's: `NAME=command with {wav} and, unless it reads it from stdin, {text}`.

    Raises:
        UsageError: there is no name, or no place for the WAV file.
        MissingError: there is no such program.
    """
    name, _, command = text.partition("=")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError.of("--tts-command", text, f"words as a shell reads them ({error})") from None
    if not re.fullmatch(r"[\w.+-]+", name) or not any("{wav}" in word for word in words):
        raise UsageError.of(
            "--tts-command", text, "NAME=command, with {wav} for its output and {text} for the sentence"
        )
    if shutil.which(words[0]) is None:
        raise MissingError.of(f"--tts-command {name}", words[0], "a program that can be run")
    spoken = any("{text}" in word for word in words)

    def say(sentence: str, wav: Path, rng: np.random.Generator) -> Order:
        del rng  # what varies is the user's to say
        filled = [word.replace("{wav}", str(wav)).replace("{text}", sentence) for word in words]
        return Order(filled, "" if spoken else sentence, name)

    return Program(name, say, words[0])


def sentences(source: str, language: str) -> list[str]:
    """Read sentences, one a line: `built-in`, or a file.

    Raises:
        MissingError: there is no such file.
        UsageError: it is empty.
    """
    path = Path(__file__).with_name(f"sentences_{language}.txt") if source == "built-in" else Path(source)
    if not path.is_file():
        raise MissingError.of("--text", source, "built-in, or a text file with a sentence a line")
    found = list(_lines(path))
    if not found:
        raise UsageError.of("--text", source, "at least one sentence")
    return found


def _lines(path: Path) -> Iterator[str]:
    for line in path.read_text("utf-8", errors="replace").splitlines():
        if text := line.strip():
            yield text
