"""What one connection may take: places, time, bytes; and what it is told when it wants more."""

import itertools
import socket
import threading
import time

import pytest

RATE_HZ = 8000
HOP = b"\0\0" * RATE_HZ
PATIENCE_S = 30.0
IDLE_S = 0.3


def told(connection: socket.socket) -> str:
    """Everything that the daemon says until it hangs up."""
    connection.settimeout(PATIENCE_S)
    with connection.makefile() as answer:
        return answer.read()


# -- raw PCM -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"STREAMDET ", b'STREAMDET {"stream": "a"}\n', b"RIFF\0\0\0\0WAVE"])
def test_who_brings_no_audio_in_time_is_told_and_closed(said, serve, dial):
    running = serve(limits={"handshake_s": IDLE_S})
    connection = dial(running.addresses["pcm.0"])
    connection.sendall(said)
    assert told(connection) == f"ERROR audio: none in {IDLE_S} s, expected some\n"
    assert running.metric('streamdet_refusals_total{reason="slow"}') == 1


def test_a_call_that_falls_silent_is_closed_as_idle(serve, meet, dial):
    running = serve(limits={"idle_s": IDLE_S})
    client, connection = meet(running.addresses), dial(running.addresses["pcm.0"])
    connection.sendall(b'STREAMDET {"stream": "a"}\n' + HOP)
    assert told(connection) == f"ERROR audio: less than 0.1 s in {IDLE_S} s, expected more\n"
    close = client.event("close")
    assert (close.detail["reason"], close.detail["seconds"], close.detail["windows"]) == ("idle", 1.0, 1)


def test_a_paused_call_may_be_silent_and_has_its_time_again_afterwards(serve, meet, dial):
    running = serve(limits={"idle_s": IDLE_S})
    client, connection, other = meet(running.addresses), *(dial(running.addresses["pcm.0"]) for _ in range(2))
    connection.sendall(b'STREAMDET {"stream": "a"}\n' + HOP)
    client.event("open", "a")
    assert client.ask(op="pause", stream="a")["ok"]
    for _ in range(2):  # calls that are not paused, begun after it, are closed meanwhile
        other.sendall(b'STREAMDET {"stream": "b"}\n' + HOP)
        assert told(other).startswith("ERROR")
        other = dial(running.addresses["pcm.0"])
    assert client.ask(op="resume", stream="a")["ok"]
    connection.sendall(HOP)
    assert client.event("resumed", "a").at_s == 1.0
    close = client.event("close", "a")
    assert (close.detail["reason"], close.detail["seconds"]) == ("idle", 2.0)


def test_a_byte_now_and_then_is_silence_and_a_tenth_of_a_second_is_not(serve, meet, dial):
    running = serve(limits={"idle_s": IDLE_S})
    client, trickling, calling = meet(running.addresses), *(dial(running.addresses["pcm.0"]) for _ in range(2))
    trickling.sendall(b'STREAMDET {"stream": "trickle"}\n' + HOP[:4])
    calling.sendall(b'STREAMDET {"stream": "call"}\n' + HOP[:1600])
    ended = threading.Event()

    def keep_on():
        for number in itertools.count():
            if ended.wait(IDLE_S / 6):
                return
            calling.sendall(HOP[:1600])
            if number % 2:
                trickling.sendall(b"\0")

    thread = threading.Thread(target=keep_on)
    thread.start()
    try:
        assert client.event("close", "trickle").detail["reason"] == "idle"
    finally:
        ended.set()
        thread.join()
    assert client.events("call")[-1].type == "open"


def test_time_in_which_the_daemon_does_not_read_is_no_silence(serve, meet, dial, monkeypatch):
    """A file that is faster than scoring waits for it for longer than the limit, again and again."""
    from streamdet import pump

    make_ready = pump.make_ready

    def slowly(windows, manifest):
        time.sleep(2 * IDLE_S)
        return make_ready(windows, manifest)

    monkeypatch.setattr(pump, "make_ready", slowly)
    running = serve(limits={"idle_s": IDLE_S})
    client, connection = meet(running.addresses), dial(running.addresses["pcm.0"])
    connection.sendall(b'STREAMDET {"stream": "a"}\n' + 8 * HOP)
    connection.shutdown(socket.SHUT_WR)
    close = client.event("close")
    assert (close.detail["reason"], close.detail["windows"]) == ("end", 8)


def test_who_is_faster_than_allowed_waits_and_loses_nothing(serve, meet, dial):
    running = serve(limits={"bytes_per_s": 32_000})
    client, connection = meet(running.addresses), dial(running.addresses["pcm.0"])
    began_s = time.monotonic()
    connection.sendall(b'STREAMDET {"stream": "a"}\n' + 6 * HOP)
    connection.shutdown(socket.SHUT_WR)
    assert client.event("close").detail["seconds"] == 6.0
    # 96,000 bytes, of which a second's worth may come at once and the last read needs no waiting for.
    assert time.monotonic() - began_s > 0.8


def test_the_default_does_not_hold_up_a_file(serve, meet, dial):
    """The control of the one above: a minute of audio in less time than its bytes would take at that limit."""
    running = serve()
    client, connection = meet(running.addresses), dial(running.addresses["pcm.0"])
    began_s = time.monotonic()
    connection.sendall(b'STREAMDET {"stream": "a"}\n' + 60 * HOP)
    connection.shutdown(socket.SHUT_WR)
    assert client.event("close").detail["seconds"] == 60.0
    assert time.monotonic() - began_s < 60 * len(HOP) / 32_000


# -- HTTP --------------------------------------------------------------------------------------------------------------


def ask(running, dial, said: bytes) -> socket.socket:
    connection = dial(f"tcp://{running.addresses['http']}")
    connection.sendall(said)
    connection.settimeout(PATIENCE_S)
    return connection


def answered(connection: socket.socket) -> bool:
    """Read an answer to /livez to its end."""
    said = b""
    while not said.endswith(b"alive\n"):
        said += connection.recv(1000)
    return said.startswith(b"HTTP/1.1 200")


def test_a_head_that_does_not_end_is_given_up(serve, dial):
    running = serve(limits={"handshake_s": IDLE_S})
    for said in (b"", b"GET", b"GET /livez HTTP/1.1\r\nHost: x\r\n"):
        assert ask(running, dial, said).recv(100) == b""


def test_the_second_head_of_a_connection_has_its_time_too(serve, dial):
    running = serve(limits={"handshake_s": IDLE_S})
    connection = ask(running, dial, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answered(connection)
    connection.sendall(b"GET /livez HTTP/1.1\r\n")
    assert connection.recv(1000) == b""


def test_a_connection_that_asks_again_in_time_goes_on(serve, dial):
    running = serve(limits={"handshake_s": 2 * IDLE_S})
    connection = ask(running, dial, b"")
    for _ in range(4):
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answered(connection)
        time.sleep(IDLE_S)


def test_a_head_that_is_too_long_is_refused(serve, dial):
    running = serve()
    connection = ask(running, dial, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * (17 << 10))
    assert connection.recv(1000).startswith(b"HTTP/1.1 4")
    connection = ask(running, dial, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * (15 << 10) + b"\r\n\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_body_that_nobody_asked_for_holds_no_place(serve, dial):
    running = serve(limits={"handshake_s": IDLE_S})
    connection = ask(running, dial, b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
    with connection.makefile("rb") as answer:
        assert answer.read().startswith(b"HTTP/1.1 405")
