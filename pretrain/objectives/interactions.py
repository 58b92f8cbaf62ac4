"""How pictures and captions are compared: by one row each, or token by token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .system import Tokens

ABSENT = -1e4  # stands below every cosine, and unlike -inf gives no NaN where nothing is there


@dataclass(frozen=True)
class Global:
    """The cosine of the pooled rows."""

    reads = "pooled"
    symmetric = True

    def __call__(self, queries: Tokens, keys: Tokens) -> Tensor:
        return queries.pooled @ keys.pooled.T

    def paired(self, left: Tokens, right: Tokens) -> Tensor:
        return (left.pooled * right.pooled).sum(1)


@dataclass(frozen=True)
class TokenWise:
    """Each query token takes the key token most like it; the mean of these (FILIP, section 3.1).

    tile: queries whose tokens are compared at once: 4 * tile * Tq * Nk * Tk bytes. The tiles are reckoned
    again in the backward pass, so that no more than one is in memory.
    """

    tile: int = 32
    reads = "tokens"
    symmetric = False

    def __call__(self, queries: Tokens, keys: Tokens) -> Tensor:
        tokens, mask = _tokens(queries)
        others, there = _tokens(keys)
        blocks = []
        for start in range(0, len(tokens), self.tile):
            span = slice(start, start + self.tile)
            block = (tokens[span], mask[span], others, there)
            again = len(tokens) > self.tile and torch.is_grad_enabled()
            blocks.append(checkpoint(_best, *block, use_reentrant=False) if again else _best(*block))
        return torch.cat(blocks)

    def paired(self, left: Tokens, right: Tokens) -> Tensor:
        tokens, mask = _tokens(left)
        others, there = _tokens(right)
        cosines = (tokens @ others.transpose(1, 2)).masked_fill(~there[:, None], ABSENT)
        return _mean(cosines.amax(2), mask, 1)


def _tokens(side: Tokens) -> tuple[Tensor, Tensor]:
    if side.tokens is None:
        raise ValueError("a token-wise interaction needs a side with tokens: give it a `then`")
    mask = side.mask
    if mask is None:
        mask = torch.ones(side.tokens.shape[:2], dtype=torch.bool, device=side.tokens.device)
    return side.tokens, mask


def _best(tokens: Tensor, mask: Tensor, others: Tensor, there: Tensor) -> Tensor:
    """(q, Nk) of (q, T, D) with (Nk, S, D)."""
    (q, length, dim), (keys, width) = tokens.shape, there.shape
    cosines = (tokens.reshape(-1, dim) @ others.reshape(-1, dim).T).view(q, length, keys, width)
    return _mean(cosines.masked_fill(~there, ABSENT).amax(3), mask[..., None], 1)


def _mean(best: Tensor, mask: Tensor, axis: int) -> Tensor:
    return (best * mask).sum(axis) / mask.sum(axis).clamp(min=1)


INTERACTIONS = {"global": Global, "token_wise": TokenWise}
