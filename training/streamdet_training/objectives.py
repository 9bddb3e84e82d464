"""What training makes small: from CM scores and labels of a batch to one number.

With y = 1 for bona fide and 0 for spoof, w the weight of a clip's class, and softplus(x) = ln(1 + e^x). Every loss is
the mean over the batch by w, so that weights shift the balance between the classes and not the size of a step.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from streamdet_training.recipe import Loss

# Classes whose weights a loss on cosines needs (heads.CosineLayer); the others take a linear layer's score.
COSINES: Final = {"oc_softmax": 1, "am_softmax": 2}


def loss(scores: torch.Tensor, labels: torch.Tensor, how: Loss, smoothing: float = 0.0) -> torch.Tensor:
    """Loss of a batch.

    Args:
        scores: CM scores `(B,)`, higher = more bona fide.
        labels: `(B,)`, 1 = bona fide, 0 = spoof.
        how: the recipe's table.
        smoothing: of the labels; cross-entropy alone knows it.
    """
    each = EACH[how.kind](scores, labels, how, smoothing)
    weights = labels * how.bona_fide_weight + (1 - labels) * (1 - how.bona_fide_weight)
    return (weights * each).sum() / weights.sum()


def cross_entropy(scores: torch.Tensor, labels: torch.Tensor, _how: Loss, smoothing: float) -> torch.Tensor:
    """Cross-entropy of the logit s: y softplus(-s) + (1 - y) softplus(s), at y (1 - smoothing) + smoothing / 2."""
    smooth = labels * (1 - smoothing) + smoothing / 2
    return binary_cross_entropy_with_logits(scores, smooth, reduction="none")


def focal(scores: torch.Tensor, labels: torch.Tensor, how: Loss, _smoothing: float) -> torch.Tensor:
    """Focal loss (Lin et al., ICCV 2017): -(1 - p)^gamma ln p, p the probability of the true class.

    What is told well already weighs little; gamma 0 is cross-entropy.
    """
    towards = scores * (2 * labels - 1)  # the true class's logit: p = sigmoid(towards)
    return torch.sigmoid(-towards) ** how.gamma * softplus(-towards)


def one_class(scores: torch.Tensor, labels: torch.Tensor, how: Loss, _smoothing: float) -> torch.Tensor:
    """OC-Softmax (Zhang, Jiang, Duan, IEEE SPL 2021): softplus(scale (m_y - w x) (-1)^y), in their numbering of y.

    w x is the cosine to the direction of bona fide: that class is drawn above `margin_bona_fide` (theirs: 0.9), spoof
    of any kind is pushed below `margin_spoof` (0.2), and nothing asks spoof to be alike. Their scale is 20.
    """
    bona_fide = softplus(how.scale * (how.margin_bona_fide - scores))
    spoof = softplus(how.scale * (scores - how.margin_spoof))
    return labels * bona_fide + (1 - labels) * spoof


def additive_margin(scores: torch.Tensor, labels: torch.Tensor, how: Loss, _smoothing: float) -> torch.Tensor:
    """AM-Softmax (Wang et al., IEEE SPL 2018): -ln(e^(s (cos_y - m)) / (e^(s (cos_y - m)) + e^(s cos_other))).

    Of two classes that is softplus(-s (d - m)), d the difference of the cosines towards the true class.
    """
    towards = scores * (2 * labels - 1)
    return softplus(-how.scale * (towards - how.margin))


Each = Callable[[torch.Tensor, torch.Tensor, Loss, float], torch.Tensor]

EACH: Final[dict[str, Each]] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "oc_softmax": one_class,
    "am_softmax": additive_margin,
}
