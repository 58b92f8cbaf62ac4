"""Several processes as one: features gathered with their gradients, sums, and gradients added up.

Every rank reckons the loss of its own rows against the keys of all; the shares add up to the loss of the
whole batch, and so do the gradients. Without torch.distributed there is one rank, and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..batch import Batch
from .system import Tokens

BUCKET = 8_000_000  # numbers that are sent at once


def size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which one this is."""
    return dist.get_rank() if size() > 1 else 0


class _Gather(torch.autograd.Function):
    """All ranks' rows; the gradient of a rank's rows is what all ranks found for them."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.rows = len(own)
        return gathered(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous()
        dist.all_reduce(whole)
        return whole[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gathered(own: Tensor) -> Tensor:
    """(ranks * n, ...) of (n, ...) rows, in the order of the ranks; no gradient. n is equal on all."""
    if size() == 1:
        return own
    plain = own.detach().contiguous()
    as_sent = plain.to(torch.uint8) if plain.dtype == torch.bool else plain  # gloo has no bool
    parts = [torch.empty_like(as_sent) for _ in range(size())]
    dist.all_gather(parts, as_sent)
    return torch.cat(parts).to(own.dtype)


def gather_batch(batch: Batch) -> Batch:
    """The small fields of all ranks' pairs."""
    small = batch.small()
    return small if size() == 1 else Batch({name: gathered(small[name]) for name in sorted(small)})


def gather_tokens(own: Tokens, *, tokens: bool, gradient: bool) -> Tokens:
    """Pooled rows of all ranks, and their tokens where asked for; hidden states stay at home."""
    if size() == 1:
        return own
    send = _Gather.apply if gradient else gathered
    pooled: Any = send(own.pooled)
    if not tokens or own.tokens is None:
        return Tokens(pooled)
    mask = own.mask
    if mask is None:
        mask = torch.ones(own.tokens.shape[:2], dtype=torch.bool, device=own.tokens.device)
    longest = torch.tensor(own.tokens.shape[1], device=own.tokens.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    missing = int(longest) - own.tokens.shape[1]
    every: Any = send(nn.functional.pad(own.tokens, (0, 0, 0, missing)))
    return Tokens(pooled, every, gathered(nn.functional.pad(mask, (0, missing))))


def summed(value: Tensor) -> Tensor:
    """The sum over the ranks; no gradient."""
    if size() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all ranks, some megabytes at once."""
    if size() == 1:
        return
    waiting: list[nn.Parameter] = []
    count = 0
    for value in parameters:
        if not value.requires_grad:
            continue
        if value.grad is None:  # another rank may have one
            value.grad = torch.zeros_like(value)
        waiting.append(value)
        count += value.numel()
        if count >= BUCKET:
            _send(waiting)
            waiting, count = [], 0
    _send(waiting)


def _send(values: list[nn.Parameter]) -> None:
    gradients = [value.grad for value in values if value.grad is not None]
    for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
        some = [gradient for gradient in gradients if gradient.dtype == dtype]
        flat = torch.cat([gradient.reshape(-1) for gradient in some])
        dist.all_reduce(flat)
        for gradient, part in zip(some, flat.split([item.numel() for item in some]), strict=True):
            gradient.copy_(part.view_as(gradient))
