"""More slow connections than there are places: a good caller is served all the same."""

import json
import time
import urllib.error
from pathlib import Path

import pytest

from streamdet.records import Verdict
from tests.faults.harness import PATIENCE_S, figure, wait_for
from tests.faults.slow import Slow, connect

PLACES, SLOW = 200, 230
BROKEN = str(Path(__file__).with_name("broken.py"))
GOOD = 5
HOP = b"\0\0" * 8000
# More than a caller that is served needs on a machine that is busy, less than the limits of the controls.
CONTROL_S = 6.0
NEVER = {"connections": PLACES, "handshake_s": 3600, "idle_s": 3600}


def line(stream: str) -> bytes:
    return b"STREAMDET " + json.dumps({"stream": stream}).encode() + b"\n"


def served_s(recorder, address: str, stream: str, patience_s: float = PATIENCE_S) -> float:
    """How long a caller waits for the verdict of its first second (s)."""
    began_s = time.monotonic()
    with connect(address, patience_s) as call:
        call.sendall(line(stream) + HOP)

        def heard() -> list[float]:
            found = [each for each in list(recorder.heard) if isinstance(each.record, Verdict)]
            return [each.at_s for each in found if each.record.stream == stream]

        return wait_for(heard, patience_s, f"for {stream}")[0] - began_s


@pytest.mark.parametrize("endpoint", [0, 1])
def test_who_says_nothing_is_pushed_out_by_who_does(endpoint, serve, record):
    """Over TCP and unix sockets: each byte of the first line comes alone, half a second after the last."""
    served = serve(limits={"connections": PLACES})
    recorder, address = record(served), served.endpoints["pcm"][endpoint]
    with Slow(address, SLOW, b"S", b"TREAMDET ") as slow:
        wait_for(lambda: served.metric('streamdet_connections{endpoint="pcm"}') >= PLACES)
        waited_s = [served_s(recorder, address, f"good-{number}") for number in range(GOOD)]
    figure("slow_openings", slow=SLOW, places=PLACES, waited_s_max=max(waited_s), cut=slow.cut)
    assert served.metric('streamdet_refusals_total{reason="limit"}') > 0
    assert served.said().count("all places are taken") <= 2


def test_a_trickle_of_audio_holds_a_place_no_longer_than_the_idle_limit(serve, record):
    """They have said what they want, so only silence tells them from calls: a byte now and then is silence."""
    served = serve(limits={"connections": PLACES, "idle_s": 2.0})
    recorder, address = record(served), served.endpoints["pcm"][0]
    with Slow(address, SLOW, b"\0" * 8, b"\0") as slow:
        wait_for(lambda: served.metric('streamdet_connections{endpoint="pcm"}') >= PLACES)
        waited_s = [served_s(recorder, address, f"good-{number}") for number in range(GOOD)]
    figure("slow_audio", slow=SLOW, places=PLACES, idle_s=2.0, waited_s_max=max(waited_s), cut=slow.cut)
    assert slow.cut > 0
    assert "less than 0.1 s" in served.said()


def test_slow_requests_do_not_keep_a_page_from_who_asks_for_it(serve):
    served = serve(limits={"connections": PLACES})
    with Slow(served.endpoints["http"], SLOW, b"GET /livez HTTP/1.1\r\n", b"X-Slow: 1\r\n") as slow:
        waited_s = []
        for _ in range(GOOD):
            began_s = time.monotonic()
            assert served.http("/readyz")[0] == 200
            waited_s.append(time.monotonic() - began_s)
        wait_for(lambda: slow.cut > 0)
    figure("slow_requests", slow=SLOW, places=PLACES, waited_s_max=max(waited_s), cut=slow.cut)


def test_the_same_without_the_limits_keeps_the_caller_out(serve, record):
    """The control."""
    served = serve(program=[BROKEN, "spares"], limits=NEVER)
    recorder, address = record(served), served.endpoints["pcm"][0]
    with Slow(address, SLOW, b"S", b""), pytest.raises(AssertionError, match="for good"):
        served_s(recorder, address, "good", CONTROL_S)
    with (
        Slow(served.endpoints["http"], SLOW, b"GET /livez HTTP/1.1\r\n", b""),
        pytest.raises((TimeoutError, urllib.error.URLError)),
    ):
        served.http("/readyz", CONTROL_S)
