"""`verify --mend`: what is damaged or gone is made anew, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .pins import command_recipe, stored_recipe
from .pipeline import StoppedError, run
from .shards import ledger
from .shards.commit import locked
from .shards.damage import check_files, forget
from .shards.store_path import open_path
from .steps import STEPS


def mend(out: Path, **how: Any) -> dict[str, list[str]]:
    """Do the tasks again whose files or tallies are damaged or missing; returns them, by stage.

    Where the new bytes are those of before, the stages after keep theirs; where the web answered otherwise,
    they follow. Only stages that had begun are run. how: `engine` and `progress` of `pipeline.run`.
    Raises what `pipeline.run` raises: ConfigError where a list is gone that must be read again.
    """
    out = open_path(out)
    with locked(out):
        todo = forget(out, check_files(out).damage)
    if not todo:
        return {}
    order = [step.stage for step in STEPS]
    begun = [stage for stage in order if stage in ledger.stages(out)]
    first = min((order.index(stage) for stage in todo if stage in order), default=len(order))
    recipe = stored_recipe(out)
    try:
        run(recipe, out, stages=[stage for stage in begun if order.index(stage) >= first], **how)
    except StoppedError:  # a run that had ended early does so again, with its files mended
        if _left(out, todo):
            raise
    for stage in ("decide", "train"):  # of other selections than the folder's own
        for name in sorted(todo.get(stage, ())):
            if ledger.read_tally(out, stage, name) is None:
                run(command_recipe(out, stage, {"decide.name": name}), out, command=stage, **how)
    return {stage: sorted(tasks) for stage, tasks in todo.items()}


def _left(out: Path, todo: Mapping[str, set[str]]) -> bool:
    """Whether a task is still without its tally."""
    return any(ledger.read_tally(out, stage, task) is None for stage, tasks in todo.items() for task in tasks)
