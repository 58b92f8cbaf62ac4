"""Captions as bags of words: shuffled, a few of their words kept (A Fistful of Words).

What is the same each time (stop words, frequent words) is dropped before captions become tokens; what is
drawn anew in each step happens here, on whole groups of tokens, so that no word is torn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..batch import Batch
from ..tokenizer import PAD


@dataclass(frozen=True)
class ShuffleWords:
    """The words of each caption in another order; `keep`: at most so many of them, drawn at random."""

    keep: int | None = None

    def __call__(self, batch: Batch, dice: Generator) -> Batch:
        text, group = batch["text"], batch["group"]
        length = group.shape[1]
        keys = torch.rand(len(group), length + 1, generator=dice).to(group.device)
        keys = keys.masked_fill(~_present(group), 2.0)
        rank = keys.argsort(1).argsort(1)  # of each group among those of its caption
        place = rank.gather(1, group)
        gone = (group > 0) & (place >= (length if self.keep is None else self.keep))
        begin = torch.zeros_like(group, dtype=torch.bool)
        begin[:, 0] = True
        place = place.masked_fill(group == 0, length + 1)  # the end, behind all words
        place = place.masked_fill((text == PAD) | gone, length + 2).masked_fill(begin, -1)
        order = torch.argsort(place, dim=1, stable=True)
        moved = text.masked_fill(gone, PAD).gather(1, order)
        return batch.having({"text": moved, "group": group.masked_fill(gone, 0).gather(1, order)})


def _present(group: Tensor) -> Tensor:
    """(B, L + 1) whether a caption has a group of that number; group 0 is none."""
    found = torch.zeros(len(group), group.shape[1] + 1, dtype=torch.bool, device=group.device)
    found.scatter_(1, group, True)
    found[:, 0] = False
    return found
