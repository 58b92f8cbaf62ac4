"""The sides of a batch through the towers, each tower and field once; and rows of what they said."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..batch import Batch
from .memory import Teacher
from .system import Side, System, Tokens

if TYPE_CHECKING:
    from .objective import Objective


def encode(
    objective: Objective, system: System, batch: Batch, teacher: Teacher | None = None
) -> dict[str, Tokens]:
    """Every side of a batch; what several sides share goes through its tower once."""
    towers = objective.towers if teacher is None else teacher.modules["towers"]
    modules = objective if teacher is None else teacher.modules["objective"]
    parts = modules.get_submodule("parts")
    deep = {root(system, name) for name in reads_hidden(system)}
    known: dict[tuple[str, str], Tokens] = {}
    found: dict[str, Tokens] = {}
    for name, side in system.sides.items():
        key = side_key(system, side)
        if key not in known:
            hidden = any(side_key(system, system.sides[one]) == key for one in deep)
            known[key] = tower_tokens(towers, key, batch, hidden=hidden)
        tokens = known[key] if side.of is None else found[side.of]
        found[name] = tokens if side.then is None else parts.get_submodule(side.then)(tokens, batch)
    return found


def side_key(system: System, side: Side) -> tuple[str, str]:
    """(tower, field) that a side begins with."""
    while side.of is not None:
        side = system.sides[side.of]
    return side.tower, side.field


def root(system: System, name: str) -> str:
    """The side whose tower is asked, for a side that may begin with another."""
    while (of := system.sides[name].of) is not None:
        name = of
    return name


def reads_hidden(system: System) -> set[str]:
    """Sides whose towers must give their hidden states: what `then` or a head reads."""
    heads = {need for head in system.heads.values() for need in head.make.needs}
    return heads | {name for name, side in system.sides.items() if side.then is not None}


def tower_tokens(towers: nn.Module, key: tuple[str, str], batch: Batch, *, hidden: bool) -> Tokens:
    """One field through one tower, a row for each pair."""
    tower, name = key
    tokens = towers.encode(tower, batch, name, hidden=hidden)  # type: ignore[operator]
    return tokens.map(lambda value: value[batch.shared[name]]) if name in batch.shared else tokens


def without_hidden(side: Tokens) -> Tokens:
    """What is compared; hidden states are for heads, within a piece."""
    return replace(side, hidden=(), hidden_mask=None)


def sliced(side: Tokens, span: slice) -> Tokens:
    """Some rows."""
    return side.map(lambda value: value[span])


def joined(pieces: list[Tokens]) -> Tokens:
    """Rows of several, one after the other; their tokens padded to the longest."""
    if len(pieces) == 1:
        return pieces[0]
    pooled = torch.cat([piece.pooled for piece in pieces])
    first = pieces[0].tokens
    if first is None:
        return Tokens(pooled)
    longest = max(piece.tokens.shape[1] for piece in pieces if piece.tokens is not None)
    tokens, masks = [], []
    for piece in pieces:
        rows = piece.tokens if piece.tokens is not None else first
        missing = longest - rows.shape[1]
        mask = piece.mask if piece.mask is not None else rows.new_ones(rows.shape[:2]).bool()
        tokens.append(nn.functional.pad(rows, (0, 0, 0, missing)))
        masks.append(nn.functional.pad(mask, (0, missing)))
    return Tokens(pooled, torch.cat(tokens), torch.cat(masks))
