"""The optimizer's groups: shares by layer, running means, clipping."""

from __future__ import annotations

import pytest
import torch

from pairmill.pretrain.average import Average
from pairmill.pretrain.optimizer import layer_shares, make_optimizer, set_rates
from pairmill.pretrain.towers import build_towers
from pairmill.recipe import Towers, Training

LAYERS = Towers(
    image_size=16,
    embed_dim=8,
    vision={"layers": 3, "width": 16, "head_width": 8, "patch_size": 8},
    text={"width": 16, "heads": 2, "layers": 2},
    context_length=8,
    vocab_size=301,
)


def test_each_layer_learns_slower_than_the_one_above_it() -> None:
    towers = build_towers(LAYERS)
    optimizer = make_optimizer(towers, Training(layer_decay=0.5))
    set_rates(optimizer, 2.0)
    rates = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    found = {name: rates[id(value)] for name, value in towers.clip.named_parameters()}
    assert found["visual.proj"] == found["visual.ln_post.weight"] == found["logit_scale"] == 2.0
    image = [found[f"visual.transformer.resblocks.{i}.attn.in_proj_weight"] for i in (2, 1, 0)]
    assert image == [1.0, 0.5, 0.25]
    assert found["visual.conv1.weight"] == found["visual.positional_embedding"] == 0.125
    text = [found[f"transformer.resblocks.{i}.mlp.c_fc.weight"] for i in (1, 0)]
    assert text == [1.0, 0.5]
    assert found["token_embedding.weight"] == 0.25
    assert found["text_projection"] == found["ln_final.weight"] == 2.0


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("visual.trunk.blocks.1.norm1.weight", 0.5),
        ("visual.trunk.patch_embed.proj.weight", 0.125),
        ("visual.trunk.norm.weight", 1.0),
        ("visual.layer1.0.conv1.weight", 1.0),  # of another tower: its only blocks are those of the trunk
        ("text.transformer.resblocks.0.ln_1.weight", 0.5),
    ],
)
def test_blocks_are_found_by_the_names_of_other_towers_too(name: str, share: float) -> None:
    names = ["visual.trunk.blocks.0.norm1.weight", "text.transformer.resblocks.0.ln_1.weight", name]
    names += ["visual.trunk.blocks.1.norm1.weight"]
    if "layer1" in name:
        names = [name, "visual.layer2.0.conv1.weight", "visual.conv1.weight"]
        shares = layer_shares(names, 0.5)
        assert shares[name] == 0.5 ** (3 - 1)
        assert shares["visual.conv1.weight"] == 0.5**4
        return
    assert layer_shares(names, 0.5)[name] == share


def test_without_a_decay_every_weight_has_the_whole_rate_and_two_groups_are_enough() -> None:
    groups = make_optimizer(build_towers(LAYERS), Training()).param_groups
    assert [group["share"] for group in groups] == [1.0, 1.0]


def test_the_running_mean_is_the_slow_sum() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    average, expected = Average([("w", weight)], 0.5), torch.zeros(3)
    for step in range(6):
        with torch.no_grad():
            weight.fill_(float(step))
        average.follow()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(average.means["w"], expected)
    with average.in_place():
        torch.testing.assert_close(weight.detach(), expected)
    assert weight.tolist() == [5.0] * 3
    torch.testing.assert_close(average.means["w"], expected)
