"""The transformers as we compute them: open_clip's answers and gradients, length groups, patch dropout."""

import itertools
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from pairmill.errors import ConfigError
from pairmill.pretrain.augment import normalised
from pairmill.pretrain.batch import Batch
from pairmill.pretrain.length_groups import COST, by_length, groups_by_length
from pairmill.pretrain.towers import build_towers, check_towers
from pairmill.pretrain.vit import Block, Vision
from pairmill.recipe import Towers

SMALL = Towers(
    image_size=32,
    embed_dim=32,
    vision={"layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    text={"width": 64, "heads": 2, "layers": 2},
    context_length=16,
    vocab_size=512,
)
END = 2


def towers_and_open_clips() -> tuple[Any, Any]:
    """The same weights twice, in float64: ours, and open_clip's as it comes."""
    ours = build_towers(SMALL).double()
    clip = ours.clip
    text: Any = {
        **SMALL.text,
        "context_length": 16,
        "vocab_size": 512,
        "pad_id": 0,
        "eos_id": END,
        "pool_type": "eos",
    }
    vision: Any = {**SMALL.vision, "image_size": 32}
    theirs: Any = open_clip.model.CLIP(32, vision, text)
    theirs.double().load_state_dict(clip.state_dict())
    return ours, theirs


def tokens_of(lengths: list[int], width: int = 16) -> torch.Tensor:
    """Rows of random tokens, an end mark, and padding."""
    rows = torch.randint(3, 512, (len(lengths), width), generator=torch.Generator().manual_seed(0))
    for row, length in zip(rows, lengths, strict=True):
        row[length - 1], row[length:] = END, 0
    return rows


def test_towers_say_what_open_clips_say_and_learn_the_same() -> None:
    ours, theirs = towers_and_open_clips()
    pixels = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    tokens = tokens_of([3, 16, 7, 4, 9])
    pictures = normalised(pixels, ours.mean, ours.std).double()
    weights = torch.randn(5, 32, dtype=torch.float64)
    one = torch.cat([ours.encode_pictures(pixels), ours.encode_captions(tokens)])
    other = torch.cat([theirs.encode_image(pictures, True), theirs.encode_text(tokens, True)])
    assert torch.allclose(one, other, atol=1e-6)  # normalised() gives float32
    (one * weights.repeat(2, 1)).sum().backward()
    (other * weights.repeat(2, 1)).sum().backward()
    learned: dict[str, Any] = dict(theirs.named_parameters())
    for name, value in ours.clip.named_parameters():
        if value.grad is not None:
            assert torch.allclose(value.grad, learned[name].grad, atol=1e-5), name
    assert isinstance(ours.clip.visual, Vision)
    assert all(isinstance(layer, Block) for layer in ours.layers)
    assert len(ours.layers) == 4


def test_a_mask_that_is_more_than_causal_is_obeyed() -> None:
    ours, theirs = towers_and_open_clips()
    x = torch.randn(3, 6, 64, dtype=torch.float64)
    mask = torch.zeros(3 * 2, 6, 6, dtype=torch.float64)
    mask[:, :, 4:] = float("-inf")
    mine, his = ours.clip.transformer.resblocks[0], theirs.transformer.resblocks[0]
    assert torch.allclose(mine(x, attn_mask=mask), his(x, attn_mask=mask))
    assert not torch.allclose(mine(x, attn_mask=mask), mine(x))


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 100])
def test_captions_by_length_are_encoded_as_all_together_are(rows: int) -> None:
    ours, _ = towers_and_open_clips()
    lengths = np.random.default_rng(rows).integers(3, 17, rows)
    tokens = tokens_of(lengths.tolist())
    batch = Batch({"text": tokens}, None, {"text": lengths})
    grouped = ours.encode("text", batch, "text").pooled
    assert torch.allclose(grouped, ours.encode_captions(tokens), atol=1e-12)
    parts = groups_by_length(lengths)
    assert sorted(np.concatenate([part for part, _ in parts]).tolist()) == list(range(rows))
    assert [lengths[part].max() for part, _ in parts] == [end for _, end in parts]


def test_less_padding_is_computed() -> None:
    computed = []

    def encode(tokens: torch.Tensor) -> torch.Tensor:
        computed.append(tokens.numel())
        return tokens[:, :1].float()

    lengths = np.array([4] * 60 + [16] * 4)
    tokens = tokens_of(lengths.tolist())
    found = by_length(encode, tokens, lengths)
    assert torch.equal(found, tokens[:, :1].float())
    assert sum(computed) == 60 * 4 + 4 * 16


def test_groups_cost_least_of_all_that_there_could_be() -> None:
    lengths = np.random.default_rng(0).integers(1, 7, 40)
    values = sorted(set(lengths.tolist()))

    def cost(ends: tuple[int, ...]) -> int:
        firsts = [0, *ends[:-1]]
        rows = [((lengths > low) & (lengths <= high)).sum() for low, high in zip(firsts, ends, strict=True)]
        return sum(n * end for n, end in zip(rows, ends, strict=True)) + COST["cpu"] * len(ends)

    every = [
        (*some, values[-1]) for k in range(len(values)) for some in itertools.combinations(values[:-1], k)
    ]
    found = groups_by_length(lengths)
    assert cost(tuple(end for _, end in found)) == min(cost(ends) for ends in every)
    assert len(groups_by_length(lengths, "cuda")) == 1


def test_lengths_follow_their_rows_and_are_forgotten_with_their_field() -> None:
    tokens = tokens_of([3, 5, 7])
    batch = Batch({"text": tokens, "uid": torch.arange(3)}, None, {"text": np.array([3, 5, 7])})
    assert batch.rows(slice(1, 3)).lengths["text"].tolist() == [5, 7]
    assert "text" in batch.having({"uid": torch.arange(3)}).lengths
    assert "text" not in batch.having({"text": tokens}).lengths


def test_patches_are_left_out_in_training_alone_and_the_same_ones_for_a_seed() -> None:
    towers = build_towers(SMALL)
    towers.drop_patches(0.5)
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    seen = []
    towers.clip.visual.ln_pre.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(towers.train().encode_pictures(pixels))
    whole = towers.eval().encode_pictures(pixels)
    assert seen == [9, 9, 9, 17]  # the class token, and 8 of 16 patches
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])
    assert not torch.allclose(drawn[0], whole)


def test_a_share_of_patches_that_cannot_be_left_out_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"patch_dropout 0\.5: .* see no patches"):
        check_towers(Towers(), patch_dropout=0.5)
    with pytest.raises(ConfigError, match=r"patch_dropout 1: leaves no patch"):
        check_towers(SMALL, patch_dropout=1.0)
