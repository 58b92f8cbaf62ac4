"""What outlives a step: a teacher whose weights follow the model's, a ring of keys, and a value per pair."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..batch import Batch
from .system import Refresh, Tokens


class Teacher:
    """Modules whose weights are the running mean of others'.

    The decay rises, min(decay, (1 + n) / (10 + n)) after n steps, so that the first weights are soon
    forgotten (as OTTER's code and TensorFlow's moving average have it).
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self.followed = dict(modules)
        self.modules = copy.deepcopy(self.followed)  # at once: what they share stays shared
        for module in self.modules.values():
            module.requires_grad_(False).eval()
        self.steps = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def follow(self) -> None:
        """Take a step after the model; buffers (running means of batch norm) are copied."""
        n = int(self.steps)
        decay = min(self.decay, (1 + n) / (10 + n))
        for name, module in self.modules.items():
            theirs = dict(self.followed[name].named_parameters())
            for key, value in module.named_parameters():
                value.lerp_(theirs[key], 1 - decay)
            buffers = dict(self.followed[name].named_buffers())
            for key, value in module.named_buffers():
                value.copy_(buffers[key])
        self.steps += 1

    def state(self) -> dict[str, Tensor]:
        """For the checkpoint: the tensors themselves."""
        found = {"teacher.steps": self.steps}
        for name, module in self.modules.items():
            found |= {f"teacher.{name}.{key}": value for key, value in module.state_dict().items()}
        return found


class Bank:
    """A ring of the last keys of each side, with the small fields of their pairs; no gradient."""

    def __init__(self, sides: Sequence[str], size: int, dim: int, device: torch.device) -> None:
        self.size = size
        self.keys = {side: torch.zeros(size, dim, device=device) for side in sides}
        self.fields: dict[str, Tensor] = {
            name: torch.zeros(size, dtype=torch.int64, device=device)
            for name in ("uid", "picture", "caption", "label")
        }
        self.valid = torch.zeros(size, dtype=torch.bool, device=device)
        self.next = torch.zeros((), dtype=torch.int64)

    @property
    def batch(self) -> Batch:
        """The small fields of all places; those not yet filled are not valid."""
        return Batch({**self.fields, "valid": self.valid})

    @torch.no_grad()
    def push(self, encoded: Mapping[str, Tokens], batch: Batch) -> None:
        """Put a whole batch in the place of the oldest keys."""
        n = min(len(batch["uid"]), self.size)
        at = (int(self.next) + torch.arange(n, device=self.valid.device)) % self.size
        for side, ring in self.keys.items():
            ring[at] = encoded[side].pooled[:n].detach().to(ring.dtype)
        for name, ring in self.fields.items():
            ring[at] = batch[name][:n] if name in batch else batch["caption"][:n]
        self.valid[at] = batch["valid"][:n]
        self.next.add_(n).remainder_(self.size)

    def state(self) -> dict[str, Tensor]:
        """For the checkpoint: the tensors themselves."""
        keys = {f"bank.keys.{side}": ring for side, ring in self.keys.items()}
        fields = {f"bank.fields.{name}": ring for name, ring in self.fields.items()}
        return {**keys, **fields, "bank.valid": self.valid, "bank.next": self.next}


class Table:
    """A value for each pair, by uid, reckoned from the losses that the last epoch found.

    24 bytes a pair. Losses of pairs that were not seen are NaN, and their values 0.
    """

    def __init__(self, refresh: Refresh, uids: np.ndarray) -> None:
        """uids: (N,) int64, of all pairs that may come."""
        self.refresh = refresh
        self.uids = np.sort(uids)
        self.losses = torch.full((len(uids),), torch.nan)
        self.values = torch.zeros(len(uids))

    def fill(self, batch: Batch) -> Batch:
        """The batch with the values of its pairs."""
        values = self.values[self._places(batch)]
        return batch.having({self.refresh.field: values.to(batch["uid"].device)})

    def note(self, batch: Batch, losses: Tensor) -> None:
        """Remember what the pairs of a batch lost."""
        valid = batch["valid"].cpu()
        self.losses[self._places(batch)[valid]] = losses.detach().float().cpu()[valid]

    def turn(self) -> None:
        """An epoch ended: reckon the values anew."""
        losses = self.losses.numpy()
        seen = np.isfinite(losses)
        self.values.zero_()
        if seen.any():
            found = np.asarray(self.refresh.reckon(losses[seen]), np.float32)
            self.values[torch.from_numpy(np.flatnonzero(seen))] = torch.from_numpy(found)

    def values_of(self, uids: np.ndarray) -> np.ndarray:
        """(n,) the values of pairs, by uid."""
        return self.values[torch.from_numpy(np.searchsorted(self.uids, uids))].numpy()

    def _places(self, batch: Batch) -> Tensor:
        return torch.from_numpy(np.searchsorted(self.uids, batch["uid"].cpu().numpy()))

    def state(self) -> dict[str, Tensor]:
        """For the checkpoint: the tensors themselves."""
        return {"table.losses": self.losses, "table.values": self.values}
