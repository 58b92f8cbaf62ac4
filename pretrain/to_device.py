"""From a ring to a GPU: pinned once, copied on a stream of its own while the batch before is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .batch import Batch
from .ring import Ring

STEPS_AHEAD = 1  # that are given to the device while it computes another

Release = Callable[[int], None]


class Copier:
    """Copies slots of a ring; a slot is released as soon as its copy is done."""

    def __init__(self, ring: Ring, device: torch.device, release: Release) -> None:
        self._ring, self._device, self._release = ring, device, release
        self._stream = torch.cuda.Stream(device)
        self._copying: deque[tuple[int, torch.cuda.Event, Batch]] = deque()
        self._done: deque[tuple[torch.cuda.Event, Batch]] = deque()
        self._begun: deque[torch.cuda.Event] = deque()
        self._pinned = self._pin()

    def _pin(self) -> bool:
        """Pages that are not pinned are copied too, only slower."""
        place, size = self._ring.bytes.ctypes.data, self._ring.bytes.nbytes
        return int(_runtime().cudaHostRegister(place, size, 0)) == 0

    @property
    def ahead(self) -> int:
        """Batches that were put in and not taken out."""
        return len(self._done)

    def put(self, slot: int, batch: Batch) -> None:
        """Begin to copy a batch that lies in `slot`."""
        event = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            moved = Batch(self._moved(batch), self._moved(batch.shared), batch.lengths)
            event.record(self._stream)
        self._copying.append((slot, event, batch))
        self._done.append((event, moved))

    def _moved(self, fields: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self._device, non_blocking=True) for name, value in fields.items()}

    def get(self) -> Batch:
        """The oldest batch, which the current stream may read."""
        event, batch = self._done.popleft()
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        self._hold_back(current)
        for value in (*batch.values(), *batch.shared.values()):
            value.record_stream(current)  # its memory is not reused before this stream is through
        return batch

    def _hold_back(self, current: torch.cuda.Stream) -> None:
        """Wait for the step before the last: else batches would pile up in the device's memory."""
        event = torch.cuda.Event()
        event.record(current)
        self._begun.append(event)
        if len(self._begun) > STEPS_AHEAD:
            self._begun.popleft().synchronize()

    def sweep(self, *, wait: bool = False) -> None:
        """Release the slots whose copies are done; all of them, with `wait`."""
        while self._copying and (wait or self._copying[0][1].query()):
            slot, event, _ = self._copying.popleft()
            event.synchronize()
            self._release(slot)

    def close(self) -> None:
        """Wait for what is being copied, and unpin the ring."""
        for _, event, _ in self._copying:
            event.synchronize()
        self._copying.clear()
        if self._pinned:
            _runtime().cudaHostUnregister(self._ring.bytes.ctypes.data)
            self._pinned = False


def _runtime() -> Any:
    return torch.cuda.cudart()
