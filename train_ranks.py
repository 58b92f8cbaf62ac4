"""`pairmill train` as one of several processes, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from .errors import ConfigError, PairmillError


def ranks_asked(environment: Mapping[str, str]) -> int:
    """How many processes there are to be. Raises ConfigError where a launcher said so but not all of it."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return 1
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise ConfigError(
            f"RANK and WORLD_SIZE are set, but not {' and '.join(missing)}: start with torchrun"
        )
    return int(environment["WORLD_SIZE"])


def engine_of_ranks() -> dict[str, Any]:
    """Settings that hold where there are several: they are there already, Ray has nothing to start."""
    return {"run.engine": "here"} if ranks_asked(os.environ) > 1 else {}


def as_ranks(command: str, work: Callable[[], int]) -> int:
    """Do `work`; of several processes rank 0 does it, and the others take their share of what it trains.

    Returns the exit code. Raises ConfigError for a command that is one process.
    """
    if ranks_asked(os.environ) == 1:
        return work()
    if command != "train":
        raise ConfigError(f"`pairmill {command}` is one process: torchrun is for `pairmill train` alone")
    from .pretrain.rank_group import joined, reported
    from .pretrain.train import follow_training

    with joined(os.environ) as group, reported():
        if group.rank:
            return group.follow(follow_training)
        if code := work():
            raise PairmillError(f"rank 0 ends with exit code {code}, and the other ranks with it")
        group.dismiss()
        return 0
