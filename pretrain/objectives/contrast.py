"""The loss of a term: scores in both directions, held against what its target rule says.

softmax: 1/2 [CE(S_lr, Y_lr) + CE(S_rl, Y_rl)], the mean over pairs; with one-hot targets it is InfoNCE.
sigmoid: -sum over all columns of log sigmoid(z (S + b)), z = 1 where the target is above 0 and else -1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from ..batch import Batch
from . import ranks
from .memory import Bank
from .system import Asked, Term, Tokens

FAR = -1e30  # the score of a column that is not there: no probability, and no NaN times 0


@dataclass(frozen=True)
class Seen:
    """What a term is reckoned from: encodings of this rank's pairs, and of all ranks'."""

    own: Mapping[str, Tokens]  # by side, with gradients
    every: Mapping[str, Tokens]
    teacher: Mapping[str, Tokens]  # of all pairs, without gradients; empty without a teacher
    batch: Batch  # the small fields of all pairs
    bank: Bank | None = None
    progress: float = 0.0


@dataclass(frozen=True)
class TermLoss:
    """A term's share of one rank."""

    total: Tensor  # sum over this rank's pairs
    count: Tensor  # over all ranks' pairs: what the sum is divided by
    rows: Tensor  # (n,) the loss of each pair, without gradient
    scores: Tensor = field(repr=False)  # (n, N) left to right, scaled, without gradient


def exact(values: Tensor) -> Tensor:
    """The values in float32 at least: what is narrower is widened, float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def term_loss(term: Term, seen: Seen, scale: Tensor, bias: Tensor | None = None) -> TermLoss:
    """The loss of one term on this rank. scale: one over the temperature."""
    there = _direction(term, seen, term.left, term.right, scale)
    weight = there.asked.batch["valid"].to(there.scores.dtype)
    if term.trust is not None:
        weight = weight * term.trust(there.asked).to(weight.dtype)
    own = weight[there.asked.rows]
    if term.loss == "sigmoid":
        losses = _sigmoid(term, there, bias)
    else:
        if term.interact.symmetric and ranks.size() == 1 and not term.bank and term.keys == "online":
            back = _Direction(_mirrored(there.asked), there.scores.T)
        else:
            back = _direction(term, seen, term.right, term.left, scale)
        losses = (_softmax(term, there) + _softmax(term, back)) / 2
    n = len(there.asked.batch["valid"])
    return TermLoss(
        (losses * own).sum(), weight.sum().clamp(min=1), losses.detach(), there.scores.detach()[:, :n]
    )


@dataclass(frozen=True)
class _Direction:
    asked: Asked
    scores: Tensor  # (n, M), scaled


def _mirrored(asked: Asked) -> Asked:
    return Asked(
        asked.own,
        asked.columns,
        asked.batch,
        asked.rows,
        queries=asked.keys,
        keys=asked.queries,
        scale=asked.scale,
        interact=asked.interact,
        progress=asked.progress,
    )


def _direction(term: Term, seen: Seen, left: str, right: str, scale: Tensor) -> _Direction:
    queries = seen.own[left].map(exact_if_float)
    keys = (seen.teacher if term.keys == "teacher" else seen.every)[right].map(exact_if_float)
    bank = None
    if term.bank and seen.bank is not None and right in seen.bank.keys:
        keys = Tokens(torch.cat([keys.pooled, seen.bank.keys[right].to(keys.pooled.dtype)]))
        bank = seen.bank.batch
    n, first = len(queries.pooled), ranks.rank() * len(queries.pooled)
    rows = torch.arange(first, first + n, device=queries.pooled.device)
    judge = seen.teacher or {name: side.map(torch.Tensor.detach) for name, side in seen.every.items()}
    asked = Asked(
        rows,
        len(keys.pooled),
        seen.batch,
        rows,
        queries=judge[left].map(exact_if_float),
        keys=judge[right].map(exact_if_float),
        scale=scale.detach(),
        interact=term.interact,
        bank=bank,
        progress=seen.progress,
    )
    return _Direction(asked, exact(scale) * term.interact(queries, keys))


def exact_if_float(values: Tensor) -> Tensor:
    """`exact`, but a mask stays a mask."""
    return exact(values) if values.is_floating_point() else values


def _softmax(term: Term, found: _Direction) -> Tensor:
    """(n,) cross-entropy of each row with its target."""
    scores = found.scores.masked_fill(found.asked.valid == 0, FAR)
    if not term.own:
        return _among_others(term, found.asked, scores)
    if term.target is None:
        return functional.cross_entropy(scores, found.asked.own, reduction="none")
    targets = term.target(found.asked).to(scores.dtype)
    return -(targets * functional.log_softmax(scores, dim=1)).sum(1)


def _among_others(term: Term, asked: Asked, scores: Tensor) -> Tensor:
    """The same without each row's own column; 0 where no other is right."""
    own = asked.one_hot.bool()
    rule = asked.one_hot if term.target is None else term.target(asked)
    targets = rule.to(scores.dtype).masked_fill(own, 0)
    targets = targets / targets.sum(1, keepdim=True).clamp(min=1e-30)
    return -(targets * functional.log_softmax(scores.masked_fill(own, FAR), dim=1)).sum(1)


def _sigmoid(term: Term, found: _Direction, bias: Tensor | None) -> Tensor:
    """(n,) the sum over each row's columns."""
    scores = found.scores if bias is None else found.scores + exact(bias)
    right = found.asked.one_hot if term.target is None else term.target(found.asked)
    sign = 2 * (right > 0).to(scores.dtype) - 1
    return -(functional.logsigmoid(sign * scores) * found.asked.valid.to(scores.dtype)).sum(1)
