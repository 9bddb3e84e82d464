"""A moving average of weights: steadier than the last step's, for nothing but a copy of what is trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class Average:
    """Averages parameters exponentially; a decay of 0 follows them exactly."""

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        """Start from the parameters as they are."""
        self._parameters = parameters
        self._decay = decay
        self._steps = 0
        self._averages = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take one step's weights."""
        self._steps += 1
        # Early on the decay is smaller, or the random start would stay in the average for 1 / (1 - decay) steps.
        decay = min(self._decay, self._steps / (self._steps + 10))
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            average.lerp_(parameter, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages where the parameters are, and these back afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"averages": self._averages, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._steps = state["steps"]
        for average, kept in zip(self._averages, state["averages"], strict=True):
            average.copy_(kept)
