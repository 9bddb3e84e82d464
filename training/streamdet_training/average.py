"""Means of weights, over the last steps and over the best checkpoints: steadier than one step's, for mere copies."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
import torch

Tensors = Mapping[str, torch.Tensor]


class Average:
    """Averages weights exponentially; a decay of 0 follows them exactly."""

    def __init__(self, weights: Tensors, decay: float) -> None:
        """Start from the weights as they are."""
        self._weights = weights
        self._decay = decay
        self.steps = 0
        self.averages = copied(weights)

    @torch.no_grad()
    def update(self) -> None:
        """Take one step's weights."""
        self.steps += 1
        # Early on the decay is smaller, or the random start would stay in the average for 1 / (1 - decay) steps.
        decay = min(self._decay, self.steps / (self.steps + 10))
        for name, average in self.averages.items():
            average.lerp_(self._weights[name], 1 - decay)

    def restore(self, averages: Tensors, steps: int) -> None:
        """Go on from a checkpoint."""
        self.steps = steps
        overwrite(self.averages, averages)


class Kept(msgspec.Struct, frozen=True):
    """Weights of one checkpoint."""

    rank: tuple[float, float, int]
    """What they are ordered by: lower is better; the last is the step."""
    weights: dict[str, torch.Tensor]


class Best:
    """Keeps the weights of the best checkpoints, for their uniform mean."""

    def __init__(self, count: int) -> None:
        """Keep up to `count`."""
        self._count = count
        self.kept: list[Kept] = []

    def offer(self, rank: tuple[float, float, int], weights: Tensors) -> None:
        """Keep a copy, if it is among the best."""
        self.kept = sorted([*self.kept, Kept(rank, copied(weights))], key=lambda each: each.rank)[: self._count]

    @property
    def steps(self) -> list[int]:
        """Of the checkpoints, the best first."""
        return [each.rank[2] for each in self.kept]

    def mean(self) -> dict[str, torch.Tensor]:
        """Mean of their weights; whole numbers, which count batches, are those of the best."""
        found = copied(self.kept[0].weights)
        for name, value in found.items():
            if len(self.kept) > 1 and value.is_floating_point():
                value.copy_(torch.stack([each.weights[name] for each in self.kept]).mean(0))
        return found


def copied(weights: Tensors) -> dict[str, torch.Tensor]:
    """Copy weights to memory of their own."""
    return {name: value.detach().clone() for name, value in weights.items()}


@torch.no_grad()
def overwrite(weights: Tensors, values: Tensors) -> None:
    """Write values over the weights of the same names."""
    for name, value in values.items():
        weights[name].copy_(value)


@contextmanager
def in_place(weights: Tensors, values: Tensors) -> Iterator[None]:
    """Put values where the weights are, and these back afterwards."""
    before = copied({name: weights[name] for name in values})
    overwrite(weights, values)
    try:
        yield
    finally:
        overwrite(weights, before)
