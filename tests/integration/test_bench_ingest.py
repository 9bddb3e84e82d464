"""`streamdet bench ingest` at a size that takes seconds: what it counts is there, and is all there."""

import json
import subprocess
import sys

import pytest

from streamdet.bench import ingest
from streamdet.errors import StreamdetError

TINY = ("--streams", "3", "--frame-ms", "100", "--seconds", "0.3", "--rounds", "1")


def bench(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamdet", "bench", "ingest", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.parametrize("over", ["zeromq", "unix"])
def test_frames_of_every_way_in_are_counted_and_their_cpu_time_is_split(over, tmp_path):
    done = bench("--over", over, *TINY, "--calls", 2, "--tracks", 0, "--json", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    flat_out, real_time = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["sent"] for row in (flat_out, real_time)] == ["flat out", "at real time"]
    assert [row["streams"] for row in (flat_out, real_time)] == [3, 2]
    for row in (flat_out, real_time):
        assert row["over"] == over
        assert row["frames_per_s"] > 0
        parts = (row["loop_us"], row["zeromq_us"], row["rest_us"])
        assert min(parts) >= 0
        assert row["whole_us"] > 0
        assert row["windows"] >= 0
    assert real_time["frames_per_s"] < flat_out["frames_per_s"]
    assert json.loads((tmp_path / "bench-ingest.json").read_text("utf-8"))["bench"] == "ingest"
    assert (tmp_path / "bench-ingest.png").read_bytes().startswith(b"\x89PNG")


def test_every_track_that_is_weighed_is_open_and_full():
    some, every = ingest.memory(200)
    assert (some["tracks"], every["tracks"]) == (20, 200)
    assert every["rss_mb"] > some["rss_mb"]
    assert every["track_kb"] > 32  # four seconds of mu-law at the least


def test_all_lengths_are_measured_with_the_most_streams_and_all_numbers_at_the_shortest():
    ask = ingest.Ask(streams=(1, 100), frames_ms=(20, 100))
    assert ask.cases == [(1, 20), (100, 20), (100, 100)]


def test_a_flood_that_is_refused_is_no_figure():
    before = ingest.Seen(0.0, {"main": 0.0}, {})
    refused = {"streamdet_audio_bytes_total": 160.0, "streamdet_refused_total": 2.0}
    with pytest.raises(StreamdetError, match="refused frames: 2, expected none"):
        ingest.Seen(1.0, {"main": 1.0}, refused).frames_since(before, 160)
    with pytest.raises(StreamdetError, match=r"frames taken: 0\.0"):
        ingest.Seen(1.0, {"main": 1.0}, {}).frames_since(before, 160)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--over", "smoke"), "--over: 'smoke', expected one of zeromq, tcp, unix"),
        (("--streams", "0"), "--streams: '0', expected whole numbers from 1 to 5000"),
        (("--frame-ms", "20,20"), "--frame-ms: '20,20', expected each only once"),
        (("--frame-ms", "1001"), "--frame-ms: '1001', expected whole numbers from 1 to 1000"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(words, complaint):
    done = bench(*words)
    assert done.returncode == 64
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
