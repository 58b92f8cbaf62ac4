"""The kernel: one-hot it is open_clip's loss; in pieces and on several ranks it is the whole batch's."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import pytest
import torch
from ranked import WITHIN, Outcome, agree, in_pieces, one_rank, outcome, weights
from tiny import tiny_batch, tiny_objective

from pairmill.pretrain.objectives.encode import encode
from pairmill.pretrain.objectives.registry import find_system, names


def by_open_clip(name: str, dtype: torch.dtype) -> Outcome:
    """What open_clip's own loss gives for the whole batch on one rank."""
    from open_clip.loss import ClipLoss, SigLipLoss

    system = find_system(name)
    objective = tiny_objective(system, dtype)
    encoded = encode(objective, system, tiny_batch())
    given: list[Any] = [encoded["image"].pooled, encoded["text"].pooled, objective.scale("scale")]
    loss = SigLipLoss()(*given, objective.bias("scale")) if name == "siglip" else ClipLoss()(*given)
    loss.backward()
    gradients = {key: value.grad for key, value in weights(objective).items() if value.grad is not None}
    return {"loss": loss.detach(), **gradients}


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("chunks", [1, 4, 16])
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_loss_and_gradients_are_open_clips(name: str, chunks: int, dtype: torch.dtype) -> None:
    agree(outcome(find_system(name), tiny_batch(), dtype, chunks), by_open_clip(name, dtype), WITHIN[dtype])


@pytest.mark.parametrize("chunks", [3, 4, 16])
@pytest.mark.parametrize("name", names())
def test_every_system_finds_the_same_gradients_in_pieces(name: str, chunks: int) -> None:
    system = in_pieces(name)
    whole = outcome(system, tiny_batch(), torch.float64)
    agree(outcome(system, tiny_batch(), torch.float64, chunks), whole, 1e-10)
    assert any(value.abs().max() > 1e-6 for key, value in whole.items() if key != "loss")


@pytest.mark.parametrize("chunks", [3, 16])
def test_captions_that_find_each_other_give_the_same_gradients_in_pieces(chunks: int) -> None:
    system = find_system(
        {
            "name": "clip",
            "targets": "same",
            "smoothing": 0.1,
            "doubt": 0.2,
            "ask": "captions",
            "captions": 1.0,
        }
    )
    batch = tiny_batch()
    batch = batch.having({"picture": torch.arange(16) // 4, "caption": torch.arange(16)})
    whole = outcome(system, batch, torch.float64)
    agree(outcome(system, batch, torch.float64, chunks), whole, 1e-10)
    plain = outcome(find_system({"name": "clip", "targets": "same", "smoothing": 0.1}), batch, torch.float64)
    assert whole["loss"] > plain["loss"]


def test_every_system_finds_the_same_gradients_on_two_and_on_four_ranks() -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(one_rank, (folder,), nprocs=4)  # type: ignore[attr-defined]


def test_a_pair_that_is_not_valid_counts_neither_as_row_nor_as_column() -> None:
    for name in names():
        system = replace(in_pieces(name), views=())
        batch = tiny_batch()
        some = batch.rows(slice(0, 12))
        whole = batch.having({"valid": torch.arange(16) < 12})
        found, expected = (outcome(system, one, torch.float64) for one in (whole, some))
        agree(found, expected, 1e-10)


def test_rows_of_a_batch_keep_what_they_share() -> None:
    batch = tiny_batch()
    part = batch.rows(slice(12, 16))
    whole = batch["image"][batch.shared["image"]][12:16]
    assert torch.equal(part["image"][part.shared["image"]], whole)
    assert torch.equal(part["uid"], batch["uid"][12:16])
    assert part.pairs == 4
