"""How many floating-point operations a step of the towers takes, at the pictures and tokens of its batch.

Model FLOP/s utilisation is as PaLM has it (Chowdhery et al. 2022, appendix B): what forward and backward pass
need, without what is computed again to save memory, over what the card's maker states.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from .augment import normalised
from .batch import Batch
from .objectives.system import System
from .peaks import peak_of
from .two_towers import TwoTowers

BACKWARD = 2  # times the forward pass: a product for the inputs' gradient, one for the weights'


class FlopCounter:
    """Counts on a copy of the towers of fake tensors: shapes without numbers, so that nothing is computed."""

    def __init__(self, towers: TwoTowers, system: System) -> None:
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.towers = self._without_numbers(towers)
        self.locked = set(system.lock)
        self.encoded = sorted({(side.tower, side.field) for side in system.sides.values() if side.of is None})

    def of(self, batch: Batch) -> float:
        """FLOP of the towers' forward and backward pass: matrix products and convolutions.

        Heads and losses are not counted. A locked tower has no backward pass.
        """
        shapes = {name: self.fake.from_tensor(value) for name, value in batch.items()}
        bare = Batch(shapes, {}, batch.lengths)
        total = 0.0
        for tower, field in self.encoded:
            with self.fake, torch.no_grad(), FlopCounterMode(display=False) as counter:
                if tower == "text" and self.towers.reads_pictures:
                    side = self.towers.image_size
                    self.towers.encode_pictures(torch.empty(len(batch[field]), side, side, 3))
                else:
                    self.towers.encode(tower, bare, field)
            total += counter.get_total_flops() * (1 if tower in self.locked else 1 + BACKWARD)
        return total

    def _without_numbers(self, towers: TwoTowers) -> TwoTowers:
        """The same modules with shapes for weights, and nothing of them compiled."""
        known: dict[int, Any] = {}
        for value in towers.parameters():
            known[id(value)] = nn.Parameter(self.fake.from_tensor(value.detach()), requires_grad=False)
        for buffer in towers.buffers():
            known[id(buffer)] = self.fake.from_tensor(buffer)
        found = copy.deepcopy(towers, known)
        found._normalised = normalised
        found.__dict__.pop("encode_captions", None)
        found.clip.__dict__.pop("encode_image", None)
        return found.train()


def stated_peak(device: torch.device, amp: torch.dtype | None) -> float | None:
    """FLOP/s to hold a rate against: of bfloat16 on a card of the table; None of anything else."""
    if device.type != "cuda" or amp is not torch.bfloat16:
        return None
    return peak_of(torch.cuda.get_device_name(device))
