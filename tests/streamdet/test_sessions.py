"""Weights beside a graph come from bytes that were verified, or the model does not load."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from streamdet import sessions
from streamdet.errors import BundleError

SAMPLES = 1000
CPU = ["CPUExecutionProvider"]


def graph_with_weights_at(location: str) -> bytes:
    """A model that adds what lies at `location`."""
    weights = TensorProto(name="weights", dims=[SAMPLES], data_type=TensorProto.FLOAT)
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * SAMPLES))):
        weights.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", SAMPLES]) for name in ("audio", "score")]
    nodes = [helper.make_node("Add", ["audio", "weights"], ["score"])]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], [weights])
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def content(value: float) -> bytes:
    return np.full(SAMPLES, value, np.float32).tobytes()


def first_score(session) -> float:
    (score,) = session.run(None, {"audio": np.zeros((1, SAMPLES), np.float32)})
    return float(score[0, 0])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with files in it, above it, and linked from it."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(content(7))
    (tmp_path / "weights.bin").write_bytes(content(8))
    (folder / "link.bin").symlink_to("../weights.bin")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.usefixtures("here")
def test_weights_that_were_handed_over_are_used_and_the_disk_is_not_asked():
    weights = {"weights.bin": content(3)}
    options = sessions.settings(1, weights)
    session = sessions.load("model", "model.onnx", graph_with_weights_at("weights.bin"), options, CPU)
    assert first_score(session) == 3


LOCATIONS = """
weights.bin ./weights.bin ../weights.bin ../here/weights.bin {above}/weights.bin {above}/here/weights.bin link.bin
/dev/zero /proc/self/mem */_ORT_MEM_ADDR_/*
"""


@pytest.mark.parametrize("location", ["", *LOCATIONS.split()])
@pytest.mark.parametrize("others", [None, {"others.bin": content(3)}], ids=["alone", "beside"])
def test_weights_that_were_not_handed_over_are_not_looked_for(here, location, others):
    graph = graph_with_weights_at(location.format(above=here.parent))
    with pytest.raises(BundleError, match=r"model: 'model\.onnx', expected a model that loads"):
        sessions.load("model", "model.onnx", graph, sessions.settings(1, others), CPU)


@pytest.mark.usefixtures("here")
def test_control_left_alone_onnxruntime_runs_what_lies_in_the_working_directory():
    """Why `settings` names a folder in which nothing can lie."""
    import onnxruntime as ort

    session = ort.InferenceSession(graph_with_weights_at("weights.bin"), providers=CPU)
    assert first_score(session) == 7
