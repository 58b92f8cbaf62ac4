"""A decoder that writes the caption, looking at the picture (CoCa, NLIP)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import ConfigError
from ..captions import MINED_FROM, STOP_WORDS, frequencies, split_words
from ..objectives.system import Encode, Head, Step, Widths
from ..tokenizer import PAD
from ..two_towers import TwoTowers

CONCEPTS = 8  # shown with a picture
PROMPT = "a photo of {}"


class CaptionHead(Head):
    """Cross-entropy of each token, given those before it and the picture.

    The text tower's states (it must be causal) go through blocks of causal attention among themselves and
    attention to the picture, which is pooled to `queries` tokens. Its loss is open_clip's CoCaLoss's.
    """

    needs = ("image", "text")
    concept_tokens: Tensor
    concept_rows: Tensor

    def __init__(
        self, widths: Widths, *, layers: int = 2, queries: int = 32, heads: int = 4, concepts: int = 0
    ) -> None:
        """concepts: words of the corpus; those most like a picture are shown to the decoder too (NLIP)."""
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
        self.concept = nn.Embedding(concepts + 1, width, padding_idx=0) if concepts else None
        if concepts:
            tokens = torch.zeros(concepts, widths.context, dtype=torch.int64)
            self.register_buffer("concept_tokens", tokens)
            self.register_buffer("concept_rows", torch.zeros(concepts, widths.dim))

    def logits(self, picture: Tensor, states: Tensor, pooled: Tensor | None = None) -> Tensor:
        """(B, L, V) for the token behind each of the text's (B, L, W) states.

        picture: (B, P, W) states. pooled: (B, D) rows of the pictures, by which concepts are chosen.
        """
        seen = self.pool(picture)
        if self.concept is not None and pooled is not None:
            seen = torch.cat([seen, self.concept(self.concepts_of(pooled)).to(seen.dtype)], 1)
        return self.decoder(seen, states)

    def concepts_of(self, pooled: Tensor) -> Tensor:
        """(B, CONCEPTS) numbers of the concepts most like each picture; 0 until they were first reckoned."""
        count = min(CONCEPTS, len(self.concept_rows))
        likeness = pooled.detach().to(self.concept_rows.dtype) @ self.concept_rows.T
        return (likeness.topk(count, 1).indices + 1) * self.concept_rows.any()

    def fit(self, captions: Callable[[], Iterator[str]], encode: Encode) -> None:
        """Take the most frequent words but stop words for concepts, each in a prompt."""
        if self.concept is None:
            return
        counts = frequencies([split_words(one) for one in islice(captions(), MINED_FROM)])
        words = [word for word in counts if word.isalpha() and word not in STOP_WORDS]
        words = sorted(words, key=lambda word: (-counts[word], word))[: len(self.concept_tokens)]
        for row, word in zip(self.concept_tokens, words, strict=False):
            tokens, _ = encode([PROMPT.format(word)])
            row[: len(tokens)] = torch.from_numpy(tokens[: len(row)].astype("int64"))

    @torch.no_grad()
    def end_epoch(self, towers: TwoTowers) -> None:
        """Embed the concepts anew."""
        if self.concept is None:
            return
        was = towers.training
        towers.eval()
        there = self.concept_tokens.any(1)
        for some in there.nonzero()[:, 0].split(256):
            self.concept_rows[some] = towers.encode_captions(self.concept_tokens[some]).to(
                self.concept_rows.dtype
            )
        towers.train(was)

    def forward(self, step: Step) -> dict[str, tuple[Tensor, Tensor]]:
        text, valid = step.batch["text"], step.batch["valid"]
        states = step.encoded["text"].hidden[-1][:, : text.shape[1]]
        image = step.encoded["image"]
        found = self.logits(image.hidden[-1], states[:, :-1], image.pooled)
        labels = text[:, 1:].masked_fill(~valid[:, None], PAD)
        logits = found.float() if found.dtype != torch.float64 else found
        total = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=PAD, reduction="sum")
        return {"caption": (total, (labels != PAD).sum())}


def _divisor(width: int, wanted: int) -> int:
    return next(n for n in range(min(wanted, width), 0, -1) if width % n == 0)
