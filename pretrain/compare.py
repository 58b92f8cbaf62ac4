"""Pictures and captions as the model compares them: one row each, or a row for each token.

Token by token (FILIP) a thing is (T, D), NaN where no token is; its score is the mean of its tokens' best.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import DataError
from ..shards.files import local_copy
from .batch import Batch
from .objectives.encode import encode
from .objectives.interactions import TokenWise
from .objectives.registry import find_system
from .objectives.system import System, Tokens
from .tokenizer import Encode, pad_tokens
from .towers import load_towers, read_system
from .two_towers import TwoTowers
from .unit_rows import embed_captions, embed_pictures

if TYPE_CHECKING:
    from .objectives.objective import Objective


def compares_tokens(system: System) -> bool:
    """Whether no term of the system teaches the pooled rows."""
    return all(term.interact.reads == "tokens" for term in system.terms)


class Comparison:
    """A model, and how its pictures and captions become rows."""

    def __init__(self, model: TwoTowers, objective: Objective | None = None) -> None:
        """objective: of a system; it is asked only where the system teaches no pooled row."""
        self.model = model
        compared = objective is not None and compares_tokens(objective.system)
        self.objective = objective if compared else None

    def pictures(self, pixels: np.ndarray) -> np.ndarray:
        """(N, D) or (N, T, D) of (N, S, S, 3) uint8."""
        if self.objective is None:
            return embed_pictures(self.model, pixels)
        return self._tokens("image", torch.from_numpy(pixels))

    def captions(self, captions: Sequence[str], encode: Encode, batch: int) -> np.ndarray:
        """(N, D) or (N, T, D)."""
        if self.objective is None:
            return embed_captions(self.model, captions, encode, batch)
        tokens, lengths = encode(captions)
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        context, found = self.model.context_length, []
        for at in range(0, len(captions), batch):
            block = pad_tokens(tokens, starts[at : at + batch], lengths[at : at + batch], context)
            whole = np.pad(block, ((0, 0), (0, context - block.shape[1])))
            found.append(self._tokens("text", torch.from_numpy(whole.astype(np.int64))))
        return np.concatenate(found)

    @torch.no_grad()
    def _tokens(self, field: str, values: torch.Tensor) -> np.ndarray:
        """One side alone: the system is cut down to what begins with the field."""
        assert self.objective is not None
        system = self.objective.system
        names = [name for name, side in system.sides.items() if side.field == field]
        wanted = next(name for name in names if system.sides[name].then is not None)
        part = one_side(system, names)
        batch = Batch({field: values.to(self.model.device)})
        found = encode(self.objective, part, batch)[wanted]
        assert found.tokens is not None
        rows = found.tokens.float()
        if found.mask is not None:
            rows = rows.masked_fill(~found.mask[..., None], torch.nan)
        return rows.cpu().numpy()


def load_comparison(folder: Path) -> Comparison:
    """The model of a folder. Raises DataError where there is none, or the system's part is missing."""
    model, reference = load_towers(folder), read_system(folder)
    system = None if reference is None else find_system(reference)
    if system is None or not compares_tokens(system):
        return Comparison(model)
    return Comparison(model, load_objective(system, model, folder))


def one_side(system: System, names: Sequence[str]) -> System:
    """The system with some of its sides, and no heads."""
    from dataclasses import replace

    return replace(system, sides={name: system.sides[name] for name in names}, heads={}, terms=())


def load_objective(system: System, model: TwoTowers, folder: Path) -> Objective:
    """What the system added to the towers. Raises DataError where the folder does not hold it."""
    from safetensors.torch import load_file

    from .objectives.objective import Objective

    made = Objective(system, model)
    path = folder / "objective.safetensors"
    try:
        with local_copy(path) as copy:
            made.load_state_dict(load_file(copy))
    except Exception as error:
        raise DataError(f"{path}: not the weights of the system {system.name}: {error}") from error
    return made.to(model.device).eval()


Base = np.ndarray | list[np.ndarray]


def similar(queries: np.ndarray, base: Base) -> np.ndarray:
    """(Q, N) scores. base: rows as `queries` has them, or several such whose scores are averaged."""
    if isinstance(base, list):
        return np.mean([similar(queries, one) for one in base], 0)
    if queries.ndim == 2:
        return queries @ base.T
    return TokenWise()(_side(queries), _side(base)).numpy()


def _side(rows: np.ndarray) -> Tokens:
    there = torch.from_numpy(np.isfinite(rows[..., 0]))
    tokens: Any = torch.from_numpy(np.nan_to_num(rows))
    return Tokens(tokens[:, 0], tokens, there)
