"""The command line: one file a command; data goes to stdout, everything else to stderr.

Commands of the extras are entry points of the group `streamdet.commands`: they are found by name, and their heavy
imports happen only when they are called.
"""

import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Final, cast

import typer

from streamdet.cli import (
    bench,
    check,
    config,
    control,
    demo,
    doctor,
    install_service,
    keys,
    run,
    score,
    send,
    sign,
    status,
    tail,
    top,
    version,
)
from streamdet.errors import DataError, MissingError, StreamdetError, UsageError, from_extra

COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "run": run.run,
    "check": check.check,
    "config": config.config,
    "tail": tail.tail,
    "top": top.top,
    "send": send.send,
    "score": score.score,
    "sign": sign.sign,
    "demo": demo.demo,
    "doctor": doctor.doctor,
    "status": status.status,
    "install-service": install_service.install_service,
    "control": control.control,
    "version": version.version,
}
# What the command line library raises for every misuse; it has a public name for this leaf only.
Misuse: Final = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


def application() -> typer.Typer:
    """Build the command line, with whatever extras are installed."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback()(_streamdet)
    for name, command in COMMANDS.items():
        app.command(name)(command)
    for found in sorted(entry_points(group="streamdet.commands")):
        app.command(found.name)(found.load())
    app.add_typer(bench.group(), name="bench")
    app.add_typer(keys.group(), name="keys")
    return app


def main() -> None:
    """Run one command; every error that is somebody's fault becomes one line and an exit code."""
    try:
        sys.exit(application()(standalone_mode=False))
    except SystemExit as end:
        # `streamdet tail | head`: the reader has had enough, and that is no error; the libraries make it one.
        sys.exit(0 if isinstance(end.__context__, BrokenPipeError) else end.code)
    except Misuse as error:
        _misused(error)
    except StreamdetError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        _fail(_missing_extra(error))
    except UnicodeDecodeError as error:
        _fail(DataError.of("text", error.object[error.start : error.start + 1], f"UTF-8 ({error.reason})"))
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        # Of a path that the user named: full, read-only, a file where a folder should be, a name too long.
        _fail(MissingError.of(error.filename or "file", error.strerror or str(error), "to be able to read or write it"))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)


def _streamdet() -> None:
    """Hears, live, whether a voice on a call is synthetic."""


def _misused(error: typer.BadParameter) -> None:
    text = error.format_message()
    if "\n" in text:  # no command at all: this is the help
        typer.echo(text, err=True)
        sys.exit(UsageError.exit_code)
    path = error.ctx.command_path if error.ctx else "streamdet"
    _fail(UsageError(f"{text.removesuffix('.')}; see {path} --help"))


def _missing_extra(error: ModuleNotFoundError) -> StreamdetError:
    package = (error.name or "").partition(".")[0]
    if package in ("streamdet", "streamdet_training", "streamdet_export", ""):
        raise error  # a hole in our own package is a bug, and wants its traceback
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    extra = {"export": "export", "calibrate": "calibration", "sign": "signing"}.get(command, "training")
    if command == "bench":
        command = " ".join(sys.argv[1:3])
        extra = "training" if command == "bench train" else "export"
    return MissingError.of(f"streamdet {command}", package, from_extra(extra))


def _fail(error: StreamdetError) -> None:
    try:
        typer.echo(f"streamdet: {error}", err=True)
    except OSError:
        # Nobody can read why (a full disk, a reader that left), but a service manager goes by the code; Python's own
        # end would make it 120, because stderr cannot be flushed.
        os._exit(error.exit_code)
    sys.exit(error.exit_code)
