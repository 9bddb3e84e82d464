"""The command line: one file a command; data goes to stdout, everything else to stderr.

Commands of the extras are entry points of the group `streamdet.commands`: they are found by name, and their heavy
imports happen only when they are called.
"""

import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Final

import typer

from streamdet.cli import check, config, demo, run, score, send, status, tail, version
from streamdet.errors import MissingError, StreamdetError, UsageError

COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "run": run.run,
    "check": check.check,
    "config": config.config,
    "tail": tail.tail,
    "send": send.send,
    "score": score.score,
    "demo": demo.demo,
    "status": status.status,
    "version": version.version,
}
# What the exit codes of the command line library mean in ours.
EXIT_CODES: Final = {1: 130, 2: UsageError.exit_code}


def application() -> typer.Typer:
    """Build the command line, with whatever extras are installed."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback()(_streamdet)
    for name, command in COMMANDS.items():
        app.command(name)(command)
    for found in sorted(entry_points(group="streamdet.commands")):
        app.command(found.name)(found.load())
    return app


def main() -> None:
    """Run one command; every error that is somebody's fault becomes one line and an exit code."""
    try:
        application()()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
        sys.exit(EXIT_CODES.get(code, code))
    except StreamdetError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        _fail(_missing_extra(error))
    except BrokenPipeError:
        sys.stderr.close()  # `streamdet tail | head`: the reader has had enough, and that is no error
    except KeyboardInterrupt:
        sys.exit(130)


def _streamdet() -> None:
    """Hears, live, whether a voice on a call is synthetic."""


def _missing_extra(error: ModuleNotFoundError) -> StreamdetError:
    package = (error.name or "").partition(".")[0]
    if package in ("streamdet", "streamdet_training", "streamdet_export", ""):
        raise error  # a hole in our own package is a bug, and wants its traceback
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    extra = "export" if command == "export" else "training"
    return MissingError.of(f"streamdet {command}", package, f"an installed package: pip install 'streamdet[{extra}]'")


def _fail(error: StreamdetError) -> None:
    typer.echo(f"streamdet: {error}", err=True)
    sys.exit(error.exit_code)
