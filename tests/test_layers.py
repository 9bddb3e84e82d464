"""Imports point one way: core <- engine <- edges <- daemon <- cli, and the daemon's packages never see torch.

The rules are docs/architecture.md's table. They are checked on the source text, so an import inside a function counts,
and so does one that never runs.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = {
    "streamdet": ROOT / "streamdet",
    "streamdet_training": ROOT / "training" / "streamdet_training",
    "streamdet_export": ROOT / "export" / "streamdet_export",
}

# Lowest first. A module may import its own layer and those before it.
CORE = {
    "errors",
    "records",
    "config",
    "bundle",
    "signature",
    "starter",
    "audio",
    "blocks",
    "lists",
    "ring",
    "speech",
    "verdict",
    "track",
    "window",
    "wire",
}
LAYERS = {
    "core": {"", *CORE},
    "engine": {"engine", "line", "stream", "providers", "sessions", "scorer", "head", "replay"},
    "edges": {
        "pseudonyms",
        "ear",
        "activation",
        "acceptor",
        "doors",
        "tls",
        "tokens",
        "http",
        "keys",
        "addresses",
        "connections",
        "sockets",
        "guard",
        "ingest",
        "publish",
        "control",
        "metrics",
        "logs",
        "process",
    },
    "daemon": {"daemon", "foreground", "pump", "reload", "scoring", "watch", "notify", "secrecy", "health"},
    "bench": {"bench"},
    "doctor": {"doctor"},
    "cli": {"cli", "__main__"},
}
ORDER = list(LAYERS)

# What the extras may use of the daemon: evaluation and export run its own path, their benches measure alike.
OPEN_TO_EXTRAS = LAYERS["core"] | LAYERS["engine"] | LAYERS["bench"]

THREADS = {"asyncio", "concurrent", "contextvars", "multiprocessing", "queue", "signal", "threading"}
CLOCKS = {"datetime", "sched", "time"}
SOCKETS = {"http", "select", "selectors", "socket", "socketserver", "ssl", "starlette", "uvicorn", "uvloop", "zmq"}
FILES = {"fileinput", "glob", "io", "mmap", "os", "pathlib", "shutil", "soundfile", "subprocess", "tempfile"}
# The scorer with its head, and the bench that holds a model against the machine.
RUN_MODELS = {"streamdet.sessions", "streamdet.scorer", "streamdet.head", "streamdet.bench.roofline"}
READ_THEIR_OWN_FILES = {"streamdet.config", "streamdet.bundle", "streamdet.signature", "streamdet.audio"}
SETS_A_VARIABLE = {"streamdet"}

# Where the import has another name than the distribution.
IMPORT_NAMES = {"onnxruntime_gpu": "onnxruntime", "pyworld_prebuilt": "pyworld", "pyzmq": "zmq"}


def imports(tree: ast.Module, known: Mapping[str, object]) -> Iterator[str]:
    """Yield the dotted name of everything that `tree` imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                # `from streamdet import ring` names a module, `from streamdet.ring import Ring` something in one.
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"importlib.import_module", "__import__"}:
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def part_of(module: str) -> str:
    """`streamdet.wire.frames` -> `wire`, `streamdet` -> the empty string."""
    return module.partition(".")[2].partition(".")[0]


def layer_of(module: str) -> str | None:
    return next((layer for layer, parts in LAYERS.items() if part_of(module) in parts), None)


def distributions(extra: str | None = None) -> set[str]:
    """Import names of the base dependencies, or of one extra."""
    project = PYPROJECT["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    names = {re.split(r"[\[<>=;! ]", line)[0].replace("-", "_") for line in lines}
    return {IMPORT_NAMES.get(name, name) for name in names} - {"streamdet"}


BASE = distributions()
ALLOWED_FROM_OUTSIDE = {
    "streamdet": BASE,
    "streamdet_training": BASE | distributions("training"),
    "streamdet_export": BASE | distributions("training") | distributions("export"),
}


def allowed_from_outside(module: str) -> set[str]:
    """Third parties that a module may import; benches and signatures have an extra of their own."""
    own = distributions("bench") if layer_of(module) == "bench" else set()
    if module == "streamdet.signature":
        own |= distributions("signing")
    return ALLOWED_FROM_OUTSIDE[module.split(".")[0]] | own


def complaints(modules: Mapping[str, ast.Module]) -> list[str]:
    """Check every import of every module; one line for each that breaks a rule."""
    return [
        f"{module} imports {name}: {why}"
        for module, tree in modules.items()
        for name in imports(tree, modules)
        for why in rules_broken(module, name)
    ]


def rules_broken(module: str, name: str) -> Iterator[str]:
    package, target = module.split(".")[0], name.split(".")[0]
    if name.startswith("."):
        yield "imports are absolute here"
    elif target in PACKAGES:
        yield from wrong_direction(module, name)
    elif target not in sys.stdlib_module_names | allowed_from_outside(module):
        yield f"no dependency that {package} declares"
    if target == "onnxruntime" and package != "streamdet_export" and module not in RUN_MODELS:
        yield "streamdet/scorer.py alone runs the model"
    if package == "streamdet":
        yield from not_in_this_layer(module, target)


def wrong_direction(module: str, name: str) -> Iterator[str]:
    package, target = module.split(".")[0], name.split(".")[0]
    if package == "streamdet":
        own, other = layer_of(module), layer_of(name)
        if target != "streamdet":
            yield "the daemon never imports an extra"
        elif own is None:
            yield "this module stands in no layer; add it to LAYERS and to docs/architecture.md"
        elif other is None or ORDER.index(other) > ORDER.index(own):
            yield f"{own} may not import {other}"
    elif target == "streamdet" and part_of(name) not in OPEN_TO_EXTRAS:
        yield "the extras may import core, engine, scorer and replay"
    elif package == "streamdet_training" and target == "streamdet_export":
        yield "training does not know export"


def not_in_this_layer(module: str, target: str) -> Iterator[str]:
    layer = layer_of(module)
    if layer == "core" and target in THREADS | CLOCKS | SOCKETS | {"logging"}:
        yield "core has no threads, clock, logging or sockets"
    if layer == "core" and target in FILES and module not in READ_THEIR_OWN_FILES | SETS_A_VARIABLE:
        yield "core does no I/O but config, bundle and audio reading their own files"
    if layer == "engine" and target in SOCKETS:
        yield "the engine knows no sockets"
    if module in {"streamdet.engine", "streamdet.replay"} and target in THREADS | CLOCKS:
        yield "the engine is synchronous and gets its time from outside"


def sources() -> dict[str, ast.Module]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text("utf-8"), str(path))
    return found


def test_the_walk_sees_the_whole_tree():
    found = sources()
    assert {"streamdet.engine", "streamdet.scorer", "streamdet.errors"} <= found.keys()
    assert len(found) >= 15


def test_every_module_of_the_daemon_stands_in_a_layer():
    assert [module for module in sources() if module.startswith("streamdet.") and layer_of(module) is None] == []


def test_imports_point_one_way():
    assert complaints(sources()) == []


def test_core_opens_no_file_by_itself():
    """`open` needs no import, so it is looked for by name."""
    guilty = [
        f"{module}:{node.lineno}"
        for module, tree in sources().items()
        if layer_of(module) == "core" and module.startswith("streamdet") and module not in READ_THEIR_OWN_FILES
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open"
    ]
    assert guilty == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("streamdet.ring", "from streamdet.engine import Engine", "core may not import engine"),
        ("streamdet.engine", "from streamdet import publish", "engine may not import edges"),
        ("streamdet.publish", "def f():\n    import streamdet.daemon", "edges may not import daemon"),
        ("streamdet.daemon", "from streamdet.cli.app import main", "daemon may not import cli"),
        ("streamdet.ingest.tcp", "from ..cli import main", "imports are absolute"),
        ("streamdet.novelty", "from streamdet import errors", "stands in no layer"),
        ("streamdet.ring", "import threading", "no threads"),
        ("streamdet.wire.frames", "from time import monotonic", "no threads, clock"),
        ("streamdet.verdict", "import logging", "logging"),
        ("streamdet.track", "import zmq", "sockets"),
        ("streamdet.speech", "from pathlib import Path", "does no I/O"),
        ("streamdet.engine", "import time", "gets its time from outside"),
        ("streamdet.engine", "import asyncio", "gets its time from outside"),
        ("streamdet.scorer", "import zmq", "knows no sockets"),
        ("streamdet.engine", "import onnxruntime as ort", "scorer.py alone"),
        ("streamdet_training.evaluate", "import onnxruntime", "scorer.py alone"),
        ("streamdet.cli.train", "import importlib\nimportlib.import_module('torch')", "no dependency"),
        ("streamdet.scorer", "import torch.nn", "no dependency that streamdet declares"),
        ("streamdet.cli.export", "import streamdet_export.cli", "never imports an extra"),
        ("streamdet_training.train", "import onnxscript", "no dependency that streamdet_training declares"),
        ("streamdet_training.train", "from streamdet_export import merge", "training does not know export"),
        ("streamdet_export.bundle", "from streamdet.daemon import Daemon", "the extras may import core"),
    ],
)
def test_a_module_that_breaks_a_rule_is_caught(module: str, source: str, complaint: str):
    """The negative control: the real tree plus one made-up module."""
    found = complaints(sources() | {"streamdet.cli.app": ast.parse(""), module: ast.parse(source)})
    assert any(line.startswith(f"{module} imports ") and complaint in line for line in found), found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("streamdet.daemon", "import asyncio, time, logging\nfrom streamdet import engine, ingest"),
        ("streamdet.config", "import os\nfrom pathlib import Path"),
        ("streamdet_export.gate", "import torch, onnx\nfrom streamdet.scorer import Scorer\nimport streamdet_training"),
    ],
)
def test_a_module_that_keeps_the_rules_is_not(module: str, source: str):
    assert [line for line in complaints(sources() | {module: ast.parse(source)}) if line.startswith(module)] == []


# Imports all modules named on the command line while every package of the extras is out of reach, and prints the
# packages of the extras that somebody asked for all the same.
IMPORT_ALL = """
import importlib, sys
extras, modules = (arg.split(",") for arg in sys.argv[1:])
asked = set()
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in extras:
            asked.add(name)
            raise ModuleNotFoundError(f"{name} is not in the base install", name=name)
sys.meta_path.insert(0, Blocked())
for module in modules:
    importlib.import_module(module)
print(*sorted(asked | (set(extras) & sys.modules.keys())))
"""


def import_all(modules: list[str]) -> subprocess.CompletedProcess[str]:
    extras = (distributions("training") | distributions("export")) - BASE
    assert "torch" in extras
    command = [sys.executable, "-c", IMPORT_ALL, ",".join(extras | {"streamdet_training", "streamdet_export"})]
    return subprocess.run([*command, ",".join(modules)], capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_base_install_imports_no_torch():
    modules = [
        module for module in sources() if module.split(".")[0] == "streamdet" and not module.endswith("__main__")
    ]
    done = import_all(modules)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_an_import_of_torch_would_be_noticed():
    assert import_all(["torch"]).returncode != 0
