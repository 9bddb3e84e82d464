"""Manifests: every word for a class, every way to get a row wrong, and several at once."""

from pathlib import Path
from typing import get_args

import pytest

from streamdet.errors import DataError, MissingError, UsageError
from streamdet_training import data


@pytest.fixture
def write(tmp_path):
    """Writes a manifest beside one recording, a.wav."""
    (tmp_path / "a.wav").write_bytes(b"")

    def write(text: str) -> Path:
        path = tmp_path / "manifest.csv"
        path.write_text(text, "utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("word", "label"),
    [
        *((word, "bonafide") for word in ("bonafide", "bona-fide", "Bona_Fide", "genuine", "REAL", " 1 ")),
        *((word, "spoof") for word in ("spoof", "Fake", "0")),
    ],
)
def test_every_word_for_a_class_is_known(write, word, label):
    (clip,) = data.read_manifest(write(f"path,label\na.wav,{word}\n"))
    assert clip.label == label


@pytest.mark.parametrize("word", ["", "unknown", "2", "true"])
def test_another_word_is_refused_with_its_file_and_line(write, word):
    path = write(f"path,label\na.wav,spoof\na.wav,{word}\n")
    with pytest.raises(DataError) as caught:
        data.read_manifest(path)
    assert f"{path}:3 label: {word!r}, expected one of bonafide" in str(caught.value)


def test_further_columns_are_used(write):
    path = write(
        "path,label,speaker,system,source_repo,split,duration_s,note\n"
        "a.wav,spoof,p1,vits,here,dev,1.5,take=2;chan=g711\n"
        "a.wav,real,,,,train,,\n"
    )
    (spoof,) = data.read_manifest(path, "dev")
    assert (spoof.speaker, spoof.system, spoof.source) == ("p1", "vits", "here")
    assert (spoof.channel, spoof.split, spoof.duration_s) == ("g711", "dev", 1.5)
    (bona,) = data.read_manifest(path, "train")
    assert (bona.speaker, bona.system, bona.source, bona.channel, bona.duration_s) == ("-", "-", "-", "-", None)
    assert data.read_manifest(path) == [spoof, bona]
    assert spoof.path == path.parent / "a.wav"


@pytest.mark.parametrize("name", ["gone.wav", ""])
def test_a_row_without_its_file_names_the_line(write, name):
    path = write(f"path,label\na.wav,spoof\n{name},spoof\n")
    with pytest.raises(MissingError, match=r"manifest\.csv:3 path: .*expected a file that exists"):
        data.read_manifest(path)


def test_a_missing_manifest_is_named():
    with pytest.raises(MissingError, match=r"manifest: 'nowhere/nothing\.csv'"):
        data.read_manifest(Path("nowhere/nothing.csv"))


@pytest.mark.parametrize(("row", "found"), [("a.wav", 1), ("a.wav,spoof,dev,x", 4)])
def test_a_row_that_is_too_short_or_too_long_is_named(write, row, found):
    with pytest.raises(DataError, match=rf"manifest\.csv:3 columns: {found}, expected 3: path, label, split$"):
        data.read_manifest(write(f"path,label,split\na.wav,spoof,dev\n{row}\n"))


def test_a_manifest_as_spreadsheets_write_it_is_read(write):
    (tmp := write('\ufeffpath,label,speaker\r\n\r\na.wav,spoof,"Lovelace, Ada"\r\n'))
    (clip,) = data.read_manifest(tmp)
    assert clip.speaker == "Lovelace, Ada"


def test_what_is_no_text_is_refused(write):
    path = write("")
    path.write_bytes("path,label\nä.wav,spoof\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"expected text in UTF-8 \(invalid continuation byte at byte 11\)"):
        data.read_manifest(path)


def test_a_quote_without_an_end_is_one_line_of_error(write):
    with pytest.raises(DataError, match=r"manifest\.csv:3 columns: 1, expected 2: path, label"):
        data.read_manifest(write('path,label\na.wav,spoof\n"a.wav,spoof\n'))


@pytest.mark.parametrize(
    ("header", "missing"), [("path,class", "label"), ("file,label", "path"), ("a,b", "label, path")]
)
def test_a_missing_column_is_named(write, header, missing):
    with pytest.raises(DataError, match=f"expected {missing} among them"):
        data.read_manifest(write(f"{header}\na.wav,spoof\n"))


def test_a_duration_is_a_number(write):
    with pytest.raises(DataError, match=r":2 duration_s: 'long', expected seconds"):
        data.read_manifest(write("path,label,duration_s\na.wav,spoof,long\n"))


# -- several at once ---------------------------------------------------------------------------------------------------


@pytest.fixture
def manifests(tmp_path, monkeypatch):
    """Writes a manifest into a folder of its own, with the recordings that its rows name."""
    monkeypatch.chdir(tmp_path)  # messages cut long paths

    def write(name: str, *rows: str, header: str = "path,label,split") -> Path:
        path = Path(name) / "manifest.csv"
        path.parent.mkdir()
        for row in rows:
            (path.parent / row.split(",")[0]).write_bytes(b"")
        path.write_text("\n".join([header, *rows]) + "\n", "utf-8")
        return path

    return write


def test_manifests_are_read_one_after_the_other(manifests):
    one, two = manifests("one", "b.wav,spoof,train", "a.wav,real,train"), manifests("two", "a.wav,spoof,train")
    assert [clip.path for clip in data.load("csv", [two, str(one)], "train")] == [
        two.parent / "a.wav",
        one.parent / "b.wav",
        one.parent / "a.wav",
    ]


def test_a_manifest_may_lack_a_split_that_another_has(manifests):
    one, two = manifests("one", "a.wav,real,train", "b.wav,spoof,train"), manifests("two", "a.wav,real,test")
    assert len(data.load("csv", [one, two], "train")) == 2
    with pytest.raises(DataError, match=r"split: 'dev', expected a split that has rows in .*one.*two"):
        data.load("csv", [one, two], "dev")


def test_without_a_split_every_row_is_read(manifests):
    path = manifests("one", "a.wav,real,", "b.wav,spoof,mine")
    assert [clip.split for clip in data.load("csv", [path], None)] == ["-", "mine"]


@pytest.mark.parametrize(("word", "missing"), [("spoof", "bonafide"), ("bonafide", "spoof")])
def test_a_split_of_one_class_is_refused_unless_it_was_asked_for(manifests, word, missing):
    path = manifests("one", f"a.wav,{word},dev", f"b.wav,{word},dev")
    with pytest.raises(DataError, match=f"^{missing} clips of split dev: 0, expected both classes among 2 clips$"):
        data.load("csv", [path], "dev")
    assert len(data.load("csv", [path], "dev", classes=[word])) == 2


def test_a_recording_named_twice_is_refused_however_it_is_written(manifests):
    one, two = manifests("one", "a.wav,real,train"), manifests("two")
    two.write_text("path,label,split\n../one/a.wav,spoof,train\n", "utf-8")
    with pytest.raises(DataError, match=r"recording of split train: .*a\.wav', expected each recording in one row"):
        data.load("csv", [one, two], "train")


def test_each_path_may_say_what_it_is(manifests):
    mine = manifests("mine", "a.wav,real,test")
    (made := Path("WaveFake/generated_audio/ljspeech_hifiGAN")).mkdir(parents=True)
    (made / "b.wav").write_bytes(b"")
    clips = data.load("csv", ["wavefake:WaveFake", mine], None)
    assert [(clip.path.name, clip.label) for clip in clips] == [("b.wav", "spoof"), ("a.wav", "bonafide")]
    assert data.load("wavefake", ["WaveFake", f"csv:{mine}"], None) == clips


def test_a_path_may_hold_a_colon(manifests):
    path = manifests("it:self", "a.wav,real,", "b.wav,spoof,")
    assert len(data.load("csv", [path], None)) == 2
    assert len(data.load("csv", [f"csv:{path}"], None)) == 2


def test_an_unknown_format_is_named():
    with pytest.raises(UsageError, match="format: 'wav', expected one of csv, asvspoof2019_la"):
        data.load("wav", ["."], "train")
    with pytest.raises(MissingError, match="data: 'wav:corpus', expected a path that exists, or after one of csv, asv"):
        data.load("csv", ["wav:corpus"], "train")


def test_types_know_every_format():
    assert list(get_args(data.Format)) == list(data.FORMATS)


def test_a_misspelt_split_is_named_and_case_is_not_a_misspelling(manifest_csv):
    text = manifest_csv.read_text()
    manifest_csv.write_text(text.replace("train", "Train"))
    assert {clip.split for clip in data.read_manifest(manifest_csv, "train")} == {"train"}
    manifest_csv.write_text(text.replace("train", "training"))
    with pytest.raises(DataError, match=r"manifest\.csv:2 split: 'training', expected one of train, dev, test"):
        data.read_manifest(manifest_csv, "dev")
