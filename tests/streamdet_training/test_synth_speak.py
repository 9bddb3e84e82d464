"""Text-to-speech programs: what each is asked for, and everything that a program can get wrong."""

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from streamdet.cli import application
from streamdet.errors import MissingError, StreamdetError, UsageError
from streamdet_training.synth import programs, speak

# A program of somebody's own: says nothing but a tone between digital silences, as long as its sentence.
TONE = """
import sys, numpy, soundfile
text, wav = sys.argv[1] if len(sys.argv) > 2 else sys.stdin.read(), sys.argv[-1]
tone = 0.3 * numpy.sin(numpy.arange(800 * len(text)) * 0.3) * (1 + numpy.sin(numpy.arange(800 * len(text)) * 0.002))
soundfile.write(wav, numpy.concatenate([numpy.zeros(9000), tone, numpy.zeros(9000)]), 16000)
"""


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(application(), ["synth", *map(str, arguments)])
    if isinstance(result.exception, StreamdetError):
        return result.exception.exit_code, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


@pytest.fixture
def tone(tmp_path: Path) -> str:
    (tmp_path / "tone.py").write_text(TONE)
    return f"tone={sys.executable} {tmp_path / 'tone.py'}"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("Good morning.\n\n  It's me; rm -rf $HOME & 'so' on.  \n")
    return tmp_path / "text.txt"


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("place", ["{text} {wav}", "{wav}"])
def test_a_program_of_ones_own_gets_each_sentence_as_it_stands(tone, text, tmp_path, place):
    """As one word or on stdin, and no shell reads it."""
    out = tmp_path / "out"
    assert invoke("--text", text, "--tts-command", f"{tone} {place}", "--out", out, "--split", "dev")[0] == 0
    rows = rows_of(out)
    assert [(row["label"], row["system"], row["speaker"], row["split"]) for row in rows] == [
        ("spoof", "tts-tone", "tone:tone", "dev")
    ] * 2
    lengths = sorted(float(row["duration_s"]) for row in rows)
    for length, sentence in zip(lengths, speak.sentences(str(text), "en"), strict=True):
        assert abs(length - len(sentence) / 20) < 0.9


def test_a_clip_begins_neither_with_digital_silence_nor_always_at_the_same_time(tone, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(f"Sentence {number}" for number in range(6)))
    out = tmp_path / "out"
    assert invoke("--text", tmp_path / "text.txt", "--tts-command", f"{tone} {{text}} {{wav}}", "--out", out)[0] == 0
    starts = []
    for file in out.rglob("*.flac"):
        samples, rate_hz = soundfile.read(file)
        assert np.count_nonzero(samples[: rate_hz // 20]) > rate_hz // 200
        starts.append(np.flatnonzero(np.abs(samples) > 0.01)[0] / rate_hz)
    assert 0.05 < min(starts) < max(starts) < 0.5
    assert max(starts) - min(starts) > 0.05


def test_a_second_run_speaks_only_what_is_missing(tone, text, tmp_path):
    out = tmp_path / "out"
    run = ("--text", text, "--tts-command", f"{tone} {{text}} {{wav}}", "--out", out)
    assert invoke(*run)[0] == 0
    stamps = {file: file.stat().st_mtime_ns for file in out.rglob("*.flac")}
    text.write_text(text.read_text() + "And more.\n")
    assert invoke(*run)[0] == 0
    assert len(rows_of(out)) == 3
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    assert invoke(*run, "--per-clip", 2)[0] == 0
    assert len(rows_of(out)) == 6


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("-c 'import sys; sys.exit(\"no such voice\")' {wav}", "exit code 1', expected 0 (no such voice)"),
        ("-c '' {wav}", "'no audio', expected a WAV file"),
        ('-c \'import sys; open(sys.argv[1], "w").write("no")\' {wav}', "expected audio that libsndfile can read"),
        ("-c 'import time; time.sleep(9)' {wav}", "no end after 0 s"),
    ],
)
def test_a_program_that_fails_is_one_line_a_sentence(command, said, text, tmp_path, monkeypatch, caplog):
    if "sleep" in command:
        monkeypatch.setattr(speak, "TIMEOUT_S", 0.3)
    out = tmp_path / "out"
    code, _ = invoke("--text", text, "--tts-command", f"bad={sys.executable} {command}", "--out", out)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert code == 65
    assert len(lines) == 2
    assert all(said in line and line.startswith("tts-bad: ") for line in lines)
    assert list(out.rglob("*.flac")) == []
    assert rows_of(out) == []


def test_a_program_that_fails_on_everything_is_given_up(tmp_path, caplog):
    caplog.set_level("INFO")
    command = f"bad={sys.executable} -c '1/0' {{wav}}"
    assert invoke("--text", "built-in", "--tts-command", command, "--out", tmp_path)[0] == 65
    assert sum(record.levelname == "ERROR" for record in caplog.records) == speak.GIVE_UP_AFTER
    assert caplog.messages[-1] == "tts-bad: 0 clips, given up"


@pytest.mark.parametrize(
    ("command", "error", "said"),
    [
        ("tone", UsageError, "expected NAME=command, with {wav}"),
        ("a/b=true {wav}", UsageError, "expected NAME=command, with {wav}"),
        ("a=true", UsageError, "expected NAME=command, with {wav}"),
        ("a=true '{wav}", UsageError, "expected words as a shell reads them"),
        ("a=no-such-program {wav}", MissingError, "expected a program that can be run"),
    ],
)
def test_a_command_that_cannot_work_is_refused(command, error, said):
    with pytest.raises(error) as caught:
        programs.own(command)
    assert said in str(caught.value)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes a set of programs look installed, and no other."""

    def install(*names: str) -> None:
        for name in names:
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


def test_what_is_installed_is_found(installed):
    installed("espeak-ng", "text2wave")
    assert [program.name for program in programs.choose("installed")] == ["espeak-ng", "festival"]
    assert [program.name for program in programs.choose("festival, espeak-ng")] == ["festival", "espeak-ng"]


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        (
            "installed",
            MissingError,
            "--tts: 'installed', expected one of espeak-ng, espeak, festival, flite, pico2wave",
        ),
        ("flite", MissingError, "--tts flite: 'flite', expected it and a voice for it: apt install flite"),
        ("siri", UsageError, "--tts: 'siri', expected installed, some of espeak-ng"),
    ],
)
def test_what_is_not_installed_is_refused_by_name_with_what_to_do(installed, names, error, said):
    installed()
    with pytest.raises(error) as caught:
        programs.choose(names)
    assert str(caught.value).startswith(said)


def test_a_program_without_a_voice_is_not_there(installed, monkeypatch):
    installed("open_jtalk")
    monkeypatch.setattr(programs, "_found", lambda _: [])
    with pytest.raises(MissingError, match="hts-voice"):
        programs.choose("open_jtalk")


@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_voice_and_rate_of_every_program_vary_and_the_sentence_is_one_word_or_on_stdin(name, monkeypatch):
    monkeypatch.setattr(programs, "_found", lambda _: ["/voices/a.htsvoice", "/voices/b.htsvoice"])
    sentence, wav = "Hello; it's <me> & you.", Path("/x/said.wav")
    orders = [programs.PROGRAMS[name].say(sentence, wav, np.random.default_rng(seed)) for seed in range(12)]
    assert len({tuple(order.words) for order in orders}) > 6
    for order in orders:
        assert order.words[0] == programs.PROGRAMS[name].executable
        assert str(wav) in order.words
        assert order.stdin == sentence or any("it's" in word for word in order.words)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_sentences_come_along_and_no_two_are_the_same(language):
    found = programs.sentences("built-in", language)
    assert len(found) == len(set(found)) == {"en": 60, "ja": 10}[language]


def test_a_text_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(MissingError, match="--text: 'nowhere'"):
        programs.sentences("nowhere", "en")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UsageError, match="at least one sentence"):
        programs.sentences(str(tmp_path / "empty.txt"), "en")


@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_a_program_that_is_installed_speaks(name, tmp_path):
    if not programs.PROGRAMS[name].installed:
        pytest.skip(f"no {name} ({shutil.which(programs.PROGRAMS[name].executable)})")
    if programs.PROGRAMS[name].language == "en":
        (tmp_path / "text.txt").write_text("Good morning, how are you?\nFine.\n")
    text = tmp_path / "text.txt" if (tmp_path / "text.txt").exists() else "built-in"
    assert invoke("--text", text, "--tts", name, "--out", tmp_path / "out")[0] == 0
    for row in rows_of(tmp_path / "out"):
        assert row["system"] == f"tts-{name}"
        assert 0.2 < float(row["duration_s"]) < 12
