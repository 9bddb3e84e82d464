"""A torch detector as the daemon's windows want a model."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import msgspec
import numpy as np
import torch
from torch import nn

from streamdet.audio import Samples
from streamdet.window import Head, Run
from streamdet_training.model import Detector, Encoder, Merger


class Listener(msgspec.Struct, frozen=True):
    """What `score_windows` asks of a model, whatever runs it."""

    run: Run
    head: Head | None = None
    """Of a block model."""


def listener(
    detector: Detector,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Listener:
    """Set a detector to evaluation, and listen through it on `device`.

    Args:
        detector: of either kind.
        device: where it is.
        autocast: mixed precision to run it in.
    """
    detector.eval()

    def runner(module: nn.Module) -> Run:
        def run(given: Samples) -> Samples:
            with torch.inference_mode(), autocast():
                made: torch.Tensor = module(torch.from_numpy(given).to(device))
            return np.asarray(made.float().cpu().numpy(), dtype=np.float32)

        return run

    if detector.blocks is None:
        return Listener(runner(detector))
    return Listener(runner(Encoder(detector)), runner(Merger(detector)))
