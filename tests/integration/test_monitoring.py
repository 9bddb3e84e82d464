"""Dashboard and alert rules ask for what a real daemon has; each alert is explained, and fires when it should.

promtool comes with Debian's `prometheus`.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

DOCS = Path(__file__).parents[2] / "docs"
RULES = DOCS / "monitoring" / "alerts.yml"
DASHBOARD = DOCS / "monitoring" / "dashboard.json"
# What Prometheus itself adds to a scrape.
OF_PROMETHEUS = {"up"}
NAME = re.compile(r"\b(?:streamdet|process)_\w+|\bup\b(?=\{)")

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (package prometheus) is missing")


def rules() -> dict[str, dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    return json.loads(DASHBOARD.read_text("utf-8"))["panels"]


def asked_for(expression: str) -> set[str]:
    """Names of series in an expression; label names stand behind `by (` and in braces."""
    bare = re.sub(r"\{[^}]*\}|(?:by|on) \([^)]*\)", "{", expression)
    return set(NAME.findall(bare))


def series(exposed: str) -> set[str]:
    """Names of series that a daemon has, or will have once something happened."""
    found = set(re.findall(r"^(\w+)[{ ]", exposed, re.MULTILINE))
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)", exposed, re.MULTILINE):
        found |= {name} if kind != "histogram" else {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    return found


def unknown(expressions: list[str], exposed: str) -> set[str]:
    known = series(exposed) | OF_PROMETHEUS
    return {name for expression in expressions for name in asked_for(expression)} - known


@pytest.fixture
def exposed(serve: Callable[..., Any]) -> str:
    """What a daemon tells."""
    return serve().http("/metrics")[1]


def dashboard_expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", [])]


# -- names -----------------------------------------------------------------------------------------------------------


def test_the_rules_ask_for_series_that_exist(exposed: str):
    assert unknown([rule["expr"] for rule in rules().values()], exposed) == set()


def test_the_dashboard_asks_for_series_that_exist(exposed: str):
    assert unknown(dashboard_expressions(), exposed) == set()


def test_a_name_that_went_away_is_noticed(exposed: str):
    assert unknown(["rate(streamdet_streams_gone[5m])"], exposed) == {"streamdet_streams_gone"}
    assert unknown(["streamdet_lag_seconds"], exposed) == {"streamdet_lag_seconds"}  # a histogram has no such series


def test_the_dashboard_shows_every_metric_but_one_that_another_tells_better(exposed: str):
    shown = {name for expression in dashboard_expressions() for name in asked_for(expression)}
    families = {name.removesuffix("_created") for name in re.findall(r"^# TYPE (\S+)", exposed, re.MULTILINE)}
    missing = {name for name in families if not any(each.startswith(name) for each in shown)}
    assert missing == {"streamdet_refused_total"}  # by reason says more


# -- the dashboard ---------------------------------------------------------------------------------------------------


def test_the_dashboard_can_be_imported_with_any_data_source():
    tree = json.loads(DASHBOARD.read_text("utf-8"))
    assert tree["templating"]["list"][0]["type"] == "datasource"
    for panel in panels():
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert all("$instance" in target["expr"] for target in panel["targets"])
    assert [panel["title"] for panel in panels() if panel["type"] == "row"] == [
        "Health",
        "Calls",
        "Scoring",
        "Ingest",
        "Process",
    ]


def test_panels_have_places_of_their_own():
    taken = set[tuple[int, int]]()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


# -- the rules -------------------------------------------------------------------------------------------------------


def explained(text: str) -> set[str]:
    return set(re.findall(r"^### (Streamdet\w+)$", text.partition("\n## Alerts\n")[2], re.MULTILINE))


def test_every_alert_has_its_section_and_no_section_is_left_of_one_that_went_away():
    assert explained((DOCS / "operations.md").read_text("utf-8")) == set(rules())


def test_every_alert_has_a_severity_a_summary_and_leads_to_its_section():
    for name, rule in rules().items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"


def promtool(*args: object) -> subprocess.CompletedProcess[str]:
    command = [str(shutil.which("promtool")), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@needs_promtool
def test_promtool_takes_the_rules(tmp_path: Path):
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stderr
    broken = tmp_path / "broken.yml"
    broken.write_text(RULES.read_text("utf-8").replace("rate(", "rat(", 1), "utf-8")
    assert promtool("check", "rules", broken).returncode != 0


Samples = dict[str, str]
"""Series without job and instance -> samples of one minute each, in promtool's notation."""


def histogram(name: str, within: str, beyond: str = "+Inf") -> Samples:
    """A series whose every observation lies between two bounds."""
    return {f'{name}_bucket{{le="{within}"}}': "0+0x600", f'{name}_bucket{{le="{beyond}"}}': "0+60x600"} | (
        {} if beyond == "+Inf" else {f'{name}_bucket{{le="+Inf"}}': "0+60x600"}
    )


def rising(name: str, a_minute: float) -> Samples:
    return {name: f"0+{a_minute:g}x600"}


def flat(name: str, value: float) -> Samples:
    return {name: f"{value:g}+0x600"}


AUTH = 'streamdet_refusals_total{reason="auth"}'
PROTOCOL = 'streamdet_refusals_total{reason="protocol"}'
LIMIT = 'streamdet_refusals_total{reason="slow"}'
STALLED = 'streamdet_events_total{type="stalled"}'
VERDICTS = 'streamdet_verdicts_total{state="spoof"}'
SKIPPED, GATED = "streamdet_windows_skipped_total", "streamdet_windows_gated_total"
RSS = "process_resident_memory_bytes"
# Of each alert: minutes after which it fires, samples with which it does, and samples that are nearly so.
CASES: dict[str, tuple[int, Samples, Samples]] = {
    "StreamdetDown": (5, flat("up", 0), flat("up", 1)),
    "StreamdetNotReady": (5, flat("streamdet_ready", 0), flat("streamdet_ready", 1)),
    "StreamdetRestarting": (
        15,
        {"process_start_time_seconds": "1 1 2 2 3 3 4 4 4 4 4 4 4 4 4 4"},
        {"process_start_time_seconds": "1 1 2 2 2 2 3 3 3 3 3 3 3 3 3 3"},
    ),
    "StreamdetSkipping": (15, rising(SKIPPED, 1), flat(SKIPPED, 7)),
    "StreamdetDeaf": (15, rising(SKIPPED, 310) | rising(VERDICTS, 100), rising(SKIPPED, 290) | rising(VERDICTS, 100)),
    "StreamdetLagging": (
        15,
        histogram("streamdet_lag_seconds", "1", "2.5"),
        histogram("streamdet_lag_seconds", "0.25", "0.5"),
    ),
    "StreamdetRunsFail": (10, {"streamdet_runs_failed_total": "0x8 1x4"}, flat("streamdet_runs_failed_total", 3)),
    "StreamdetReloadRefused": (
        5,
        flat("streamdet_last_reload_successful", 0),
        flat("streamdet_last_reload_successful", 1),
    ),
    "StreamdetStreamsFull": (
        15,
        flat("streamdet_streams", 91) | flat("streamdet_streams_max", 100),
        flat("streamdet_streams", 89) | flat("streamdet_streams_max", 100),
    ),
    "StreamdetFilesFull": (
        15,
        flat("process_open_fds", 81) | flat("process_max_fds", 100),
        flat("process_open_fds", 79) | flat("process_max_fds", 100),
    ),
    "StreamdetAcceptsFail": (
        15,
        rising('streamdet_accepts_failed_total{endpoint="pcm"}', 1),
        flat('streamdet_accepts_failed_total{endpoint="pcm"}', 1),
    ),
    "StreamdetUnauthorized": (15, rising(AUTH, 2), rising(AUTH, 0.5)),
    "StreamdetContractBroken": (15, rising(PROTOCOL, 7), rising(PROTOCOL, 5) | rising(LIMIT, 99)),
    "StreamdetLimitsMet": (15, rising(LIMIT, 7), rising(LIMIT, 5) | rising(PROTOCOL, 99)),
    "StreamdetAudioLate": (
        15,
        histogram("streamdet_transit_seconds", "0.5", "1"),
        histogram("streamdet_transit_seconds", "0.1", "0.25"),
    ),
    "StreamdetNoSpeech": (
        40,
        rising(GATED, 95) | rising(VERDICTS, 100) | flat("streamdet_tracks", 5),
        rising(GATED, 95) | rising(VERDICTS, 100) | flat("streamdet_tracks", 4),
    ),
    "StreamdetStalls": (10, rising(STALLED, 2), rising(STALLED, 0.5)),
    "StreamdetPausedLong": (40, flat("streamdet_streams_paused", 1), {"streamdet_streams_paused": "1x25 0x25"}),
    "StreamdetLoopLate": (
        15,
        histogram("streamdet_loop_late_seconds", "0.25", "0.5"),
        histogram("streamdet_loop_late_seconds", "0.1", "0.25"),
    ),
    "StreamdetMemoryGrows": (500, {RSS: "600000000+200000x600"}, {RSS: "600000000+100000x600"}),
    "StreamdetLogLost": (
        10,
        rising('streamdet_log_lines_lost_total{reason="disk"}', 1),
        rising('streamdet_log_lines_lost_total{reason="limit"}', 99),
    ),
}


def labelled(name: str) -> str:
    bare, _, labels = name.rstrip("}").partition("{")
    return f'{bare}{{job="streamdet",instance="a:8560"{"," + labels if labels else ""}}}'


def case(alert: str, minutes: int, samples: Samples, *, fires: bool) -> dict[str, Any]:
    """A unit test of promtool's."""
    rule = rules()[alert]
    said = {key: text.replace("{{ $labels.instance }}", "a:8560") for key, text in rule["annotations"].items()}
    labels = {"severity": rule["labels"]["severity"], "job": "streamdet", "instance": "a:8560"}
    expected = [{"exp_labels": labels, "exp_annotations": said}] if fires else []
    return {
        "interval": "1m",
        "input_series": [{"series": labelled(name), "values": values} for name, values in samples.items()],
        "alert_rule_test": [{"eval_time": f"{minutes}m", "alertname": alert, "exp_alerts": expected}],
    }


def test_every_alert_has_its_cases():
    assert set(CASES) == set(rules())


def outcome(folder: Path, cases: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    file = folder / "test.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": cases}), "utf-8")
    return promtool("test", "rules", file)


@needs_promtool
@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_should_and_not_when_it_nearly_should(alert: str, tmp_path: Path):
    minutes, ill, well = CASES[alert]
    done = outcome(tmp_path, [case(alert, minutes, ill, fires=True), case(alert, minutes, well, fires=False)])
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_an_alert_that_does_not_fire_is_noticed(tmp_path: Path):
    minutes, ill, well = CASES["StreamdetSkipping"]
    assert outcome(tmp_path, [case("StreamdetSkipping", minutes, well, fires=True)]).returncode != 0
    assert outcome(tmp_path, [case("StreamdetSkipping", minutes, ill, fires=False)]).returncode != 0
