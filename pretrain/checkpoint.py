"""Weights, moments and the loss so far in one safetensors file: a run goes on from it bit for bit.

A thread writes it from copies while the loop goes on, and the last few are kept. What is read is checked
against its digest, so a file that was cut or has a flipped bit is passed over, and the one before it is
taken; which one it was, and why, is said. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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
from ..shards.files import local_copy, open_file

LIST = "list."  # begins the names of tensors whose length is not known beforehand
NAMES = "checkpoint-*.safetensors"
PICKLES = (b"\x80", b"PK")  # how a pickle and torch.save's archive begin


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


class Checkpoints:
    """The checkpoints of one folder. `save` returns as soon as everything is copied."""

    def __init__(self, folder: Path, identity: Identity, *, kept: int = 2) -> None:
        """kept: how many stay; at least the one before the last is worth having."""
        self.folder, self.identity, self.kept = folder, identity, kept
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._copies: dict[str, Tensor] = {}  # on the CPU, used again: fresh memory would cost page faults

    def prepare(self, state: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        """Get the memory for copies, in the thread, after a first step: for ViT-B/32 some seconds."""
        self.wait()
        self._writing = self._thread.submit(self._make_room, _tensors(state, optimizer))

    def save(self, step: int, state: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        """Keep all that step `step` (the number of steps done) needs to be followed by the next.

        state: tensors by name, whatever is not the optimizer's; names of lists begin with LIST.
        Waits for the write before, and raises what that raised.
        """
        self.wait()
        tensors = _tensors(state, optimizer)
        self._make_room(tensors)
        for name, value in tensors.items():
            self._copies[name].copy_(value.detach(), non_blocking=True)
        if any(value.is_cuda for value in tensors.values()):
            torch.cuda.synchronize()
        self._writing = self._thread.submit(self._write, step, self._copies)

    def wait(self) -> None:
        """Until the last one is written; raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Memory for copies of `tensors`, written to once; page-locked for those of a GPU."""
        old, self._copies = self._copies, {}
        for name, value in tensors.items():
            copy = old.get(name)
            if copy is None or copy.shape != value.shape or copy.dtype != value.dtype:
                copy = torch.zeros(value.shape, dtype=value.dtype, pin_memory=value.is_cuda).fill_(0)
            self._copies[name] = copy

    def _write(self, step: int, tensors: dict[str, Tensor]) -> None:
        from safetensors.torch import save_file

        settings, samples = json.dumps(self.identity.settings), self.identity.samples
        said = {"step": str(step), "settings": settings, "samples": samples, "digest": digest(tensors)}
        with committed(self.folder / f"checkpoint-{step:010d}.safetensors") as temporary:
            save_file(tensors, temporary, said)
        for path in found_checkpoints(self.folder)[self.kept :]:
            path.unlink(missing_ok=True)

    def load(self, state: Mapping[str, Tensor], optimizer: Optimizer) -> Resumed:
        """Bring `state` and the optimizer back to where the last whole checkpoint was written.

        Raises DataError for a checkpoint of other settings, with their names, or of another model.
        """
        damaged: list[str] = []
        for path in found_checkpoints(self.folder):
            try:
                said, tensors = read_checked(path)
            except ValueError as error:
                damaged.append(f"{path.name} is damaged ({error})")
                continue
            _refuse_other(path, json.loads(said["settings"]), self.identity.settings)
            if said["samples"] != self.identity.samples:
                other = f"{path.name} was made from other samples: a new start"
                return Resumed(0, "; ".join([*damaged, other]))
            if problem := _fill(tensors, state, optimizer):
                raise DataError(
                    f"{path}: the checkpoint of another model ({problem}): train into another folder, or"
                    f" remove {NAMES} there to start anew"
                )
            lists = {name.removeprefix(LIST): tensors[name] for name in tensors if name.startswith(LIST)}
            said_of_it = "; ".join([*damaged, f"goes on after step {said['step']}"])
            return Resumed(int(said["step"]), said_of_it, lists)
        return Resumed(0, "; ".join([*damaged, "a new start"]) if damaged else "")

    def remove(self) -> None:
        """All of them: the run is over."""
        self.wait()
        for path in found_checkpoints(self.folder):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let the last write end; to be called however the run ended."""
        self._thread.shutdown()


def _tensors(state: Mapping[str, Tensor], optimizer: Optimizer) -> dict[str, Tensor]:
    """All that a checkpoint holds, by its name there."""
    tensors = dict(state)
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
    return tensors


def found_checkpoints(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted(folder.glob(NAMES), key=lambda path: path.name, reverse=True)


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
        with open_file(path) as start:
            if start.read(2).startswith(PICKLES):
                raise ValueError("a pickle, which is not read: it could run anything")
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
            f"{path}: made with other settings ({said}): give those again, or remove {NAMES} there to"
            " start anew"
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
