"""Target rules and interactions: each by its definition, and each that is registered."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from tiny import tiny_batch, unit_rows
from torch import Tensor
from torch.nn import functional

from pairmill.pretrain.loss import pair_losses
from pairmill.pretrain.objectives import interactions, targets
from pairmill.pretrain.objectives.contrast import Seen, term_loss
from pairmill.pretrain.objectives.interactions import INTERACTIONS, Global, TokenWise
from pairmill.pretrain.objectives.system import Asked, Target, Term, Tokens
from pairmill.pretrain.objectives.targets import (
    RULES,
    TRUSTS,
    Doubt,
    DoubtCaption,
    NoiseAdaptive,
    OptimalTransport,
    SameLabel,
    Smooth,
    agreement_of_captions,
    one_hot,
    same_pair,
)


def asked(pairs: int = 16, *, rows: slice = slice(None), bank: bool = False, missing: int = 0) -> Asked:
    """A question about some rows of a tiny batch; `missing` pairs at its end are not valid."""
    batch = tiny_batch(pairs)
    batch = batch.having({"valid": torch.arange(pairs) < pairs - missing})
    which = torch.arange(pairs)[rows]
    other = tiny_batch(4, seed=5).small() if bank else None
    return Asked(
        which,
        pairs + (4 if bank else 0),
        batch.small(),
        which,
        queries=Tokens(unit_rows(pairs, 0).detach()),
        keys=Tokens(unit_rows(pairs, 1).detach()),
        scale=torch.tensor(10.0),
        interact=Global(),
        bank=other,
        progress=0.5,
    )


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("bank", [False, True])
@pytest.mark.parametrize("missing", [0, 3])
def test_the_rows_of_every_rule_sum_to_one_over_the_columns_that_are_there(
    name: str, bank: bool, missing: int
) -> None:
    question = asked(rows=slice(2, 9), bank=bank, missing=missing)
    found = RULES[name](question)
    assert found.shape == (7, question.columns)
    torch.testing.assert_close(found.sum(1), torch.ones(7, dtype=found.dtype), atol=1e-6, rtol=0)
    assert (found >= 0).all()
    assert (found[:, question.valid == 0] == 0).all()


def reads_asked(value: object) -> bool:
    """Whether a function, or what a class makes, takes a question."""
    call = value.__call__ if isinstance(value, type) else value
    return inspect.isroutine(call) and "Asked" in str(inspect.signature(call))


def test_no_rule_and_no_interaction_is_defined_without_being_registered() -> None:
    rules = {
        getattr(value, "__name__", type(value).__name__) for value in (*RULES.values(), *TRUSTS.values())
    }
    own = {name: value for name, value in vars(targets).items() if name[0] != "_" and reads_asked(value)}
    assert {name for name, value in own.items() if value.__module__ == targets.__name__} == rules
    compared = {name for name, value in vars(interactions).items() if hasattr(value, "paired")}
    assert compared == {value.__name__ for value in INTERACTIONS.values()}


@pytest.mark.parametrize("rule", [Smooth(0.0), NoiseAdaptive(0.0)])
def test_a_weight_of_zero_is_one_hot(rule: Target) -> None:
    question = asked()
    assert torch.equal(rule(question), one_hot(question))


def test_pairs_with_one_picture_or_one_caption_are_right_for_each_other() -> None:
    numbers = {"picture": [1, 1, 2, 3], "caption": [7, 8, 8, 9]}
    batch = tiny_batch(4).having({name: torch.tensor(value) for name, value in numbers.items()})
    found = same_pair(replace(asked(4), batch=batch.small()))
    third = 1 / 3
    expected = [[0.5, 0.5, 0, 0], [third, third, third, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def loss_of(u: Tensor, w: Tensor, target: Target | None = None, **more: object) -> Tensor:
    """The mean loss of a batch whose pairs are rows of u and w, at a scale of 5."""
    sides = {"image": Tokens(u), "text": Tokens(w)}
    seen = Seen(sides, sides, {}, tiny_batch(len(u)).small(), progress=0.5)
    term = Term("image", "text", Global(), target=target, **more)  # type: ignore[arg-type]
    found = term_loss(term, seen, torch.tensor(5.0, dtype=u.dtype))
    return found.total / found.count


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothing_is_that_of_cross_entropy(smoothing: float) -> None:
    u, w = unit_rows(9, 0), unit_rows(9, 1)
    scores, diagonal = 5 * u @ w.T, torch.arange(9)
    halves = [
        functional.cross_entropy(half, diagonal, label_smoothing=smoothing) for half in (scores, scores.T)
    ]
    torch.testing.assert_close(loss_of(u, w, Smooth(smoothing)), sum(halves) / 2)


def test_a_loss_with_soft_targets_is_its_definition() -> None:
    u, w = unit_rows(6, 0), unit_rows(6, 1)
    scores, rows = (5 * u @ w.T).detach(), same_pair(asked(6))
    slow = sum(
        -float(rows[i, j]) * float(half[i, j] - torch.logsumexp(half[i], 0)) / 2
        for half in (scores, scores.T)
        for i in range(6)
        for j in range(6)
    )
    assert loss_of(u, w, same_pair).item() == pytest.approx(slow / 6, rel=1e-10)


def test_labels_that_all_differ_are_one_hot() -> None:
    question = asked(6)
    batch = question.batch.having({"label": torch.arange(6)})
    assert torch.equal(SameLabel()(replace(question, batch=batch)), one_hot(question))


def test_the_plan_meets_its_marginals_and_leaves_the_diagonal() -> None:
    for iterations, rows_within in ((5, 0.03), (200, 1e-6)):
        plan = OptimalTransport(iterations=iterations).plan(asked())
        torch.testing.assert_close(16 * plan.sum(0), torch.ones(16, dtype=plan.dtype), atol=1e-6, rtol=0)
        assert float((16 * plan.sum(1) - 1).abs().max()) < 16 * rows_within
        assert float(plan.diagonal().abs().max()) == 0


def test_the_plan_is_the_entropic_optimum() -> None:
    """Optimal plans have the form a_i b_j exp(gain / lambda), so the rest of their logarithm is additive."""
    question = asked()
    q, k = question.queries.pooled.detach(), question.keys.pooled.detach()
    gain = (q @ q.T + k @ k.T + q @ k.T) / 0.15
    rest = OptimalTransport(iterations=200).plan(question).log() - gain
    i, j, m, n = 0, 1, 2, 3  # off the diagonal in every pairing
    crossed = rest[i, m] + rest[j, n] - rest[i, n] - rest[j, m]
    assert abs(float(crossed)) < 1e-9


def test_the_plan_follows_the_order_of_the_pairs() -> None:
    question = asked()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    moved = replace(
        question,
        queries=question.queries.map(lambda value: value[order]),
        keys=question.keys.map(lambda value: value[order]),
    )
    plan = OptimalTransport().plan(question)
    torch.testing.assert_close(OptimalTransport().plan(moved), plan[order][:, order])


def test_a_likelier_mismatch_gives_more_to_the_others() -> None:
    question = asked(8)
    own = NoiseAdaptive(0.9)(question).diagonal()
    torch.testing.assert_close(own, 1 - 0.9 * question.batch["noise"])
    assert torch.equal(own.argsort(descending=True), question.batch["noise"].argsort())


def test_the_least_similar_pairs_are_not_believed() -> None:
    question = asked(10)
    keys = question.queries.pooled.detach().clone()
    keys[[2, 5]] = -keys[[2, 5]]
    weight = Doubt(0.2)(replace(question, keys=Tokens(keys)))
    assert weight.tolist() == [float(i not in (2, 5)) for i in range(10)]
    assert Doubt(0.2)(replace(question, progress=0.0)).tolist() == [1.0] * 10


def test_captions_agree_as_much_as_their_cosines_with_the_pictures_others() -> None:
    captions = unit_rows(8, 0).detach()
    batch = tiny_batch(8).having(
        {
            "picture": torch.tensor([0, 0, 0, 1, 1, 2, 3, 3]),
            "caption": torch.tensor([0, 1, 2, 3, 3, 4, 5, 6]),  # one is said twice of picture 1
            "valid": torch.arange(8) < 7,
        }
    )
    found, any_other = agreement_of_captions(captions, batch)
    assert any_other.tolist() == [True] * 3 + [False] * 5
    cosines = captions @ captions.T
    for row in range(3):
        others = [other for other in range(3) if other != row]
        torch.testing.assert_close(found[row], cosines[row, others].mean())


def test_a_caption_may_not_choose_itself() -> None:
    w = unit_rows(6, 0)
    batch = tiny_batch(6).having({"picture": torch.tensor([0, 0, 0, 1, 1, 2]), "caption": torch.arange(6)})
    sides = {"text": Tokens(w)}
    term = Term("text", "text", Global(), target=same_pair, trust=DoubtCaption(0.0), own=False)
    found = term_loss(term, Seen(sides, sides, {}, batch.small()), torch.tensor(5.0))
    scores = (5 * w @ w.T).masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf)
    logs = torch.log_softmax(scores, 1)
    slow = [
        -logs[0, [1, 2]].mean(),
        -logs[1, [0, 2]].mean(),
        -logs[2, [0, 1]].mean(),
        -logs[3, 4],
        -logs[4, 3],
    ]
    torch.testing.assert_close(found.total / found.count, torch.stack(slow).mean())


def test_doubt_that_asks_captions_drops_the_one_that_disagrees_with_its_fellows() -> None:
    question = asked(10)
    text = torch.zeros(10, question.keys.pooled.shape[1], dtype=question.keys.pooled.dtype)
    text[:, 0] = 1
    text[7] = -text[7]
    batch = question.batch.having(
        {"picture": torch.zeros(10, dtype=torch.int64), "caption": torch.arange(10)}
    )
    told = replace(question, batch=batch, keys=Tokens(text), queries=Tokens(torch.zeros_like(text)))
    assert Doubt(0.1, ask="captions")(told).tolist() == [float(i != 7) for i in range(10)]
    assert DoubtCaption(0.1)(told).tolist() == [float(i != 7) for i in range(10)]


def test_a_pair_that_is_not_believed_still_serves_as_a_wrong_answer() -> None:
    u, w = unit_rows(6, 0), unit_rows(6, 1)
    scores = 5 * u @ w.T
    slow = [
        -(torch.log_softmax(scores, 1)[i, i] + torch.log_softmax(scores, 0)[i, i]) / 2
        for i in (0, 1, 2, 4, 5)
    ]
    found = loss_of(u, w, trust=lambda _: (torch.arange(6) != 3).double())
    torch.testing.assert_close(found, torch.stack(slow).mean())


def test_pair_losses_average_to_the_loss_of_the_batch() -> None:
    u, w = unit_rows(10, 0), unit_rows(10, 1)
    torch.testing.assert_close(pair_losses(u, w, torch.tensor(5.0)).mean(), loss_of(u, w))


def side(n: int, length: int, seed: int, *, masked: bool = True) -> Tokens:
    """n things of up to `length` unit tokens; the last ones are not there in every second thing."""
    tokens = unit_rows(n * length, seed).detach().view(n, length, -1)
    mask = torch.ones(n, length, dtype=torch.bool)
    if masked:
        mask[::2, length // 2 :] = False
    return Tokens(tokens[:, 0], tokens, mask)


@pytest.mark.parametrize("tile", [1, 3, 100])
def test_token_wise_scores_and_their_gradients_do_not_depend_on_the_tile(tile: int) -> None:
    found = []
    for one in (TokenWise(1000), TokenWise(tile)):
        left, right = side(7, 4, 0), side(5, 6, 1)
        leaf = left.map(lambda value: value.clone().requires_grad_() if value.is_floating_point() else value)
        scores = one(leaf, right)
        (scores.sin().sum()).backward()
        assert leaf.tokens is not None
        found.append((scores.detach(), leaf.tokens.grad))
    for whole, tiled in zip(*found, strict=True):
        torch.testing.assert_close(tiled, whole, atol=1e-12, rtol=0)


def test_a_token_wise_score_is_its_definition_and_padding_is_never_seen() -> None:
    left, right = side(4, 4, 0), side(3, 6, 1)
    assert left.tokens is not None
    assert right.tokens is not None
    assert left.mask is not None
    assert right.mask is not None
    slow = [
        [
            float((left.tokens[i][left.mask[i]] @ right.tokens[j][right.mask[j]].T).amax(1).mean())
            for j in range(3)
        ]
        for i in range(4)
    ]
    torch.testing.assert_close(TokenWise()(left, right), torch.tensor(slow, dtype=torch.float64))
    other = right.tokens.clone()
    other[~right.mask] = 7.0
    assert torch.equal(TokenWise()(left, right), TokenWise()(left, replace(right, tokens=other)))


@pytest.mark.parametrize("name", INTERACTIONS)
def test_paired_scores_are_the_diagonal(name: str) -> None:
    left, right = side(5, 4, 0), side(5, 6, 1)
    interact = INTERACTIONS[name]()
    torch.testing.assert_close(interact.paired(left, right), interact(left, right).diagonal())


@pytest.mark.parametrize("name", INTERACTIONS)
def test_an_interaction_says_whether_its_other_direction_is_the_transpose(name: str) -> None:
    left, right = side(5, 4, 0), side(5, 6, 1)
    interact = INTERACTIONS[name]()
    same = torch.allclose(interact(left, right), interact(right, left).T)
    assert same == interact.symmetric
