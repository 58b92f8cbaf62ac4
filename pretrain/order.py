"""Which samples are in batch k: a pure function of the seed and k, in bounded memory.

In each epoch the shards are shuffled and cut into windows; within a window a sampler says
the order. A set that fits one window is thus shuffled whole.
Every epoch drops the few samples that do not fill a batch.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .samplers import shuffled
from .samples import Rows, Source
from .tokenizer import Encode
from .window import TokenFile, Window, join_rows

if TYPE_CHECKING:
    from .objectives.system import Sampler

WINDOW = 400_000  # samples in memory at about 100 bytes each; two windows are held, and one is read ahead


class Order:
    """Batches of `batch` samples (all there are, where the source has fewer)."""

    def __init__(
        self,
        source: Source,
        encode: Encode,
        *,
        batch: int,
        seed: int,
        window: int = WINDOW,
        sampler: Sampler = shuffled,
        shards: np.ndarray | None = None,
    ) -> None:
        """shards: numbers of those that are shown; all of the source's when not given."""
        self.source, self.encode, self.seed, self.window = source, encode, seed, window
        self.sampler = sampler
        self.shards = np.arange(len(source.tables)) if shards is None else shards
        self.samples = int(source.counts[self.shards].sum())
        self.batch = min(batch, self.samples)
        self.per_epoch = self.samples // self.batch
        self._reader = ThreadPoolExecutor(1)
        self._known = TokenFile()
        self._windows: OrderedDict[tuple[int, ...], Future[Window]] = OrderedDict()
        self._shuffled: tuple[tuple[int, int] | None, np.ndarray] = None, np.empty(0, np.int64)
        self._epochs: OrderedDict[int, tuple[list[tuple[int, ...]], np.ndarray]] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes what the order is made of, and nothing that was read."""
        settings = {"batch": self.batch, "seed": self.seed, "window": self.window}
        settings |= {"sampler": self.sampler, "shards": self.shards}
        return partial(Order, **settings), (self.source, self.encode)

    def __getitem__(self, k: int) -> Rows:
        """The samples of batch k, counted from 0."""
        epoch, place = divmod(k, self.per_epoch)
        return self._within(epoch, place * self.batch, (place + 1) * self.batch)

    def stretch(self, first: int, last: int) -> Rows:
        """The samples `first` to `last` (exclusive) of all epochs, one after the other, none left out."""
        parts = []
        while first < last:
            epoch, place = divmod(first, self.samples)
            stop = min(place + last - first, self.samples)
            parts.append(self._within(epoch, place, stop))
            first += stop - place
        return join_rows(parts)

    def _within(self, epoch: int, first: int, last: int) -> Rows:
        windows, ends = self._epoch(epoch)
        number = int(np.searchsorted(ends, first, "right"))
        parts: list[Rows] = []
        while first < last:
            begin = ends[number] - self._size(windows[number])
            stop = min(last, ends[number])
            parts.append(self._part(epoch, number, slice(first - begin, stop - begin)))
            first, number = stop, number + 1
        if number < len(windows):
            self._load(windows[number])
        return parts[0] if len(parts) == 1 else join_rows(parts)

    def _part(self, epoch: int, number: int, span: slice) -> Rows:
        shards = self._epoch(epoch)[0][number]
        window = self._load(shards).result()
        if self._shuffled[0] != (epoch, number):
            dice = np.random.default_rng([self.seed, epoch, number])
            self._shuffled = (epoch, number), self.sampler(window.picture, dice)
        return window.take(self._shuffled[1][span])

    def _epoch(self, epoch: int) -> tuple[list[tuple[int, ...]], np.ndarray]:
        """The windows of an epoch, each as its shards, and where each ends in the epoch's order."""
        if epoch not in self._epochs:
            shards = np.random.default_rng([self.seed, epoch]).permutation(self.shards)
            full = (np.cumsum(self.source.counts[shards]) - 1) // self.window
            groups = [tuple(sorted(shards[full == number].tolist())) for number in np.unique(full)]
            self._epochs[epoch] = groups, np.cumsum([self._size(group) for group in groups])
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _size(self, shards: tuple[int, ...]) -> int:
        return int(self.source.counts[list(shards)].sum())

    def _load(self, shards: tuple[int, ...]) -> Future[Window]:
        if shards not in self._windows:
            while len(self._windows) > 2:
                left = self._windows.popitem(last=False)[1]
                self._reader.submit(_leave, left)
            self._windows[shards] = self._reader.submit(self._read, shards)
        self._windows.move_to_end(shards)
        return self._windows[shards]

    def _read(self, shards: tuple[int, ...]) -> Window:
        return Window({shard: self.source.pairs(shard) for shard in shards}, self.encode, self._known)

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.shutdown(cancel_futures=True)
        self._known.close()


def _leave(window: Future[Window]) -> None:
    window.result().keep_tokens()
