"""Serve from a config file until a signal: `serve.py CONFIG [SECONDS]`, where SECONDS slow each window down."""

import functools
import sys
import time
from pathlib import Path

from streamdet import config, foreground, pump


def slow_down(seconds: float) -> None:
    make_ready = pump.make_ready

    def slowly(windows, manifest):
        time.sleep(seconds)
        return make_ready(windows, manifest)

    pump.make_ready = slowly


if __name__ == "__main__":
    if sys.argv[2:]:
        slow_down(float(sys.argv[2]))
    read = functools.partial(config.load, Path(sys.argv[1]))
    sys.exit(foreground.run(read(), read))
