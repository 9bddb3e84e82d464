"""All checks, in the order in which one would look."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from streamdet import config
from streamdet.doctor import device, files, limits, network, service, software
from streamdet.doctor.finding import Check, Finding, Machine, fail

CHECKS: Final[tuple[Check, ...]] = (
    software.settings,
    software.runtime,
    device.card,
    device.processor,
    files.model,
    files.permissions,
    network.addresses,
    limits.clock,
    limits.files,
    limits.memory,
    service.unit,
    service.daemon,
)


def examine(machine: Machine) -> Iterator[Finding]:
    """Make every check; one that breaks is a finding like any other."""
    for check in CHECKS:
        try:
            yield from check(machine)
        except Exception as error:  # a doctor who faints is no help
            mend = "report this, with the line above it"
            yield fail(check.__name__, f"the check itself failed: {type(error).__name__}: {error}", mend)


def origins(file: Path | None, overrides: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Say where each setting that is not at its default comes from."""
    tree = config.read_toml(file) if file is not None else {}
    found = {}
    for setting in config.settings():
        section, _, key = setting.name.partition(".")
        variable = f"{config.ENV_PREFIX}{section}__{key}".upper()
        table = tree.get(section)
        if setting.name in overrides:
            found[setting.name] = "--set"
        elif variable in environment:
            found[setting.name] = variable
        elif isinstance(table, dict) and key in table:
            found[setting.name] = str(file)
    return found
