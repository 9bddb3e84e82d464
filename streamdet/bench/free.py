"""`streamdet run` with a model that costs nothing: windows are cut, handed over and told of, but not looked at.

python -m streamdet.bench.free run --set ...
"""

import runpy
from collections.abc import Sequence

import numpy as np

from streamdet import window
from streamdet.bundle import Manifest
from streamdet.records import Window
from streamdet.window import Ready


def gated(windows: Sequence[Window], manifest: Manifest) -> Ready:
    """Find nothing to score in any window."""
    return Ready(np.empty((0, manifest.input_samples), np.float32), [], [0.0] * len(windows), [])


if __name__ == "__main__":
    # Before the daemon is imported: whoever makes windows ready there takes this.
    window.make_ready = gated
    runpy.run_module("streamdet", run_name="__main__")
