"""A running mean of the weights, kept beside them: often the better model at the end of a run.

Polyak averaging with a decay that rises, min(decay, (1 + n) / (10 + n)) after n steps, so that the first
weights are soon forgotten. Buffers, such as the means of batch norm, stay the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Follows parameters; they can be put in its place for a while, or for good."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self.values = [value for _, value in named]
        self.means = {name: value.detach().clone() for name, value in named}
        self.steps = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def follow(self) -> None:
        """Take a step after the model."""
        n = int(self.steps)
        decay = min(self.decay, (1 + n) / (10 + n))
        means, values = list(self.means.values()), [value.detach() for value in self.values]
        torch._foreach_lerp_(means, values, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self.steps += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model has the means as its weights."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        """The model's weights become the means, and what was the model's lies here."""
        for value, mean in zip(self.values, self.means.values(), strict=True):
            kept = value.clone()
            value.copy_(mean)
            mean.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """For the checkpoint: the tensors themselves."""
        return {"average.steps": self.steps} | {f"average.{name}": mean for name, mean in self.means.items()}
