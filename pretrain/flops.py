"""How many floating-point operations a step of the towers takes, at the pictures and tokens of its batch.

Model FLOP/s utilisation is as PaLM has it (Chowdhery et al. 2022, appendix B): what forward and backward pass
need, without what is computed again to save memory, over what the card's maker states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..recipe import Towers
from .batch import Batch
from .objectives.system import System
from .peaks import peak_of
from .towers import build_towers
from .two_towers import TwoTowers

BACKWARD = 2  # times the forward pass: a product for the inputs' gradient, one for the weights'


class FlopCounter:
    """Counts on a copy of the towers that has shapes and no numbers, so that nothing is computed."""

    def __init__(self, towers: TwoTowers, system: System) -> None:
        self.reads_pictures = towers.reads_pictures
        with torch.device("meta"):
            self.towers = build_towers(_shapes_alone(towers.settings))
        dropped = getattr(towers.clip.visual, "dropped", None)
        if dropped is not None:
            self.towers.clip.visual.dropped = dropped
        self.locked = set(system.lock)
        self.encoded = sorted({(side.tower, side.field) for side in system.sides.values() if side.of is None})

    def of(self, batch: Batch) -> float:
        """FLOP of the towers' forward and backward pass: matrix products and convolutions.

        Heads and losses are not counted. A locked tower has no backward pass.
        """
        shapes = {name: self._shape(value) for name, value in batch.items()}
        bare = Batch(shapes, {}, **_lengths(batch))
        total = 0.0
        for tower, field in self.encoded:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                if tower == "text" and self.reads_pictures:
                    side = self.towers.image_size
                    self.towers.encode_pictures(torch.empty(len(batch[field]), side, side, 3, device="meta"))
                else:
                    self.towers.encode(tower, bare, field)
            total += counter.get_total_flops() * (1 if tower in self.locked else 1 + BACKWARD)
        return total

    @staticmethod
    def _shape(value: Tensor) -> Tensor:
        return torch.empty(value.shape, dtype=value.dtype, device="meta")


def _shapes_alone(settings: Towers) -> Towers:
    """Towers of the same shapes; for captions seen as pictures any text tower does, it is not asked."""
    if settings.text.get("render"):
        text = {"layers": 0, "width": 8} if "channels" in settings.vision else {"layers": 1, "width": 64}
        return settings.model_copy(update={"checkpoint": None, "text": text})
    return settings.model_copy(update={"checkpoint": None})


def _lengths(batch: Batch) -> Mapping[str, Any]:
    """What a batch knows of its captions' lengths, by which little padding is computed."""
    lengths = getattr(batch, "lengths", None)
    return {} if lengths is None else {"lengths": lengths}


def stated_peak(device: torch.device, amp: torch.dtype | None) -> float | None:
    """FLOP/s to hold a rate against: of bfloat16 on a card of the table; None of anything else."""
    if device.type != "cuda" or amp is not torch.bfloat16:
        return None
    return peak_of(torch.cuda.get_device_name(device))
