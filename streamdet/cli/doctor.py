"""`streamdet doctor`: what is wrong with this machine, and how to mend it."""

import os
from typing import Any, Final

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from streamdet import config as settings
from streamdet.cli.options import AsJson, BundlePath, ConfigFile, IdentityFile, Settings, read_config, read_identity
from streamdet.cli.status import ask
from streamdet.errors import RefusedError, StreamdetError, UnreachableError

COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    config: ConfigFile = None,
    set_: Settings = None,
    bundle: BundlePath = None,
    json: AsJson = False,
    identity: IdentityFile = None,
) -> None:
    """Look for what is wrong with this machine, and say how to mend it; 0 if nothing fails."""
    from streamdet.doctor.examine import examine, origins  # onnxruntime takes half a second to import
    from streamdet.doctor.finding import Finding, Machine

    who = read_identity(identity)
    file = config or (settings.SYSTEM_FILE if settings.SYSTEM_FILE.is_file() else None)
    failed = 0

    def show(finding: Finding) -> None:
        nonlocal failed
        failed += finding.status == "fail"
        if json:
            typer.echo(msgspec.json.encode(finding).decode())
        else:
            _print(finding.check, finding.status, finding.why, finding.mend)

    try:
        chosen = read_config(config, set_, bundle)
    except StreamdetError as error:
        show(Finding("settings", "fail", str(error), "mend that first: nothing else can be looked at without settings"))
    else:

        def asked() -> dict[str, Any] | None:
            try:
                return ask(chosen.endpoints.control, {"op": "status"}, who) if chosen.endpoints.control else None
            except UnreachableError:
                return None

        overrides = dict.fromkeys([each.partition("=")[0] for each in set_ or []], "")
        overrides |= {} if bundle is None else {"bundle.path": ""}
        changed = origins(file, overrides, os.environ)
        for finding in examine(Machine(config=chosen, config_file=file, changed=changed, ask=asked)):
            show(finding)
    if failed:
        raise typer.Exit(RefusedError.exit_code)


def _print(check: str, status: str, why: str, mend: str) -> None:
    console = Console(soft_wrap=True)
    console.print(Text(f"{status:<5}", COLOURS[status]) + Text(f"{check:<12} {why}", "not bold default"))
    if mend:
        console.print(Text(f"{'':18}→ {mend}", style="cyan"))
