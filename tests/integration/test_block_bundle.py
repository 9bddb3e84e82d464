"""A block bundle behind real sockets: clients meet the same daemon, and the same bytes score the same."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

from streamdet.audio import encode
from streamdet.records import AudioFormat, Event, Verdict
from streamdet.replay import replay
from streamdet.scorer import Scorer

RATE_HZ = 8000
MULAW = AudioFormat(RATE_HZ, "mulaw")
STEREO = AudioFormat(RATE_HZ, "s16le", 2)


@pytest.fixture
def tiny_bundle(block_bundle):
    """What `serve` serves."""
    return block_bundle


@pytest.fixture
def call(babble, tmp_path, by_end, block_scorer):
    """A call of 9.7 s with a pause, as mu-law, and the LLRs that `streamdet score` gives it."""
    samples = babble[: int(9.7 * RATE_HZ)].copy()
    samples[int(4.9 * RATE_HZ) : int(6.2 * RATE_HZ)] = 0
    path = tmp_path / "call.wav"
    soundfile.write(path, samples, RATE_HZ, subtype="ULAW")
    data = encode(soundfile.read(path, dtype="float32")[0], "mulaw")
    return data, by_end(replay(path, block_scorer)), path


def whole(client, stream: str = "a") -> set[float]:
    """Ends of the windows of a call that reach back all the way: who is late again and again begins anew."""
    mine = [it for it in client.heard if isinstance(it, Verdict) and it.stream == stream]
    return {it.end_s for it in mine if it.start_s == pytest.approx(max(0.0, it.end_s - 4))}


def hops(data: bytes, form: AudioFormat) -> list[bytes]:
    size = form.rate_hz * form.block_bytes
    return [data[at : at + size] for at in range(0, len(data), size)]


def test_a_call_over_zeromq_scores_as_its_recording_does(serve, meet, call):
    data, expected, _ = call
    assert list(expected) == [*range(1, 10), 9.7]
    assert len({round(llr, 2) for llr in expected.values()}) > 5
    running = serve()
    client = meet(running.addresses)
    for second, payload in enumerate(hops(data, MULAW), 1):
        client.send(payload, "a", MULAW, start=(second - 1) * RATE_HZ)
        if second < 10:
            client.verdict(float(second))
    client.send(b"", "a", MULAW, end=True)
    assert client.event("close").detail["windows"] == 10
    assert client.llrs() == pytest.approx(expected, abs=1e-4)


def test_windows_that_were_skipped_change_no_other(serve, meet, call):
    """Many calls at once, as fast as they go: whatever is scored has the score it has alone."""
    data, expected, _ = call
    running = serve()
    client = meet(running.addresses)
    names = [f"s{at}" for at in range(12)]
    for second, payload in enumerate(hops(data, MULAW)):
        for name in names:
            client.send(payload, name, MULAW, start=second * RATE_HZ)
    for name in names:
        client.send(b"", name, MULAW, end=True)
    closes = [client.until(lambda it: isinstance(it, Event) and it.type == "close") for _ in names]
    assert {close.stream for close in closes} == set(names)
    for close in closes:
        found = client.llrs(close.stream)
        assert len(found) + close.detail["skipped"] == 10
        ends = whole(client, close.stream)
        assert ends
        assert {at: found[at] for at in ends} == pytest.approx({at: expected[at] for at in ends}, abs=1e-4)


def test_a_call_that_the_daemon_meets_in_the_middle_is_scored_from_there(serve, meet, call):
    data, expected, _ = call
    running = serve()
    client = meet(running.addresses)
    began = int(1.3 * RATE_HZ)
    for at in range(began, len(data), RATE_HZ // 2):
        client.send(data[at : at + RATE_HZ // 2], "a", MULAW, start=at)
        end_s = (at + RATE_HZ // 2) / RATE_HZ
        if end_s >= 3 and end_s % 1 < 0.5:
            client.verdict(end_s // 1)
    client.send(b"", "a", MULAW, end=True)
    client.event("close")
    found = client.llrs()
    # From 6 s on a window has all the audio, and its first block the half second before.
    assert {9.0, 9.7} <= whole(client)
    assert {at: llr for at, llr in found.items() if at >= 6} == pytest.approx(
        {at: llr for at, llr in expected.items() if at >= 6 and at in found}, abs=1e-4
    )


def test_a_file_over_pcm_and_channels_beside_each_other(
    serve, meet, dial, call, babble, tmp_path, by_end, block_scorer
):
    _, _, mono = call
    left = soundfile.read(mono, dtype="float32")[0]
    path = tmp_path / "pair.wav"
    soundfile.write(path, np.stack([left, 0.5 * babble[: left.size]], axis=1), RATE_HZ, subtype="PCM_16")
    said = replay(path, block_scorer)
    running = serve()
    client = meet(running.addresses)
    with dial(running.addresses["pcm.0"]) as connection:
        pair = soundfile.read(path, dtype="int16")[0].astype("<i2").tobytes()
        connection.sendall(b'STREAMDET {"stream": "a", "channels": 2}\n' + pair)
    summary = client.event("close").detail
    assert summary["skipped"] == 0
    for channel in (0, 1):
        assert client.llrs(channel=channel) == pytest.approx(by_end(said, channel), abs=1e-4)


def test_check_and_score_take_a_block_bundle(block_bundle, call):
    _, expected, path = call

    def streamdet(*args: object) -> str:
        command = [sys.executable, "-m", "streamdet", *map(str, args)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    told = streamdet("check", "--bundle", block_bundle.path, "--set", "scoring.provider=cpu")
    assert "window     4 s every 1 s at 16000 Hz, in 4 blocks that hear 0.5 s before them" in told
    told = streamdet("score", path, "--bundle", block_bundle.path, "--set", "scoring.provider=cpu")
    for end_s, llr in expected.items():
        assert f"{end_s:7.1f} s" in told
        assert f"LLR {llr:+6.2f}" in told


def test_the_same_scorer_gives_the_same_scores_twice(block_bundle, call, by_end):
    _, expected, path = call
    other = Scorer(block_bundle, provider="cpu", threads=2, batch_max=2)
    assert by_end(replay(path, other)) == pytest.approx(expected, abs=1e-4)
