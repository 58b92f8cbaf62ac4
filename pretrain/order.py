"""Which samples are in batch k: a pure function of the seed and k, in bounded memory.

In each epoch the shards are shuffled and cut into windows; within a window a sampler says
the order. A set that fits one window is thus shuffled whole.
Every epoch drops the few samples that do not fill a batch.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ..errors import ConfigError
from .objectives.system import Sampler
from .samplers import shuffled
from .samples import Rows, Source, join_rows
from .tokenizer import Encode

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
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """share: (rank, ranks), whose part of each batch is given: its rows are cut into `ranks` spans.

        Raises ConfigError where a batch cannot be shared evenly.
        """
        self.source, self.encode, self.seed, self.window = source, encode, seed, window
        self.sampler = sampler
        self.samples = source.total
        self.batch = min(batch, self.samples)
        rank, ranks = share
        self.share = rank * self.batch // ranks, (rank + 1) * self.batch // ranks
        if self.batch % ranks:
            raise ConfigError(
                f"a batch of {self.batch} pairs cannot be shared by {ranks} ranks: set training.batch_size to"
                f" a multiple of {ranks}, at most {self.samples}"
            )
        self.per_epoch = self.samples // self.batch
        self._reader = ThreadPoolExecutor(1)
        self._windows: OrderedDict[tuple[int, ...], Future[Rows]] = OrderedDict()
        self._shuffled: tuple[tuple[int, int] | None, np.ndarray] = None, np.empty(0, np.int64)
        self._epochs: OrderedDict[int, tuple[list[tuple[int, ...]], np.ndarray]] = OrderedDict()

    def __getitem__(self, k: int) -> Rows:
        """The samples of batch k, counted from 0, or this rank's share of them."""
        return self._rows(k, *self.share)

    def whole(self, k: int) -> Rows:
        """All samples of batch k, whatever the share."""
        return self._rows(k, 0, self.batch)

    def _rows(self, k: int, start: int, stop: int) -> Rows:
        """Those from place `start` to `stop` (exclusive) of the batch."""
        epoch, place = divmod(k, self.per_epoch)
        first, last = place * self.batch + start, place * self.batch + stop
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
        rows = self._load(shards).result()
        if self._shuffled[0] != (epoch, number):
            self._shuffled = (epoch, number), self._shuffle(rows, [self.seed, epoch, number])
        return rows.take(self._shuffled[1][span])

    def _shuffle(self, rows: Rows, seed: list[int]) -> np.ndarray:
        return self.sampler(rows.picture, np.random.default_rng(seed))

    def _epoch(self, epoch: int) -> tuple[list[tuple[int, ...]], np.ndarray]:
        """The windows of an epoch, each as its shards, and where each ends in the epoch's order."""
        if epoch not in self._epochs:
            shards = np.random.default_rng([self.seed, epoch]).permutation(len(self.source.counts))
            full = (np.cumsum(self.source.counts[shards]) - 1) // self.window
            groups = [tuple(sorted(shards[full == number].tolist())) for number in np.unique(full)]
            self._epochs[epoch] = groups, np.cumsum([self._size(group) for group in groups])
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _size(self, shards: tuple[int, ...]) -> int:
        return int(self.source.counts[list(shards)].sum())

    def _load(self, shards: tuple[int, ...]) -> Future[Rows]:
        if shards not in self._windows:
            while len(self._windows) > 2:
                self._windows.popitem(last=False)
            self._windows[shards] = self._reader.submit(self._read, shards)
        self._windows.move_to_end(shards)
        return self._windows[shards]

    def _read(self, shards: tuple[int, ...]) -> Rows:
        return join_rows([self.source.rows(shard, self.encode) for shard in shards])

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.shutdown(cancel_futures=True)
