"""Captions of like length encoded together, so that little padding is computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# What a further group costs, as the number of tokens that could be computed in that time. For an H100 that is
# reckoned from three rates (docs/results.md, "On a GPU"): some 5 ms for twelve layers, .6 us for a token.
COST = {"cpu": 64, "cuda": 8192}


def groups_by_length(lengths: np.ndarray, device: str = "cpu") -> list[tuple[np.ndarray, int]]:
    """Rows in groups, and the most tokens of each: so that tokens computed and groups cost least together.

    lengths: (B,) tokens of each row that are no padding. device: cpu or cuda.
    """
    order = np.argsort(lengths, kind="stable")
    ends, counts = np.unique(lengths, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    least, cut = np.zeros(len(ends) + 1), np.zeros(len(ends) + 1, np.int64)
    for stop in range(1, len(ends) + 1):  # the cheapest groups of all rows of up to ends[stop - 1] tokens
        costs = least[:stop] + (below[stop] - below[:stop]) * ends[stop - 1] + COST.get(device, COST["cuda"])
        cut[stop] = costs.argmin()
        least[stop] = costs[cut[stop]]
    groups, stop = [], len(ends)
    while stop:
        start = int(cut[stop])
        groups.append((order[below[start] : below[stop]], max(1, int(ends[stop - 1]))))
        stop = start
    return groups[::-1]


def by_length(encode: Callable[[Tensor], Tensor], tokens: Tensor, lengths: np.ndarray) -> Tensor:
    """What `encode` says of (B, L) tokens, (B, D), row by row, by groups of captions of like length.

    encode: reads a row up to its last token alone, so that padding may be cut off. lengths: (B,) tokens of
    each row that are no padding, in [1, L].
    """
    groups = groups_by_length(lengths, tokens.device.type)
    if len(groups) == 1:
        return encode(tokens[:, : groups[0][1]])
    places = torch.from_numpy(np.concatenate([part for part, _ in groups]))
    back = torch.empty_like(places)
    back[places] = torch.arange(len(places))
    if tokens.device.type == "cuda":  # or the program would wait for the device
        places, back = places.pin_memory(), back.pin_memory()
    rows = tokens[places.to(tokens.device, non_blocking=True)].split([len(part) for part, _ in groups])
    found = [encode(part[:, :end]) for part, (_, end) in zip(rows, groups, strict=True)]
    return torch.cat(found)[back.to(tokens.device, non_blocking=True)]
