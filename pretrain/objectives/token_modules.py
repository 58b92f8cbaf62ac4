"""What a side's `then` may be: modules that make unit tokens of a tower's hidden states."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..batch import Batch
from .system import Tokens


def unit(values: Tensor) -> Tensor:
    """Rows of length 1."""
    return functional.normalize(values, dim=-1)


class TokenProjection(nn.Module):
    """Each state of the last layer becomes a token (FILIP)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim)

    def forward(self, side: Tokens, batch: Batch) -> Tokens:
        return Tokens(side.pooled, unit(self.project(side.hidden[-1])), side.hidden_mask)


class TokenReducer(nn.Module):
    """The states of a picture become `tokens` learned means of themselves (Wukong, section 3.2).

    Each token has a map over the places: softmax of a norm and two 1x1 convolutions, the first in groups. It
    lets a locked tower be aligned token by token, for the maps are learned where the states are not.
    """

    def __init__(self, width: int, dim: int, tokens: int) -> None:
        super().__init__()
        groups = math.gcd(width, 8)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Conv1d(width, width, 1, groups=groups)
        self.maps = nn.Conv1d(width, tokens, 1)
        self.values = nn.Conv1d(width, width, 1, groups=groups)
        self.project = nn.Linear(width, dim)

    def forward(self, side: Tokens, batch: Batch) -> Tokens:
        states = side.hidden[-1].transpose(1, 2)
        maps = self.maps(self.inner(self.norm(side.hidden[-1]).transpose(1, 2)))
        if side.hidden_mask is not None:
            maps = maps.masked_fill(~side.hidden_mask[:, None], -1e4)
        means = torch.softmax(maps, dim=2) @ self.values(states).transpose(1, 2)
        return Tokens(side.pooled, unit(self.project(means)))


class Bags(nn.Module):
    """Tokens of one group are added up into one (BagFormer's late fusion); others stay by themselves.

    Reads the field `group`, (B, L): 0 for what is no word. What it says of tokens beyond L is nothing.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim)

    def forward(self, side: Tokens, batch: Batch) -> Tokens:
        group = batch["group"]
        tokens = self.project(side.hidden[-1][:, : group.shape[1]])
        there = functional.one_hot(group, group.shape[1] + 1)[..., 1:].to(tokens.dtype)  # (B, L, bags)
        bags = there.transpose(1, 2) @ tokens
        mask = there.sum(1) > 0
        return Tokens(side.pooled, unit(bags), mask)
