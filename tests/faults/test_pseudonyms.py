"""With a key for stream ids, nobody behind the ingest meets the ids that senders use."""

import json
import secrets
from typing import Any

import pytest
import zmq

from streamdet.audio import encode
from streamdet.pseudonyms import named
from streamdet.records import AudioFormat
from tests.faults.bundles import RATE_HZ, ordinary
from tests.faults.lone import Lone, folder

S16 = AudioFormat(RATE_HZ, "s16le")
NUMBERS = ("+441632960001", "+441632960002", "+441632960003")


@pytest.fixture
def lone(tiny_bundle, tmp_path, request):
    key = tmp_path / "stream.key"
    key.write_text(secrets.token_hex(32))
    key.chmod(0o600)
    hashed = [f"--set=streams.hash_key={key}"] if request.param else []
    with folder() as place:
        made = Lone(place, f"--bundle={tiny_bundle.path}", "--set=daemon.log_level=debug", *hashed)
        made.names = named(key) if request.param else str
        yield made
        made.close()


def everything_said(lone: Lone) -> str:
    """Topics and messages, answers of the control socket, and the log, of calls that go well, pause, err and end."""
    with lone.connect(zmq.SUB, "verdicts") as heard:
        heard.subscribe("")
        said = [b"".join(heard.recv_multipart())]  # a heartbeat: it listens
        answers = provoke(lone)
        while heard.poll(200):
            said.append(b"".join(heard.recv_multipart()))
    return b"\n".join(said).decode() + json.dumps(answers) + lone.log.read_text()


def provoke(lone: Lone) -> list[dict[str, Any]]:
    """Have it say all that it can of three calls; return what control answered."""
    live, lossless, wrong = NUMBERS
    name = lone.names
    hop = encode(ordinary(1), "s16le")
    lone.send(hop, live, S16, start=0)
    lone.until(lambda it: getattr(it, "end_s", 0) == 1)
    lone.push.send_multipart([live.encode(), b"no header", hop])
    lone.event("error", name(live))
    answers = [lone.ask(op=op, stream=which) for op, which in (("pause", live), ("resume", name(live)))]
    with lone.pcm(lossless, S16) as connection:
        connection.sendall(hop)
        lone.until(lambda it: getattr(it, "end_s", 0) == 1)
        answers += [lone.ask(op="status"), lone.ask(op="snapshot")]
        with lone.pcm(lossless, S16) as second:
            second.sendall(hop)
            assert second.recv(4096).startswith(b"ERROR stream: ")
    lone.event("close", name(lossless))
    with lone.pcm(f"{wrong} x", S16) as third:
        assert third.recv(4096).startswith(b"ERROR stream id: ")
    answers.append(lone.ask(op="close", stream=live))
    lone.event("close", name(live))
    return answers


@pytest.mark.parametrize("lone", [True], indirect=True, ids=["with a key"])
def test_no_verdict_event_answer_or_log_line_has_the_senders_id(lone):
    said = everything_said(lone)
    assert [number for number in NUMBERS if number in said] == []
    assert f"v.{lone.names(NUMBERS[0])}.0" in said


@pytest.mark.parametrize("lone", [False], indirect=True, ids=["without"])
def test_control_without_a_key_they_do(lone):
    said = everything_said(lone)
    assert [number for number in NUMBERS[:2] if number not in said] == []
