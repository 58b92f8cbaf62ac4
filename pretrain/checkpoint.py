"""Weights, moments and the loss so far in one safetensors file: a run goes on from it bit for bit.

The last two are kept. What is read is checked against its digest, so a file that was cut or has a flipped
bit is passed over, and the one before it is taken; which one it was, and why, is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import DataError
from ..recipe import differences
from ..shards.commit import committed
from ..shards.files import local_copy, move_file

LIST = "list."  # begins the names of tensors whose length is not known beforehand
NAME, BEFORE = "checkpoint.safetensors", "checkpoint.before.safetensors"  # the last, and the one before it


@dataclass(frozen=True)
class Identity:
    """What is trained on what; a checkpoint of another is not gone on from."""

    settings: Mapping[str, Any]  # as JSON holds them
    samples: str  # a digest


@dataclass(frozen=True)
class Resumed:
    """Where a run begins, and what there is to say about it (nothing at a plain start)."""

    step: int = 0
    said: str = ""
    lists: Mapping[str, Tensor] = field(default_factory=dict)  # what has another length each time, by name


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Commit a safetensors file of copies on the CPU."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with committed(path) as temporary:
        save_file(plain, temporary, metadata)


def save_checkpoint(
    folder: Path, identity: Identity, step: int, state: Mapping[str, Tensor], optimizer: Optimizer
) -> None:
    """Commit everything that step `step` (the number of steps done) needs to be followed by the next.

    state: tensors by name, whatever is not the optimizer's; names of lists begin with LIST.
    The last checkpoint becomes the one before.
    """
    tensors = dict(state)
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said = {"step": str(step), "settings": json.dumps(identity.settings), "samples": identity.samples}
    if (folder / NAME).exists():
        move_file(folder / NAME, folder / BEFORE)
    save_tensors(plain, folder / NAME, said | {"digest": digest(plain)})


def load_checkpoint(
    folder: Path, identity: Identity, state: Mapping[str, Tensor], optimizer: Optimizer
) -> Resumed:
    """Bring `state` and the optimizer back to where the last whole checkpoint was written.

    Raises DataError for a checkpoint of other settings, with their names.
    """
    damaged: list[str] = []
    for path in (folder / NAME, folder / BEFORE):
        if not path.exists():
            continue
        try:
            said, tensors = read_checked(path)
        except ValueError as error:
            damaged.append(f"{path.name} is damaged ({error})")
            continue
        step = int(said["step"])
        _refuse_other(path, json.loads(said["settings"]), identity.settings)
        if said["samples"] != identity.samples:
            return Resumed(0, "; ".join([*damaged, f"{path.name} was made from other samples: a new start"]))
        problem = _fill(tensors, state, optimizer)
        if problem:
            damaged.append(f"{path.name} is of another model ({problem})")
            continue
        lists = {name.removeprefix(LIST): tensors[name] for name in tensors if name.startswith(LIST)}
        return Resumed(step, "; ".join([*damaged, f"goes on after step {step}"]), lists)
    return Resumed(0, "; ".join([*damaged, "a new start"]) if damaged else "")


def remove_checkpoints(folder: Path) -> None:
    """Both of them."""
    for name in (NAME, BEFORE):
        (folder / name).unlink(missing_ok=True)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, kinds, shapes and bytes of tensors on the CPU; 0.1 s for each GB."""
    found = xxhash.xxh3_128()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_checked(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What a checkpoint says of itself, and its tensors. Raises ValueError for one that is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with local_copy(path) as copy, safe_open(copy, "pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(str(error)) from error
    if not {"step", "settings", "samples", "digest"} <= said.keys():
        raise ValueError("not written by this version")
    if digest(tensors) != said["digest"]:
        raise ValueError("its bytes are not those that were written")
    return said, tensors


def _refuse_other(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    names = differences(old, json.loads(json.dumps(new)))
    if names:
        said = "; ".join(f"{name} {_value(old, name)}, now {_value(new, name)}" for name in names)
        raise DataError(
            f"{path}: made with other settings ({said}): give those again, or remove the file to start anew"
        )


def _value(settings: Any, dotted: str) -> str:
    for name in dotted.split("."):
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    return json.dumps(settings)


def _fill(tensors: dict[str, Tensor], state: Mapping[str, Tensor], optimizer: Optimizer) -> str:
    """Copy the tensors to where they belong; what does not fit is said, and then nothing is copied."""
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(("optimizer.", LIST))}
    for name in {*own, *state}:
        if name not in own or name not in state or own[name].shape != state[name].shape:
            return f"it does not fit in {name}"
    with torch.no_grad():
        for name, tensor in own.items():
            state[name].copy_(tensor)
    for value, name, saved in _moments(tensors, optimizer):
        # a moment must lie in memory as its weight does (channels last), or the fused step mixes them up
        same = saved.shape == value.shape and name != "step"
        kept = torch.empty_like(value).copy_(saved) if same else saved
        optimizer.state[value][name] = kept.to(value.device)
    return ""


def _moments(
    tensors: Mapping[str, Tensor], optimizer: Optimizer
) -> Iterator[tuple[nn.Parameter, str, Tensor]]:
    values = [value for group in optimizer.param_groups for value in group["params"]]
    for key, saved in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            yield values[int(number)], name, saved
