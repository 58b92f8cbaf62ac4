"""A system put to work: its modules, what one batch loses by it, and the gradients of that.

`backward` is the whole of a step but the optimizer's: encode, compare, weigh, differentiate. With `chunks`
it does so piece by piece and finds the same gradients (cached gradients: Gao et al. 2021): all pieces are
encoded without gradient, the loss of the whole batch is differentiated down to the encodings, and each
piece is encoded again, to hand these gradients on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..batch import Batch
from . import ranks
from .contrast import Seen, TermLoss, term_loss
from .encode import encode, joined, sliced, without_hidden
from .memory import Bank, Teacher
from .objective import Objective
from .system import Step, System, Tokens


@dataclass
class Found:
    """What a step found. Shares of this rank: over all ranks they add up."""

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)  # by term and head, unweighted
    rows: dict[str, Tensor] = field(default_factory=dict)  # by term: (n,) the loss of each pair
    encoded: Mapping[str, Tokens] = field(default_factory=dict)  # of all ranks' pairs, without gradient


@dataclass(frozen=True)
class Setting:
    """How a step is done: the system as it is now, and what it may lean on."""

    system: System
    seed: int = 0  # of dropout, chunk by chunk
    teacher: Teacher | None = None
    bank: Bank | None = None
    progress: float = 0.0
    amp: torch.dtype | None = None


def backward(objective: Objective, batch: Batch, setting: Setting, *, chunks: int = 1) -> Found:
    """The loss of a batch, its gradients added to the parameters. Every rank must call it."""
    spans = cut(batch.pairs, chunks)
    whole = ranks.gather_batch(batch)
    teacher = _teacher_view(objective, batch, spans, setting)
    if len(spans) == 1:
        with autocast(objective, setting):
            torch.manual_seed(setting.seed)
            own = encode(objective, setting.system, batch)
        found, scores = compare(objective, own, teacher, whole, setting)
        step = Step(objective, batch, own, _own(teacher, batch), _blocks(scores, slice(0, batch.pairs)))
        sums = head_sums(objective, step, setting)
        add_heads(found, sums, {name: ranks.summed(count) for name, (_, count) in sums.items()}, setting)
        found.loss.backward()
        found.loss = found.loss.detach()
        return found
    return _in_chunks(objective, batch, spans, whole, teacher, setting)


def _in_chunks(
    objective: Objective,
    batch: Batch,
    spans: list[slice],
    whole: Batch,
    teacher: Mapping[str, Tokens],
    setting: Setting,
) -> Found:
    pieces: list[dict[str, Tokens]] = []
    counts: dict[str, Tensor] = {}
    with torch.no_grad():
        for number, span in enumerate(spans):
            step = _chunk(objective, batch, span, number, teacher, {}, setting)
            pieces.append({name: without_hidden(side) for name, side in step.encoded.items()})
            for name, (_, count) in head_sums(objective, step, setting).items():
                counts[name] = counts.get(name, torch.zeros_like(count)) + count
    leaves = {name: _leaf(joined([piece[name] for piece in pieces])) for name in pieces[0]}
    found, scores = compare(objective, leaves, teacher, whole, setting)
    found.loss.backward()
    found.loss = found.loss.detach()
    counts = {name: ranks.summed(count) for name, count in counts.items()}
    for number, span in enumerate(spans):
        step = _chunk(objective, batch, span, number, teacher, scores, setting)
        share = Found(found.loss.new_zeros(()))
        add_heads(share, head_sums(objective, step, setting), counts, setting)
        total = share.loss + _handed_on(step.encoded, leaves, span)
        if total.requires_grad:
            total.backward()
        found.loss = found.loss + share.loss.detach()
        for name, value in share.parts.items():
            found.parts[name] = found.parts.get(name, torch.zeros_like(value)) + value
    return found


def _chunk(
    objective: Objective,
    batch: Batch,
    span: slice,
    number: int,
    teacher: Mapping[str, Tokens],
    scores: Mapping[str, Tensor],
    setting: Setting,
) -> Step:
    """One piece encoded; the same random numbers each time it is."""
    torch.manual_seed(setting.seed + number)
    part = batch.rows(span)
    with autocast(objective, setting):
        encoded = encode(objective, setting.system, part)
    judge = {name: sliced(side, span) for name, side in _own(teacher, batch).items()}
    return Step(objective, part, encoded, judge, _blocks(scores, span))


def compare(
    objective: Objective,
    own: Mapping[str, Tokens],
    teacher: Mapping[str, Tokens],
    whole: Batch,
    setting: Setting,
) -> tuple[Found, dict[str, Tensor]]:
    """The terms' share of the loss, and each term's (n, N) scores."""
    system = setting.system
    with_tokens = {
        side for term in system.terms if term.interact.reads == "tokens" for side in (term.left, term.right)
    }
    compared = {side for term in system.terms for side in (term.left, term.right)}
    every = {
        name: ranks.gather_tokens(own[name], tokens=name in with_tokens, gradient=True)
        for name in sorted(compared)
    }
    seen = Seen(own, every, teacher, whole, setting.bank, setting.progress)
    found = Found(objective.towers.scale.new_zeros(()))
    found.encoded = {name: side.map(torch.Tensor.detach) for name, side in (teacher or every).items()}
    scores = {}
    for term in system.terms:
        one: TermLoss = term_loss(term, seen, objective.scale(term.scale), objective.bias(term.scale))
        value = one.total / one.count
        found.loss = found.loss + term.weight * value
        found.parts[term.name] = value.detach()
        found.rows[term.name], scores[term.name] = one.rows, one.scores
    return found, scores


def head_sums(objective: Objective, step: Step, setting: Setting) -> dict[str, tuple[Tensor, Tensor]]:
    """Sum and count of every head's losses."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    with autocast(objective, setting):
        for name, head in objective.heads.items():
            found |= {f"{name}.{key}": pair for key, pair in head(step).items()}
    return found


def add_heads(
    found: Found, sums: Mapping[str, tuple[Tensor, Tensor]], counts: Mapping[str, Tensor], setting: Setting
) -> None:
    """Add the heads' weighted means; counts: over all chunks and ranks."""
    for name, (total, _) in sums.items():
        value = total / counts[name].clamp(min=1)
        found.loss = found.loss + setting.system.heads[name.split(".")[0]].weight * value
        found.parts[name] = value.detach()


def _teacher_view(
    objective: Objective, batch: Batch, spans: list[slice], setting: Setting
) -> dict[str, Tokens]:
    """What the teacher says of all ranks' pairs."""
    if setting.teacher is None:
        return {}
    with torch.no_grad(), autocast(objective, setting):
        pieces = [
            encode(objective, setting.system, batch.rows(span) if len(spans) > 1 else batch, setting.teacher)
            for span in spans
        ]
    whole = {name: joined([without_hidden(piece[name]) for piece in pieces]) for name in pieces[0]}
    return {name: ranks.gather_tokens(side, tokens=True, gradient=False) for name, side in whole.items()}


def _own(teacher: Mapping[str, Tokens], batch: Batch) -> dict[str, Tokens]:
    first = ranks.rank() * batch.pairs
    return {name: sliced(side, slice(first, first + batch.pairs)) for name, side in teacher.items()}


def _blocks(scores: Mapping[str, Tensor], span: slice) -> dict[str, Tensor]:
    """A piece's own rows and columns of the scores: hard negatives are looked for within it."""
    found = {}
    for name, value in scores.items():
        first = ranks.rank() * len(value)
        found[name] = value[span, first + span.start : first + span.stop]
    return found


def _handed_on(encoded: Mapping[str, Tokens], leaves: Mapping[str, Tokens], span: slice) -> Tensor:
    """A number whose gradient is the encodings' own."""
    total = next(iter(leaves.values())).pooled.new_zeros(())
    for name, leaf in leaves.items():
        for key in ("pooled", "tokens"):
            cached, value = getattr(leaf, key), getattr(encoded[name], key)
            if cached is not None and cached.grad is not None:
                total = total + (value.to(cached.dtype) * cached.grad[span]).sum()
    return total


def _leaf(side: Tokens) -> Tokens:
    return side.map(lambda value: value.detach().requires_grad_() if value.is_floating_point() else value)


def cut(pairs: int, chunks: int) -> list[slice]:
    """At most `chunks` spans of equal length, the last one perhaps shorter."""
    each = -(-pairs // chunks)
    return [slice(start, min(start + each, pairs)) for start in range(0, pairs, each)]


def autocast(objective: Objective, setting: Setting) -> torch.autocast:
    """Lower precision for towers and heads; comparisons are outside of it."""
    return torch.autocast(objective.towers.device.type, setting.amp, enabled=setting.amp is not None)
