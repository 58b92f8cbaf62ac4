"""What a system adds to two towers: the weights that are not the towers' own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..two_towers import TwoTowers
from .system import Encode, Head, System


class Objective(nn.Module):
    """What a system adds to two towers: temperatures, biases, modules and heads."""

    def __init__(self, system: System, towers: TwoTowers, *, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed + 1)
        self.system = system
        self.hold = (towers,)  # not a submodule: the towers are saved under open_clip's own names
        made = system.modules(towers.widths) if system.modules else {}
        self.parts = nn.ModuleDict(made)
        self.heads = nn.ModuleDict(
            {name: head.make(towers.widths, **head.options) for name, head in system.heads.items()}
        )
        dtype = towers.clip.logit_scale.dtype
        self.log_scales = nn.ParameterDict(
            {name: torch.tensor(float(value), dtype=dtype).log() for name, value in system.scales.items()}
        )
        self.biases = nn.ParameterDict(
            {name: torch.tensor(float(value), dtype=dtype) for name, value in system.biases.items()}
        )
        self.to(towers.device)

    @property
    def towers(self) -> TwoTowers:
        """The two towers."""
        return self.hold[0]

    def scale(self, name: str) -> Tensor:
        """One over the temperature of that name."""
        return self.towers.scale if name == "scale" else self.log_scales[name].exp()

    def bias(self, name: str) -> Tensor | None:
        """What is added to the scores of that temperature."""
        return self.biases.get(name)

    def fit(self, captions: Callable[[], Iterator[str]], encode: Encode) -> None:
        """Let the heads read the corpus."""
        for head in self.heads.values():
            if isinstance(head, Head):
                head.fit(captions, encode)

    def end_epoch(self) -> None:
        """Tell the heads that every pair was seen once more."""
        for head in self.heads.values():
            if isinstance(head, Head):
                head.end_epoch(self.towers)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep every scale in [1, 100]."""
        self.towers.clamp_scale()
        for value in self.log_scales.values():
            value.clamp_(0, TwoTowers.max_log_scale)
