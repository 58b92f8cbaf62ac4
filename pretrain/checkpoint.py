"""Weights, moments and the loss so far in one safetensors file: a run goes on from it bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..shards.commit import committed

NAME = "checkpoint.safetensors"


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Commit a safetensors file of copies on the CPU."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with committed(path) as temporary:
        save_file(plain, temporary, metadata)


def save_checkpoint(
    folder: Path, run: str, step: int, model: nn.Module, optimizer: Optimizer, losses: Tensor
) -> None:
    """Commit everything that step `step` (the number of steps done) needs to be followed by the next.

    run: names what is trained on what, so that another run does not go on from it.
    losses: (steps,) float32, of which the first `step` are known.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    tensors["losses"] = losses
    save_tensors(tensors, folder / NAME, {"step": str(step), "run": run})


def load_checkpoint(folder: Path, run: str, model: nn.Module, optimizer: Optimizer, losses: Tensor) -> int:
    """Bring everything back to where the checkpoint was written.

    Returns the steps done; 0 without a checkpoint of this run.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = folder / NAME
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        said = file.metadata() or {}
    if said.get("run") != run:
        return 0
    tensors = load_file(path)
    own = {name.removeprefix("model."): tensors[name] for name in tensors if name.startswith("model.")}
    model.load_state_dict(own)
    losses.copy_(tensors["losses"])
    values = [value for group in optimizer.param_groups for value in group["params"]]
    for name, saved in tensors.items():
        if name.startswith("optimizer."):
            _, number, what = name.split(".", 2)
            value = values[int(number)]
            # a moment must lie in memory as its weight does (channels last), or the fused step mixes them up
            kept = (
                torch.empty_like(value).copy_(saved)
                if saved.shape == value.shape and what != "step"
                else saved
            )
            optimizer.state[value][what] = kept.to(value.device)
    return int(said["step"])
