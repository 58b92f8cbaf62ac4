"""Do these two belong together: yes for a pair, no for a picture with another pair's caption."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..objectives.system import Head, Step, Widths


class MatchingHead(Head):
    """Captions look at pictures through blocks of attention; the first state says whether they match.

    A pair's negative is the caption of a pair drawn at random from the same piece of the batch (BagFormer):
    with `accumulate` these are other pairs than without it, the only loss of which that is so.
    """

    needs = ("image", "text")
    within_chunk = True

    def __init__(self, widths: Widths, *, layers: int = 2, heads: int = 4) -> None:
        super().__init__(widths)
        from open_clip.transformer import ResidualAttentionBlock

        width = widths.text
        heads = next(n for n in range(min(heads, width), 0, -1) if width % n == 0)
        self.picture = nn.Linear(widths.image, width)
        self.own = nn.ModuleList(ResidualAttentionBlock(width, heads) for _ in range(layers))
        self.cross = nn.ModuleList(
            ResidualAttentionBlock(width, heads, is_cross_attention=True) for _ in range(layers)
        )
        self.classify = nn.Linear(width, 2)

    def logits(self, picture: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """(B, 2) no and yes. picture: (B, P, W'); states: (B, L, W) of captions; mask: (B, L)."""
        seen, x = self.picture(picture), states
        for own, cross in zip(self.own, self.cross, strict=True):
            x = cross(own(x), k_x=seen, v_x=seen)
        return self.classify((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1))

    def forward(self, step: Step) -> dict[str, tuple[Tensor, Tensor]]:
        image, text = step.encoded["image"].hidden[-1], step.encoded["text"]
        mask, valid = text.hidden_mask, step.batch["valid"]
        assert mask is not None
        other = _others(step.batch["caption"])
        rows = torch.cat([torch.arange(len(other), device=other.device), other])
        found = self.logits(image.repeat(2, 1, 1), text.hidden[-1][rows], mask[rows])
        labels = (torch.arange(len(rows), device=rows.device) < len(other)).long()
        losses = functional.cross_entropy(found, labels, reduction="none")
        different = step.batch["caption"][other] != step.batch["caption"]
        counts = torch.cat([valid, valid & valid[other] & different]).to(losses.dtype)
        return {"match": ((losses * counts).sum(), counts.sum())}


def _others(caption: Tensor) -> Tensor:
    """(B,) for each pair another one, drawn at random."""
    n = len(caption)
    return (torch.arange(n) + torch.randint(1, max(2, n), (n,))).remainder(n).to(caption.device)
