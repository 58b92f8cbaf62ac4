"""The contrastive kernel: an interaction gives scores, a target rule says what they should be.

loss = 1/2 [CE(S_i2t, Y_i2t) + CE(S_t2i, Y_t2i)]; with one-hot targets it is open_clip's ClipLoss.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .targets import Targets, smoothed


def exact(values: Tensor) -> Tensor:
    """The values in float32 at least: what is narrower is widened, float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def global_scores(pictures: Tensor, captions: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Scores picture to caption and caption to picture, each (B, B).

    pictures, captions: (B, D), unit rows. scale: one over the temperature.
    """
    scores = scale * pictures @ captions.T
    return scores, scores.T


def soft_cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """(B,) cross-entropy of each row with `targets`, whose rows sum to 1."""
    return -(targets * functional.log_softmax(scores, dim=1)).sum(1)


def believed(pictures: Tensor, captions: Tensor, share: float) -> Tensor:
    """(B,) 0 for the `share` of pairs that are least similar as yet, 1 for the others; no gradient.

    Where pairs are noisy the towers learn the true ones first, so the least similar are mostly false.
    """
    with torch.no_grad():
        cosine = (pictures.float() * captions.float()).sum(1)
        return (cosine >= torch.quantile(cosine, share)).float()


def contrastive_loss(
    pictures: Tensor,
    captions: Tensor,
    scale: Tensor,
    targets: Targets = None,
    *,
    smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """The loss of a batch, in nats, computed in float32, or in float64 where the rows are.

    pictures, captions: (B, D), unit rows. targets: None means that row i belongs to row i alone.
    smoothing: share of each target row that is spread over the whole batch.
    weight: (B,) how much each pair counts as a pair; all of them count as each other's wrong answers.
    """
    scores = global_scores(exact(pictures), exact(captions), exact(scale))
    if targets is None:
        diagonal = torch.arange(len(pictures), device=pictures.device)
        halves = [_cross_entropy(half, diagonal, smoothing) for half in scores]
    else:
        pairs = zip(scores, targets, strict=True)
        halves = [soft_cross_entropy(half, smoothed(target, smoothing)) for half, target in pairs]
    rows = (halves[0] + halves[1]) / 2
    return rows.mean() if weight is None else (rows * weight).sum() / weight.sum()


def _cross_entropy(scores: Tensor, diagonal: Tensor, smoothing: float) -> Tensor:
    return functional.cross_entropy(scores, diagonal, reduction="none", label_smoothing=smoothing)


def pair_losses(pictures: Tensor, captions: Tensor, scale: Tensor) -> Tensor:
    """(B,) the InfoNCE loss of each pair within its batch: the mean of both directions, in nats."""
    diagonal = torch.arange(len(pictures), device=pictures.device)
    halves = global_scores(exact(pictures), exact(captions), exact(scale))
    losses = [_cross_entropy(half, diagonal, 0.0) for half in halves]
    return (losses[0] + losses[1]) / 2
