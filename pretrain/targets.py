"""Target rules: which captions each picture of a batch should choose, as rows that sum to 1.

A rule is a pure function of the batch and gives (picture to caption, caption to picture), each (B, B).
None stands for one-hot rows on the diagonal, which the loss knows how to do without the matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ConfigError

Targets = tuple[Tensor, Tensor] | None


def one_hot(picture: Tensor, caption: Tensor) -> Targets:
    """A pair is right for itself alone."""
    return None


def same_pair(picture: Tensor, caption: Tensor) -> Targets:
    """Every pair with the same picture or the same caption is as right as the pair itself.

    picture, caption: (B,) integers; equal numbers mean equal pictures, equal captions.
    """
    alike = (picture[:, None] == picture[None, :]) | (caption[:, None] == caption[None, :])
    rows = alike.float()
    rows = rows / rows.sum(1, keepdim=True)
    return rows, rows  # `alike` is symmetrical


RULES: dict[str, Callable[[Tensor, Tensor], Targets]] = {"one_hot": one_hot, "same": same_pair}


def target_rule(name: str) -> Callable[[Tensor, Tensor], Targets]:
    """The rule of a name. Raises ConfigError for a name that no rule bears."""
    if name not in RULES:
        raise ConfigError(f"training.targets: no rule {name!r}; there are {', '.join(RULES)}")
    return RULES[name]


def smoothed(targets: Tensor, share: float) -> Tensor:
    """`share` of each row is spread evenly over all its columns."""
    return (1 - share) * targets + share / targets.shape[1]


def mixed(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """(1 - w) first + w second, row by row. weight: (B,) in [0, 1]."""
    return torch.lerp(first, second, weight[:, None])
