"""The docs keep up with the code: nothing that a user can name lacks its line, nothing that they name is missing."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from prometheus_client import generate_latest

from streamdet import config, engine, errors, records
from streamdet.cli import application
from streamdet.metrics import Metrics
from streamdet.wire import frames

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OUTSIDE_DOCS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "systemd/README.md")
PAGES = [*(ROOT / name for name in OUTSIDE_DOCS), *sorted(DOCS.glob("*.md"))]


def read(path: Path) -> str:
    return path.read_text("utf-8")


def first_cells(text: str) -> set[str]:
    """Everything in backticks in the first cell of a table's rows."""
    rows = (line.split("|")[1] for line in text.splitlines() if line.startswith("|"))
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def without_a_row(names: Iterable[str], text: str) -> list[str]:
    return sorted(set(names) - first_cells(text))


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


# -- config keys -----------------------------------------------------------------------------------------------------


def config_row(setting: config.Setting) -> str:
    default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
    shown = "not set" if default is None else f"`{json.dumps(default)}`"
    return f"| `{setting.name}` | {shown} | {setting.help} |"


def missing_config_rows(text: str) -> list[str]:
    return [row for row in map(config_row, config.settings()) if row not in text.splitlines()]


def test_every_config_key_has_its_row_with_default_and_meaning():
    assert missing_config_rows(read(DOCS / "config.md")) == []


def test_no_row_is_left_of_a_key_that_went_away():
    assert first_cells(read(DOCS / "config.md")) == {setting.name for setting in config.settings()}


def test_a_missing_or_stale_config_row_is_noticed():
    text = read(DOCS / "config.md")
    assert missing_config_rows(text.replace("| `pcm.rate` |", "| `pcm.hertz` |"))
    assert missing_config_rows(text.replace("| `8000` |", "| `16000` |"))


def test_the_example_is_a_config_that_the_daemon_takes():
    (example,) = blocks("toml", read(DOCS / "config.md"))
    config.Config.model_validate(tomllib.loads(example))


# -- commands --------------------------------------------------------------------------------------------------------


def every_command(group: Any, prefix: str = "") -> dict[str, Any]:
    """Commands by name; one of a group as `group command`."""
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= every_command(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


COMMANDS = every_command(typer.main.get_group(application()))


def section(command: str, text: str) -> str:
    """A command's part of the page; empty when it has none."""
    return text.partition(f"\n## `{command}`\n")[2].partition("\n## ")[0]


def option_names(command: str) -> set[str]:
    """Every name of every option, and the arguments as they are called in upper case."""
    found = set[str]()
    for param in COMMANDS[command].params:
        if param.param_type_name == "argument":
            found.add(str(param.metavar or param.name).upper())
        else:
            found |= {*param.opts, *param.secondary_opts} - {"--help"}
    return found


def described_options(command: str, text: str) -> set[str]:
    """Options and arguments of the section's table: `--config FILE` is `--config`."""
    cells = first_cells(section(command, text))
    return {name.split()[0] if name.startswith("-") else name.upper() for name in cells}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_section_with_every_option_and_no_other(command: str):
    text = read(DOCS / "commands.md")
    assert section(command, text), f"docs/commands.md lacks ## `{command}`"
    assert described_options(command, text) == option_names(command)


def test_every_command_is_in_the_list_and_none_that_went_away():
    text = read(DOCS / "commands.md")
    listed = first_cells(text.partition("\n## ")[0])
    assert listed == set(re.findall(r"^## `([\w -]+)`$", text, re.MULTILINE)) == set(COMMANDS)


def test_every_exit_code_has_its_row():
    codes = {str(error.exit_code) for error in vars(errors).values() if hasattr(error, "exit_code")} | {"0", "130"}
    assert first_cells(read(DOCS / "commands.md").partition("\n## Exit codes\n")[2]) == codes


def test_a_missing_or_stale_command_or_option_is_noticed():
    text = read(DOCS / "commands.md")
    assert not section("status", text.replace("## `status`", "## `state`"))
    assert described_options("send", text.replace("| `--pcm` |", "| `--raw` |")) != option_names("send")
    assert described_options("tail", text.replace("| `STREAMS` |", "| streams |")) != option_names("tail")


# -- links and words -------------------------------------------------------------------------------------------------


def links(path: Path, text: str) -> Iterator[Path]:
    """Files that a page's relative links lead to."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            yield (path.parent / target).resolve()


def test_links_lead_somewhere():
    broken = [f"{page.name} -> {to}" for page in PAGES for to in links(page, read(page)) if not to.exists()]
    assert broken == []


def test_a_broken_link_is_noticed():
    (to,) = links(DOCS / "config.md", "see [that](nowhere.md#part)")
    assert not to.exists()


def test_every_page_is_linked_from_another():
    linked = {to for page in PAGES for to in links(page, read(page)) if to != page}
    assert [page.name for page in PAGES if page != ROOT / "README.md" and page.resolve() not in linked] == []


# Links that a reader profits from. Any other host either tells where a build machine fetches its packages, or wants a
# thought before it goes in here.
HOSTS = {"www.apache.org", "keepachangelog.com", "semver.org", "arxiv.org", "127.0.0.1", "localhost"}
A_BUILD_MACHINE = re.compile(r"(?<![\w.])/(?:work|root|home|Users|opt/pypi)/\w+|--(?:extra-)?index-url|--find-link[s]")


def slips(text: str) -> list[str]:
    """Paths of somebody's machine, package indexes and unknown hosts."""
    hosts = {host for host in re.findall(r"https?://([\w.-]+)", text) if host not in HOSTS}
    return sorted(hosts | set(A_BUILD_MACHINE.findall(text)))


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_tracked_file_tells_of_the_machine_it_was_made_on():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    found = {}
    for name in filter(None, listing.decode().split("\0")):
        try:
            found[name] = slips(read(ROOT / name))
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # binary, or deleted and not yet committed
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "text", ["/home" + "/me/x", "see /work" + "/main/y", "pip install --index" + "-url x", "https" + "://example.net/a"]
)
def test_a_slip_is_noticed(text: str):
    assert slips(text)


# -- wire fields and metrics -----------------------------------------------------------------------------------------


OPERATIONS = ("status", "snapshot", "pause", "resume", "close", "reload")


def wire_names() -> set[str]:
    """Every field, event type, close reason and operation that goes over a wire."""
    structs = (records.Verdict, records.Event, records.Notice, records.Heartbeat, engine.Counts)
    fields = {field for struct in structs for field in struct.__struct_encode_fields__}
    words = {*get_args(records.EventType), *get_args(records.NoticeType), *get_args(records.CloseReason)}
    header = frames.build(records.Frame("s", records.AudioFormat(8000, "s16le"), b"", 0, 0, 0.0, end=True))[1]
    return fields | words | set(json.loads(header)) | set(OPERATIONS)


def metric_names() -> set[str]:
    """Every metric as it is exposed, without the samples that a histogram or counter is made of."""
    exposed = generate_latest(Metrics().registry).decode()
    names = re.findall(r"^# TYPE (\S+)", exposed, re.MULTILINE)
    return {name for name in names if not name.endswith("_created")} | {"streamdet_model_info"}


def test_every_wire_field_has_its_row():
    assert without_a_row(wire_names(), read(DOCS / "wire.md")) == []


def test_a_missing_wire_row_is_noticed():
    text = read(DOCS / "wire.md").replace("| `lag_ms_p99` |", "| `lag` |")
    assert without_a_row(wire_names(), text) == ["lag_ms_p99"]


def test_every_metric_has_its_row_and_no_row_is_left_of_one_that_went_away():
    rows = {name for name in first_cells(read(DOCS / "metrics.md")) if re.fullmatch(r"streamdet_\w+", name)}
    assert without_a_row(metric_names(), read(DOCS / "metrics.md")) == []
    assert rows - metric_names() == set()


# -- arithmetic ------------------------------------------------------------------------------------------------------

UTILISATION = 0.7
HOPS_S = (0.5, 1.0, 2.0)


def wrong_calls(text: str) -> list[str]:
    """Rows of sizing.md whose calls are not what its formula makes of their windows a second."""
    wrong = []
    for line in text.splitlines():
        cells = [cell.strip().replace(",", "") for cell in line.strip("|").split("|")]
        rates = [cell for cell in cells[2:4] if re.fullmatch(r"[\d.]+", cell)]
        if len(cells) == 10:  # the table of CPUs: a core and all of them
            pairs = [(cells[2], cells[4:7]), (cells[3], cells[7:10])]
        elif len(cells) == 7 and re.fullmatch(r"[\d.]+", cells[3]):  # GPUs
            pairs = [(cells[3], cells[4:7])]
        else:
            continue
        for rate, calls in pairs if rates else []:
            expected = ["–"] * 3 if rate == "–" else [str(int(UTILISATION * float(rate) * hop_s)) for hop_s in HOPS_S]
            if "block" in cells[0]:  # the hop is the bundle's: no figure for another
                expected = ["–", expected[1], "–"]
            if calls != expected:
                wrong.append(f"{cells[0]}: {calls}, expected {expected}")
    return wrong


def test_the_sizing_guide_follows_its_own_formula():
    text = read(DOCS / "sizing.md")
    assert "| starter, windowed |" in text
    assert wrong_calls(text) == []


def test_a_row_that_does_not_follow_is_noticed():
    assert wrong_calls("| x | fp32 | 100 | – | 35 | 70 | 140 | – | – | – |") == []
    assert wrong_calls("| x | fp32 | 100 | – | 35 | 71 | 140 | – | – | – |")
    assert wrong_calls("| x | fp16 | H200 | 2,000 | 700 | 1,400 | 2,801 |")


# -- tests that pages point to ---------------------------------------------------------------------------------------


def missing_paths(text: str) -> list[str]:
    """Paths of tests that a page names and nobody has."""
    named = set(re.findall(r"(?:tests|\.ci)/[\w/.-]*\w", text))
    return sorted(path for path in named if not (ROOT / path).exists())


@pytest.mark.parametrize("page", ["threats.md", "reliability.md"])
def test_every_test_that_a_promise_names_is_there(page):
    text = read(DOCS / page)
    assert "tests/faults/" in text
    assert missing_paths(text) == []


def test_a_test_that_went_away_is_noticed():
    assert missing_paths("| `tests/faults/test_nothing.py` | `pytest tests/test_docs.py -k x` |") == [
        "tests/faults/test_nothing.py"
    ]
