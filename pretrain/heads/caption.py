"""A decoder that writes the caption, looking at the picture (CoCa, NLIP)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import ConfigError
from ..objectives.system import Head, Step, Widths
from ..tokenizer import PAD


class CaptionHead(Head):
    """Cross-entropy of each token, given those before it and the picture.

    The text tower's states (it must be causal) go through blocks of causal attention among themselves and
    attention to the picture, which is pooled to `queries` tokens. Its loss is open_clip's CoCaLoss's.
    """

    needs = ("image", "text")

    def __init__(self, widths: Widths, *, layers: int = 2, queries: int = 32, heads: int = 4) -> None:
        super().__init__(widths)
        if not widths.causal:
            raise ConfigError(
                "towers: their text tower sees the tokens that a captioner is to foretell: take a causal one,"
                " such as open_clip's own"
            )
        from open_clip.transformer import AttentionalPooler, MultimodalTransformer

        width, heads = widths.text, _divisor(widths.text, heads)
        self.context_length = widths.context
        self.pool = AttentionalPooler(width, widths.image, n_head=heads, n_queries=queries)
        self.decoder = MultimodalTransformer(
            width, layers, heads, context_length=widths.context, output_dim=widths.vocab
        )
        nn.init.normal_(self.decoder.text_projection, std=width**-0.5)

    def logits(self, picture: Tensor, states: Tensor) -> Tensor:
        """(B, L, V) for the token behind each of the text's (B, L, W) states. picture: (B, P, W) states."""
        return self.decoder(self.pool(picture), states)

    def forward(self, step: Step) -> dict[str, tuple[Tensor, Tensor]]:
        text, valid = step.batch["text"], step.batch["valid"]
        states = step.encoded["text"].hidden[-1][:, : text.shape[1]]
        found = self.logits(step.encoded["image"].hidden[-1], states[:, :-1])
        labels = text[:, 1:].masked_fill(~valid[:, None], PAD)
        logits = found.float() if found.dtype != torch.float64 else found
        total = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=PAD, reduction="sum")
        return {"caption": (total, (labels != PAD).sum())}


def _divisor(width: int, wanted: int) -> int:
    return next(n for n in range(min(wanted, width), 0, -1) if width % n == 0)
