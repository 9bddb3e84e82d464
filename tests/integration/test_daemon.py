"""The daemon as its clients meet it: real sockets, real frames, a model of a few bytes.

Nothing here measures time. Live audio is sent a hop at a time and waits for its verdict, so that no window is skipped.
"""

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import zmq

from streamdet import foreground, pump
from streamdet.audio import encode
from streamdet.config import Config
from streamdet.errors import ConfigError, UnreachableError
from streamdet.records import AudioFormat, Event, Heartbeat, Verdict
from streamdet.replay import replay
from streamdet.scorer import Scorer

RATE_HZ = 8000
S16 = AudioFormat(RATE_HZ, "s16le")
STEREO = AudioFormat(RATE_HZ, "s16le", 2)
MULAW = AudioFormat(RATE_HZ, "mulaw")
HOP = b"\0\0" * RATE_HZ
PATIENCE_S = 30.0


def nc_ends_with_its_input() -> bool:
    if shutil.which("nc") is None:
        return False
    return "Shutdown the network socket" in subprocess.run(["nc", "-h"], capture_output=True, text=True).stderr


def speech(seconds: float, babble: np.ndarray, gain: float = 1.0) -> np.ndarray:
    return gain * babble[: int(seconds * RATE_HZ)]


def recording(path: Path, samples: np.ndarray, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, RATE_HZ, subtype=subtype)
    return path


def raw(path: Path) -> bytes:
    """The samples of a file as s16le."""
    return soundfile.read(path, dtype="int16")[0].astype("<i2").tobytes()


def wait_for(what) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.005)


def play(client, data: bytes, stream: str = "a", form: AudioFormat = S16, frame_s: float = 0.02) -> None:
    """Send a call over ZeroMQ, in frames, waiting for the verdict at each whole second."""
    step, second = round(frame_s * RATE_HZ), RATE_HZ
    samples = len(data) // form.block_bytes
    for seq, start in enumerate(range(0, samples, step)):
        payload = data[start * form.block_bytes : (start + step) * form.block_bytes]
        client.send(payload, stream, form, seq=seq, start=start)
        end = min(samples, start + step)
        if end % second == 0:
            client.verdict(end / second, stream, form.channels - 1)
    client.send(b"", stream, form, end=True)


# -- the same recording, however it comes ------------------------------------------------------------------------------


def over_zeromq(*, client, path, **_):
    play(client, raw(path))


def over_tcp(*, addresses, dial, path, **_):
    dial(addresses["pcm.0"]).sendall(raw(path))


def over_unix(*, addresses, dial, path, **_):
    connection = dial(addresses["pcm.1"])
    connection.sendall(b'STREAMDET {"stream": "a"}\n')
    data = raw(path)
    for at in range(0, len(data), 4321):
        connection.sendall(data[at : at + 4321])


def by_ffmpeg(*, addresses, path, **_):
    form = ["-f", "s16le", "-ac", "1", "-ar", str(RATE_HZ)]
    command = ["ffmpeg", "-loglevel", "error", "-re", "-i", str(path), *form, addresses["pcm.0"]]
    subprocess.run(command, check=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL)


def by_nc(*, addresses, path, **_):
    host, _, port = addresses["pcm.0"].removeprefix("tcp://").rpartition(":")
    with path.open("rb") as file:
        subprocess.run(["nc", "-N", host, port], stdin=file, check=True, timeout=PATIENCE_S)


needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg")
needs_nc = pytest.mark.skipif(not nc_ends_with_its_input(), reason="no nc that knows -N")


@pytest.mark.parametrize(
    ("way", "seconds"),
    [
        (over_zeromq, 6.7),
        (over_tcp, 6.7),
        (over_unix, 6.7),
        pytest.param(by_ffmpeg, 2.7, marks=needs_ffmpeg),
        pytest.param(by_nc, 6.7, marks=needs_nc),
    ],
)
def test_a_recording_scores_the_same_however_it_comes(
    way, seconds, serve, meet, dial, by_end, babble, tmp_path, tiny_bundle
):
    path = recording(tmp_path / "a.wav", speech(seconds, babble))
    expected = by_end(replay(path, Scorer(tiny_bundle, provider="cpu", threads=1)))
    assert len(expected) == int(seconds) + 1
    assert None not in expected.values()
    running = serve(endpoints={"pcm": ["tcp://127.0.0.1:0", f"unix:{tmp_path}/pcm.sock"]})
    client = meet(running.addresses)
    with dial(running.addresses["pcm.0"]):
        pass  # a port scan, or somebody's health check
    way(addresses=running.addresses, client=client, dial=dial, path=path)
    for connection in dial.open:
        connection.shutdown(socket.SHUT_WR)
    close = client.until(lambda it: isinstance(it, Event) and it.type == "close" and it.detail["windows"])
    assert (close.detail["reason"], close.detail["seconds"]) == ("end", seconds)
    assert client.llrs(close.stream) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("way", ["zeromq", "pcm"])
def test_two_channels_score_separately(way, serve, meet, dial, by_end, babble, tmp_path, tiny_bundle):
    pair = np.stack([speech(3, babble), speech(3, babble, 0.3)], axis=1)
    path = recording(tmp_path / "a.wav", pair)
    said = replay(path, Scorer(tiny_bundle, provider="cpu", threads=1))
    running = serve()
    client = meet(running.addresses)
    if way == "zeromq":
        play(client, raw(path), form=STEREO)
    else:
        with dial(running.addresses["pcm.0"]) as connection:
            connection.sendall(b'STREAMDET {"stream": "a", "channels": 2}\n' + raw(path))
    summary = client.event("close").detail
    for channel in (0, 1):
        assert client.llrs(channel=channel) == pytest.approx(by_end(said, channel), abs=1e-4)
    assert client.llrs(channel=0)[3.0] < client.llrs(channel=1)[3.0]
    assert [track["channel"] for track in summary["channels"]] == [0, 1]


# -- bad messages ------------------------------------------------------------------------------------------------------


def test_bad_messages_are_counted_and_told_and_disturb_nobody(serve, meet):
    running = serve()
    client = meet(running.addresses)
    client.send(HOP[:320], "bad")
    client.send(HOP[:320], "good", start=0)
    header = json.dumps({"rate": RATE_HZ, "encoding": "s16le"}).encode()
    bad = [
        [b"bad"],
        [b"bad", header],
        [b"bad", header, b"", b""],
        [b"bad", b"{", HOP[:320]],
        [b"bad", b" " * 2000, HOP[:320]],
        [b"bad", header, b"\0" * (2**18 + 2)],
        [b"bad", header, HOP + b"\0\0"],
        [b"bad", header, b"\0"],
        [b"bad", header.replace(b"8000", b"16000"), HOP[:320]],
        [b"bad", header.replace(b"s16le", b"mulaw"), HOP[:320]],
        [b"bad", header[:-1] + b', "start": 8000000}', HOP[:320]],
        [b"b\xff", header, HOP[:320]],
        [b"nobody", b"[]", b""],
    ]
    began_s = time.monotonic()
    for number, parts in enumerate(bad, 1):
        client.push.send_multipart(parts)
        client.send(HOP[:320], "good", start=160 * number)
    client.send(b"", "bad", end=True)
    client.send(b"", "good", end=True)
    told = client.event("close", "bad").detail
    took_s = time.monotonic() - began_s
    assert client.event("close", "good").detail["seconds"] == 0.02 * (len(bad) + 1)
    assert told["seconds"] == 0.02
    errors = [event for event in client.events("bad") if event.type == "error"]
    assert 1 <= len(errors) <= 1 + took_s
    assert errors[0].detail == {"message": "message parts: 1, expected 3: stream id, header, payload"}
    assert [event.type for event in client.events("good")] == ["open", "close"]
    assert client.events("nobody") == []
    assert running.metric('streamdet_refused_total{transport="zeromq"}') == len(bad)


def test_a_change_of_format_is_told_on_its_stream(serve, meet):
    client = meet(serve().addresses)
    client.send(HOP[:320])
    client.send(HOP[:320], form=MULAW)
    message = "format: 8000 Hz mulaw, 1 channel(s), expected 8000 Hz s16le, 1 channel(s) as in the first frame"
    assert client.event("error").detail == {"message": message}


def test_a_message_over_1_mib_costs_its_sender_the_connection_and_nobody_else_anything(serve, meet):
    running = serve()
    client, flooder = meet(running.addresses), meet(running.addresses, "e.")
    client.send(HOP[:320], start=0)
    client.event("open")
    flooder.push.send_multipart([b"flood", b"{}", b"\0" * (2**20 + 1)])
    wait_for(lambda: running.metric('streamdet_disconnects_total{transport="zeromq"}') == 1)
    client.send(HOP[:320], start=160, end=True)
    assert client.event("close").detail["seconds"] == 0.04
    assert running.metric('streamdet_refused_total{transport="zeromq"}') == 0


# -- the clock of a stream ---------------------------------------------------------------------------------------------


def test_gaps_are_told_with_their_length_where_start_gives_it(serve, meet):
    client = meet(serve().addresses)
    client.send(HOP[:320], start=0)
    client.send(HOP[:320], start=160 + 12_000)
    client.send(HOP[:320], start=320 + 12_000, end=True)
    gap = client.event("gap")
    assert (gap.at_s, gap.channel, gap.detail) == (0.02, None, {"seconds": 1.5})
    assert client.event("close").detail["seconds"] == 1.56


def test_gaps_known_by_seq_alone_are_told_without_a_length(serve, meet):
    client = meet(serve().addresses)
    client.send(HOP[:320], seq=0)
    client.send(HOP[:320], seq=4, end=True)
    assert client.event("gap").detail == {"seconds": None, "frames": 3}
    assert client.event("close").detail["seconds"] == 0.04


@pytest.mark.parametrize("field", ["start", "seq"])
def test_a_sender_that_begins_again_gets_a_new_opening(field, serve, meet):
    client = meet(serve().addresses)
    for _ in range(2):
        client.send(HOP[:320], **{field: 0})
        client.send(HOP[:320], **{field: {"start": 160, "seq": 1}[field]})
    client.send(b"", end=True)
    client.until(lambda it: isinstance(it, Event) and it.type == "close" and it.detail["reason"] == "end")
    assert [event.type for event in client.events()] == ["open", "close", "open", "close"]
    first, closed, second, ended = (event.detail for event in client.events())
    assert (closed["reason"], closed["seconds"], ended["seconds"]) == ("restart", 0.04, 0.04)
    assert first["opened"] == closed["opened"] != second["opened"] == ended["opened"]


def test_a_silent_stream_is_closed_unless_it_is_paused(serve, meet):
    client = meet(serve(streams={"idle_timeout_s": 0.05}).addresses)
    client.send(HOP[:320], "paused")
    client.event("open", "paused")
    assert client.ask(op="pause", stream="paused")["ok"]
    client.send(HOP[:320])
    assert client.event("close").detail["reason"] == "idle"
    assert [track["stream"] for track in client.ask(op="status")["tracks"]] == ["paused"]


@pytest.mark.parametrize("way", ["zeromq", "pcm"])
def test_a_stream_whose_frames_are_missed_has_stalled_until_the_next(way, serve, meet, dial):
    running = serve(streams={"stalled_after_s": 0.05, "idle_timeout_s": 3600})
    client = meet(running.addresses)
    if way == "zeromq":
        say = functools.partial(client.send, HOP[:320])
    else:
        connection = dial(running.addresses["pcm.0"])
        connection.sendall(b'STREAMDET {"stream":"a","start":16000}\n')
        say = functools.partial(connection.sendall, HOP[:320])
    say()
    assert client.event("open").detail["continued_from_s"] == (None if way == "zeromq" else 2.0)
    assert client.event("stalled").detail["seconds"] >= 0.05
    assert client.ask(op="status")["tracks"][0]["stalled"] is True
    say()
    assert client.event("resumed").detail["stalled_s"] >= 0.05
    assert client.event("stalled").at_s == (0.04 if way == "zeromq" else 2.04)


# -- control -----------------------------------------------------------------------------------------------------------


def test_a_pause_drops_audio_and_keeps_the_clock(serve, meet, babble):
    client = meet(serve().addresses)
    data = encode(speech(3, babble), "s16le")
    seconds = [data[at : at + 2 * RATE_HZ] for at in range(0, len(data), 2 * RATE_HZ)]
    client.send(seconds[0])
    heard = client.verdict(1.0)
    assert client.ask(id=1, op="pause", stream="a") == {"id": 1, "ok": True}
    client.send(seconds[1])
    paused = client.verdict(2.0)
    assert client.ask(op="status")["tracks"][0]["paused"] is True
    assert client.ask(id=2, op="resume", stream="a") == {"id": 2, "ok": True}
    client.send(seconds[2])
    again = client.verdict(3.0)
    assert paused.speech_s <= heard.speech_s < again.speech_s
    client.ask(op="close", stream="a")
    assert client.event("close").detail["seconds"] == 3.0
    told = [(event.type, event.at_s) for event in client.events() if event.type in ("paused", "resumed")]
    assert told == [("paused", 1.0), ("resumed", 2.0)]


def test_status_and_snapshot_tell_where_every_track_stands(serve, meet, babble, tiny_bundle):
    running = serve()
    client = meet(running.addresses)
    client.send(encode(speech(1, babble), "s16le"))
    verdict = client.verdict(1.0)
    status = client.ask(id={"any": 1}, op="status")
    assert (status["id"], status["ok"], status["model"]) == ({"any": 1}, True, tiny_bundle.manifest.model_id)
    assert (status["counts"]["streams"], status["counts"]["tracks"], status["counts"]["windows"]) == (1, 1, 1)
    (track,) = status["tracks"]
    assert (track["stream"], track["opened"], track["channel"], track["seconds"]) == ("a", verdict.opened, 0, 1.0)
    (repeat,) = client.ask(op="snapshot")["verdicts"]
    assert repeat["snapshot"] is True
    assert (repeat["type"], repeat["stream"], repeat["seq"], repeat["llr"]) == ("verdict", "a", 0, verdict.llr)


def test_close_ends_a_stream_as_its_sender_would(serve, meet, babble):
    client = meet(serve().addresses)
    client.send(encode(speech(0.6, babble), "s16le"))
    client.event("open")
    assert client.ask(op="close", stream="a") == {"id": None, "ok": True}
    close = client.event("close")
    assert (close.detail["reason"], close.detail["windows"]) == ("end", 1)


def test_close_ends_a_pcm_connection_too(serve, meet, dial):
    running = serve()
    client, connection = meet(running.addresses), dial(running.addresses["pcm.0"])
    connection.sendall(b'STREAMDET {"stream": "a"}\n' + HOP)
    client.verdict(1.0)
    client.ask(op="close", stream="a")
    assert client.event("close").detail["reason"] == "end"
    connection.sendall(HOP[:2])  # this read finds the stream closed
    assert connection.recv(1) == b""


def test_a_dealer_is_answered_as_a_req_is(serve, meet):
    client = meet(serve().addresses, "e.")
    with client.socket(zmq.DEALER, "control") as dealer:
        for number in range(3):
            dealer.send_json({"id": number, "op": "snapshot"})
        assert [dealer.recv_json() for _ in range(3)] == [{"id": n, "ok": True, "verdicts": []} for n in range(3)]
        dealer.send_multipart([b"", b'{"id": "e", "op": "snapshot"}'])
        assert [json.loads(part or b"null") for part in dealer.recv_multipart()] == [
            None,
            {"id": "e", "ok": True, "verdicts": []},
        ]


def test_a_bad_request_is_answered_with_what_was_expected(serve, meet):
    asked = {
        b'{"id": 7, "op": "dance"}': (7, "op: 'dance', expected one of status, snapshot, pause, resume, close, reload"),
        b'{"id": 7}': (7, "op: None, expected a string"),
        b'{"id": 7, "op": "pause"}': (7, "stream: None, expected a string"),
        b'{"id": 7, "op": "pause", "stream": "x"}': (7, "stream: 'x', expected the id of an open stream"),
        b'{"id": 7, "op": "close", "stream": "x"}': (7, "stream: 'x', expected the id of an open stream"),
        b"hello": (None, "request: 5 bytes, expected a JSON object"),
        b"": (None, "request: 0 bytes, expected a JSON object"),
        b" " * 1025: (None, "request bytes: 1025, expected at most 1024"),
    }
    client = meet(serve().addresses, "e.")
    with client.socket(zmq.REQ, "control") as req:
        for body, (identity, error) in asked.items():
            req.send(body)
            assert req.recv_json() == {"id": identity, "ok": False, "error": error}


# -- subscribers -------------------------------------------------------------------------------------------------------


def test_a_late_subscriber_is_told_where_each_track_stands(serve, meet):
    running = serve()
    client = meet(running.addresses)
    for stream in ("a", "b"):
        client.send(HOP, stream)
        client.verdict(1.0, stream)
    topic = "v.a."
    for _ in range(3):  # the same subscription each time: none of them may go without
        late = meet(running.addresses, topic)
        repeat = late.until(lambda it: isinstance(it, Verdict))
        assert (repeat.stream, repeat.end_s, repeat.seq, repeat.snapshot) == ("a", 1.0, 0, True)
    client.send(b"", "a", end=True)
    client.event("close", "a")
    assert [verdict["stream"] for verdict in client.ask(op="snapshot")["verdicts"]] == ["b"]


def test_a_heartbeat_counts_up_within_its_epoch(serve, meet):
    running = serve()
    client = meet(running.addresses, "hb", "v.")
    client.send(2 * HOP, form=STEREO)
    first = client.until(lambda it: isinstance(it, Heartbeat) and it.windows)
    second = client.until(lambda it: isinstance(it, Heartbeat))
    assert (second.epoch, second.seq) == (first.epoch, first.seq + 1)
    assert (second.streams, second.tracks, second.windows) == (1, 2, 2) or first.windows == 1
    assert (first.skipped, first.overload) == (0, False)
    assert first.lag_ms_p99 is not None
    other = meet(serve().addresses, "hb")
    assert other.until(lambda it: isinstance(it, Heartbeat)).epoch != first.epoch


# -- HTTP --------------------------------------------------------------------------------------------------------------


def test_http_tells_that_it_lives_and_is_ready(serve, tiny_bundle):
    running = serve()
    assert running.http("/livez") == (200, "alive\n")
    assert running.http("/readyz") == (200, "ready\n")
    assert running.http("/nothing")[0] == 404
    assert running.metric("streamdet_streams") == 0
    model = tiny_bundle.manifest.model_id
    assert running.metric(f'streamdet_model_info{{model="{model}",provider="CPUExecutionProvider"}}') == 1


def test_metrics_count_what_came_and_what_was_said(serve, meet, babble):
    running = serve()
    client = meet(running.addresses)
    before = running.metric('streamdet_events_total{type="open"}')
    client.send(HOP, sent_at_s=time.time())
    client.verdict(1.0)
    assert running.metric('streamdet_frames_total{transport="zeromq"}') == 1
    assert running.metric('streamdet_audio_bytes_total{transport="zeromq"}') == len(HOP)
    assert running.metric('streamdet_verdicts_total{state="listening"}') == 1
    assert running.metric("streamdet_windows_gated_total") == 1
    assert running.metric('streamdet_events_total{type="open"}') == before + 1
    assert running.metric("streamdet_lag_seconds_count") == running.metric("streamdet_transit_seconds_count") == 1
    assert running.metric("streamdet_batch_windows_sum") == 0  # a gated window costs no run
    client.send(encode(speech(1, babble), "s16le"))
    client.verdict(2.0)
    assert running.metric("streamdet_batch_windows_sum") == 1


def test_it_lives_but_is_not_ready_while_the_model_warms_up(make, monkeypatch):
    warm = threading.Event()
    monkeypatch.setattr(Scorer, "warm_up", lambda _: {1: float(warm.wait(PATIENCE_S))})
    running = make()
    running.start()
    try:
        wait_for(lambda: "http" in running.addresses)
        assert running.http("/livez")[0] == 200
        assert running.http("/readyz") == (503, "not ready\n")
        assert not running.ready.is_set()
    finally:
        warm.set()
    assert running.ready.wait(PATIENCE_S)
    assert running.http("/readyz")[0] == 200


def test_it_is_not_ready_while_it_drains(serve, meet, monkeypatch):
    going, make_ready = threading.Event(), pump.make_ready
    monkeypatch.setattr(pump, "make_ready", lambda *args: going.wait(PATIENCE_S) and make_ready(*args))
    running = serve()
    client = meet(running.addresses)
    try:
        client.send(HOP)
        wait_for(lambda: running.metric("streamdet_streams") == 1)
        running.ask_to_stop()
        wait_for(lambda: running.http("/readyz")[0] == 503)
        assert running.http("/livez")[0] == 200
    finally:
        going.set()
    assert client.event("close").detail["reason"] == "drain"
    assert client.llrs() == {1.0: None}


# -- raw PCM -----------------------------------------------------------------------------------------------------------


def test_an_id_that_is_open_is_refused_with_a_line(serve, meet, dial):
    running = serve()
    client, first, second = meet(running.addresses), *(dial(running.addresses["pcm.0"]) for _ in range(2))
    line = b'STREAMDET {"stream": "a"}\n'
    first.sendall(line + HOP[:320])
    client.event("open")
    second.sendall(line + HOP[:320])
    with second.makefile() as answer:
        assert answer.read() == "ERROR stream: 'a', expected an id that is not open already\n"
    first.sendall(HOP[:320])
    first.shutdown(socket.SHUT_WR)
    assert client.event("close").detail["seconds"] == 0.04
    assert [event.type for event in client.events()] == ["open", "close"]
    assert running.metric('streamdet_refused_total{transport="pcm"}') == 1


def test_a_stream_of_pcm_takes_no_frames_over_zeromq(serve, meet, dial):
    running = serve()
    client, connection = meet(running.addresses), dial(running.addresses["pcm.0"])
    connection.sendall(b'STREAMDET {"stream": "a"}\n' + HOP[:320])
    client.event("open")
    client.send(HOP[:320])
    message = "stream: 'a', expected an id that is not open on another kind of connection"
    assert client.event("error").detail == {"message": message}


def test_half_a_sample_at_the_end_is_told_to_both_sides(serve, meet, dial):
    running = serve()
    client, connection = meet(running.addresses), dial(running.addresses["pcm.0"])
    connection.sendall(b'STREAMDET {"stream": "a"}\n' + HOP[:321])
    connection.shutdown(socket.SHUT_WR)
    told = "stream ends after 1 bytes of a sample, expected 2"
    with connection.makefile() as answer:
        assert answer.read() == f"ERROR {told}\n"
    assert client.event("error").detail == {"message": told}
    assert client.event("close").detail["seconds"] == 0.02


def test_a_listener_has_a_format_and_a_stream_without_an_id_the_name_of_its_peer(serve, meet, dial, babble, tmp_path):
    path = f"{tmp_path}/pcm.sock"
    running = serve(
        endpoints={"pcm": ["tcp://127.0.0.1:0", f"unix:{path}"]},
        pcm={"rate": 16_000, "encoding": "mulaw", "channels": 2},
    )
    client, tcp, unix = meet(running.addresses), dial(running.addresses["pcm.0"]), dial(f"unix:{path}")
    data = encode(np.repeat(babble[:16_000], 2), "mulaw")
    host, port = tcp.getsockname()
    for connection, stream in ((tcp, f"pcm-{host}:{port}"), (unix, "pcm-unix-1")):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        opened = client.event("open", stream).detail
        assert (opened["rate_hz"], opened["encoding"], opened["channels"]) == (16_000, "mulaw", 2)
        assert client.event("close", stream).detail["seconds"] == 1.0
        assert client.llrs(stream, 0) == client.llrs(stream, 1) != {}


# -- start -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["audio", "verdicts", "control", "http", "pcm"])
def test_a_port_in_use_is_named(endpoint, serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        address = f"127.0.0.1:{port}" if endpoint == "http" else f"tcp://127.0.0.1:{port}"
        with pytest.raises(UnreachableError, match=rf"endpoints\.{endpoint}: '{address}', expected a free address"):
            serve(endpoints={endpoint: [address] if endpoint == "pcm" else address})


@pytest.mark.parametrize("endpoint", ["audio", "verdicts", "control", "http", "pcm"])
@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "example", "*"])
def test_an_address_that_others_reach_is_refused(endpoint, host, serve):
    address = f"{host}:5000" if endpoint == "http" else f"tcp://{host}:5000"
    with pytest.raises(ConfigError, match=rf"endpoints\.{endpoint}: .* expected a loopback address") as caught:
        serve(endpoints={endpoint: [address] if endpoint == "pcm" else address})
    assert "endpoints.insecure = true" in str(caught.value)


def test_an_address_that_others_reach_is_taken_where_the_config_says_so(serve, dial):
    running = serve(endpoints={"insecure": True, "http": "0.0.0.0:0", "pcm": ["tcp://0.0.0.0:0"]})
    assert running.addresses["pcm.0"].startswith("tcp://0.0.0.0:")
    dial(running.addresses["pcm.0"])


def test_endpoints_that_are_switched_off_stay_off(serve):
    running = serve(endpoints={"audio": "", "verdicts": "", "control": "", "http": "", "pcm": []})
    assert {name: address for name, address in running.addresses.items() if address} == {}


@pytest.mark.parametrize("address", ["unix:/nowhere/at/all.sock", "udp://127.0.0.1:1", "tcp://127.0.0.1"])
def test_what_is_no_address_is_named(address, serve):
    with pytest.raises(ConfigError, match=r"endpoints\.pcm: "):
        serve(endpoints={"pcm": [address]})


# -- signals and the service manager -----------------------------------------------------------------------------------


class Process:
    """The daemon in a process of its own, under somebody who listens as systemd does."""

    def __init__(
        self, folder: Path, bundle: Path, *, slow_s: float = 0, watchdog_s: float = 0, verdicts: str = ""
    ) -> None:
        names = ("audio", "verdicts", "control")
        self.addresses = {name: f"ipc://{folder}/{name}" for name in names} | {"pcm.0": f"unix:{folder}/pcm.sock"}
        self.addresses["verdicts"] = verdicts or self.addresses["verdicts"]
        config = folder / "streamdet.toml"
        lines = [f'{name} = "{self.addresses[name]}"' for name in names]
        config.write_text(
            f'[bundle]\npath = "{bundle}"\n[endpoints]\nhttp = ""\npcm = ["{self.addresses["pcm.0"]}"]\n'
            + "\n".join(lines)
            + '\n[scoring]\nthreads = 1\nprovider = "cpu"\nbatch_max = 2\ndeadline_s = 3600\n'
            + "[daemon]\ndrain_timeout_s = 60\n"
        )
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.settimeout(PATIENCE_S)
        self.manager.bind(f"{folder}/notify")
        environment = {**os.environ, "NOTIFY_SOCKET": f"{folder}/notify", "OMP_NUM_THREADS": "1"}
        if watchdog_s:
            environment["WATCHDOG_USEC"] = str(int(1e6 * watchdog_s))
        serve = Path(__file__).with_name("serve.py")
        self.run = subprocess.Popen(
            [sys.executable, serve, config, *([str(slow_s)] if slow_s else [])],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def told(self, line: str) -> list[str]:
        """Everything that the service manager is told until this."""
        lines: list[str] = []
        while line not in lines:
            lines += self.manager.recv(4096).decode().splitlines()
        return lines

    def end(self) -> None:
        self.run.kill()
        self.run.communicate()
        self.manager.close()


@pytest.fixture
def process(tmp_path, tiny_bundle):
    started = []

    def start(**options) -> Process:
        started.append(Process(tmp_path, tiny_bundle.path, **options))
        return started[-1]

    yield start
    for one in started:
        one.end()


def test_sigterm_in_the_middle_of_20_calls_loses_no_verdict(process, meet, babble):
    serving = process()
    serving.told("READY=1")
    client = meet(serving.addresses)
    calls, data = [f"call-{number}" for number in range(20)], encode(speech(2.6, babble), "s16le")
    for second in (0, 1, 2):
        for call in calls:
            client.send(data[2 * RATE_HZ * second : 2 * RATE_HZ * (second + 1)], call, start=RATE_HZ * second)
        if second < 2:
            wait_for(lambda end_s=second + 1.0: client.listen(1) and all(end_s in client.llrs(call) for call in calls))
    wait_for(lambda: [track["seconds"] for track in client.ask(op="status")["tracks"]] == [2.6] * 20)
    serving.run.send_signal(signal.SIGTERM)
    closed = [client.until(lambda it: isinstance(it, Event) and it.type == "close") for _ in calls]
    assert serving.run.wait(PATIENCE_S) == 0
    assert {event.stream for event in closed} == set(calls)
    assert {event.detail["reason"] for event in closed} == {"drain"}
    assert {event.detail["windows"] for event in closed} == {3}
    assert all(set(client.llrs(call)) == {1.0, 2.0, 2.6} for call in calls)


def test_a_subscriber_that_falls_behind_at_the_end_still_gets_the_last_word(process, meet):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serving = process(verdicts=f"tcp://127.0.0.1:{port}")
    serving.told("READY=1")
    client, calls = meet(serving.addresses), [f"call-{number}" for number in range(400)]
    for call in calls:
        client.send(HOP, call)
    wait_for(lambda: sum(track["seconds"] for track in client.ask(op="status")["tracks"]) == len(calls))
    serving.run.send_signal(signal.SIGTERM)
    serving.told("STOPPING=1")
    time.sleep(0.4)  # less than the daemon lingers, more than it needs to end
    closed = [client.until(lambda it: isinstance(it, Event) and it.type == "close") for _ in calls]
    assert {event.stream for event in closed} == set(calls)
    assert serving.run.wait(PATIENCE_S) == 0


def test_a_second_sigterm_ends_at_once_even_where_a_thread_hangs(process, meet):
    serving = process(slow_s=3 * PATIENCE_S)
    serving.told("READY=1")
    client = meet(serving.addresses)
    for number in range(20):
        client.send(HOP, f"call-{number}")
    wait_for(lambda: len(client.ask(op="status")["tracks"]) == 20)
    serving.run.send_signal(signal.SIGTERM)
    serving.told("STOPPING=1")
    serving.run.send_signal(signal.SIGTERM)
    assert serving.run.wait(PATIENCE_S) == 130


def test_the_service_manager_hears_ready_after_warm_up_then_signs_of_life_then_the_end(process):
    serving = process(watchdog_s=0.2)
    serving.told("READY=1")
    serving.told("WATCHDOG=1")
    serving.run.send_signal(signal.SIGINT)
    rest = serving.told("STOPPING=1")
    assert "READY=1" not in rest
    _, log = serving.run.communicate(timeout=PATIENCE_S)
    assert serving.run.returncode == 0
    assert log.index(" loaded ") < log.index(" ready")


def test_sighup_does_not_end_it(process):
    serving = process()
    serving.told("READY=1")
    serving.run.send_signal(signal.SIGHUP)
    serving.run.send_signal(signal.SIGTERM)
    serving.told("STOPPING=1")
    assert serving.run.wait(PATIENCE_S) == 0


def test_threads_give_way_to_each_other_sooner_than_python_makes_them(monkeypatch, tiny_bundle):
    """A busy loop would otherwise keep each step of a window's preparation waiting for 5 ms."""
    found = []

    async def serve(*_):
        found.append(sys.getswitchinterval())
        raise ConfigError.of("nothing", 0, "to be served")

    monkeypatch.setattr(foreground, "_run", serve)
    monkeypatch.setattr(foreground.logs, "start", lambda *_: None)  # pytest's own handlers stay
    for lasting in ("forbid_dumps", "overwrite_freed"):  # on this process too, and on what it starts
        monkeypatch.setattr(foreground.secrecy, lasting, lambda: None)
    monkeypatch.setattr(foreground, "open_more_files", lambda: None)
    before_s = sys.getswitchinterval()
    try:
        with pytest.raises(ConfigError):
            foreground.run(Config.model_validate({"bundle": {"path": tiny_bundle.path}}))
    finally:
        sys.setswitchinterval(before_s)
    assert found == [pytest.approx(foreground.SWITCH_S)]


def test_a_unix_socket_that_answers_is_not_taken_over(serve, tmp_path):
    path = f"unix:{tmp_path}/pcm.sock"
    serve(endpoints={"pcm": [path]})
    with pytest.raises(UnreachableError, match="another process listens there"):
        serve(endpoints={"pcm": [path]})
    assert (tmp_path / "pcm.sock").is_socket()


def test_status_says_how_the_daemon_is(serve, meet):
    running = serve()
    client = meet(running.addresses)
    client.send(HOP)
    client.verdict(1.0)
    health = client.ask(op="status")["health"]
    assert health["ready"]
    assert health["provider"] == "CPUExecutionProvider"
    assert health["streams_max"] == 1000
    assert set(health["warm_up_ms"]) == {"1", "2", "4"}
    assert health["rss_bytes"] > 1 << 20
    assert running.metric("streamdet_ready") == 1
    assert running.metric("process_open_fds") > 3
    assert running.metric('streamdet_log_lines_lost_total{reason="disk"}') >= 0
