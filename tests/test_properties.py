"""What each system is for, on data where it can be seen at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranked import outcome
from tiny import CONTEXT, DIM, tiny_batch, tiny_objective, tiny_towers, unit_rows
from torch import Tensor

from pairmill.errors import ConfigError
from pairmill.pretrain.batch import Batch
from pairmill.pretrain.captions import (
    DropFrequent,
    GroupedEncode,
    drop_stop_words,
    frequencies,
    grouped_encode,
    mine_entities,
    split_words,
)
from pairmill.pretrain.complete import Speller, pseudo_bags
from pairmill.pretrain.heads.caption import CaptionHead
from pairmill.pretrain.heads.matching import MatchingHead
from pairmill.pretrain.mixture import NoiseOfLosses
from pairmill.pretrain.objectives.contrast import Seen, term_loss
from pairmill.pretrain.objectives.encode import encode
from pairmill.pretrain.objectives.interactions import TokenWise
from pairmill.pretrain.objectives.memory import Table, Teacher
from pairmill.pretrain.objectives.registry import find_system
from pairmill.pretrain.objectives.step import Setting, backward
from pairmill.pretrain.objectives.system import Captions, Refresh, System, Tokens, Widths
from pairmill.pretrain.render import Glyphs, characters, glyphs
from pairmill.pretrain.tokenizer import pad_groups
from pairmill.pretrain.trainer import Trainer
from pairmill.pretrain.views.bag_of_words import ShuffleWords
from pairmill.recipe import Training


def losses(name: str, u: Tensor, w: Tensor, scale: float = 10.0) -> Tensor:
    """(n,) of pairs of unit rows under the first term of a system."""
    sides = {"image": Tokens(u), "text": Tokens(w)}
    seen = Seen(sides, sides, {}, tiny_batch(len(u)).small(), progress=0.5)
    return term_loss(find_system(name).terms[0], seen, torch.tensor(scale), torch.tensor(-3.0)).rows


def train(system: System | str, steps: int, *, lr: float = 0.01, batch: Batch | None = None) -> Trainer:
    """A trainer after some steps on one tiny batch."""
    torch.manual_seed(0)
    named = system if isinstance(system, str) else system.name
    training = Training(system=named, lr=lr, weight_decay=0.0, warmup=0.0, crop=1.0, precision="float32")
    trainer = Trainer(tiny_towers(torch.float32), training, steps)
    for step in range(steps):
        trainer.step(step, batch or tiny_batch())
    return trainer


def test_clip_learns_a_batch_by_heart_and_keeps_its_scale_in_bounds() -> None:
    trainer = train("clip", 60, lr=0.05, batch=tiny_batch(6))
    encoded = encode(trainer.objective, trainer.system, tiny_batch(6))
    best = (encoded["image"].pooled @ encoded["text"].pooled.T).argmax(1)
    assert best[2:4].tolist() == [2, 3]  # the others share a picture or a caption
    with torch.no_grad():
        trainer.towers.clip.logit_scale.fill_(9.0)
    trainer.objective.clamp()
    assert trainer.towers.scale.item() == pytest.approx(100)


def test_siglip_judges_each_pairing_by_itself_and_clip_does_not() -> None:
    u, w = unit_rows(6, 0), unit_rows(6, 1)
    other = w.detach().clone()
    other[5] = unit_rows(1, 7)[0]
    scores, moved = (10 * u @ rows.T - 3 for rows in (w, other))
    sign = 2 * torch.eye(6, dtype=torch.float64) - 1
    by_hand = [-torch.nn.functional.logsigmoid(sign * one).sum(1) for one in (scores, moved)]
    for rows, expected in zip((w, other), by_hand, strict=True):
        torch.testing.assert_close(losses("siglip", u, rows), expected.detach())
    change = losses("siglip", u, other) - losses("siglip", u, w)
    alone = [torch.nn.functional.logsigmoid(sign * one)[:, 5] for one in (scores, moved)]
    torch.testing.assert_close(change, (alone[0] - alone[1]).detach())


def test_align_lets_no_pair_be_surer_than_its_smoothing() -> None:
    rows = torch.eye(8, dtype=torch.float64)
    sharp, calm = (float(losses("align", rows, rows, scale).mean()) for scale in (100.0, 6.0))
    assert calm < sharp
    sharp, calm = (float(losses("clip", rows, rows, scale).mean()) for scale in (100.0, 6.0))
    assert calm > sharp


def test_unicl_draws_a_picture_to_another_caption_of_its_label() -> None:
    batch = tiny_batch(4).having({"label": torch.tensor([0, 0, 1, 2])})
    pulled = {}
    for name in ("unicl", "clip"):
        u, w = unit_rows(4, 0), unit_rows(4, 1)
        sides = {"image": Tokens(u), "text": Tokens(w)}
        seen = Seen(sides, sides, {}, batch.small())
        found = term_loss(find_system(name).terms[0], seen, torch.tensor(1.0))
        (gradient,) = torch.autograd.grad(found.total, w)
        pulled[name] = float(-(gradient[1] * u.detach()[0]).sum())  # how far caption 1 moves to picture 0
    assert pulled["unicl"] > pulled["clip"]


def test_otters_plan_finds_the_captions_that_fit_other_pictures() -> None:
    plan = find_system("otter").terms[1].target
    assert plan is not None
    n = 8
    keys = unit_rows(n, 0).detach()
    keys[1] = keys[0]  # two pictures and captions that say the same
    from test_targets import asked

    question = replace(asked(n), queries=Tokens(keys), keys=Tokens(keys))
    found = plan(question)
    assert int(found[0].argmax()) == 1
    assert int(found[1].argmax()) == 0
    assert float(found.diagonal().abs().max()) == 0


def test_otters_teacher_follows_slowly_and_more_slowly_with_time() -> None:
    towers = tiny_towers()
    teacher = Teacher({"towers": towers}, 0.999)
    name = "clip.visual.proj.weight"
    before = towers.get_parameter(name).detach().clone()
    with torch.no_grad():
        towers.get_parameter(name).add_(1.0)
    expected = 0.0
    for n in range(3):
        teacher.follow()
        decay = (1 + n) / (10 + n)
        expected = decay * expected + (1 - decay)
        moved = teacher.modules["towers"].get_parameter(name) - before
        torch.testing.assert_close(moved, torch.full_like(moved, expected))
    assert not any(value.requires_grad for value in teacher.modules["towers"].parameters())


def test_nlip_doubts_what_loses_more_and_nothing_where_losses_are_one_heap() -> None:
    dice = np.random.default_rng(0)
    clean, false = dice.normal(1.0, 0.3, 800), dice.normal(3.0, 0.5, 200)
    values = np.concatenate([clean, false])
    noise = NoiseOfLosses()(values)
    order = np.argsort(values)
    assert (np.diff(noise[order]) >= 0).all()
    assert noise[:800].mean() < 0.05
    assert noise[800:].mean() > 0.9
    assert not NoiseOfLosses()(clean).any()
    assert not NoiseOfLosses()(np.ones(100)).any()


def test_nlips_table_gives_each_pair_the_noise_of_its_last_epoch() -> None:
    batch = tiny_batch()
    table = Table(Refresh("noise", "itc", lambda lost: lost / lost.max()), batch["uid"].flip(0).numpy())
    assert table.fill(batch)["noise"].tolist() == [0.0] * 16
    lost = torch.arange(16.0)
    table.note(batch.having({"valid": torch.arange(16) != 3}), lost)
    assert table.fill(batch)["noise"].tolist() == [0.0] * 16  # not before the epoch ends
    table.turn()
    expected = lost / 15
    expected[3] = 0.0  # never seen
    torch.testing.assert_close(table.fill(batch)["noise"], expected)


def test_lit_leaves_the_picture_tower_as_it_was_to_the_bit() -> None:
    before = {name: value.clone() for name, value in tiny_towers(torch.float32).clip.state_dict().items()}
    trainer = train("lit", 5)
    for name, value in trainer.towers.clip.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("visual."), name
    assert not trainer.towers.clip.visual.training
    assert trainer.towers.clip.text.training


def test_filip_looks_from_both_sides_and_never_at_padding() -> None:
    system = find_system("filip")
    objective, batch = tiny_objective(system), tiny_batch()
    encoded = encode(objective, system, batch)
    patches, words = encoded["patches"], encoded["words"]
    assert words.tokens is not None
    assert words.mask is not None
    interact = TokenWise()
    there = interact(patches, words)
    assert not torch.allclose(there, interact(words, patches).T)
    spoilt = replace(words, tokens=words.tokens.masked_fill(~words.mask[..., None], 3.0))
    assert torch.equal(interact(patches, spoilt), there)


def test_filips_reducer_learns_under_a_locked_picture_tower() -> None:
    system = find_system({"name": "filip", "reduce": 3, "locked": True, "dim": 8})
    towers = tiny_towers()
    towers.lock(system.lock)
    from pairmill.pretrain.objectives.objective import Objective

    objective = Objective(system, towers).double()
    backward(objective, tiny_batch(), Setting(system))
    assert all(value.grad is None for value in towers.clip.visual.parameters())
    assert all(value.grad is not None for value in objective.parts["patches"].parameters())
    assert encode(objective, system, tiny_batch())["patches"].tokens.shape == (16, 3, 8)  # type: ignore[union-attr]


def captioner() -> tuple[CaptionHead, Widths]:
    torch.manual_seed(0)
    widths = tiny_towers().widths
    return CaptionHead(widths).double(), widths


def test_nlips_speller_takes_the_longest_word() -> None:
    speller = Speller(iter(["car carpet", "pet"]), letters)  # type: ignore[arg-type]
    tokens, _ = letters(["carpet car"])
    assert speller.text(tokens[1:-1].tolist()) == "carpet car"
    assert speller.text([99, *tokens[1:4].tolist()]) == "car"
    assert (speller.begin, speller.end) == (1, 2)


def test_nlip_shows_its_captioner_the_concepts_most_like_the_picture() -> None:
    towers = tiny_towers()
    head = CaptionHead(towers.widths, concepts=3).double()
    head.fit(lambda: iter(["the zed", "zed and yak", "a yak zed", "box"]), letters)  # type: ignore[arg-type]
    shown = [bytes(token + 80 for token in row.tolist() if token > 2) for row in head.concept_tokens]
    assert all(prompt.startswith(b"aphoto") for prompt in shown)  # cut to the tiny context
    pooled = unit_rows(2, 0).detach()
    assert head.concepts_of(pooled).tolist() == [[0, 0, 0], [0, 0, 0]]
    head.concept_rows.copy_(torch.stack([-pooled[0], pooled[0], pooled[1]]))
    assert head.concepts_of(pooled)[:, 0].tolist() == [2, 3]


def test_cocas_decoder_does_not_see_what_it_is_to_write() -> None:
    head, widths = captioner()
    dice = torch.Generator().manual_seed(0)
    picture = torch.randn(2, 4, widths.image, dtype=torch.float64, generator=dice)
    states = torch.randn(2, 6, widths.text, dtype=torch.float64, generator=dice)
    other = states.clone()
    other[:, 4] = states[:, 0]
    one, two = head.logits(picture, states), head.logits(picture, other)
    torch.testing.assert_close(one[:, :4], two[:, :4])
    assert not torch.allclose(one[:, 4], two[:, 4])


def test_coca_writes_of_the_picture_that_it_sees() -> None:
    trainer = train("coca", 80, lr=0.02)
    batch = tiny_batch()
    right = backward(trainer.objective, batch, Setting(trainer.system)).parts["caption.caption"]
    turned = Batch(batch, {"image": batch.shared["image"].roll(5)})
    wrong = backward(trainer.objective, turned, Setting(trainer.system)).parts["caption.caption"]
    assert float(wrong) > float(right) + 0.1


def test_a_captioner_on_a_tower_that_looks_ahead_is_refused() -> None:
    with pytest.raises(ConfigError, match="take a causal one"):
        CaptionHead(replace(tiny_towers().widths, causal=False))


def words_of(batch: Batch, row: int) -> Counter[tuple[int, ...]]:
    """The groups of a caption, as tuples of tokens."""
    text, group = batch["text"][row], batch["group"][row]
    return Counter(tuple(text[group == n].tolist()) for n in group.unique().tolist() if n)


@pytest.mark.parametrize("keep", [None, 2])
def test_bow_shuffles_words_and_tears_none(keep: int | None) -> None:
    batch = tiny_batch(64)
    found = ShuffleWords(keep)(batch, torch.Generator().manual_seed(0))
    moved = 0
    for row in range(64):
        before, after = words_of(batch, row), words_of(found, row)
        assert after <= before
        assert after.total() == (before.total() if keep is None else min(keep, before.total()))
        tokens = found["text"][row]
        length = int((tokens != 0).sum())
        assert tokens[0] == 1
        assert tokens[length - 1] == 2
        assert (tokens[length:] == 0).all()
        moved += int(not torch.equal(tokens, batch["text"][row]))
    assert moved > 30
    again = ShuffleWords(keep)(batch, torch.Generator().manual_seed(0))
    assert torch.equal(found["text"], again["text"])


def test_bow_balances_words() -> None:
    captions = ["a red dog", "a blue dog", "the dog on a hill", "a dog in 12 !"] * 3 + ["a green cat"]
    sample = [split_words(caption) for caption in captions]
    kept = [drop_stop_words(sample)(words) for words in sample]
    assert kept[2] == ["dog", "hill"]
    assert kept[3] == ["dog"]
    fewer = [DropFrequent(1)(kept)(words) for words in kept]
    assert all("dog" not in words for words in fewer)
    before, after = (np.array(list(frequencies(one).values()), float) for one in (kept, fewer))
    assert after.max() / np.median(after) < before.max() / np.median(before)


def test_bows_pseudo_captions_leave_a_picture_itself_out() -> None:
    rows = np.eye(4)[[0, 0, 0, 1, 1, 1]].astype(np.float32)
    words = [["red", "dog"], ["red", "cat"], ["red", "the"], ["sea"], ["sea", "blue"], ["blue", "sea"]]
    assert pseudo_bags(rows, words, 2) == ["red", "red", "red", "blue sea", "sea", "sea"]


def letters(captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """A tokenizer that gives a token for each letter, between a 1 and a 2."""
    rows = [[1, *(ord(letter) - 80 for letter in caption.replace(" ", "")), 2] for caption in captions]
    return np.array([token for row in rows for token in row], np.int32), np.array([len(row) for row in rows])


def grouped(encode: GroupedEncode, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    tokens, lengths = encode(captions)
    block, group = pad_groups(tokens, np.cumsum(lengths) - lengths, lengths, 32)
    assert group is not None
    return block, group


def test_groups_of_words_hold_the_tokens_that_the_caption_has() -> None:
    encode = grouped_encode(Captions(groups="words"), ["ab cde"], letters, 32)  # type: ignore[arg-type]
    assert isinstance(encode, GroupedEncode)
    block, group = grouped(encode, ["ab cde", "x"])
    plain, _ = letters(["ab cde"])
    assert block[0][: len(plain)].tolist() == plain.tolist()
    assert group[0].tolist() == [0, 1, 1, 2, 2, 2, 0, 0]
    assert group[1].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]


def test_bagformers_longest_entity_wins_and_other_tokens_stay_alone() -> None:
    entities = {("red", "apple"), ("red", "apple", "pie"), ("pie", "dish")}
    encode = GroupedEncode(letters, 32, [], entities)  # type: ignore[arg-type]
    assert encode.groups(split_words("a red apple pie dish")) == [["a"], ["red", "apple", "pie"], ["dish"]]
    _, group = grouped(encode, ["a red apple pie dish"])
    assert Counter(group[0].tolist()) == {0: 2 + group.shape[1] - 18, 1: 1, 2: 11, 3: 1, 4: 1, 5: 1, 6: 1}


def test_bagformers_entities_are_read_from_a_file_or_mined(tmp_path: Path) -> None:
    path = tmp_path / "entities.txt"
    path.write_text("Red Apple\nphone\n\n")
    encode = grouped_encode(Captions("entities", str(path)), [], letters, 32)  # type: ignore[arg-type]
    assert isinstance(encode, GroupedEncode)
    assert encode.entities == {("red", "apple"), ("phone",)}
    with pytest.raises(ConfigError, match=r"none\.txt: expected a text file"):
        grouped_encode(Captions("entities", str(tmp_path / "none.txt")), [], letters, 32)  # type: ignore[arg-type]
    dice = np.random.default_rng(0)
    noise = [" ".join(dice.choice(list("abcdefghijklmnopqrstuvw"), 6)) for _ in range(300)]
    some = [split_words(f"{words} new york" if n < 20 else words) for n, words in enumerate(noise)]
    mined = mine_entities(some)
    assert mined == {("new", "york")}


def test_a_bag_tells_an_apple_phone_from_a_red_apple_where_tokens_do_not() -> None:
    """Two captions whose tokens are the same two, once as an entity and once parted: bags differ."""
    from test_identities import bags_and_tokens

    bags, tokens = bags_and_tokens()
    dice = torch.Generator().manual_seed(1)
    states = torch.randn(1, CONTEXT, 6, generator=dice).repeat(2, 1, 1)
    side = Tokens(torch.zeros(2, DIM), hidden=(states,), hidden_mask=torch.ones(2, CONTEXT, dtype=torch.bool))
    group = torch.tensor([[0, 1, 1, 2, 0, 0, 0, 0], [0, 1, 2, 2, 0, 0, 0, 0]])
    batch = Batch({"group": group})
    as_bags, as_tokens = bags(side, batch), tokens(side, batch)
    assert torch.equal(as_tokens.tokens[0], as_tokens.tokens[1])
    assert not torch.allclose(as_bags.tokens[0], as_bags.tokens[1])
    assert (as_bags.mask.sum(1) <= (group > 0).sum(1)).all()


def test_bagformers_matching_head_never_calls_a_pair_its_own_negative() -> None:
    head = MatchingHead(tiny_towers().widths).double()
    system = find_system("bagformer")
    objective, batch = tiny_objective(system), tiny_batch(2)
    batch = batch.having({"caption": torch.zeros(2, dtype=torch.int64)})  # both say the same
    from pairmill.pretrain.objectives.system import Step

    step = Step(objective, batch, encode(objective, system, batch), {}, {})
    _, count = head(step)["match"]
    assert float(count) == 2  # the two pairs, and no negative


def test_clippo_draws_the_same_text_alike_and_any_other_text_otherwise() -> None:
    texts = ["a dog", "a dot", "a dog ", "红色", "红的", "ein Hund", "𝄞"]
    codes, lengths = characters(texts)
    block, _ = pad_groups(codes, np.cumsum(lengths) - lengths, lengths, 768)
    pages = glyphs().render(block, 64)
    assert (Glyphs().render(block, 64) == pages).all()
    distinct = {page.tobytes() for page in pages}
    assert len(distinct) == len(texts) - 1  # a space at the end draws nothing
    assert set(np.unique(pages)) == {0, 127}


def test_clippo_cuts_a_text_that_is_too_long_by_rows() -> None:
    codes, lengths = characters(["w" * 500, "w" * 700])
    block, _ = pad_groups(codes, np.cumsum(lengths) - lengths, lengths, 768)
    one, other = glyphs().render(block, 48)
    assert (one == other).all()
    assert (one[-1] == 127).all() or 48 % 12 == 0


def test_clippo_takes_unifont(tmp_path: Path) -> None:
    path = tmp_path / "font.hex"
    path.write_text("0041:" + "18" * 16 + "\n7EA2:" + "FFFF" * 16 + "\n")
    drawn = Glyphs(str(path))
    assert drawn[0x41].shape == (16, 4)
    assert drawn[0x7EA2].shape == (16, 17)
    path.write_text("no font")
    with pytest.raises(ConfigError, match="expected lines as 0041"):
        Glyphs(str(path))


def test_every_system_learns_a_batch() -> None:
    from pairmill.pretrain.objectives.registry import names

    for name in names():
        if find_system(name).towers:
            continue  # CLIPPO has other towers
        first = outcome(find_system(name), tiny_batch(), torch.float64)["loss"]
        trainer = train(name, 15, lr=0.02)
        system = trainer.system
        last = backward(trainer.objective, tiny_batch(), Setting(replace(system, views=()), bank=None)).loss
        assert float(last) < float(first), name


def test_every_system_has_an_identity_and_a_property() -> None:
    from pairmill.pretrain.objectives.registry import names

    here = Path(__file__).parent
    identities = (here / "test_identities.py").read_text() + (here / "test_kernel.py").read_text()
    for name in names():
        assert f"def test_{name}" in identities or f'"{name}"' in identities, name
        assert f"def test_{name}" in Path(__file__).read_text(), name
