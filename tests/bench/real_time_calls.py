"""N calls of 8 kHz mu-law in 20 ms frames at real time over ZeroMQ; a client that imports nothing of streamdet.

    python tests/bench/real_time_calls.py RECORDING... [--calls 50] [--seconds 60] [--audio ADDR] [--verdicts ADDR]

Starts are spread over the hop. Prints what was asked of every track: a verdict a second after the first, none skipped,
and the lag as the daemon measured it, beside the end-to-end time that this client measured itself: from the sending of
a window's last frame to the arrival of its verdict.
"""

import argparse
import io
import json
import threading
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr
import zmq

FRAME_S = 0.02
RATE_HZ = 8000
FRAME = int(FRAME_S * RATE_HZ)


def mulaw(paths: list[Path], seconds: int) -> bytes:
    """Recordings one after the other, as `seconds` of mu-law."""
    parts, total = [], 0
    while total < seconds * RATE_HZ:
        for path in paths:
            samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
            parts.append(soxr.resample(samples[:, 0], rate_hz, RATE_HZ))
            total += parts[-1].size
    file = io.BytesIO()
    whole = np.concatenate(parts)[: seconds * RATE_HZ]
    soundfile.write(file, whole, RATE_HZ, format="RAW", subtype="ULAW")
    return file.getvalue()


def send(context: zmq.Context, address: str, calls: int, audio: bytes, sent: dict) -> None:
    """Send all calls, each from another place of the audio, paced by absolute deadlines."""
    push = context.socket(zmq.PUSH)
    push.set(zmq.SNDHWM, 10_000)
    push.connect(address)
    began = time.monotonic() + 0.2
    frames = len(audio) // FRAME
    # (due, call, frame): call c starts c/calls of a second late.
    schedule = sorted((n * FRAME_S + c / calls, c, n) for c in range(calls) for n in range(frames))
    for due, call, n in schedule:
        wait = began + due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        turned = (n + call * 37) % frames
        header = {"rate": RATE_HZ, "encoding": "mulaw", "start": n * FRAME, "sent_at": time.time()}
        if n == frames - 1:
            header["event"] = "end"
        payload = audio[turned * FRAME : (turned + 1) * FRAME]
        sent[call, n] = time.monotonic()
        push.send_multipart([f"bench-{call}".encode(), json.dumps(header).encode(), payload])
    push.close(linger=2000)


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recordings", nargs="+", type=Path)
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--audio", default="tcp://127.0.0.1:5560")
    parser.add_argument("--verdicts", default="tcp://127.0.0.1:5561")
    args = parser.parse_args()
    audio = mulaw(args.recordings, args.seconds)
    context = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.set(zmq.RCVHWM, 100_000)
    sub.subscribe(b"v.bench-")
    sub.subscribe(b"e.bench-")
    sub.connect(args.verdicts)
    time.sleep(0.5)
    sent: dict[tuple[int, int], float] = {}
    sender = threading.Thread(target=send, args=(context, args.audio, args.calls, audio, sent))
    sender.start()
    verdicts: dict[int, list[dict]] = {call: [] for call in range(args.calls)}
    whole_ms, closed, deadline = [], 0, time.monotonic() + args.seconds + 15
    while closed < args.calls and time.monotonic() < deadline:
        if not sub.poll(200):
            continue
        message = json.loads(sub.recv_multipart()[1])
        now, call = time.monotonic(), int(message["stream"].removeprefix("bench-"))
        closed += message["type"] == "close"
        if message["type"] == "verdict" and not message["snapshot"]:
            verdicts[call].append(message)
            last_frame = round(message["end_s"] / FRAME_S) - 1
            whole_ms.append(1e3 * (now - sent[call, last_frame]))
    sender.join()
    report(verdicts, whole_ms, closed, args)


def report(verdicts: dict[int, list[dict]], whole_ms: list[float], closed: int, args: argparse.Namespace) -> None:
    """Print the figures."""
    every = [v for track in verdicts.values() for v in track]
    complete = sum([v["end_s"] for v in track] == list(range(1, args.seconds + 1)) for track in verdicts.values())
    print(f"calls {args.calls}, seconds {args.seconds}, closed {closed}")
    print(f"verdicts {len(every)} of {args.calls * args.seconds}, tracks with every second {complete}")
    print(f"skipped {sum(v['skipped'] for v in every)}")
    lags = {"lag_ms": [v["lag_ms"] for v in every], "transit_ms": [v["transit_ms"] for v in every]}
    for name, values in (*lags.items(), ("frame sent to verdict received, ms", whole_ms)):
        p50, p95, p99, most = np.percentile(values, [50, 95, 99, 100])
        print(f"{name}: p50 {p50:.1f}  p95 {p95:.1f}  p99 {p99:.1f}  max {most:.1f}")


if __name__ == "__main__":
    main()
