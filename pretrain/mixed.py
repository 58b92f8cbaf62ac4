"""Batches mixed from several datasets: so many pairs of each in every batch, whatever their sizes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..errors import ConfigError
from .order import WINDOW, Order
from .samplers import shuffled
from .samples import Rows, Source
from .tokenizer import Encode
from .window import join_rows


class MixedOrder:
    """Stands in for `Order` where the source has weights.

    Each dataset goes through epochs of its own, in which every pair is shown once: a small one with a large
    weight comes again often. Batch k is a function of the seed and k alone, as without mixing. An epoch of
    the whole, where one is asked for, is as many batches as all datasets together would fill.
    """

    def __init__(
        self,
        source: Source,
        encode: Encode,
        *,
        batch: int,
        seed: int,
        window: int = WINDOW,
        sampler: Any = shuffled,
    ) -> None:
        """Raises ConfigError for a weight that gives no pair of a batch."""
        assert source.weights is not None
        self.source, self.encode, self.samples = source, encode, source.total
        self.batch = min(batch, self.samples)
        self.per_epoch = self.samples // self.batch
        self.given = {"batch": batch, "seed": seed, "window": window, "sampler": sampler}
        folders = list(source.weights)
        self.shares = shares(np.array(list(source.weights.values())), self.batch)
        for folder, share in zip(folders, self.shares.tolist(), strict=True):
            if not share:
                raise ConfigError(
                    f"train.data: of {folder} no pair is in a batch of {self.batch} with the weight"
                    f" {source.weights[folder]:g} of {sum(source.weights.values()):g}: give a larger"
                    " one, or a larger batch"
                )
        of_folder = [folders.index(path.parent) for path in source.tables]
        some = max(1, window // len(folders))
        self._orders = [
            Order(
                source,
                encode,
                batch=self.batch,
                seed=seed,
                window=some,
                sampler=sampler,
                shards=np.flatnonzero(np.array(of_folder) == number),
            )
            for number in range(len(folders))
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes what the order is made of, and nothing that was read."""
        return partial(MixedOrder, **self.given), (self.source, self.encode)

    def __getitem__(self, k: int) -> Rows:
        """The samples of batch k, counted from 0: dataset after dataset."""
        return join_rows(
            [
                order.stretch(k * share, (k + 1) * share)
                for order, share in zip(self._orders, self.shares.tolist(), strict=True)
            ]
        )

    def close(self) -> None:
        """Stop reading ahead."""
        for order in self._orders:
            order.close()


def shares(weights: np.ndarray, batch: int) -> np.ndarray:
    """How many of `batch` pairs each weight gets: their shares, the largest remainders rounded up."""
    exact = weights / weights.sum() * batch
    found = np.floor(exact).astype(np.int64)
    largest = np.argsort(found - exact, kind="stable")[: batch - int(found.sum())]
    found[largest] += 1
    return found


def make_order(source: Source, encode: Encode, *, batch: int, seed: int, sampler: Any) -> Order | MixedOrder:
    """The order of a source's samples, mixed where it has weights."""
    kind = Order if source.weights is None else MixedOrder
    return kind(source, encode, batch=batch, seed=seed, sampler=sampler)
