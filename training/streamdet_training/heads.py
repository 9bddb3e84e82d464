"""From feature frames to one score. A head is a small class and a line in HEADS.

Shapes: B windows, F feature frames of width D. No head keeps running statistics: averages of weights, which training
takes, would not fit them.
"""

from collections.abc import Sequence
from typing import Any, Final, cast

import torch
from torch import nn
from torch.nn.functional import layer_norm, normalize

from streamdet.errors import ConfigError
from streamdet_training.recipe import Head

# Nes2Net splits channels in eight, outside and within.
NESTED: Final = 8
# Beside a square root's pole the gradient is endless: a floor keeps constant features from it.
LEAST_SPREAD: Final = 1e-6
# Those whose pooling is a ratio of sums over frames, which blocks can be merged by.
BLOCKWISE: Final = ("pool", "mean")


class ScoringHead(nn.Module):
    """What heads share: the sum over layers before them, and the last layer."""

    def __init__(self, head: Head, pooled: int, *, states: int = 0, classes: int = 0) -> None:
        """Begin a head.

        Args:
            head: the recipe's table.
            pooled: width of what `pool` gives.
            states: hidden states to take a weighted sum of; 0 takes the last as it is.
            classes: of a loss on the cosine between embedding and class weights; 0 ends in a plain linear layer.
        """
        super().__init__()
        self.layer_sum = LayerSum(states) if states else None
        self.dropout = nn.Dropout(head.dropout)
        self.linear: nn.Module = CosineLayer(pooled, head.hidden, classes) if classes else nn.Linear(pooled, 1)

    def forward(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """`(B, F, D)`, one or as many as there are to sum over, to `(B,)`."""
        return self.score(self.pool(self.features(states)))

    def features(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """The states' sum over layers, or the last of them: `(B, F, D)`."""
        return states[-1] if self.layer_sum is None else self.layer_sum(states)

    def score(self, pooled: torch.Tensor) -> torch.Tensor:
        """`(B, pooled)` to `(B,)`."""
        score: torch.Tensor = self.linear(self.dropout(pooled))[:, 0]
        return score

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """`(B, F, D)` to `(B, pooled)`."""
        raise NotImplementedError

    # Heads that pool by a ratio of sums over frames can hear a window block by block, and add the sums up afterwards.

    def sums(self, features: torch.Tensor) -> torch.Tensor:
        """Pooling sums of blocks `(B, F, D)`: `(B, 2 + 2 D)`, as docs/bundle.md has them."""
        logits = self.logits(features)  # (B, F, 1)
        largest = logits.amax(1, keepdim=True)
        weights = (logits - largest).exp()
        moments = [(weights * features).sum(1), (weights * features.square()).sum(1)]
        return torch.cat([largest[:, 0], weights.sum(1), *moments], 1)

    def merge(self, sums: torch.Tensor) -> torch.Tensor:
        """From the sums of N blocks `(B, N, 2 + 2 D)` to what `pool` gives of all their frames: `(B, pooled)`."""
        raise NotImplementedError

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logarithm of each frame's weight, but for what all frames share: `(B, F, D)` to `(B, F, 1)`."""
        raise NotImplementedError


class LayerSum(nn.Module):
    """A weighted sum over the hidden states of all layers, as SUPERB has it (Yang et al., Interspeech 2021).

    Each state is first brought to zero mean and unit variance in every frame: in a network that normalises before its
    layers the residual stream grows from layer to layer, and the weights would speak of its size, not of its use.
    """

    def __init__(self, states: int) -> None:
        """Begin with equal weights."""
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(states))

    def forward(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """States `(B, F, D)`, the input of the first layer before the layers' outputs, to `(B, F, D)`."""
        stacked = torch.stack([layer_norm(state, state.shape[-1:]) for state in states])
        return (self.weights.softmax(0)[:, None, None, None] * stacked).sum(0)


class CosineLayer(nn.Module):
    """An embedding, and the cosine of its angle to the weights of one class or two.

    One class (bona fide): its cosine, in [-1, 1]. Two: the difference of theirs, in [-2, 2]. Both are one linear
    function of the normalised embedding. The embedding is a layer of its own: what is pooled holds deviations, which
    are never negative, so its own angles would be narrow.
    """

    def __init__(self, pooled: int, width: int, classes: int) -> None:
        """Embed into `width`."""
        super().__init__()
        self.embedding = nn.Linear(pooled, width)
        self.weight = nn.Parameter(torch.empty(classes, width))
        nn.init.kaiming_uniform_(self.weight, 0.25)  # as OC-Softmax's authors begin

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """`(B, pooled)` to `(B, 1)`."""
        directions = normalize(self.weight, dim=1)
        towards = directions[:1] - directions[1:].sum(0, keepdim=True)  # bona fide stands first
        return normalize(self.embedding(pooled), dim=1) @ towards.T


class MeanHead(ScoringHead):
    """The mean over time and a linear layer: the least that a head can be."""

    def __init__(self, width: int, head: Head, **last: int) -> None:
        """Take frames of `width`."""
        super().__init__(head, width, **last)

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """`(B, F, D)` to `(B, D)`."""
        return features.mean(1)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Every frame weighs the same."""
        return torch.zeros_like(features[..., :1])

    def merge(self, sums: torch.Tensor) -> torch.Tensor:
        """`(B, N, 2 + 2 D)` to `(B, D)`."""
        return _merged(sums)[0]


class PoolingHead(ScoringHead):
    """Attentive statistics pooling (Okabe, Koshinaka, Shinoda, Interspeech 2018) and a linear layer."""

    def __init__(self, width: int, head: Head, **last: int) -> None:
        """Attend with `head.hidden` units over frames of `width`."""
        super().__init__(head, 2 * width, **last)
        self.attention = nn.Sequential(nn.Linear(width, head.hidden), nn.Tanh(), nn.Linear(head.hidden, 1))

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """`(B, F, D)` to `(B, 2 D)`."""
        return _statistics(features, self.logits(features).softmax(1))

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """What attention says."""
        logits: torch.Tensor = self.attention(features)
        return logits

    def merge(self, sums: torch.Tensor) -> torch.Tensor:
        """`(B, N, 2 + 2 D)` to `(B, 2 D)`."""
        mean, square = _merged(sums)
        return torch.cat([mean, (square - mean.square()).clamp_min(LEAST_SPREAD).sqrt()], 1)


class NestedHead(ScoringHead):
    """Nested Res2Net after Nes2Net-X (Liu et al., arXiv 2504.05657), slimmer: 184,000 weights at width 1024.

    The frames' channels go into eight groups without a layer that first makes them fewer. From the second group on each
    passes a small Res2 block, together with what the group before it became, by a learnt weight: every group sees more
    time and more channels than the one before. Then mean and deviation over time.
    """

    def __init__(self, width: int, head: Head, **last: int) -> None:
        """Take frames of `width`, a multiple of eight."""
        if width % NESTED:
            raise ConfigError.of("head.kind", head.kind, f"a backbone whose width, here {width}, divides by {NESTED}")
        super().__init__(head, 2 * width, **last)
        self.blocks = nn.ModuleList(Res2Block(width // NESTED) for _ in range(NESTED - 1))
        self.links = nn.Parameter(torch.ones(NESTED - 1))

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """`(B, F, D)` to `(B, 2 D)`."""
        first, *others = features.chunk(NESTED, 2)
        became = [first]
        for group, block, link in zip(others, self.blocks, self.links, strict=True):
            became.append(block(group + link * became[-1]))
        frames = torch.cat(became, 2)
        return _statistics(frames, frames.new_full((1, 1, 1), 1 / frames.shape[1]))


class Res2Block(nn.Module):
    """A Res2Net block (Gao et al., 2019) over time with squeeze and excitation, and a way around it."""

    def __init__(self, width: int) -> None:
        """Take and give `(B, F, width)`."""
        super().__init__()
        scale = NESTED if width % NESTED == 0 else 2 if width % 2 == 0 else 1
        part = width // scale
        self.scale = scale
        self.convolutions = nn.ModuleList(nn.Conv1d(part, part, 3, padding=1) for _ in range(max(1, scale - 1)))
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.squeeze = nn.Sequential(
            nn.Linear(width, max(4, width // 8)), nn.ReLU(), nn.Linear(max(4, width // 8), width), nn.Sigmoid()
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """`(B, F, width)` to the same."""
        parts = list(frames.transpose(1, 2).chunk(self.scale, 1))
        became = parts[: len(parts) - len(self.convolutions)]  # the first part stays as it is
        last: torch.Tensor | None = None
        for part, convolution in zip(parts[len(became) :], self.convolutions, strict=True):
            last = torch.relu(convolution(part if last is None else part + last))
            became.append(last)
        mixed = self.mix(torch.relu(self.norm(torch.cat(became, 1).transpose(1, 2))))
        result: torch.Tensor = frames + mixed * self.squeeze(mixed.mean(1, keepdim=True))
        return result


def _statistics(frames: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean and deviation over time of `(B, F, D)` by weights `(B, F, 1)`: `(B, 2 D)`."""
    mean = (weights * frames).sum(1)  # (B, D)
    spread = (weights * (frames - mean[:, None]).square()).sum(1)
    return torch.cat([mean, spread.clamp_min(LEAST_SPREAD).sqrt()], 1)


def _merged(sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and mean square `(B, D)` over the frames of N blocks, by their sums `(B, N, 2 + 2 D)`.

    A block's weights are relative to its own largest logit; exp(largest - largest of all) makes them comparable, and
    nothing of a block that is absent (a logit of -1e30).
    """
    largest = sums[..., :1]
    total = ((largest - largest.amax(1, keepdim=True)).exp() * sums[..., 1:]).sum(1)  # (B, 1 + 2 D)
    mean, square = (total[:, 1:] / total[:, :1]).chunk(2, 1)
    return mean, square


HEADS: Final[dict[str, Any]] = {"pool": PoolingHead, "mean": MeanHead, "nested": NestedHead}


def make(head: Head, width: int, *, states: int = 0, classes: int = 0) -> ScoringHead:
    """Make the head that a recipe names, for feature frames of `width`; the rest is ScoringHead's.

    Raises:
        ConfigError: the head cannot work at this width.
    """
    return cast("ScoringHead", HEADS[head.kind](width, head, states=states, classes=classes))
