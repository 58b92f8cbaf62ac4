"""Towers of some hundred weights, and batches for them, in which every sum can be reckoned in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pairmill.pretrain.batch import Batch
from pairmill.pretrain.objectives.objective import Objective
from pairmill.pretrain.objectives.system import System
from pairmill.pretrain.two_towers import TwoTowers
from pairmill.recipe import Towers

SIDE, CONTEXT, VOCABULARY, WIDTH, DIM = 8, 8, 40, 6, 5


class TinyVisual(nn.Module):
    """4 patches, each through one layer; no batch norm, so that rows do not know of each other."""

    image_size = SIDE

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.proj = nn.Linear(WIDTH, DIM)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.forward_intermediates(pictures)["image_features"]

    def forward_intermediates(self, pictures: Tensor, **_: Any) -> dict[str, Any]:
        states = torch.tanh(self.patches(pictures))
        return {"image_intermediates": [states], "image_features": self.proj(states.mean((2, 3)))}


class TinyText(nn.Module):
    """A causal tower: each token sees the running mean of those before it, so that order counts."""

    context_length = CONTEXT

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.mix = nn.Linear(2 * WIDTH, WIDTH)
        self.proj = nn.Linear(WIDTH, DIM)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.forward_intermediates(tokens)["text_features"]

    def forward_intermediates(self, tokens: Tensor, **_: Any) -> dict[str, Any]:
        x = self.embedding(tokens)
        before = x.cumsum(1) / torch.arange(1, tokens.shape[1] + 1, device=x.device)[:, None]
        states = torch.tanh(self.mix(torch.cat([x, before], 2)))
        last = (tokens != 0).sum(1).clamp(min=1) - 1
        pooled = self.proj(states[torch.arange(len(tokens)), last])
        return {"text_intermediates": [states], "text_features": pooled}


class TinyClip(nn.Module):
    """Both, with the names of open_clip's models."""

    context_length, vocab_size = CONTEXT, VOCABULARY

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.visual, self.text = TinyVisual(), TinyText()
        self.logit_scale = nn.Parameter(torch.tensor(scale).log())

    def encode_image(self, pictures: Tensor, normalize: bool = False) -> Tensor:
        found = self.visual(pictures)
        return nn.functional.normalize(found, dim=-1) if normalize else found

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        found = self.text(tokens)
        return nn.functional.normalize(found, dim=-1) if normalize else found


def tiny_towers(dtype: torch.dtype = torch.float64, seed: int = 0) -> TwoTowers:
    """Two tiny towers; a scale of 14.3."""
    torch.manual_seed(seed)
    towers = TwoTowers(TinyClip(14.3), Towers(), image_size=SIDE, context_length=CONTEXT)
    return towers.to(dtype)


def tiny_objective(system: System, dtype: torch.dtype = torch.float64) -> Objective:
    """A system on tiny towers, always with the same weights."""
    return Objective(system, tiny_towers(dtype)).to(dtype)


def tiny_batch(pairs: int = 16, seed: int = 0) -> Batch:
    """Pairs of noise: captions of 3 to 6 tokens between a begin and an end, in groups of up to two tokens;
    some captions, labels and pictures occur twice, and each pair is likely mismatched to some degree."""
    dice = torch.Generator().manual_seed(seed)
    text = torch.zeros(pairs, CONTEXT, dtype=torch.int64)
    group = torch.zeros_like(text)
    for row in range(pairs):
        length = int(torch.randint(3, 7, (), generator=dice))
        text[row, 0], text[row, length + 1] = 1, 2
        text[row, 1 : length + 1] = torch.randint(3, VOCABULARY, (length,), generator=dice)
        group[row, 1 : length + 1] = torch.arange(length) // 2 + 1
    text[1], group[1] = text[0], group[0]
    number = torch.arange(pairs)
    distinct = max(1, pairs - 2)
    pictures = torch.randint(0, 256, (distinct, SIDE, SIDE, 3), generator=dice, dtype=torch.uint8)
    of_picture = number % distinct
    caption = number.clone()
    caption[1] = 0
    fields = {
        "uid": number + 10**15,
        "valid": torch.ones(pairs, dtype=torch.bool),
        "image": pictures,
        "text": text,
        "group": group,
        "picture": of_picture,
        "caption": caption,
        "label": caption // 3,
        "noise": torch.rand(pairs, generator=dice, dtype=torch.float64),
    }
    return Batch(fields, {"image": of_picture})


def unit_rows(n: int, seed: int, dim: int = DIM, dtype: torch.dtype = torch.float64) -> Tensor:
    """(n, dim) unit rows, with a gradient."""
    dice = torch.Generator().manual_seed(seed)
    return (
        normalize(torch.randn(n, dim, generator=dice, dtype=torch.float64), dim=-1).to(dtype).requires_grad_()
    )
