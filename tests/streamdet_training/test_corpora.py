"""Each corpus in its layout, made small: every row counts, every label is known, every slip has its line."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.errors import DataError, MissingError
from streamdet_training import corpora, data
from streamdet_training.clips import Clip
from streamdet_training.corpora import READERS, deal
from streamdet_training.splits import refuse_overlap


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder for a corpus; relative, since messages cut long paths."""
    monkeypatch.chdir(tmp_path)
    return Path("corpus")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def put(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), "utf-8")
    return path


def counts(clips: list[Clip]) -> dict[str, int]:
    return dict(Counter(clip.label for clip in clips))


def splits(clips: list[Clip]) -> dict[str, set[str]]:
    return {name: {clip.system for clip in clips if clip.split == name} for name in ("train", "dev", "test")}


# -- ASVspoof 2019 LA ------------------------------------------------------------------------------------------------


@pytest.fixture
def asvspoof2019(root):
    for part, ending, letter in (("train", "trn", "T"), ("dev", "trl", "D"), ("eval", "trl", "E")):
        names = [f"LA_{letter}_100{number}" for number in range(3)]
        protocol = root / "ASVspoof2019_LA_cm_protocols" / f"ASVspoof2019.LA.cm.{part}.{ending}.txt"
        put(
            protocol,
            f"LA_0079 {names[0]} - - bonafide",
            f"LA_0079 {names[1]} - A01 spoof",
            f"LA_0080 {names[2]} - A02 spoof",
        )
        touch(*(root / f"ASVspoof2019_LA_{part}" / "flac" / f"{name}.flac" for name in names))
    return root


@pytest.mark.parametrize(("split", "letter"), [("train", "T"), ("dev", "D"), ("test", "E")])
def test_asvspoof_2019_is_read_from_its_first_row_on(asvspoof2019, split, letter):
    clips = data.load("asvspoof2019_la", [asvspoof2019], split)
    assert counts(clips) == {"bonafide": 1, "spoof": 2}
    assert [(clip.speaker, clip.system) for clip in clips] == [("LA_0079", "-"), ("LA_0079", "A01"), ("LA_0080", "A02")]
    assert [clip.path.name for clip in clips] == [f"LA_{letter}_100{number}.flac" for number in range(3)]
    assert {clip.split for clip in clips} == {split}


def test_all_of_asvspoof_2019_is_its_three_parts(asvspoof2019):
    assert counts(READERS["asvspoof2019_la"](asvspoof2019, None)) == {"bonafide": 3, "spoof": 6}


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("LA_0039 LA_E_1000 A11 spoof", DataError, r":4 columns: 4, expected 5: speaker, file, -, attack, label"),
        ("LA_0039 LA_E_1000 - A11 spoof x", DataError, r":4 columns: 6, expected 5"),
        ("", DataError, r":4 columns: 0, expected 5"),
        ("LA_0039 LA_E_1000 - A11 unsure", DataError, r":4 label: 'unsure', expected one of bonafide"),
        ("LA_0039 LA_E_9 - A11 spoof", MissingError, r":4 path: .*LA_E_9\.flac', expected a file that exists"),
    ],
)
def test_a_wrong_line_of_a_protocol_is_named(asvspoof2019, line, error, words):
    protocol = asvspoof2019 / "ASVspoof2019_LA_cm_protocols" / "ASVspoof2019.LA.cm.eval.trl.txt"
    with protocol.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(error, match=r"ASVspoof2019\.LA\.cm\.eval\.trl\.txt" + words):
        READERS["asvspoof2019_la"](asvspoof2019, "test")


# -- ASVspoof 2021 ---------------------------------------------------------------------------------------------------


@pytest.fixture
def asvspoof2021_la(root):
    put(
        root / "keys" / "LA" / "CM" / "trial_metadata.txt",
        "LA_0009 LA_E_1 alaw ita_tx A07 spoof notrim eval",
        "LA_0007 LA_E_2 none - bonafide bonafide notrim eval",
        "LA_0009 LA_E_3 gsm sin_tx A08 spoof notrim progress",
        "LA_0009 LA_E_4 opus loc_tx A08 spoof trim hidden",
        "LA_0007 LA_E_5 g722 loc_tx - bonafide trim hidden_track",
    )
    touch(*(root / "ASVspoof2021_LA_eval" / "flac" / f"LA_E_{number}.flac" for number in range(1, 6)))
    return root


def test_asvspoof_2021_la_is_test_alone_and_its_codec_is_the_channel(asvspoof2021_la):
    clips = data.load("asvspoof2021_la", [asvspoof2021_la], "test")
    assert [(clip.speaker, clip.system, clip.channel, clip.label) for clip in clips] == [
        ("LA_0009", "A07", "alaw", "spoof"),
        ("LA_0007", "-", "none", "bonafide"),
    ]
    assert READERS["asvspoof2021_la"](asvspoof2021_la, "train") == []
    assert READERS["asvspoof2021_la"](asvspoof2021_la, "dev") == []


def test_its_other_subsets_have_names_of_their_own(asvspoof2021_la):
    names = {
        form: [clip.path.stem for clip in READERS[form](asvspoof2021_la, "test")]
        for form in ("asvspoof2021_la_progress", "asvspoof2021_la_hidden")
    }
    assert names == {"asvspoof2021_la_progress": ["LA_E_3"], "asvspoof2021_la_hidden": ["LA_E_4", "LA_E_5"]}


def test_audio_may_lie_in_flac_beside_the_keys(asvspoof2021_la):
    (asvspoof2021_la / "ASVspoof2021_LA_eval" / "flac").rename(asvspoof2021_la / "flac")
    assert len(READERS["asvspoof2021_la"](asvspoof2021_la, "test")) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "LA_0009 LA_E_1 alaw ita_tx A07 spoof notrim",
            ":6 columns: 7, expected 8: speaker, trial, codec, transmission",
        ),
        (
            "LA_0009 LA_E_1 alaw ita_tx A07 spoof notrim secret",
            ":6 subset: 'secret', expected eval, progress or hidden",
        ),
    ],
)
def test_a_wrong_line_of_2021_is_named(asvspoof2021_la, line, words):
    with (asvspoof2021_la / "keys" / "LA" / "CM" / "trial_metadata.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=words):
        READERS["asvspoof2021_la"](asvspoof2021_la, "test")


@pytest.fixture
def asvspoof2021_df(root):
    put(
        root / "keys" / "DF" / "CM" / "trial_metadata.txt",
        "LA_0043 DF_E_1 mp3m4a asvspoof A09 spoof notrim eval traditional_vocoder - - - -",
        "TEF2 DF_E_2 low_mp3 vcc2020 - bonafide notrim eval bonafide - - - -",
        "TEF2 DF_E_3 oggm4a vcc2020 Task1-team20 spoof notrim progress neural_vocoder_autoregressive Task1 team20 FF E",
    )
    touch(*(root / "ASVspoof2021_DF_eval" / "flac" / f"DF_E_{number}.flac" for number in range(1, 4)))
    return root


def test_asvspoof_2021_df_names_compression_and_source(asvspoof2021_df):
    clips = data.load("asvspoof2021_df", [asvspoof2021_df], None)
    assert [(clip.speaker, clip.system, clip.channel, clip.source) for clip in clips] == [
        ("LA_0043", "A09", "mp3m4a", "asvspoof"),
        ("TEF2", "-", "low_mp3", "vcc2020"),
    ]
    (progress,) = READERS["asvspoof2021_df_progress"](asvspoof2021_df, "test")
    assert progress.system == "Task1-team20"
    assert READERS["asvspoof2021_df_hidden"](asvspoof2021_df, "test") == []


def test_the_keys_of_la_do_not_pass_for_those_of_df(asvspoof2021_df):
    put(
        asvspoof2021_df / "keys" / "DF" / "CM" / "trial_metadata.txt",
        "LA_0009 DF_E_1 alaw ita_tx A07 spoof notrim eval",
    )
    with pytest.raises(DataError, match=":1 columns: 8, expected 13: speaker, trial, compression"):
        READERS["asvspoof2021_df"](asvspoof2021_df, "test")


# -- ASVspoof 5 ------------------------------------------------------------------------------------------------------


@pytest.fixture
def asvspoof5(root):
    for name, folder, letter in (
        ("ASVspoof5.train.tsv", "flac_T", "T"),
        ("ASVspoof5.dev.track_1.tsv", "flac_D", "D"),
        ("ASVspoof5.eval.track_1.tsv", "flac_E_eval", "E"),
    ):
        put(
            root / name,
            f"{letter}_4461 {letter}_1 F - - - AC1 A14 spoof -",
            f"{letter}_4462 {letter}_2 M C05 3 17 - bonafide bonafide -",
        )
        touch(root / folder / f"{letter}_1.flac", root / folder / f"{letter}_2.flac")
    return root


@pytest.mark.parametrize(("split", "letter"), [("train", "T"), ("dev", "D"), ("test", "E")])
def test_asvspoof_5_has_ten_columns_and_no_header(asvspoof5, split, letter):
    spoof, bona = data.load("asvspoof5", [asvspoof5], split)
    assert (spoof.path.stem, spoof.label, spoof.system, spoof.channel) == (f"{letter}_1", "spoof", "A14", "-")
    assert (bona.speaker, bona.label, bona.system, bona.channel) == (f"{letter}_4462", "bonafide", "-", "C05")


def test_its_protocols_may_lie_in_the_folder_that_they_come_in(asvspoof5):
    for path in list(asvspoof5.glob("*.tsv")):
        touch(asvspoof5 / "ASVspoof5_protocols" / path.name)
        path.rename(asvspoof5 / "ASVspoof5_protocols" / path.name)
    assert counts(data.load("asvspoof5", [asvspoof5], None)) == {"bonafide": 3, "spoof": 3}


def test_the_six_columns_of_its_first_release_are_refused(asvspoof5):
    put(asvspoof5 / "ASVspoof5.train.tsv", "T_1 T_1 F - A01 spoof")
    with pytest.raises(DataError, match=r"ASVspoof5\.train\.tsv:1 columns: 6, expected 10: speaker, file, gender"):
        READERS["asvspoof5"](asvspoof5, "train")


# -- without splits of their own -------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "release_in_the_wild"])
def test_in_the_wild_is_test_as_a_whole(root, inside):
    put(
        root / inside / "meta.csv",
        "file,speaker,label",
        "0.wav,Alec Guinness,spoof",
        "1.wav,Alec Guinness,bona-fide",
        "2.wav,Barack Obama,bona-fide",
    )
    touch(*(root / inside / f"{number}.wav" for number in range(3)))
    clips = data.load("in_the_wild", [root], "test")
    assert counts(clips) == {"bonafide": 2, "spoof": 1}
    assert (clips[0].speaker, clips[0].system, clips[0].split) == ("Alec Guinness", "-", "test")
    assert READERS["in_the_wild"](root, "train") == READERS["in_the_wild"](root, "dev") == []


MLAAD_HEADER = (
    "path|original_file|language|is_original_language|duration|training_data|model_name|architecture|transcript"
)


@pytest.fixture
def mlaad(root):
    for language, model in (("de", "bark"), ("en", "bark"), ("en", "vits"), ("fr", "xtts_v2"), ("fr", "tacotron2")):
        folder = root / "fake" / language / model
        rows = [
            f'./fake/{language}/{model}/{number}.wav|x/y.wav|{language}|True|2.5|lj|{model}|VITS|"Well," he said'
            for number in range(2)
        ]
        put(folder / "meta.csv", MLAAD_HEADER, *rows)
        touch(*(folder / f"{number}.wav" for number in range(2)))
    return root


def test_mlaad_is_all_spoof_and_its_models_are_the_systems(mlaad):
    clips = READERS["mlaad"](mlaad, None)
    assert counts(clips) == {"spoof": 10}
    assert Counter(clip.system for clip in clips) == {"bark": 4, "vits": 2, "xtts_v2": 2, "tacotron2": 2}
    assert [len(READERS["mlaad"](mlaad, name)) for name in ("train", "dev", "test")] == [
        len([clip for clip in clips if clip.split == name]) for name in ("train", "dev", "test")
    ]
    refuse_overlap({name: READERS["mlaad"](mlaad, name) for name in ("train", "dev", "test")})


def test_its_recordings_may_lie_in_wavs(mlaad):
    for meta in mlaad.glob("fake/*/*/meta.csv"):
        for path in list(meta.parent.glob("*.wav")):
            touch(meta.parent / "wavs" / path.name)
            path.unlink()
    assert len(READERS["mlaad"](mlaad, None)) == 10


def test_a_short_row_of_mlaad_is_named(mlaad):
    put(mlaad / "fake" / "en" / "vits" / "meta.csv", MLAAD_HEADER, "./fake/en/vits/0.wav|x")
    with pytest.raises(DataError, match=r"vits/meta\.csv:2 columns: 2, expected 9: path, original_file"):
        READERS["mlaad"](mlaad, None)


WAVEFAKE = (
    "common_voices_prompts_from_conformer_fastspeech2_pwg_ljspeech",
    "jsut_multi_band_melgan",
    "jsut_parallel_wavegan",
    "ljspeech_full_band_melgan",
    "ljspeech_hifiGAN",
    "ljspeech_melgan",
    "ljspeech_melgan_large",
    "ljspeech_multi_band_melgan",
    "ljspeech_parallel_wavegan",
    "ljspeech_waveglow",
)


def test_wavefake_keeps_each_vocoder_in_one_split(root):
    for folder in WAVEFAKE:
        touch(*(root / "generated_audio" / folder / f"LJ001-000{number}_gen.wav" for number in range(2)))
    clips = READERS["wavefake"](root, None)
    assert counts(clips) == {"spoof": 20}
    assert {clip.system for clip in clips} == set(WAVEFAKE)
    assert splits(clips)["test"] == {"jsut_multi_band_melgan", "ljspeech_multi_band_melgan"}
    assert splits(clips)["dev"] == {"ljspeech_hifiGAN"}


def test_a_corpus_of_one_class_goes_with_a_manifest_of_the_other(root):
    for folder in WAVEFAKE:
        touch(root / "generated_audio" / folder / "a.wav")
    manifest = put(Path("mine.csv"), "path,label,split", *(f"{name}.wav,real,{name}" for name in corpora.SPLITS))
    touch(*(Path(f"{name}.wav") for name in corpora.SPLITS))
    for name in corpora.SPLITS:
        assert set(counts(data.load("csv", [f"wavefake:{root}", manifest], name))) == {"bonafide", "spoof"}
    with pytest.raises(DataError, match="bonafide clips of split dev: 0, expected both classes"):
        data.load("wavefake", [root], "dev")


# -- folders ---------------------------------------------------------------------------------------------------------


def test_sub_folders_are_speakers_and_systems_each_in_one_split(root):
    for name in range(10):
        touch(root / "bonafide" / f"p{name}" / "deep" / "a.wav", root / "bonafide" / f"p{name}" / "b.FLAC")
        touch(root / "spoof" / f"s{name}" / "a.ogg", root / "spoof" / f"s{name}" / "notes.txt")
    clips = READERS["folders"](root, None)
    assert counts(clips) == {"bonafide": 20, "spoof": 10}
    assert {clip.speaker for clip in clips if clip.label == "bonafide"} == {f"p{name}" for name in range(10)}
    assert {clip.system for clip in clips if clip.label == "spoof"} == {f"s{name}" for name in range(10)}
    parts = {name: data.load("folders", [root], name) for name in corpora.SPLITS}  # none is empty
    refuse_overlap(parts)
    assert sum(map(len, parts.values())) == 30


def test_files_without_a_sub_folder_are_dealt_one_by_one(root):
    touch(*(root / kind / f"{number}.wav" for kind in ("bonafide", "spoof") for number in range(30)))
    clips = READERS["folders"](root, None)
    assert {(clip.speaker, clip.system) for clip in clips} == {("-", "-")}
    assert all(5 < len([clip for clip in clips if clip.split == name]) < 55 for name in corpora.SPLITS)


def test_folders_that_are_named_like_splits_are_the_splits(root):
    for name in ("train", "test"):
        touch(root / name / "bonafide" / "p1" / "a.wav", root / name / "spoof" / "vits" / "a.wav")
    clips = READERS["folders"](root, None)
    assert Counter(clip.split for clip in clips) == {"train": 2, "test": 2}
    assert READERS["folders"](root, "dev") == []
    with pytest.raises(DataError, match="speakers and systems in train and test: 'speaker:p1, system:vits'"):
        refuse_overlap({"train": READERS["folders"](root, "train"), "test": READERS["folders"](root, "test")})


# -- nothing there ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("asvspoof2019_la", "cm.eval.trl.txt"),
        ("asvspoof2021_la", "keys/LA/CM/trial_metadata.txt"),
        ("asvspoof2021_df", "keys/DF/CM/trial_metadata.txt"),
        ("asvspoof5", "ASVspoof5.eval.track_1.tsv"),
        ("in_the_wild", "meta.csv"),
        ("mlaad", "fake/LANGUAGE/MODEL/meta.csv"),
        ("wavefake", "generated_audio/CORPUS_VOCODER"),
        ("folders", "bonafide/ and spoof/"),
    ],
)
def test_an_empty_folder_says_what_should_be_there(root, form, names):
    root.mkdir()
    with pytest.raises(MissingError, match=names):
        READERS[form](root, "test")


# -- dealing ---------------------------------------------------------------------------------------------------------

names = st.sets(st.text(min_size=1), max_size=12)


@given(names)
def test_no_split_stays_empty_where_there_is_enough(some):
    assert len(set(deal(some).values())) == min(3, len(some))


@given(st.lists(st.text(min_size=1), max_size=12))
def test_order_and_repetition_mean_nothing(some):
    assert deal(some) == deal(reversed(some)) == deal(some + some)


def test_a_corpus_that_grows_leaves_everybody_where_they_were():
    before = deal(f"speaker {number}" for number in range(200))
    after = deal(f"speaker {number}" for number in range(400))
    assert {name: after[name] for name in before} == before
    shares = Counter(after.values())
    assert 240 < shares["train"] < 320
    assert 35 < shares["dev"] < 85
    assert 35 < shares["test"] < 85
