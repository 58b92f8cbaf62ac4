"""What a step of the job is: its tasks, its stage, the stages whose output it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .recipe import Recipe
from .runner import Stage, Task


@dataclass(frozen=True)
class Job:
    """One run: the recipe and the folder it fills."""

    recipe: Recipe
    out: Path


Phase = tuple[Sequence[Task], Stage]
Build = Callable[[Job], Phase]
InputsOf = Callable[[Job, Sequence[Task]], str | dict[str, str]]  # a digest, or one of each task


@dataclass(frozen=True)
class Step:
    """One stage of the job: its tally folder, its settings' group, and whose output it reads."""

    stage: str
    command: str
    build: Build
    needs: tuple[str, ...] = ()
    when: Callable[[Recipe], bool] = field(default=lambda _: True)
    inputs_of: InputsOf | None = None  # where the tallies of `needs` do not tell what is read
    prepare: Callable[[Job], Iterable[Phase]] | None = None  # stages that send rows to its partitions
    optional: bool = False  # it may have no task at all
    whole: bool = False  # the stages after it need all of its tasks: one that fails stops the run
    settings: str | None = None  # the recipe's group of settings, where it is not the command's

    @property
    def group(self) -> str:
        """The recipe's group of settings that decides what this step writes."""
        return self.settings or self.command
