"""docs/sbom.cdx.json is what a base install consists of, with the pinned versions."""

import json
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SBOM = ROOT / "docs" / "sbom.cdx.json"
# What `.ci/sbom` was run on; another machine's base install may differ by a marker.
MACHINE = {
    "python_version": "3.11",
    "python_full_version": "3.11.7",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "os_name": "posix",
    "extra": "",
}


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def base() -> set[str]:
    """The base dependencies, and theirs, and so on."""
    found = set[str]()
    waiting = list(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"])
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name not in found and (requirement.marker is None or requirement.marker.evaluate(MACHINE)):
            found.add(name)
            waiting += metadata.requires(name) or []
    return found


def sbom() -> dict[str, Any]:
    return json.loads(SBOM.read_text("utf-8"))


def complaints(document: dict[str, Any]) -> Iterator[str]:
    there = {canonicalize_name(part["name"]): part["version"] for part in document["components"]}
    pins = pinned()
    yield from (f"{name} is missing" for name in sorted(base() - there.keys()))
    yield from (f"{name} is no part of a base install" for name in sorted(there.keys() - base()))
    for name, version in there.items():
        if pins.get(name) != version:
            yield f"{name} {version}: pinned is {pins.get(name)}"


def test_it_lists_the_base_install_as_pinned():
    """After a change of dependencies or pins: `bash .ci/sbom`."""
    document = sbom()
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["component"]["name"] == "streamdet"
    assert list(complaints(document)) == []


def test_what_is_not_so_is_noticed():
    document = sbom()
    gone = document["components"].pop()
    assert list(complaints(document)) == [f"{canonicalize_name(gone['name'])} is missing"]
    document["components"].append({**gone, "version": "0.0.0"})
    assert any("0.0.0: pinned is" in said for said in complaints(document))
    document["components"][-1] = {**gone, "name": "torch"}
    assert "torch is no part of a base install" in list(complaints(document))


@pytest.mark.parametrize("what", ["timestamp", "serialNumber", "externalReferences"])
def test_it_has_nothing_that_changes_by_itself(what):
    assert what not in SBOM.read_text("utf-8")


def test_it_names_no_host():
    assert re.findall(r"\w+://[^/\"]+", SBOM.read_text("utf-8")) == []
