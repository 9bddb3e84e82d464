"""Settings: where they come from, and what a mistake is told."""

import tomllib

import pytest

from streamdet import config
from streamdet.errors import ConfigError, MissingError


@pytest.fixture(autouse=True)
def no_system_file(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "SYSTEM_FILE", tmp_path / "none.toml")


def test_flag_beats_environment_beats_file_beats_default(tmp_path, monkeypatch):
    file = tmp_path / "streamdet.toml"
    file.write_text('[endpoints]\naudio = "tcp://127.0.0.1:1"\ncontrol = "tcp://127.0.0.1:2"\nhttp = "127.0.0.1:3"\n')
    monkeypatch.setenv("STREAMDET_ENDPOINTS__AUDIO", "tcp://127.0.0.1:4")
    monkeypatch.setenv("STREAMDET_ENDPOINTS__CONTROL", "tcp://127.0.0.1:5")
    found = config.load(file, {"endpoints.audio": "tcp://127.0.0.1:6"}).endpoints
    assert (found.audio, found.control, found.http) == ("tcp://127.0.0.1:6", "tcp://127.0.0.1:5", "127.0.0.1:3")
    assert found.verdicts == config.Endpoints().verdicts


def test_lists_in_the_environment_are_commas_or_json(monkeypatch):
    for text in ("tcp://127.0.0.1:1, unix:/run/x.sock", '["tcp://127.0.0.1:1", "unix:/run/x.sock"]'):
        monkeypatch.setenv("STREAMDET_ENDPOINTS__PCM", text)
        assert config.load().endpoints.pcm == ("tcp://127.0.0.1:1", "unix:/run/x.sock")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[endpoints]\naudoi = 1\n", r"endpoints\.audoi: unknown key, did you mean endpoints\.audio\?"),
        ("[endpoint]\n", r"endpoint: unknown key, did you mean endpoints\?"),
        ("[xyzzy]\n", r"xyzzy: unknown key, expected one of bundle, endpoints"),
        ("[pcm]\nrate = 8001\n", r"pcm\.rate: 8001, expected one of 8000"),
        ("[pcm]\nencoding = 'mp3'\n", r"pcm\.encoding: 'mp3', expected 's16le'"),
        ("[scoring]\nthreads = -1\n", r"scoring\.threads: -1, expected greater than or equal to 0"),
        ("[decision]\nprior_spoof = 1.0\n", r"decision\.prior_spoof: 1\.0, expected less than 1"),
        ("scoring = 3\n", r"scoring: 3, expected"),
        ("[scoring\n", r"config file .*: .*line 1"),
        ("[pcm]\nrate = " + "9" * 5000, r"config file .*: .*5000 digits"),
        ("[scoring]\nthreads = 0x" + "f" * 5000, r"scoring\.threads: a int too large to show, expected"),
        ("a = " + "[" * 5000, r"config file .*: maximum recursion depth"),
        ('"a\\nb" = 1\n', r"^a\\nb: unknown key"),
        (f"# {'x' * config.FILE_MAX_BYTES}", r"config file: '.*', expected at most 1048576 bytes"),
    ],
)
def test_mistakes_name_the_key_the_value_and_what_was_expected(tmp_path, text, message):
    file = tmp_path / "streamdet.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(file)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 78


def test_unknown_environment_variables_are_mistakes_too(monkeypatch):
    monkeypatch.setenv("STREAMDET_SCORING__THREAD", "2")
    with pytest.raises(ConfigError, match=r"did you mean scoring\.threads"):
        config.load()


@pytest.mark.parametrize("text", ["[" * 100_000, f"[{'9' * 5000}]", "[1,"])
def test_a_list_that_is_none_is_told(text):
    with pytest.raises(ConfigError, match=r"endpoints\.pcm: '\[.*, expected a JSON list") as caught:
        config.load(None, {"endpoints.pcm": text})
    assert "\n" not in str(caught.value)


def test_a_flag_without_a_section_is_refused():
    with pytest.raises(ConfigError, match=r"--set: 'threads', expected section\.key=value"):
        config.load(None, {"threads": "2"})


def test_missing_file_is_missing(tmp_path):
    with pytest.raises(MissingError, match="a file that exists"):
        config.load(tmp_path / "nothing.toml")


def test_sample_names_every_key_and_uncommented_is_the_default():
    text = config.sample()
    for setting in config.settings():
        assert f"# {setting.name.partition('.')[2]} = " in text
        assert setting.help
    lines = [line.removeprefix("# ") for line in text.splitlines() if " = " in line or line.startswith("[")]
    tree = tomllib.loads("\n".join(line for line in lines if "(not set)" not in line))
    assert config.Config.model_validate(tree) == config.Config()


def test_the_tree_is_frozen():
    with pytest.raises(Exception, match="frozen"):
        config.load().pcm.rate = 16000
