"""What can be made from a bona fide recording, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from streamdet.audio import Samples
from streamdet.errors import UsageError
from streamdet_training.synth import lpc, spectral, world

Vocoder = Callable[[Samples, int, np.random.Generator], Samples]
"""From `(T,)` at a rate to about as much again; all that varies from clip to clip is drawn from the generator."""

PLAIN: Final[dict[str, Vocoder]] = {
    "world": world.world,
    "griffin-lim": spectral.griffin_lim,
    "lpc": lpc.lpc,
    "phase": spectral.phase,
}
"""Those that need nothing but the clip."""

TRAINED: Final = ("gan", "istft")
"""Those that are trained on the clips first."""


def read(names: str) -> list[str]:
    """Read a list of systems, separated by commas.

    Raises:
        UsageError: one of them does not exist.
    """
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in wanted or [""]:
        if name not in (*PLAIN, *TRAINED):
            raise UsageError.of("--systems", name, f"some of {', '.join((*PLAIN, *TRAINED))}")
    return wanted


def vocoder(name: str, weights: Path, clip: str) -> Vocoder:
    """The vocoder of that name; a trained one with one of the checkpoints in `weights`, chosen by the clip's name."""
    if name in PLAIN:
        return PLAIN[name]
    from streamdet_training.synth import gan

    return gan.vocoder(gan.choose(weights, name, clip))
