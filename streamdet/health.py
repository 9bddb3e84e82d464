"""How the daemon is: what `streamdet status`, `top` and `doctor` ask for, in one object."""

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from streamdet import logs, process
from streamdet.engine import Engine
from streamdet.metrics import Metrics
from streamdet.records import Heartbeat
from streamdet.scorer import Scorer

# What "now" means for batches and load: long enough to have some of a quiet daemon's, short enough to follow a change.
RECENT_S: Final = 10.0


class Run(msgspec.Struct, frozen=True):
    """One batch."""

    ended_at_s: float
    """Monotonic (s)."""
    windows: int
    seconds: float


class Health:
    """Keeps what nobody else remembers, and reports it with the rest."""

    def __init__(self, metrics: Metrics, streams_max: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin; what is counted goes on to `metrics`."""
        self._metrics: Final = metrics
        self._clock: Final = clock
        self._began_s: Final = clock()
        self._runs: deque[Run] = deque()
        self._scorer: Scorer | None = None
        self._warm_up_ms: Mapping[int, float] = {}
        self._beat: Heartbeat | None = None
        self._late_s: deque[float] = deque(maxlen=int(RECENT_S))
        self._reload: dict[str, Any] | None = None
        self.limited(streams_max)

    def limited(self, streams_max: int) -> None:
        """Take how many streams may be open."""
        self._streams_max = streams_max
        self._metrics.limited(streams_max)

    def loaded(self, scorer: Scorer, warm_up_ms: Mapping[int, float]) -> None:
        """Take what scores from here on."""
        self._scorer, self._warm_up_ms = scorer, warm_up_ms
        self._metrics.loaded(scorer.manifest.model_id, scorer.provider)

    def reloaded(self, error: str | None = None) -> None:
        """Take the outcome of a reload; None is a good one."""
        self._reload = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "ok": error is None, "error": error}
        self._metrics.reloaded(ok=error is None)

    def scored(self, windows: int, seconds: float) -> None:
        """Take a batch and the seconds that it took."""
        self._metrics.scored(windows, seconds)
        self._runs.append(Run(self._clock(), windows, seconds))
        self._forget()

    def beat(self, heartbeat: Heartbeat, late_s: float) -> None:
        """Take what was just published, and by how much the loop was late with it."""
        self._beat = heartbeat
        self._late_s.append(late_s)
        self._metrics.late(late_s)

    def report(self, engine: Engine, *, ready: bool) -> dict[str, Any]:
        """Say how it is; docs/wire.md has every field."""
        self._forget()
        scorer, beat = self._scorer, self._beat
        return {
            "ready": ready,
            "version": process.versions()["version"],
            "pid": os.getpid(),
            "epoch": beat.epoch if beat else None,
            "uptime_s": round(self._clock() - self._began_s, 1),
            "provider": scorer.provider if scorer else None,
            "runs": scorer.runs if scorer else 0,
            "run_threads": scorer.run_threads if scorer else 0,
            "warm_up_ms": {str(size): round(ms, 2) for size, ms in self._warm_up_ms.items()},
            "streams_max": self._streams_max,
            "lag_ms_p99": beat.lag_ms_p99 if beat else None,
            "overload": bool(beat and beat.overload),
            **self._scoring(),
            "loop_late_ms": round(1e3 * max(self._late_s, default=0.0), 1),
            "refused": dict(self._metrics.refusals),
            "reload": self._reload,
            "rss_bytes": process.resident_bytes(),
            "fds": process.open_fds(),
            "fds_max": int(min(process.max_fds(), 2**53)),
            "cpu_s": round(process.cpu_s(), 2),
            "log_lines_lost": sum(logs.LOST.values()),
            "pending": engine.counts().pending,
        }

    def _scoring(self) -> dict[str, float | int | None]:
        """Batches of the last RECENT_S, and the share of the time that all runs together were busy."""
        runs, elapsed_s = self._runs, min(RECENT_S, max(1.0, self._clock() - self._began_s))
        at_once = self._scorer.runs if self._scorer else 1
        return {
            "batches": len(runs),
            "batch_windows_mean": round(sum(run.windows for run in runs) / len(runs), 2) if runs else None,
            "batch_windows_max": max((run.windows for run in runs), default=None),
            "batch_ms_mean": round(1e3 * sum(run.seconds for run in runs) / len(runs), 2) if runs else None,
            "load": round(min(1.0, sum(run.seconds for run in runs) / (elapsed_s * at_once)), 3),
        }

    def _forget(self) -> None:
        while self._runs and self._clock() - self._runs[0].ended_at_s > RECENT_S:
            self._runs.popleft()
