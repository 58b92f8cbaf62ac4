"""The loss of each pair within its batch, as a score."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .objectives.contrast import exact


def pair_losses(pictures: Tensor, captions: Tensor, scale: Tensor) -> Tensor:
    """(B,) the InfoNCE loss of each pair within its batch: the mean of both directions, in nats.

    pictures, captions: (B, D), unit rows. scale: one over the temperature.
    """
    scores = exact(scale) * exact(pictures) @ exact(captions).T
    diagonal = torch.arange(len(scores), device=scores.device)
    halves = [functional.cross_entropy(half, diagonal, reduction="none") for half in (scores, scores.T)]
    return (halves[0] + halves[1]) / 2
