"""What a system finds on tiny towers: alone, in pieces, and as one of several ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.distributed as dist
from tiny import tiny_batch, tiny_objective
from torch import Tensor, nn

from pairmill.pretrain.batch import Batch
from pairmill.pretrain.objectives import ranks
from pairmill.pretrain.objectives.encode import encode
from pairmill.pretrain.objectives.memory import Bank, Teacher
from pairmill.pretrain.objectives.objective import Objective
from pairmill.pretrain.objectives.registry import find_system, names
from pairmill.pretrain.objectives.step import Setting, backward
from pairmill.pretrain.objectives.system import System

Outcome = dict[str, Tensor]  # the loss, and the gradient of every weight by name
WITHIN = {torch.float64: 1e-10, torch.float32: 1e-5}


def weights(objective: Objective) -> Mapping[str, nn.Parameter]:
    return dict(objective.towers.clip.named_parameters()) | dict(objective.named_parameters())


def outcome(system: System, batch: Batch, dtype: torch.dtype, chunks: int = 1) -> Outcome:
    """Loss and gradients of this rank's share, added up over the ranks."""
    objective = tiny_objective(system, dtype)
    batch = prepared(system, batch)
    teacher = (
        Teacher({"towers": objective.towers, "objective": objective}, system.ema) if system.ema else None
    )
    bank = (
        Bank(["image", "text"], 8, objective.towers.dimension, torch.device("cpu")) if system.bank else None
    )
    if bank is not None:
        whole = tiny_batch(8, seed=9)
        with torch.no_grad():
            bank.push(encode(objective, system, prepared(system, whole)), whole)
    setting = Setting(system.at(0.9), seed=5, teacher=teacher, bank=bank, progress=0.9)
    found = backward(objective, batch, setting, chunks=chunks)
    ranks.sum_gradients(objective.towers.clip.parameters())
    ranks.sum_gradients(objective.parameters())
    gradients = {
        name: torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in weights(objective).items()
    }
    return {"loss": ranks.summed(found.loss), **gradients}


def prepared(system: System, batch: Batch) -> Batch:
    dice = torch.Generator().manual_seed(3)
    for view in system.views:
        batch = view(batch, dice)
    return batch


def agree(found: Outcome, expected: Outcome, within: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=within, rtol=within, msg=lambda m, n=name: f"{n}: {m}"
        )


def in_pieces(name: str) -> System:
    """The system without the heads whose loss depends on which pairs are in a piece."""
    system = find_system(name)
    return replace(
        system, heads={key: head for key, head in system.heads.items() if not head.make.within_chunk}
    )


def one_rank(number: int, folder: str) -> None:
    """One of four processes: every system on its share of a batch, first of four, then of two ranks; held
    against the whole batch, which each reckons before the ranks meet."""
    torch.set_num_threads(1)
    jobs = [(name, torch.float64) for name in names()] + [("clip", torch.float32), ("siglip", torch.float32)]
    whole = [outcome(in_pieces(name), tiny_batch(), dtype) for name, dtype in jobs]
    for size in (4, 2):
        if number >= size:
            return
        dist.init_process_group("gloo", f"file://{folder}/meet{size}", rank=number, world_size=size)
        span = slice(number * 16 // size, (number + 1) * 16 // size)
        for (name, dtype), expected in zip(jobs, whole, strict=True):
            system = in_pieces(name)
            share = prepared(system, tiny_batch()).rows(span)  # a view draws for the whole batch
            for chunks in (1, 2) if dtype == torch.float64 else (1,):
                agree(outcome(replace(system, views=()), share, dtype, chunks), expected, WITHIN[dtype])
        dist.destroy_process_group()
