"""streamdet: hears, live, whether a voice on a call is synthetic."""

from importlib.metadata import version

__version__ = version("streamdet")
