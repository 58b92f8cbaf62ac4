"""The contrastive kernel against open_clip's loss and against its own definition."""

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pairmill.errors import ConfigError
from pairmill.pretrain.loss import believed, contrastive_loss, global_scores, pair_losses, soft_cross_entropy
from pairmill.pretrain.targets import RULES, mixed, same_pair, smoothed, target_rule
from pairmill.recipe import Training


def rows(n: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(n, 8) unit rows, with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, 8, generator=generator).to(dtype), dim=-1).requires_grad_()


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_one_hot_targets_equal_open_clip_in_value_and_gradient(dtype: torch.dtype, within: float) -> None:
    from open_clip.loss import ClipLoss

    found = []
    for loss in (contrastive_loss, ClipLoss()):
        u, w = rows(12, 0, dtype), rows(12, 1, dtype)
        scale = torch.tensor(14.3, dtype=dtype, requires_grad=True)
        value = loss(u, w, scale)
        value.backward()
        found.append((value.detach(), u.grad, w.grad, scale.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=within, rtol=within)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_short_way_for_one_hot_targets_equals_the_matrix(smoothing: float) -> None:
    u, w, scale = rows(9, 0), rows(9, 1), torch.tensor(10.0)
    eye = torch.eye(9)
    short = contrastive_loss(u, w, scale, None, smoothing=smoothing)
    torch.testing.assert_close(short, contrastive_loss(u, w, scale, (eye, eye), smoothing=smoothing))


def test_soft_cross_entropy_is_its_definition() -> None:
    scores = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    targets = torch.softmax(torch.randn(5, 7, generator=torch.Generator().manual_seed(4)), 1)
    slow = sum(
        -float(targets[i, j]) * float(scores[i, j] - torch.logsumexp(scores[i], 0))
        for i in range(5)
        for j in range(7)
    )
    assert float(soft_cross_entropy(scores, targets).mean()) == pytest.approx(slow / 5, rel=1e-5)


def test_the_rows_of_every_target_rule_sum_to_one() -> None:
    picture, caption = torch.tensor([1, 1, 2, 3, 4]), torch.tensor([7, 8, 8, 9, 10])
    both = same_pair(picture, caption)
    assert both is not None
    other = torch.full((5, 5), 0.2)
    for targets in (*both, smoothed(both[0], 0.3), mixed(both[0], other, torch.linspace(0, 1, 5))):
        torch.testing.assert_close(targets.sum(1), torch.ones(5))


def test_pairs_with_one_picture_or_one_caption_are_right_for_each_other() -> None:
    targets = same_pair(torch.tensor([1, 1, 2, 3]), torch.tensor([7, 8, 8, 9]))
    assert targets is not None
    third = 1 / 3
    expected = [[0.5, 0.5, 0, 0], [third, third, third, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]]
    torch.testing.assert_close(targets[0], torch.tensor(expected))


def test_distinct_pictures_and_captions_give_the_plain_loss() -> None:
    u, w, scale = rows(6, 0), rows(6, 1), torch.tensor(5.0)
    targets = same_pair(torch.arange(6), torch.arange(6))
    torch.testing.assert_close(contrastive_loss(u, w, scale, targets), contrastive_loss(u, w, scale))


def test_a_mixing_weight_of_zero_changes_nothing() -> None:
    eye, other = torch.eye(4), torch.full((4, 4), 0.25)
    assert torch.equal(mixed(eye, other, torch.zeros(4)), eye)
    assert torch.equal(mixed(eye, other, torch.ones(4)), other)


def test_pair_losses_average_to_the_loss_of_the_batch() -> None:
    u, w, scale = rows(10, 0), rows(10, 1), torch.tensor(8.0)
    torch.testing.assert_close(pair_losses(u, w, scale).mean(), contrastive_loss(u, w, scale))


def test_scores_to_captions_and_to_pictures_are_transposed() -> None:
    there, back = global_scores(rows(4, 0), rows(4, 1), torch.tensor(2.0))
    assert torch.equal(there, back.T)


def test_the_least_similar_share_of_a_batch_is_not_believed() -> None:
    w = rows(10, 1)
    u = w.detach().clone()
    u[[2, 5]] = -u[[2, 5]]
    weight = believed(u, w, 0.2)
    assert weight.tolist() == [float(i not in (2, 5)) for i in range(10)]
    assert not weight.requires_grad
    assert believed(u, w, 0.0).tolist() == [1.0] * 10


@pytest.mark.parametrize("same", [False, True])
def test_a_pair_that_is_not_believed_still_serves_as_a_wrong_answer(same: bool) -> None:
    u, w, scale = rows(6, 0), rows(6, 1), torch.tensor(5.0)
    targets = same_pair(torch.arange(6), torch.arange(6)) if same else None
    weight = torch.tensor([1.0, 1, 1, 0, 1, 1])
    scores = 5 * u @ w.T
    slow = [
        -(torch.log_softmax(scores, 1)[i, i] + torch.log_softmax(scores, 0)[i, i]) / 2
        for i in (0, 1, 2, 4, 5)
    ]
    found = contrastive_loss(u, w, scale, targets, weight=weight)
    torch.testing.assert_close(found, torch.stack(slow).mean())
    whole = contrastive_loss(u, w, scale, targets)
    torch.testing.assert_close(contrastive_loss(u, w, scale, targets, weight=torch.ones(6)), whole)


def test_a_target_rule_that_is_not_there_is_refused() -> None:
    assert target_rule("same") is same_pair
    with pytest.raises(ConfigError, match="no rule 'sinkhorn'; there are one_hot, same"):
        target_rule("sinkhorn")


def test_the_settings_name_every_target_rule() -> None:
    known = Training.model_fields["targets"].annotation
    assert set(get_args(known)) == set(RULES)
