"""Serve from a config file until a signal: `serve.py CONFIG [SECONDS]`, where SECONDS slow each batch down."""

import sys
import time
from pathlib import Path

from streamdet import config, daemon
from streamdet.scorer import Scorer


def slow_down(seconds: float) -> None:
    score = Scorer.score

    def slowly(self, windows):
        time.sleep(seconds)
        return score(self, windows)

    Scorer.score = slowly


if __name__ == "__main__":
    if sys.argv[2:]:
        slow_down(float(sys.argv[2]))
    sys.exit(daemon.run(config.load(Path(sys.argv[1]))))
