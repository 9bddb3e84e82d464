"""The service under a real systemd: what its units promise, in a machine that boots for it (`machine.py`)."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import zmq

from streamdet import keys
from streamdet.audio import encode
from streamdet.bundle import starter_path
from streamdet.config import Endpoints
from streamdet.guard import present
from tests.faults import bundles
from tests.faults.calls import Calls
from tests.faults.harness import PATIENCE_S, Knocking, figure, wait_for
from tests.faults.machine import CGROUPS, ROOT, CannotBootError, Machine, build
from tests.faults.recorder import Recorder, account

AUDIO, VERDICTS, CONTROL = Endpoints().audio, Endpoints().verdicts, Endpoints().control
DOORS: Final = {
    "audio": AUDIO,
    "verdicts": VERDICTS,
    "control": CONTROL,
    "http": Endpoints().http,
    "pcm": Endpoints().pcm[0],
}
HTTP: Final = "127.0.0.1:8560"
SOCKETS: Final = tuple(f"streamdet-{name}.socket" for name in ("audio", "verdicts", "control", "http", "pcm"))
CALLS: Final = 20
# By ZeroMQ and by raw PCM.
KINDS: Final = (AUDIO, "pcm+tcp://127.0.0.1:5563")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Booted once for all tests of this file, the service installed and enabled."""
    folder = tmp_path_factory.mktemp("machine")
    try:
        booted = Machine(build(folder), folder / "console")
        booted.__enter__()
    except CannotBootError as error:
        pytest.skip(f"cannot boot a container here: {error}")
    try:
        booted.settle()
        booted.install("--cpu")
        booted.run("systemctl", "enable", "streamdet")
        yield booted
    finally:
        booted.__exit__(None, None, None)
        shutil.rmtree(booted.root)
        assert not list(CGROUPS.rglob(booted.name)), "cgroups are left"


@pytest.fixture
def served(machine: Machine) -> Machine:
    """The service as it was installed, started with the starter bundle."""
    machine.settle()
    start(machine)
    return machine


def start(machine: Machine) -> None:
    machine.run("systemctl", "reset-failed", "streamdet*")
    machine.run("systemctl", "restart", "streamdet")


def stop(machine: Machine) -> None:
    """The sockets too; twice, since a caller in line may start it in between, which ends the first job."""
    for _ in range(2):
        machine.run("systemctl", "stop", *SOCKETS, "streamdet", check=False)


def answers(address: str = HTTP) -> int:
    """What /readyz says; 0 where nobody does."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


@pytest.fixture
def callers(ends: contextlib.ExitStack, tmp_path: Path) -> Callable[[], list[Calls]]:
    """Live calls of both kinds, half and half, once each has two verdicts."""

    def open_calls(recorder: Recorder) -> list[Calls]:
        made = [ends.enter_context(Calls(at, tmp_path, prefix=f"{at[:3]}-")) for at in KINDS]
        streams = [calls.stream(number) for calls in made for number in calls.open(CALLS // 2)]
        recorder.await_verdicts(streams, 2)
        return made

    return open_calls


@pytest.fixture
def recorder(served: Machine, ends: contextlib.ExitStack) -> Recorder:
    """Hears what the service publishes, whichever process of it."""
    assert served.pid
    heard = ends.enter_context(Recorder(VERDICTS))
    heard.await_beat()
    return heard


def streams_of(made: list[Calls]) -> list[str]:
    return [calls.stream(number) for calls in made for number in calls.first]


# -- start -----------------------------------------------------------------------------------------------------------


def test_it_is_active_once_it_is_warm(served):
    """`systemctl restart` comes back when the unit is active: the first answer says whether calls are welcome."""
    start(served)
    assert answers() == 200


def test_a_unit_that_is_active_too_soon_would_be_noticed(served):
    """The control: HTTP is there before the model is, and says so."""
    with served.drop_in("[Service]\nType=exec\n"):
        start(served)
        assert answers() == 503


def test_it_serves_in_the_whole_sandbox(served, recorder, callers):
    made = callers(recorder)
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{served.pid}/status").read_text("utf-8").splitlines()
        if ":\t" in line
    )
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16)) == ("1", "2", 0)
    assert int(status["Uid"].split()[0]) >= 61184  # of systemd's dynamic users
    for calls in made:
        calls.end()
    recorder.await_closed(streams_of(made))
    found = account(recorder.histories().values())
    figure("served_in_the_sandbox", **found._asdict())
    assert (found.tracks, found.missing, found.holes, found.unclosed) == (CALLS, 0, 0, 0)
    assert any(verdict.llr is not None for verdict in recorder.verdicts())


# -- restarts --------------------------------------------------------------------------------------------------------


def test_a_restart_refuses_nobody_and_no_call_misses_more_than_a_window(served, recorder, dial):
    calls = dial(AUDIO)
    streams = [calls.stream(number) for number in calls.open(CALLS)]
    recorder.await_verdicts(streams, 2)
    took_s = []
    with Knocking(DOORS) as knocking:
        for _ in range(3):
            began_s = time.monotonic()
            served.run("systemctl", "restart", "streamdet")
            took_s.append(time.monotonic() - began_s)
            recorder.await_verdicts(streams, 1, since_s=time.monotonic())
    calls.end()
    recorder.await_closed(streams)
    tracks = recorder.histories(calls.prefix).values()
    found = account(tracks)
    figure(
        "restart",
        **found._asdict(),
        restart_s=max(took_s),
        connections=knocking.taken,
        refused=len(knocking.refused),
        verdict_gap_s=max(track.longest_wait_s() for track in tracks),
        unread_s_max=max(seconds for track in tracks for seconds in track.unread_s),
    )
    assert (len(knocking.refused), found.missing, found.holes, found.unclosed) == (0, 0, 0, 0)
    assert (found.tracks, found.openings) == (CALLS, 4 * CALLS)
    assert knocking.taken > 100


def test_without_its_socket_unit_an_endpoint_refuses(served):
    """The control: the daemon binds raw PCM and HTTP by itself here, and they are gone while it is."""
    alone = ("streamdet-http.socket", "streamdet-pcm.socket")
    try:
        stop(served)
        served.run("systemctl", "mask", *alone)
        start(served)
        with Knocking({name: DOORS[name] for name in ("http", "pcm")}) as knocking:
            served.run("systemctl", "restart", "streamdet")
            wait_for(lambda: knocking.refused)
    finally:
        served.run("systemctl", "unmask", *alone)
        served.run("systemctl", "stop", "streamdet")


def serving_again(machine: Machine, gone: int) -> float:
    """Wait until another process than `gone` is ready; when that was seen (monotonic s)."""
    wait_for(lambda: answers() == 200 and machine.pid not in (0, gone), 2 * PATIENCE_S)
    return time.monotonic()


def test_a_killed_daemon_serves_again_and_refuses_nobody(served):
    took_s, loads_s = [], []
    with Knocking(DOORS) as knocking:
        for count in range(1, 4):
            pid, began_s = served.pid, time.monotonic()
            os.kill(pid, signal.SIGKILL)
            took_s.append(serving_again(served, pid) - began_s)
            assert served.show("NRestarts") == str(count)
            times = [int(served.show(f"{name}TimestampMonotonic")) for name in ("ExecMainStart", "ActiveEnter")]
            loads_s.append((times[1] - times[0]) / 1e6)
    figure("sigkill_to_serving", serving_s=max(took_s), of_which_load_s=max(loads_s), refused=len(knocking.refused))
    assert knocking.refused == []


def test_a_stopped_process_is_noticed(served):
    pid, began_s = served.pid, time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    again_s = serving_again(served, pid)
    (said,) = [line for line in served.log("_PID=1") if "Watchdog timeout" in line["MESSAGE"]]
    noticed_s = int(said["__MONOTONIC_TIMESTAMP"]) / 1e6 - began_s
    figure("sigstop", noticed_s=noticed_s, serving_s=again_s - began_s)
    assert served.show("NRestarts") == "1"


def test_without_a_watchdog_nobody_notices(served):
    """The control: for longer than the watchdog takes."""
    with served.drop_in("[Service]\nWatchdogSec=0\n"):
        start(served)
        pid = served.pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(7)
        assert (served.pid, served.show("NRestarts")) == (pid, "0")
        os.kill(pid, signal.SIGCONT)


# -- reload ----------------------------------------------------------------------------------------------------------


def reload(machine: Machine, recorder: Recorder) -> dict[str, Any]:
    """`systemctl reload`; what the daemon tells of it."""
    known = len(recorder.told("reload"))
    machine.run("systemctl", "reload", "streamdet")
    notice: dict[str, Any] = wait_for(lambda: recorder.told("reload")[known:])[-1]
    return notice


@pytest.fixture
def chosen(machine: Machine) -> Iterator[Callable[[str], None]]:
    """Chooses one of two bundles, `hanging` and `failing`, for the next start or reload."""
    folder = machine.root / "var/lib/streamdet/bundles"
    for make in (bundles.hanging, bundles.failing):
        make(folder / make.__name__)
    yield lambda name: machine.settle(bundle={"path": f"/var/lib/streamdet/bundles/{name}"})
    machine.settle()
    shutil.rmtree(folder)


@pytest.mark.parametrize("good", [True, False])
def test_a_reload_takes_what_is_good_and_goes_on_with_the_old_where_it_is_not(machine, chosen, good, ends, dial):
    chosen("failing")
    start(machine)
    if not good:
        (machine.root / "var/lib/streamdet/bundles/hanging/model.onnx").write_bytes(b"no model")
    recorder = ends.enter_context(Recorder(VERDICTS))
    recorder.await_beat()
    calls, pid = dial(AUDIO), machine.pid
    streams = [calls.stream(number) for number in calls.open(CALLS)]
    recorder.await_verdicts(streams, 2)
    chosen("hanging")
    notice = reload(machine, recorder)
    recorder.await_verdicts(streams, 2, since_s=time.monotonic())
    calls.end()
    recorder.await_closed(streams)
    found = account(recorder.histories(calls.prefix).values())
    models = {verdict.model.partition("@")[0] for verdict in recorder.verdicts(calls.prefix)[-CALLS:]}
    figure("reload", good=good, ok=notice["ok"], **found._asdict())
    assert (notice["ok"], models) == (good, {"hanging" if good else "failing"})
    assert (machine.pid, machine.show("ActiveState"), machine.show("NRestarts")) == (pid, "active", "0")
    assert (found.openings, found.missing, found.holes, found.unclosed) == (CALLS, 0, 0, 0)


# -- a run that hangs ------------------------------------------------------------------------------------------------


@pytest.fixture
def hanging(machine: Machine) -> Iterator[Machine]:
    """The service with a model that does not come back from loud windows."""
    folder = machine.root / "var/lib/streamdet/bundles/hanging"
    bundles.hanging(folder)
    machine.settle(bundle={"path": "/var/lib/streamdet/bundles/hanging"})
    start(machine)
    yield machine
    machine.settle()
    shutil.rmtree(folder)


def shout() -> float:
    """Send a second at full scale over raw PCM; when all of it was sent (monotonic s)."""
    form = {"stream": "loud", "rate": bundles.RATE_HZ, "encoding": "s16le"}
    with socket.create_connection(("127.0.0.1", 5563), PATIENCE_S) as line:
        line.sendall(b"STREAMDET " + json.dumps(form).encode() + b"\n" + encode(bundles.loud(1.0)[:, None], "s16le"))
        return time.monotonic()


def test_a_hung_run_is_noticed_and_calls_go_on_in_the_next_process(hanging, ends, dial):
    recorder = ends.enter_context(Recorder(VERDICTS))
    calls = dial(AUDIO)
    streams = [calls.stream(number) for number in calls.open(CALLS)]
    recorder.await_verdicts(streams, 2)
    pid = hanging.pid
    with Knocking(DOORS) as knocking:
        sent_s = shout()
        again_s = serving_again(hanging, pid)
        recorder.await_verdicts(streams, 1, since_s=again_s)
    tracks = recorder.histories(calls.prefix).values()
    said = [line for line in hanging.log("_PID=1") if "Watchdog request" in str(line["MESSAGE"])]
    assert len(said) == 1  # WATCHDOG=trigger, and not the watchdog's own patience
    figure(
        "hung_run",
        noticed_s=int(said[0]["__MONOTONIC_TIMESTAMP"]) / 1e6 - sent_s,
        serving_s=again_s - sent_s,
        verdict_gap_s=max(track.longest_wait_s() for track in tracks),
        refused=len(knocking.refused),
    )
    assert (hanging.show("NRestarts"), knocking.refused) == ("1", [])


def test_without_a_deadline_a_hung_run_goes_on(hanging):
    """The control: for longer than the deadline takes."""
    hanging.settle(bundle={"path": "/var/lib/streamdet/bundles/hanging"}, scoring={"threads": 1, "deadline_s": 3600})
    start(hanging)
    pid = hanging.pid
    shout()
    time.sleep(4)
    assert (hanging.pid, hanging.show("NRestarts")) == (pid, "0")
    stop(hanging)


# -- a start that cannot succeed -------------------------------------------------------------------------------------


@pytest.fixture
def bad_bundle(served: Machine) -> Iterator[None]:
    """The config names a bundle of which one byte was changed."""
    folder = served.root / "var/lib/streamdet/bundles/bad"
    shutil.copytree(starter_path(), folder)
    model = folder / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    served.settle(bundle={"path": "/var/lib/streamdet/bundles/bad"})
    yield
    served.settle()
    shutil.rmtree(folder)
    stop(served)


def knock() -> bool:
    """Whether somebody takes, or holds, a connection."""
    with Knocking({"pcm": DOORS["pcm"]}) as knocking:
        wait_for(lambda: knocking.taken + len(knocking.refused) > 5)
    return not knocking.refused


@pytest.mark.usefixtures("bad_bundle")
def test_a_bad_bundle_is_refused_once_and_callers_do_not_start_it_again(served):
    served.run("systemctl", "restart", "streamdet", check=False)
    served.await_state("failed")
    for unit in SOCKETS:
        served.await_state("inactive", unit=unit)
    said = [served.show(name) for name in ("ExecMainStatus", "NRestarts", "InvocationID")]
    assert said[:2] == ["78", "0"]
    assert not knock()
    assert [served.show(name) for name in ("ExecMainStatus", "NRestarts", "InvocationID")] == said
    assert any("sha256" in str(line["MESSAGE"]) for line in served.journal())
    served.settle()
    served.run("systemctl", "start", "streamdet")
    assert answers() == 200
    assert {served.show("ActiveState", unit) for unit in SOCKETS} == {"active"}


@pytest.mark.usefixtures("bad_bundle")
def test_a_loop_of_restarts_would_be_noticed(served):
    """The control: the exit code says nothing to systemd."""
    with served.drop_in("[Service]\nRestartPreventExitStatus=\n"):
        served.run("systemctl", "restart", "streamdet", check=False)
        wait_for(lambda: int(served.show("NRestarts")) >= 2)
        stop(served)


@pytest.mark.usefixtures("bad_bundle")
def test_callers_that_start_it_again_would_be_noticed(served):
    """The control: nobody takes the sockets away."""
    try:
        served.run("systemctl", "mask", "streamdet-refused.target")
        served.run("systemctl", "restart", "streamdet", check=False)
        served.await_state("failed")
        before = served.show("InvocationID")
        assert knock()
        wait_for(lambda: served.show("InvocationID") != before)
    finally:
        served.run("systemctl", "unmask", "streamdet-refused.target")


# -- keys ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(machine: Machine) -> Iterator[tuple[Machine, keys.Identity, keys.Identity]]:
    """The service with a server key in the credential store and one client in its file; both identities."""
    server, client = keys.Identity.new(), keys.Identity.new()
    stored, clients = (
        machine.root / path for path in ("etc/credstore/streamdet.server.key", "etc/streamdet/clients.toml")
    )
    stored.parent.mkdir(mode=0o700, exist_ok=True)
    server.write(stored)
    keys.allow(clients, "desk", keys.Client(roles=("control",), curve=client.public))
    machine.settle(security={"everywhere": True, "clients": "/etc/streamdet/clients.toml"})
    yield machine, server, client
    machine.settle()
    stored.unlink(missing_ok=True)
    clients.unlink()


def health(server: keys.Identity, client: keys.Identity, patience_s: float = PATIENCE_S) -> bool:
    """Whether a client with this key gets an answer to `status`."""
    with zmq.Context() as context, context.socket(zmq.REQ) as req:
        req.setsockopt(zmq.LINGER, 0)
        req.setsockopt_string(zmq.CURVE_SERVERKEY, server.public)
        req.setsockopt_string(zmq.CURVE_PUBLICKEY, client.public)
        req.setsockopt_string(zmq.CURVE_SECRETKEY, client.secret)
        req.connect(CONTROL)
        req.send_json({"op": "status"})
        return bool(req.poll(int(1000 * patience_s))) and req.recv_json()["ok"]


def test_the_servers_key_comes_from_the_credential_store(guarded):
    machine, server, client = guarded
    start(machine)
    assert health(server, client)
    assert not health(server, keys.Identity.new(), 1.0)
    handed = machine.inside / "run/credentials/streamdet.service/server.key"
    assert handed.read_bytes() == (machine.root / "etc/credstore/streamdet.server.key").read_bytes()
    assert stat.S_IMODE(handed.stat().st_mode) & 0o027 == 0


def test_without_the_file_the_unit_starts_and_the_daemon_says_what_it_lacks(guarded):
    """An absent credential is no reason for systemd not to start the service; here it is one for the daemon."""
    machine, _, _ = guarded
    (machine.root / "etc/credstore/streamdet.server.key").unlink()
    machine.run("systemctl", "restart", "streamdet", check=False)
    machine.await_state("failed")
    assert machine.show("ExecMainStatus") == "78"
    assert any("security.server_key" in str(line["MESSAGE"]) for line in machine.journal())
    stop(machine)


# -- limits ----------------------------------------------------------------------------------------------------------


def ended_by(machine: Machine) -> list[str]:
    """How the process of the last start ended, in systemd's words; more than one where it was started again."""
    said = [str(line["MESSAGE"]) for line in machine.log("_PID=1")]
    last = max((place for place, text in enumerate(said) if text.startswith("Stopped ")), default=0)
    return [text.partition("Main process exited, ")[2] for text in said[last:] if "Main process exited" in text]


def test_memory_is_limited(served):
    """Below what it takes to start; the limit is the reason, since without it the same start works."""
    if not served.limits_memory:
        pytest.skip("the memory controller is not handed to containers here")
    used = int(served.show("MemoryCurrent"))
    with served.drop_in(f"[Service]\nMemoryMax={used // 2}\n"):
        served.run("systemctl", "restart", "streamdet", check=False)
        ends = wait_for(lambda: ended_by(served))
        stop(served)
    figure("memory_max", used=used, limit=used // 2, ended_by=ends[-1])
    assert ends[-1] == "code=killed, status=9/KILL"
    start(served)
    assert answers() == 200


@pytest.fixture
def abroad() -> Iterator[str]:
    """An address of this network that is not loopback's."""
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2")
    address = "192.0.2.7"  # in the network that docs/operations.md opens the port for
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    yield address
    subprocess.run(["ip", "address", "del", f"{address}/32", "dev", "lo"], check=True)


def lets_in(address: str, patience_s: float) -> bool:
    try:
        socket.create_connection((address, 5563), patience_s).close()
    except OSError:
        return False
    return True


def test_who_is_not_on_the_list_does_not_get_in(served, abroad):
    """Even where the socket listens everywhere; on the list it does."""
    everywhere = "[Socket]\nListenStream=\nListenStream=0.0.0.0:5563\n"
    for more, patience_s in (("", 1.0), (f"IPAddressAllow={abroad}\n", PATIENCE_S)):
        stop(served)
        with served.drop_in(everywhere + more, "streamdet-pcm.socket"):
            served.run("systemctl", "start", "streamdet-pcm.socket")
            assert lets_in(abroad, patience_s) == bool(more)
            served.run("systemctl", "stop", "streamdet", "streamdet-pcm.socket")


# -- the port that docs/operations.md opens --------------------------------------------------------------------------

OPENED: Final = "streamdet-audio.socket"


def documented() -> tuple[dict[str, str], list[list[str]]]:
    """Read how a port is opened: what `systemctl edit` gets, by unit, and the commands after that."""
    text = (ROOT / "docs/operations.md").read_text("utf-8").partition("**The port, under systemd.**")[2]
    edits = dict(re.findall(r"^```ini\n# systemctl edit (\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    commands = text.partition("```sh\n")[2].partition("```")[0]
    return edits, [line.replace("'", "").split() for line in commands.splitlines()]


def connects(address: str, server: keys.Identity, client: keys.Identity, patience_s: float) -> bool:
    """Whether a sender with this key is let in: it may write only once the daemon has agreed to its key."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.setsockopt(zmq.LINGER, 0)
        push.setsockopt(zmq.IMMEDIATE, 1)
        present(push, keys.Identity(public=client.public, secret=client.secret, server=server.public))
        push.connect(f"tcp://{address}:5560")
        return bool(push.poll(int(1000 * patience_s), zmq.POLLOUT))


@pytest.mark.parametrize("left_out", ["", "IPAddressAllow", "ListenStream"])
def test_the_port_is_open_as_documented_and_needs_every_line(guarded, abroad, left_out):
    machine, server, _ = guarded
    clients, recorder = machine.root / "etc/streamdet/clients.toml", keys.Identity.new()
    keys.allow(clients, "recorder", keys.Client(roles=("send",), curve=recorder.public))
    machine.settle(endpoints={"audio": "tcp://0.0.0.0:5560"}, security={"clients": "/etc/streamdet/clients.toml"})
    edits, commands = documented()
    assert list(edits) == [OPENED]
    lines = [line for line in edits[OPENED].splitlines() if not left_out or not line.startswith(left_out)]
    edit = f"etc/systemd/system/{OPENED}.d/override.conf"
    try:
        machine.write(edit, "\n".join(lines))
        for command in commands:
            machine.run(*command)
        assert answers() == 200
        assert connects(abroad, server, recorder, 1.0 if left_out else PATIENCE_S) == (not left_out)
        assert not connects(abroad, server, keys.Identity.new(), 1.0)
    finally:
        stop(machine)
        (machine.root / edit).unlink()
        machine.run("systemctl", "daemon-reload")


# -- unix sockets alone ----------------------------------------------------------------------------------------------


@pytest.fixture
def unix(machine: Machine) -> Iterator[Path]:
    """The service without a network; the folder of its sockets, seen from here."""
    stop(machine)
    machine.install("--cpu", "--unix")
    machine.settle()
    start(machine)
    yield machine.inside / "run/streamdet"
    stop(machine)
    machine.install("--cpu")


def test_unix_sockets_serve_without_any_network(machine, unix, dial, ends):
    recorder = ends.enter_context(Recorder(f"ipc://{unix}/verdicts.sock"))
    recorder.await_beat()
    made = [dial(f"ipc://{unix}/audio.sock", prefix="zmq-"), dial(f"unix:{unix}/pcm.sock", prefix="pcm-")]
    for calls in made:
        calls.open(CALLS // 2)
    recorder.await_verdicts(streams_of(made), 2)
    machine.run("systemctl", "restart", "streamdet")  # the sockets outlive it
    recorder.await_verdicts([made[0].stream(number) for number in made[0].first], 1, since_s=time.monotonic())
    devices = Path(f"/proc/{machine.pid}/net/dev").read_text("utf-8")
    assert [line.split(":")[0].strip() for line in devices.splitlines()[2:]] == ["lo"]
    assert not any(lets_in("127.0.0.1", 1.0) for _ in range(3))
    made[0].end()
    recorder.await_closed(streams_of(made[:1]))
    figure("unix_alone", **account(recorder.histories("zmq-").values())._asdict())


# -- taken away ------------------------------------------------------------------------------------------------------


def test_remove_leaves_no_unit_and_install_brings_all_back(machine):
    try:
        stop(machine)
        machine.install("--remove")
        assert "0 unit files" in machine.run("systemctl", "list-unit-files", "streamdet*", check=False)
        assert (machine.root / "etc/streamdet/streamdet.toml").is_file()
    finally:
        machine.install("--cpu")
        machine.run("systemctl", "enable", "streamdet")
    start(machine)
    assert answers() == 200
