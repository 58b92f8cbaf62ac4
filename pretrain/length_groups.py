"""Captions of like length encoded together, so that little padding is computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

GROUPS = 8  # more gain little: the longest captions are few
LEAST = 8  # captions in a group


def groups_by_length(lengths: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Rows by their number of tokens, in at most GROUPS parts of equal size, and the most tokens of each."""
    parts = np.array_split(np.argsort(lengths, kind="stable"), max(1, min(GROUPS, len(lengths) // LEAST)))
    return [(part, max(1, int(lengths[part[-1]]))) for part in parts]


def by_length(encode: Callable[[Tensor], Tensor], tokens: Tensor, lengths: np.ndarray) -> Tensor:
    """What `encode` says of (B, L) tokens, (B, D), row by row, by groups of captions of like length.

    encode: reads a row up to its last token alone, so that padding may be cut off. lengths: (B,) tokens of
    each row that are no padding, in [1, L].
    """
    groups = groups_by_length(lengths)
    if groups[0][1] == groups[-1][1]:
        return encode(tokens[:, : groups[0][1]])
    places = torch.from_numpy(np.concatenate([part for part, _ in groups]))
    back = torch.empty_like(places)
    back[places] = torch.arange(len(places))
    if tokens.device.type == "cuda":  # or the program would wait for the device
        places, back = places.pin_memory(), back.pin_memory()
    rows = tokens[places.to(tokens.device, non_blocking=True)].split([len(part) for part, _ in groups])
    found = [encode(part[:, :end]) for part, (_, end) in zip(rows, groups, strict=True)]
    return torch.cat(found)[back.to(tokens.device, non_blocking=True)]
