"""Files: who may read and change them; the bundle: what it is and how fast."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from streamdet import bundle, keys
from streamdet.doctor.finding import Finding, Machine, fail, ok, warn
from streamdet.errors import ConfigError, MissingError, StreamdetError
from streamdet.scorer import Scorer
from streamdet.signature import SIGNATURE

# Of what a machine carries at its limit, as docs/sizing.md has it: the rest is room for bursts.
UTILISATION: Final = 0.7


def permissions(machine: Machine) -> Iterator[Finding]:
    """Secrets are for their owner alone; what the daemon believes is not for everybody to change."""
    security = machine.config.security
    for secret in (security.server_key, security.tls_key):
        if secret is not None:
            yield _secret(secret)
    for name, path in (
        ("config file", machine.config_file),
        ("clients file", security.clients),
        ("certificate", security.tls_cert),
        ("bundle", machine.config.bundle.path),
    ):
        if path is not None:
            yield _guarded(name, path)


def model(machine: Machine) -> Iterator[Finding]:
    """Is every file what the manifest says, does it run where it shall, and how many calls is that?"""
    settings = machine.config
    try:
        loaded = bundle.chosen(settings.bundle)
        scorer = Scorer.of(loaded, settings.scoring, at_once=True)
        taken_ms = scorer.warm_up()
    except StreamdetError as error:
        yield fail("model", str(error), f"streamdet check says the same; {_mend(error)}")
        return
    manifest = loaded.manifest
    size, ms = max(taken_ms.items(), key=lambda item: item[0] / max(item[1], 1e-3))
    hop_ms = 1e3 * manifest.audio.hop_s
    calls = int(UTILISATION * scorer.runs * size * hop_ms / max(ms, 1e-3))
    what = f"{manifest.model_id} on {scorer.provider}: {ms / size:.1f} ms a hop, about {calls} calls"
    faster = "a smaller bundle, int8, or a GPU: docs/sizing.md"
    if calls < 1:
        yield fail("model", f"{what}: one call is more than this machine can score", faster)
    elif "streams.max_streams" in machine.changed and calls < settings.streams.max_streams:
        mend = f"set streams.max_streams to {calls}, or take {faster}"
        yield warn("model", f"{what}, but streams.max_streams is {settings.streams.max_streams}", mend)
    else:
        yield ok("model", what)


def _mend(error: StreamdetError) -> str:
    """What helps against a model that cannot be served."""
    if isinstance(error, MissingError):
        return "install what it names"
    if any(word in str(error) for word in ("signature", "signed_by", SIGNATURE)):
        return "sign the bundle (streamdet sign), or set bundle.signed_by to the key of whoever did"
    if isinstance(error, ConfigError):
        return "change that setting"
    return "put the bundle back as it was exported"


def _secret(path: Path) -> Finding:
    try:
        keys.check_private(path)
    except StreamdetError as error:
        return fail("permissions", str(error), f"chmod 600 {path}")
    except OSError as error:
        return fail("permissions", f"{path}: {error.strerror}", "run doctor as root, or as the daemon does")
    return ok("permissions", f"{path} is its owner's alone")


def _guarded(name: str, path: Path) -> Finding:
    try:
        mode = path.stat().st_mode
        if path.is_dir():
            list(path.iterdir())
        else:
            path.open("rb").close()
    except OSError as error:
        mend = f"put it there, or chmod a+rX {path}"
        return fail("permissions", f"{name} {path}: {error.strerror}", mend)
    if mode & stat.S_IWOTH:
        return fail("permissions", f"{name} {path}: everybody may change it", f"chmod o-w {path}")
    if mode & stat.S_IWGRP:
        return warn("permissions", f"{name} {path}: its group may change it", f"chmod g-w {path}")
    return ok("permissions", f"{name} {path}")
