"""`streamdet bench`: one sub-command a thing that is measured, found among the entry points `streamdet.bench`.

A bench of the daemon may live here in the base package; one that needs torch lives in an extra.
"""

from importlib.metadata import entry_points

import typer


def group() -> typer.Typer:
    """Build the group, with whatever benches are installed."""
    app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure speed and memory on this machine.")
    app.callback()(_bench)
    for found in sorted(entry_points(group="streamdet.bench")):
        app.command(found.name)(found.load())
    return app


def _bench() -> None:
    """Measure speed and memory on this machine."""
