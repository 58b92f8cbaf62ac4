"""What each system is equal to: open_clip's own loss, or a neighbour, where its parameter is switched off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from ranked import Outcome, agree, outcome
from tiny import WIDTH, tiny_batch, tiny_objective, tiny_towers, unit_rows
from torch import Tensor

from pairmill.pretrain.batch import Batch
from pairmill.pretrain.heads.caption import CaptionHead
from pairmill.pretrain.objectives.encode import encode
from pairmill.pretrain.objectives.interactions import Global, TokenWise
from pairmill.pretrain.objectives.objective import Objective
from pairmill.pretrain.objectives.registry import find_system
from pairmill.pretrain.objectives.step import Setting, backward
from pairmill.pretrain.objectives.system import Tokens
from pairmill.pretrain.objectives.token_modules import Bags, TokenProjection, TokenReducer
from pairmill.pretrain.towers import build_towers
from pairmill.recipe import Towers


def found(name: str, batch: Batch | None = None, **parameters: Any) -> Outcome:
    """What a system finds on the tiny batch."""
    return outcome(find_system({"name": name, **parameters}), batch or tiny_batch(), torch.float64)


def times(factor: float, one: Outcome) -> Outcome:
    return {name: factor * value for name, value in one.items()}


def of_towers(one: Outcome, expected: Outcome) -> Outcome:
    """Without the gradients of weights that the other system does not have."""
    return {name: value for name, value in one.items() if name in expected}


def test_align_without_smoothing_is_twice_clip() -> None:
    agree(found("align", smoothing=0.0), times(2, found("clip")), 1e-10)


def test_unicl_with_a_label_for_each_pair_is_twice_clip() -> None:
    batch = tiny_batch().having({"label": torch.arange(16)})
    agree(found("unicl", batch), times(2, found("clip")), 1e-10)


def test_unicl_has_clips_value_where_equal_labels_have_equal_wordings() -> None:
    batch = tiny_batch()
    batch = batch.having({"label": batch["caption"]})
    assert batch["label"].unique().numel() < 16
    assert found("unicl", batch)["loss"].item() == pytest.approx(2 * found("clip")["loss"].item(), rel=1e-12)


def test_otter_without_its_plan_is_clip() -> None:
    expected = found("clip")
    agree(of_towers(found("otter", plan_weight=0.0), expected), expected, 1e-10)


def test_nlip_of_no_strength_is_clip_to_the_bit_in_value() -> None:
    expected = found("clip", smoothing=1e-300)  # by the matrix, as NLIP does it
    mine = of_towers(found("nlip", strength=0.0, caption_weight=0.0), expected)
    assert torch.equal(mine["loss"], expected["loss"])
    agree(mine, expected, 1e-12)


def test_coca_without_its_captioner_is_clip() -> None:
    agree(found("coca", caption_weight=0.0), found("clip"), 1e-12)


def test_coca_loses_what_open_clips_coca_loss_says() -> None:
    from open_clip.loss import CoCaLoss

    system = find_system("coca")
    objective, batch = tiny_objective(system), tiny_batch()
    total = backward(objective, batch, Setting(system)).loss
    encoded = encode(objective, system, batch)
    head = objective.heads["caption"]
    assert isinstance(head, CaptionHead)
    logits = head.logits(encoded["image"].hidden[-1], encoded["text"].hidden[-1][:, :-1])
    given = (encoded["image"].pooled, encoded["text"].pooled, logits, batch["text"][:, 1:])
    parts = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)(*given, objective.scale("scale"))
    torch.testing.assert_close(total, sum(parts).detach(), atol=1e-10, rtol=0)  # type: ignore[union-attr]


def test_bow_without_shuffling_and_bank_is_clip_at_a_fixed_temperature() -> None:
    agree(found("bow", shuffle=False, bank=0), found("clip"), 1e-12)


def test_bow_holds_each_row_against_the_banks_keys_too() -> None:
    system = find_system({"name": "bow", "shuffle": False, "bank": 8})
    objective = tiny_objective(system)
    whole = tiny_batch(8, seed=9)
    with torch.no_grad():
        one, other = (encode(objective, system, batch) for batch in (tiny_batch(), whole))
        losses: list[Tensor] = []
        for left, right in (("image", "text"), ("text", "image")):
            keys = torch.cat([one[right].pooled, other[right].pooled.float().double()])
            scores = objective.scale("scale") * one[left].pooled @ keys.T
            losses.append(torch.nn.functional.cross_entropy(scores, torch.arange(16)))
    mine = found("bow", shuffle=False, bank=8)["loss"]
    torch.testing.assert_close(mine, (losses[0] + losses[1]) / 2, atol=1e-10, rtol=0)


def test_lit_is_clip_for_the_text_tower_and_nothing_for_the_pictures() -> None:
    system = find_system("lit")
    towers = tiny_towers()
    towers.lock(system.lock)
    backward(Objective(system, towers), tiny_batch(), Setting(system))
    expected = found("clip")
    for name, value in towers.clip.named_parameters():
        if name.startswith("visual."):
            assert value.grad is None
        else:
            assert value.grad is not None
            torch.testing.assert_close(value.grad, expected[name], atol=1e-12, rtol=0)


def test_filip_with_one_token_for_each_thing_is_clips_interaction() -> None:
    left, right = (Tokens(rows, rows[:, None]) for rows in (unit_rows(6, 0), unit_rows(5, 1)))
    torch.testing.assert_close(TokenWise()(left, right), Global()(left, right))


def test_filips_reducer_to_one_token_is_attention_pooling() -> None:
    torch.manual_seed(0)
    reducer = TokenReducer(WIDTH, 4, 1)
    states = torch.randn(3, 5, WIDTH)
    side = Tokens(torch.zeros(3, 4), hidden=(states,))
    with torch.no_grad():
        mine = reducer(side, tiny_batch()).tokens
        inner = reducer.inner(reducer.norm(states).transpose(1, 2))
        weight = torch.softmax(reducer.maps(inner)[:, 0], 1)
        values = reducer.values(states.transpose(1, 2)).transpose(1, 2)
        pooled = (weight[..., None] * values).sum(1)
        expected = torch.nn.functional.normalize(reducer.project(pooled), dim=-1)
    assert mine.shape == (3, 1, 4)
    torch.testing.assert_close(mine[:, 0], expected)


def text_side(batch: Batch) -> Tokens:
    dice = torch.Generator().manual_seed(0)
    states = torch.randn(*batch["text"].shape, WIDTH, generator=dice)
    return Tokens(torch.zeros(len(states), 4), hidden=(states,), hidden_mask=batch["text"] != 0)


def bags_and_tokens() -> tuple[Bags, TokenProjection]:
    torch.manual_seed(0)
    bags, tokens = Bags(WIDTH, 4), TokenProjection(WIDTH, 4)
    tokens.load_state_dict(bags.state_dict())
    return bags, tokens


def test_bagformer_with_a_bag_for_each_token_is_filips_tokens() -> None:
    batch = tiny_batch()
    inside = batch["group"] > 0
    batch = batch.having({"group": inside.cumsum(1) * inside})
    bags, tokens = bags_and_tokens()
    mine, theirs = bags(text_side(batch), batch), tokens(text_side(batch), batch)
    for row in range(16):
        torch.testing.assert_close(mine.tokens[row][mine.mask[row]], theirs.tokens[row][inside[row]])


def test_bagformer_with_one_bag_for_all_is_the_pooled_text() -> None:
    batch = tiny_batch()
    inside = batch["group"] > 0
    bags, _ = bags_and_tokens()
    side = text_side(batch)
    mine = bags(side, batch.having({"group": inside.long()}))
    pooled = (bags.project(side.hidden[-1]) * inside[..., None]).sum(1)
    assert mine.mask.sum(1).tolist() == [1] * 16
    torch.testing.assert_close(mine.tokens[:, 0], torch.nn.functional.normalize(pooled, dim=-1))


@pytest.mark.parametrize("vision", [{"channels": [8, 8]}, {"layers": 1, "width": 64, "patch_size": 8}])
def test_clippo_reads_a_caption_as_the_picture_of_it_with_the_one_tower_there_is(
    vision: Mapping[str, Any],
) -> None:
    from pairmill.pretrain.render import characters, glyphs

    system = find_system("clippo")
    settings = Towers(image_size=32, embed_dim=8, vision=dict(vision), **system.towers)
    towers = build_towers(settings).eval()
    codes = torch.from_numpy(characters(["red 红"])[0].astype("int64"))[None]
    page = torch.from_numpy(glyphs().render(codes.numpy(), 32))
    with torch.no_grad():
        assert torch.equal(towers.encode_captions(codes), towers.encode_pictures(page))
    tower = sum(value.numel() for value in towers.clip.visual.parameters())
    assert sum(value.numel() for value in towers.parameters()) == tower + 1  # and the temperature
