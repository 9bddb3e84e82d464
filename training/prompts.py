#!/usr/bin/env python3
"""Gathers bona fide speech for the starter from Debian packages: telephone prompts and the dialogue of a game.

    python training/prompts.py OUT        writes OUT/manifest.csv and FLAC files beside it

Eleven people in six languages: what the starter's corpus lacks is voices and lines of other makes. Needs Debian (the
packages are only unpacked, not installed), ffmpeg, and the extra `training`.
"""

import csv
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

PROMPTS = "usr/share/asterisk/sounds"
DIALOGUE = "usr/share/games/fillets-ng/sound"


class Voice(NamedTuple):
    """One speaker in one package."""

    package: str
    speaker: str
    licence: str
    pattern: str
    channel: str
    rate_hz: int = 16000
    codec: str | None = None
    """Of files that do not say it themselves."""
    most: int = 170
    """Clips; no voice may be most of what is learnt."""


VOICES = [
    Voice("asterisk-core-sounds-en-g722", "Allison", "CC BY-SA 3.0", f"{PROMPTS}/**/*.g722", "wb", codec="g722"),
    Voice("asterisk-core-sounds-es-g722", "Allison", "CC BY-SA 3.0", f"{PROMPTS}/**/*.g722", "wb", codec="g722"),
    Voice("asterisk-core-sounds-fr-g722", "June", "CC BY-SA 3.0", f"{PROMPTS}/**/*.g722", "wb", codec="g722"),
    Voice("asterisk-core-sounds-it-g722", "Carlo", "CC BY-SA 3.0", f"{PROMPTS}/**/*.g722", "wb", codec="g722"),
    Voice("asterisk-core-sounds-ru-g722", "IvrvoiceRU", "CC BY 3.0", f"{PROMPTS}/**/*.g722", "wb", codec="g722"),
    Voice("asterisk-prompt-it-menardi-wav", "Paola", "CC BY-SA 3.0 IT", f"{PROMPTS}/**/*.wav", "nbpcm", 8000, most=130),
    Voice("asterisk-prompt-fr-armelle", "Armelle", "BSD", f"{PROMPTS}/**/*.gsm", "nbgsm", 8000, "gsm", most=70),
    Voice("asterisk-prompt-es-co", "July", "GPL-2", f"{PROMPTS}/**/*.gsm", "nbgsm", 8000, "gsm", most=70),
    *(
        Voice(f"fillets-ng-data-{language}", who, "GPL-2", f"{DIALOGUE}/**/*-{letter}-*.ogg", "wb", most=130)
        for language in ("cs", "nl")
        for who, letter in (("smallfish", "m"), ("bigfish", "v"))
    ),
]
# Beeps and the like are among the prompts, and no voice.
NO_VOICE = ("silence", "beep", "monkey", "ascending", "descending", "confbridge-join", "confbridge-leave")
LEAST_S, MOST_S = 1.2, 8.0
QUIETEST_DBFS = -50.0
COLUMNS = ("path", "label", "speaker", "system", "source_repo", "licence", "rate_hz", "duration_s", "split", "note")


def gather(out: Path) -> int:
    """Write all voices; returns how many clips."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for voice in VOICES:
            mine = list(speak(voice, unpack(voice.package, Path(folder)), out))
            print(f"{voice.package} {voice.speaker}: {len(mine)} clips", file=sys.stderr)
            rows += mine
    new = out / "manifest.csv.new"
    with new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    new.rename(out / "manifest.csv")
    return len(rows)


def unpack(package: str, folder: Path) -> Path:
    """Download a package and unpack it, once."""
    root = folder / package
    if not root.is_dir():
        subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
        (archive,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
    return root


def speak(voice: Voice, root: Path, out: Path) -> Iterator[dict[str, object]]:
    """Write a voice's clips and give their rows, drawn from all over its files."""
    files = sorted(file for file in root.glob(voice.pattern) if not any(word in str(file) for word in NO_VOICE))
    random.Random(7).shuffle(files)
    written = 0
    for file in files:
        for samples in pieces(decode(file, voice), voice.rate_hz):
            level_dbfs = 10 * np.log10(np.mean(np.square(samples)) + 1e-12)
            if samples.size < LEAST_S * voice.rate_hz or level_dbfs < QUIETEST_DBFS:
                continue
            if written == voice.most:
                return
            path = Path("bonafide") / f"{voice.package}-{voice.speaker}-{written:03}.flac"
            (out / path).parent.mkdir(exist_ok=True)
            soundfile.write(out / path, samples, voice.rate_hz, subtype="PCM_16")
            written += 1
            yield {
                "path": path,
                "label": "bonafide",
                "speaker": f"{voice.package}_{voice.speaker}",
                "system": "-",
                "source_repo": voice.package,
                "licence": voice.licence,
                "rate_hz": voice.rate_hz,
                "duration_s": f"{samples.size / voice.rate_hz:.3f}",
                "split": "train",
                "note": f"chan={voice.channel};src={file.relative_to(root)}",
            }


def decode(file: Path, voice: Voice) -> np.ndarray:
    """Samples `(T,)` at the voice's rate."""
    given = ["-f", voice.codec] if voice.codec else []
    wanted = ["-ac", "1", "-ar", str(voice.rate_hz), "-f", "f32le", "-"]
    run = subprocess.run(["ffmpeg", "-v", "error", *given, "-i", file, *wanted], check=True, capture_output=True)
    return np.frombuffer(run.stdout, "<f4")


def pieces(samples: np.ndarray, rate_hz: int) -> Iterator[np.ndarray]:
    """Cut what is too long at the quietest moment of its second half."""
    while samples.size > MOST_S * rate_hz:
        frame = rate_hz // 50
        part = samples[: int(MOST_S * rate_hz) // frame * frame].reshape(-1, frame)
        half = len(part) // 2
        end = (half + int(np.square(part[half:]).mean(1).argmin())) * frame
        yield samples[:end]
        samples = samples[end:]
    yield samples


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python training/prompts.py OUT")
    print(f"{gather(Path(sys.argv[1]))} clips", file=sys.stderr)
