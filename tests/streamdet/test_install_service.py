"""`streamdet install-service`: what it writes, what it leaves alone, and what it refuses."""

import os
import stat
import tomllib
from pathlib import Path

import pytest
import typer.testing

from streamdet import config
from streamdet.cli import application
from streamdet.cli import install_service as units
from streamdet.errors import UsageError

PROGRAM = "/opt/voice/bin/streamdet"
SERVICE = "usr/lib/systemd/system/streamdet.service"


def install(root: Path, *options: str) -> list[str]:
    """Lay out below a root; the lines that it prints."""
    asked = ["install-service", "--root", str(root), "--program", PROGRAM, *options]
    done = typer.testing.CliRunner().invoke(application(), asked)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text("utf-8") for path in root.rglob("*") if path.is_file()}


def dropins(root: Path) -> set[str]:
    return {path.stem for path in root.rglob("streamdet.service.d/*.conf")} - {"backoff"}


def test_it_lays_out_units_and_settings(tmp_path):
    lines = install(tmp_path)
    found = tree(tmp_path)
    sockets = {f"usr/lib/systemd/system/streamdet-{name}.socket" for name in units.UNIX_ENDPOINTS}
    assert {SERVICE, "etc/streamdet/streamdet.toml", *sockets} <= found.keys()
    assert f"ExecStart={PROGRAM} run" in found[SERVICE]
    assert {line.split()[1] for line in lines} == {str(tmp_path / path) for path in found}
    assert {line.split()[0] for line in lines} == {"new"}
    assert config.validated(config.Config, tomllib.loads(found["etc/streamdet/streamdet.toml"])) == config.Config()


def test_doing_it_again_changes_nothing(tmp_path):
    install(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {line.split()[0] for line in install(tmp_path)} == {"kept"}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_settings_that_are_there_are_not_touched_and_units_are(tmp_path):
    install(tmp_path)
    for name in ("etc/streamdet/streamdet.toml", SERVICE):
        (tmp_path / name).write_text("# mine\n", "utf-8")
    lines = install(tmp_path)
    assert (tmp_path / "etc/streamdet/streamdet.toml").read_text("utf-8") == "# mine\n"
    assert f"changed  {tmp_path / SERVICE}" in lines
    assert f"ExecStart={PROGRAM} run" in (tmp_path / SERVICE).read_text("utf-8")


def test_another_choice_takes_the_first_ones_drop_ins_away(tmp_path):
    install(tmp_path, "--gpu", "--unix")
    assert dropins(tmp_path) == {"gpu", "unix"}
    assert (tmp_path / "etc/modules-load.d/streamdet.conf").is_file()
    install(tmp_path, "--cpu")
    assert dropins(tmp_path) == {"cpu"}
    assert list(tmp_path.rglob("*.socket.d")) == []
    assert not (tmp_path / "etc/modules-load.d/streamdet.conf").exists()


def test_a_dry_run_says_the_same_and_does_nothing(tmp_path):
    said = install(tmp_path, "--gpu", "--dry-run")
    assert tree(tmp_path) == {}
    assert install(tmp_path, "--gpu") == said
    assert any(line.startswith("removed ") for line in install(tmp_path, "--cpu", "--dry-run"))
    assert dropins(tmp_path) == {"gpu"}


def test_remove_leaves_settings_and_what_others_put_there(tmp_path):
    install(tmp_path, "--unix")
    mine = tmp_path / "usr/lib/systemd/system/streamdet.service.d/mine.conf"
    mine.write_text("[Service]\nMemoryMax=1G\n", "utf-8")
    wants = tmp_path / "etc/systemd/system/sockets.target.wants"
    wants.mkdir(parents=True)
    (wants / "streamdet-pcm.socket").symlink_to("/usr/lib/systemd/system/streamdet-pcm.socket")
    (wants / "other.socket").symlink_to("/usr/lib/systemd/system/other.socket")
    install(tmp_path, "--remove")
    assert tree(tmp_path).keys() == {"etc/streamdet/streamdet.toml", str(mine.relative_to(tmp_path))}
    assert [path.name for path in wants.iterdir()] == ["other.socket"]


def test_everybody_may_read_what_it_writes_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        install(tmp_path / "package")
    finally:
        os.umask(before)
    for path in (tmp_path / "package").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


def test_unix_sockets_are_where_clients_look_for_them(tmp_path):
    """The config file, the sockets and the drop-in of the service say the same."""
    install(tmp_path, "--unix")
    tree_ = tomllib.loads((tmp_path / "etc/streamdet/streamdet.toml").read_text("utf-8"))
    endpoints = config.validated(config.Config, tree_).endpoints
    service = (tmp_path / "usr/lib/systemd/system/streamdet.service.d/unix.conf").read_text("utf-8")
    for name in units.UNIX_ENDPOINTS:
        value = getattr(endpoints, name)
        (address,) = value if isinstance(value, tuple) else (value,)
        assert f"Environment=STREAMDET_ENDPOINTS__{name.upper()}={address}\n" in service
        socket = (tmp_path / f"usr/lib/systemd/system/streamdet-{name}.socket.d/unix.conf").read_text("utf-8")
        assert f"\nListenStream=\nListenStream={address.removeprefix('ipc://').removeprefix('unix:')}\n" in socket


def test_a_unit_of_an_administrator_that_hides_one_of_ours_is_told(tmp_path):
    above = tmp_path / "etc/systemd/system/streamdet.service"
    above.parent.mkdir(parents=True)
    above.write_text("# of an earlier installation\n", "utf-8")
    assert [line for line in install(tmp_path) if line.startswith("hidden")] == [
        f"hidden   {tmp_path / SERVICE}, by {above}: delete that, unless you want it so"
    ]


@pytest.mark.parametrize("newer", [False, True])
def test_the_backoff_is_for_a_systemd_that_knows_it(tmp_path, monkeypatch, newer):
    monkeypatch.setattr(units, "newest", lambda: units.BACKOFF_SINCE if newer else units.BACKOFF_SINCE - 1)
    install(tmp_path)
    assert any(path.name == "backoff.conf" for path in tmp_path.rglob("*")) == newer


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--gpu", "--cpu"], "one of the two"),
        (["--program", "/home" + "/me/venv/bin/streamdet"], "outside /home"),
        (["--program", "/tmp/venv/bin/streamdet"], "outside /tmp"),
        (["--program", "venv/bin/streamdet"], "an absolute path"),
        (["--program", "/opt/a b/streamdet"], "an absolute path"),
        (["--program", "/opt/%h/streamdet"], "an absolute path"),
    ],
)
def test_what_would_not_start_is_refused(tmp_path, options, expected):
    with pytest.raises(UsageError, match=expected):
        install(tmp_path, *options)
    assert tree(tmp_path) == {}


def test_an_environment_whose_interpreter_is_hidden_is_refused(monkeypatch):
    monkeypatch.setattr(units.sys, "base_prefix", "/root" + "/python")
    with pytest.raises(UsageError, match="outside /root"):
        units.own_program()
    monkeypatch.setattr(units.sys, "base_prefix", "/usr")
    monkeypatch.setattr(units.sys, "prefix", "/opt/streamdet-2")
    monkeypatch.setattr(units.sys, "argv", ["/opt/streamdet/bin/streamdet", "install-service"])
    assert units.own_program() == Path("/opt/streamdet/bin/streamdet")
    monkeypatch.setattr(units.sys, "argv", ["bin/streamdet", "install-service"])
    assert units.own_program() == Path("/opt/streamdet-2/bin/streamdet")
