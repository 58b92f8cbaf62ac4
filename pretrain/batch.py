"""What one step sees: tensors by field, pair by pair."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

SMALL = ("uid", "valid", "picture", "caption", "label", "noise")  # fields that all ranks see of all pairs


class Batch(dict[str, Tensor]):
    """Field to tensor, each with one row for each of B pairs.

    Always there: `uid` (B,) int64 and `valid` (B,) bool, False where the picture could not be decoded. The
    rows of a field in `shared` are of P <= B distinct things, and `shared[field]` (B,) says which one a
    pair has: a picture with five captions is computed once.

    Fields of the loader: `image` (P, S, S, 3) uint8, `text` (B, L) int64, and the int64 numbers `picture`,
    `caption` and `label` (B,), equal where these are equal; `group` (B, L) where a system asks for it.
    `lengths[field]` (B,), where it is known, is how many tokens of a row are no padding. It lies where the
    program runs and not on the device, for what is computed depends on it.
    """

    def __init__(
        self,
        fields: Mapping[str, Tensor] | None = None,
        shared: Mapping[str, Tensor] | None = None,
        lengths: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__(fields or {})
        self.shared, self.lengths = dict(shared or {}), dict(lengths or {})

    @property
    def pairs(self) -> int:
        """How many."""
        return len(self["uid"])

    def having(self, fields: Mapping[str, Tensor], shared: Mapping[str, Tensor] | None = None) -> Batch:
        """The same with further fields, or others in their place, whose lengths are then not known."""
        lengths = {name: value for name, value in self.lengths.items() if name not in fields}
        return Batch({**self, **fields}, {**self.shared, **(shared or {})}, lengths)

    def rows(self, span: slice) -> Batch:
        """The pairs of a span, with what they share."""
        index, kept = {}, {}
        for field, number in self.shared.items():
            kept[field], index[field] = torch.unique(number[span], return_inverse=True)
        fields = {name: value[kept[name]] if name in kept else value[span] for name, value in self.items()}
        return Batch(fields, index, {name: value[span] for name, value in self.lengths.items()})

    def small(self) -> Batch:
        """What every rank should know of every pair."""
        return Batch({name: self[name] for name in SMALL if name in self})

    def copied(self) -> Batch:
        """The same in memory of its own: a loader on a CPU lends its batches."""
        parts = ({name: value.clone() for name, value in part.items()} for part in (self, self.shared))
        fields, shared = parts
        return Batch(fields, shared, self.lengths)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        if device.type == self["uid"].device.type:
            return self
        moved = [
            {name: value.pin_memory().to(device, non_blocking=True) for name, value in part.items()}
            for part in (self, self.shared)
        ]
        return Batch(moved[0], moved[1], self.lengths)
