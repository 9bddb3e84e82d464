"""The report's folder: whole or not at all, and asking nobody for anything."""

import csv
import html.parser
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from streamdet.bundle import Audio, Calibration, Decision, FileEntry, Manifest, Model
from streamdet.errors import UsageError
from streamdet_training import evaluate, scores
from streamdet_training.bootstrap import Difference
from streamdet_training.data import Clip
from streamdet_training.evaluate import Entry, Scored, Section, Wanted
from streamdet_training.report import page, pictures, write
from streamdet_training.streaming import Heard, Point, Steadiness, Streaming


def draft() -> Manifest:
    """Windows of a second every half second; every other number is the default."""
    audio = Audio(rate_hz=16_000, window_samples=16_000, hop_samples=8000)
    return Manifest(
        format=1,
        name="tiny",
        created="",
        audio=audio,
        model=Model(kind="window"),
        calibration=Calibration(),
        decision=Decision(),
        provenance={},
        files={"model.onnx": FileEntry("0" * 64, 1)},
    )


@pytest.fixture
def manifest() -> Manifest:
    return draft()


def entry(name, manifest=None, listened=None, seed=0) -> Entry:
    """Twenty clips of each label; a name that HTML would take for a tag, and one that was never heard."""
    rng, found = np.random.default_rng(seed), []
    for at in range(40):
        label = "bonafide" if at % 2 else "spoof"
        who = {"speaker": f"v{at % 5}"} if label == "bonafide" else {"system": f"<b>|{at % 4}"}
        clip = Clip(path=Path(f"{label}/{at}.wav"), label=label, channel=("gsm", "wide")[at % 8 > 3], **who)
        llrs = rng.normal(1 if label == "bonafide" else -1, 1.5, 4)
        windows = tuple((0.5 * (n + 2), float(llr)) for n, llr in enumerate(llrs)) if manifest else ()
        found.append(Scored(clip, float(llrs.mean()), windows))
    if manifest:
        found.append(Scored(Clip(path=Path("quiet.wav"), label="spoof"), 0.0, ((1.0, None),)))
    return Entry(name, found, manifest, listened)


SHARES = {"listening": 0.1, "bonafide": 0.6, "uncertain": 0.3, "spoof": 0.0}


def heard(calls: int = 5) -> Streaming:
    some = Point(1.0, 2, 20.0, 60.0, 1, calls, 6.0 if calls else None, None, (0.2, 0.5, 0.7) if calls else ())
    none = Point(8.0, 0, 0.0, 30.0, 0, 6, 19.0, None, (0.0, 0.0, 0.1))
    steady = Steadiness("bonafide", 5, 4, 0.1, 0.08, 60.0, 12.0, SHARES, None)
    rows = [Heard(0.5, 9, 9, 0.4, (0.3, 0.5)), Heard(1.0, 9, 9, 0.3, (0.2, 0.4))]
    return Streaming(some, [some, none], none, [steady, steady], rows, rows)


def section(manifest) -> Section:
    entries = [entry("ours", manifest, heard()), entry("theirs", seed=1)]
    more = Scored(Clip(path=Path("quiet.wav"), label="spoof"), 0.1)
    entries[1] = Entry("theirs", [*entries[1].scored, more])
    return evaluate.compare("dev", entries, Wanted(resamples=20))


class Outside(html.parser.HTMLParser):
    """Collects every address in a page, and whether its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def read_only(tmp_path_factory) -> Path:
    """One report for all tests that only read it: drawing takes seconds."""
    path = tmp_path_factory.mktemp("reports") / "deep" / "report"
    write.write(path, [section(draft())], 20, 0)
    return path


@pytest.fixture
def written(read_only, tmp_path) -> Path:
    """A copy, with nothing beside it."""
    return shutil.copytree(read_only, tmp_path / "deep" / "report")


def test_the_page_asks_nobody_for_anything_and_escapes_what_corpora_say(written):
    text = (written / "report.html").read_text("utf-8")
    found = Outside()
    found.feed(text)
    assert found.open == []
    assert all(address.startswith(("#", "data:image/svg+xml;base64,")) for address in found.addresses)
    assert "url(" not in text
    assert "@import" not in text
    assert "<script" not in text
    assert "&lt;b&gt;|0" in text
    assert "<b>|" not in text


def test_every_picture_is_in_the_page_and_beside_the_markdown(written):
    text = (written / "report.md").read_text("utf-8")
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert {Path(name).name for name in named} == {path.name for path in (written / "pictures").iterdir()}
    expected = ["det", "histograms", "reliability", "systems", "channels", "delay", "speech", "worst-0"]
    assert [Path(name).stem for name in named] == [f"dev-{what}" for what in expected]
    assert (written / "report.html").read_text("utf-8").count("<img") == len(named)
    for name in named:
        root = ET.parse(written / name).getroot()
        assert root.tag == "{http" + "://www.w3.org/2000/svg}svg"


def test_markdown_tables_have_as_many_cells_as_their_heads(written):
    tables = re.findall(r"(?:^\|.*\n)+", (written / "report.md").read_text("utf-8"), re.MULTILINE)
    assert len(tables) >= 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_scores_come_back_as_they_were(written, manifest):
    entries = section(manifest).entries
    rows = list(csv.DictReader((written / "scores.csv").read_text("utf-8").splitlines()))
    assert list(rows[0]) == list(write.COLUMNS)
    assert len(rows) == sum(len(it.scored) for it in entries)
    quiet = next(row for row in rows if row["path"] == "quiet.wav" and row["bundle"] == "ours")
    assert (quiet["llr"], quiet["scored"], quiet["gated"], quiet["llrs"]) == ("0.000000", "0", "1", "")
    read = scores.read(written / "scores.csv", [it.clip for it in entries[0].scored])
    for it in entries:
        assert read[it.name] == pytest.approx([one.llr for one in it.scored], abs=1e-6)


def test_the_record_has_every_number(written, manifest):
    record = json.loads((written / "report.json").read_text())
    assert (record["format"], record["resamples"], record["seed"]) == (1, 20, 0)
    (only,) = record["sections"]
    ours, theirs = only["entries"]
    expected = section(manifest)
    assert ours["rows"][0]["report"]["eer"] == expected.evaluations[0].rows[0].report.eer
    assert set(ours["rows"][0]["intervals"]) == {"eer", "min_dcf", "act_dcf", "cllr", "min_cllr"}
    assert ours["unscored"] == ["quiet.wav"]
    assert ours["streaming"]["curve"][1]["false_alarms_per_hour"] == 0
    assert (theirs["streaming"], theirs["decision"]) == (None, None)
    assert only["eer_differences"][0]["minus"] == "ours"


def test_an_earlier_report_is_replaced_and_anything_else_refused(written, manifest, monkeypatch):
    monkeypatch.setattr(page, "chapter", lambda *_: page.Chapter("dev", []))
    (written / "pictures" / "left-over.svg").write_text("")
    write.write(written, [section(manifest)], 20, 0)
    assert not (written / "pictures" / "left-over.svg").exists()
    assert [path.name for path in written.parent.iterdir()] == ["report"]

    mine = written.parent / "mine"
    mine.mkdir()
    write.check(mine)
    (mine / "thesis.txt").write_text("years of work")
    for path in (mine, mine / "thesis.txt", mine / "thesis.txt" / "report"):
        with pytest.raises(UsageError, match="--out"):
            write.write(path, [section(manifest)], 20, 0)
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_a_report_that_fails_half_way_leaves_the_earlier_one(written, manifest, monkeypatch):
    before = (written / "report.html").read_bytes()

    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr(page, "chapter", lambda *_: page.Chapter("dev", []))
    monkeypatch.setattr(write, "_write_scores", broken)
    with pytest.raises(OSError, match="no space"):
        write.write(written, [section(manifest)], 20, 0)
    assert (written / "report.html").read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == ["report"]


def test_the_same_trials_make_the_same_pictures(manifest):
    one, other = section(manifest), section(manifest)
    assert pictures.det(one) == pictures.det(other)
    assert pictures.reliability(one, 20, 0) == pictures.reliability(other, 20, 0)


def test_a_report_without_intervals_channels_or_windows_is_shorter(tmp_path):
    plain = [
        Scored(Clip(path=Path(f"{at}.wav"), label=("bonafide", "spoof")[at % 2]), float(-at % 3)) for at in range(4)
    ]
    only = evaluate.compare("test", [Entry("theirs", plain)], Wanted())
    write.write(tmp_path / "report", [only], 0, 0)
    titles = [part.title for part in page.chapter(only, 0, 0).parts]
    assert titles == ["Summary", "DET curves", "LLRs", "Calibration", "By system"]
    assert "95 %" not in (tmp_path / "report" / "report.md").read_text()


def test_a_point_without_calls_is_not_drawn(manifest):
    only = evaluate.compare("dev", [entry("ours", manifest, heard(calls=0))], Wanted())
    assert pictures.delays(only).startswith(b"<?xml")
    chapter = page.chapter(only, 0, 0)
    (delay,) = [part for part in chapter.parts if part.title == "Delay against false alarms"]
    assert delay.grids[0].rows[0][-5:] == ["–"] * 5


def test_worst_errors_are_those_furthest_on_the_wrong_side(manifest):
    found = pictures.worst(entry("ours", manifest))
    assert [it.clip.label for it in found] == ["bonafide"] * 3 + ["spoof"] * 3
    everything = entry("ours", manifest).scored
    assert found[0].llr == min(it.llr for it in everything if it.clip.label == "bonafide")
    assert found[3].llr == max(it.llr for it in everything if it.clip.label == "spoof")


def test_the_state_of_a_timeline_is_the_trackers(manifest):
    stood = pictures.standings(((1.0, None), (1.5, -5.0), (2.0, -5.0), (2.5, -5.0), (3.0, -5.0)), manifest)
    assert stood[0].state == "listening"
    assert stood[-1].state == "spoof"


def test_a_difference_reads_as_second_minus_first(manifest):
    found = Section("dev", *_of(section(manifest)), [("old", "new", Difference(0.02, (-0.01, 0.05), 0.8))])
    (part,) = [part for part in page.chapter(found, 0, 0).parts if part.title == "Side by side"]
    assert part.grids[0].rows == [["new minus old", "+2.0", "-1.0 to +5.0", "80 %"]]


def _of(found: Section):
    return found.entries, found.evaluations


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "report.json").write_text("{}")
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="expected a new folder, or that of an earlier report"):
        write.check(out)
    assert (out / "thesis.txt").read_text() == "years of work"
