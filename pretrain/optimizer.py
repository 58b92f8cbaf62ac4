"""The optimizer: which weights decay, how fast each layer learns, and how the rate goes with the steps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from torch import nn

from ..recipe import Training
from .objectives.objective import Objective
from .two_towers import TwoTowers

BETAS, EPS = (0.9, 0.98), 1e-6
BLOCK = re.compile(r"(.*?)\b(?:resblocks|blocks|stages|layers?|layer)\.?(\d+)\.")
FIRST = re.compile(r"embed|conv1|bn1|stem")  # what comes before the first block, by a part of its name


def learning_rate(step: int, steps: int, training: Training) -> float:
    """Linear warm-up, then a cosine to 0. step counts from 0."""
    rising = max(1, round(training.warmup * steps))
    if step < rising:
        return training.lr * (step + 1) / rising
    return training.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def make_optimizer(
    towers: TwoTowers, training: Training, objective: Objective | None = None
) -> torch.optim.AdamW:
    """AdamW; gains, biases and the temperature are not decayed.

    Each group has a `share` of the learning rate, 1 unless the recipe asks for `layer_decay`.
    """
    shares = layer_shares([name for name, _ in towers.clip.named_parameters()], training.layer_decay)
    named = [(value, shares[name]) for name, value in towers.clip.named_parameters()]
    named += [(value, 1.0) for value in (objective.parameters() if objective is not None else ())]
    groups = []
    for share in sorted({share for _, share in named}, reverse=True):
        learned = [value for value, own in named if own == share and value.requires_grad]
        groups += [
            _group([value for value in learned if value.ndim >= 2], share, training.weight_decay),
            _group([value for value in learned if value.ndim < 2], share, 0.0),
        ]
    return torch.optim.AdamW(groups, lr=training.lr, betas=BETAS, eps=EPS, fused=True)


def _group(values: list[nn.Parameter], share: float, weight_decay: float) -> dict[str, object]:
    return {"params": values, "weight_decay": weight_decay, "share": share}


def layer_shares(names: Iterable[str], decay: float | None) -> dict[str, float]:
    """By parameter the share of the learning rate: `decay` to the power of the blocks above it.

    BEiT (Bao et al. 2022, appendix) and its followers: what lies above all L blocks of its tower has 1, block
    i of L (counted from 0) decay^(L - i), and embeddings below them decay^(L + 1).
    """
    names = list(names)
    if decay is None:
        return dict.fromkeys(names, 1.0)
    blocks = {name: (_tower(name), int(found[2])) for name in names if (found := BLOCK.match(name))}
    depth: dict[str, int] = {}
    for tower, number in blocks.values():
        depth[tower] = max(depth.get(tower, 0), number + 1)
    shares = {}
    for name in names:
        most = depth.get(_tower(name), 0)
        above = most - blocks[name][1] if name in blocks else most + 1 if FIRST.search(name) and most else 0
        shares[name] = decay**above
    return shares


def _tower(name: str) -> str:
    return "image" if name.startswith("visual.") else "text"
