"""Nothing is ever unpickled: weights are safetensors or ONNX, settings TOML or JSON, messages JSON.

Checked on the source text of all three packages, so what never runs counts too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("streamdet", "export", "training") for path in sorted((ROOT / folder).rglob("*.py"))]
# Modules whose files or messages can run code when they are read.
UNPICKLERS = {"cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pandas", "pickle", "shelve", "yaml"}
# Calls that unpickle, whatever they belong to.
CALLS = {"recv_pyobj", "send_pyobj", "read_pickle", "load_pickle", "full_load", "unsafe_load"}
# `load` of these is another thing than `json.load`.
LOADERS = {"torch", "torch.jit", "np", "numpy", "pickle", "joblib", "yaml"}
# The others run what they are given.
RUNNERS = {"eval", "exec", "compile"}
# Read weights, and would take pickled ones where there are no others.
PRETRAINED = {"from_pretrained"}


def complaints(text: str) -> list[str]:
    return [f"{node.lineno}: {why}" for node in ast.walk(ast.parse(text)) for why in reasons(node)]


def reasons(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (f"import {name.name}" for name in node.names if name.name.partition(".")[0] in UNPICKLERS)
    elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNPICKLERS:
        yield f"from {node.module} import"
    elif isinstance(node, ast.Call):
        yield from called(node)


def called(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    owner, _, last = name.rpartition(".")
    if last in CALLS or (last == "load" and owner in LOADERS) or name in RUNNERS:
        yield name
    for keyword in node.keywords:
        if keyword.arg in ("allow_pickle", "weights_only", "trust_remote_code"):
            yield f"{name}({keyword.arg}=...)"
    if last in PRETRAINED and "config" not in owner.lower() and "Peft" not in owner:
        asked = [keyword for keyword in node.keywords if keyword.arg == "use_safetensors"]
        if not asked or ast.unparse(asked[0].value) != "True":
            yield f"{name} without use_safetensors=True"


def test_no_package_unpickles():
    found = {str(path.relative_to(ROOT)): complaints(path.read_text("utf-8")) for path in SOURCES}
    assert len(found) > 100
    assert {path: said for path, said in found.items() if said} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "def f():\n    import yaml.loader",
        "from joblib import load",
        "from marshal import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "read(path, allow_pickle=flag)",
        "socket.recv_pyobj()",
        "eval(text)",
        "Wav2Vec2Model.from_pretrained(name)",
        "Wav2Vec2Model.from_pretrained(name, use_safetensors=None)",
        "Wav2Vec2Model.from_pretrained(name, use_safetensors=True, trust_remote_code=True)",
    ],
)
def test_what_would_is_noticed(text):
    assert complaints(text)


@pytest.mark.parametrize(
    "text",
    ["json.load(file)", "bundle.load(path)", "re.compile(text)", "K.from_pretrained(name, use_safetensors=True)"],
)
def test_what_would_not_is_let_be(text):
    assert complaints(text) == []
