"""How every onnxruntime session here is opened: threads that do not spin, and weights from bytes that were verified."""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime as ort

from streamdet.errors import BundleError


def settings(threads: int, external: Mapping[str, bytes] | None = None) -> ort.SessionOptions:
    """Return the settings of a session.

    Args:
        threads: of a run on the CPU.
        external: file name -> content of the weights that lie beside the graph. onnxruntime keeps no reference: the
            caller keeps them until the session is open, which copies them.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # warnings about CPU placement of shape nodes are no news to anybody
    # A spinning pool takes whole cores from the calls' own work between runs: 103 % against 4 % of a CPU, measured.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A graph may name files beside it. Of one from bytes onnxruntime would look for them in the working directory, and
    # run what nobody has verified. Nothing can lie in this folder, so only what is handed over below is found.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    if external:
        # External data must come from the bytes that were hashed too, not from the disk a second time.
        names, buffers = list(external), list(external.values())
        options.add_external_initializers_from_files_in_memory(names, buffers, [len(part) for part in buffers])
    return options


def load(
    field: str, file: str, graph: bytes, options: ort.SessionOptions, providers: Sequence[Any]
) -> ort.InferenceSession:
    """Open a session on the graph of `file`.

    Raises:
        BundleError: onnxruntime cannot load it; `field` is the manifest's that names the file.
    """
    try:
        return ort.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # onnxruntime raises a class of its own for each status code, with no common base
        first_line = str(error).strip().partition("\n")[0]
        raise BundleError.of(field, file, f"a model that loads ({first_line})") from error


def find_libraries() -> None:
    """Load NVIDIA's libraries from the packages that the extra `cuda` brings, where the system's loader does not look.

    Without it a machine that has them as packages alone would be told that onnxruntime fell back to the CPU.
    """
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it misses, and stdout is for data
        ort.preload_dlls()
