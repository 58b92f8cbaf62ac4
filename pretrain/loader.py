"""Batches for training: read by offset, decoded by threads or processes, in an order that a seed fixes.

A batch is the same whatever the number of threads, and whether they are processes. It lies in a ring of
reused batches: on a CPU its tensors hold until the next one is asked for, and who keeps it longer copies it
(`Batch.copied`); on a GPU they are its own.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Iterator

import torch

from ..errors import DataError
from .batch import Batch
from .feeder import Filled, Request
from .ring import NUMBERS, Ring, Shape
from .share import AnyOrder
from .streams import Elsewhere, FeederLostError, Here, Stream
from .to_device import Copier

AHEAD = 3  # batches being decoded while one is used
WORTH_PROCESSES = 20_000  # pictures to decode: fewer are through before processes have paid for their start
JUDGED_FROM = 1_000  # pairs: before that no share of undecodable ones is judged

log = logging.getLogger(__name__)


class Loader:
    """Gives batch after batch; `wait_s` is how long the trainer stood waiting for them."""

    def __init__(
        self,
        order: AnyOrder,
        *,
        size: int,
        threads: int,
        cache_mb: int,
        context: int,
        device: torch.device | None = None,
        processes: bool | None = None,
        max_undecodable: float = 1.0,
    ) -> None:
        """size: side of the pictures, pixels. context: most tokens of a caption.

        processes: whether decoding is for processes; None: where there is enough to decode.
        max_undecodable: share of undecodable pairs above which DataError ends the run.
        """
        self.order, self.size, self.context, self.threads = order, size, context, threads
        self.device = device or torch.device("cpu")
        self.processes, self.max_undecodable = processes, max_undecodable
        self.cached = min(cache_mb * 1_000_000 // (size * size * 3), order.samples)
        self.wait_s = 0.0
        self.undecodable: set[int] = set()  # uids of pairs that were not valid because of their picture
        self._shown = self._lost = 0
        self._stream: Stream | None = None
        self._copier: Copier | None = None

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches `start` to `stop` (exclusive), each the same whenever and wherever it is asked for.

        Where the feeder's process is killed, another goes on at the same batch.
        """
        number = start
        while number < stop:
            begun = number
            try:
                for batch in self._batches(number, stop):
                    number += 1
                    yield batch
            except FeederLostError as error:
                if number == begun:
                    raise
                log.warning("%s: started anew at batch %d", error, number)
            finally:
                self._end()

    def _batches(self, start: int, stop: int) -> Iterator[Batch]:
        stream = self._stream = self._open(start, stop)
        if self.device.type == "cuda":
            yield from self._on_device(stream, stop - start)
            return
        for _ in range(stop - start):
            filled = self._take(stream)
            yield views(stream.ring, filled)
            stream.release(filled.slot)

    def _on_device(self, stream: Stream, number: int) -> Iterator[Batch]:
        """The same, each batch copied while the one before is computed."""
        copier = self._copier = Copier(stream.ring, self.device, stream.release)
        left = number
        for _ in range(number):
            while left and (not copier.ahead or (copier.ahead < 2 and stream.ready())):
                copier.sweep(wait=not stream.ready())  # the feeder may need a slot to go on
                filled = self._take(stream)
                copier.put(filled.slot, views(stream.ring, filled))
                left -= 1
            yield copier.get()

    def _open(self, start: int, stop: int) -> Stream:
        shape = Shape(AHEAD + 1, self.order.batch, self.size, self.context, self.cached)
        request = Request(self.order, shape, self.threads, start, stop)
        if self.processes is False or (self.processes is None and not self._pays(stop - start)):
            return Here(request)
        try:
            return Elsewhere(request)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            log.warning("pictures are decoded in the training process, which is slower: %s", error)
            return Here(request)

    def _pays(self, batches: int) -> bool:
        shown = batches * self.order.batch
        return (min(shown, self.order.samples) if self._keeps_all else shown) >= WORTH_PROCESSES

    @property
    def _keeps_all(self) -> bool:
        return self.cached == self.order.samples

    def _take(self, stream: Stream) -> Filled:
        begun = time.perf_counter()
        filled = stream.take()
        self.wait_s += time.perf_counter() - begun
        self.undecodable.update(filled.lost)
        self._shown, self._lost = self._shown + filled.pairs, self._lost + len(filled.lost)
        if self._shown >= JUDGED_FROM and self._lost > self.max_undecodable * self._shown:
            raise DataError(
                f"{self.order.source.tar(0).parent}: the pictures of {self._lost:,} of {self._shown:,} pairs"
                f" shown cannot be decoded, and training.max_undecodable is {self.max_undecodable:g}: run"
                " `pairmill verify`, or allow more"
            )
        return filled

    def _end(self) -> None:
        if self._copier is not None:
            self._copier.close()
            self._copier = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        """Stop threads and processes, close the files."""
        self._end()
        self.order.close()


def views(ring: Ring, filled: Filled) -> Batch:
    """A slot as a batch, without a copy but of the lengths, which stay where the program runs."""
    slot, pairs = ring.slots[filled.slot], filled.pairs
    fields = {name: slot[name][:pairs] for name in (*NUMBERS, "valid")}
    of_picture, length = fields.pop("of_picture"), fields.pop("length")
    fields["image"] = slot["image"][: filled.pictures]
    for name in ("text", "group") if filled.grouped else ("text",):
        fields[name] = slot[name][: pairs * filled.tokens].reshape(pairs, filled.tokens)
    found = {name: torch.from_numpy(value) for name, value in fields.items()}
    return Batch(found, {"image": torch.from_numpy(of_picture)}, {"text": length.copy()})
