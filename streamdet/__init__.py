"""streamdet: hears, live, whether a voice on a call is synthetic."""

import os
from importlib.metadata import version

__version__ = version("streamdet")

# onnxruntime's wheels for Linux (1.29 and later) report sessions to their maker and keep a database in the user's
# cache, unless this is set before they are first imported. Nothing here calls home; who wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
