"""A recipe run over an output folder, step by step."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, DataError
from .pins import UNPINNED, pin
from .progress import make_progress
from .ray_engine import OnRay
from .recipe import Recipe, Run
from .runner import Engine, Here, Progress
from .shards.commit import locked, sweep
from .shards.job import StageReport, finished_tasks, inputs_digest, run_stage
from .steps import STEPS, Job

if TYPE_CHECKING:
    from .stats.funnel import Funnel


@dataclass
class Summary:
    """What a run did: one report per stage, then the funnel."""

    recipe: str
    out: str
    stages: dict[str, StageReport] = field(default_factory=dict)
    funnel: Funnel | None = None

    @property
    def exit_code(self) -> int:
        return 1 if any(report.failed for report in self.stages.values()) else 0

    def as_json(self) -> dict[str, Any]:
        """Plain values, the funnel last."""
        stages = {
            name: {
                "counts": dict(sorted(report.counts.items())),
                "failed": report.failed,
                "tasks_done_before": report.skipped,
                "seconds": round(report.seconds, 3),
            }
            for name, report in self.stages.items()
        }
        return {
            "recipe": self.recipe,
            "out": self.out,
            "stages": stages,
            "funnel": self.funnel.as_json() if self.funnel else {},
        }


class StoppedError(DataError):
    """The run ended before its last step; `summary` is what was done until then, and the funnel."""

    def __init__(self, problem: str, summary: Summary) -> None:
        super().__init__(problem)
        self.problem, self.summary = problem, summary

    def __reduce__(self) -> tuple[type[StoppedError], tuple[str, Summary]]:
        return StoppedError, (self.problem, self.summary)


def check(recipe: Recipe, command: str | None = None) -> None:
    """Find what cannot work before anything is started: rules that do not bind, lists that are not there.

    The lists are looked for only where they are read: pairs outlive them.
    """
    from .crawl.lists import list_inputs
    from .filter.decide import check_recipe_rules

    if command in (None, "ingest"):
        list_inputs(recipe.ingest)
    check_recipe_rules(recipe)
    if not any(step.when(recipe) for step in STEPS if command in (None, step.command)):
        raise ConfigError(
            f"no rule of the recipe asks for a score, so there is nothing for `pairmill {command}` to do;"
            " --set decide.max_noise=0.05 asks for one"
        )


def _check_towers(recipe: Recipe, out: Path, command: str | None) -> None:
    """Find models that cannot be built before hours of fetching; where none is still to be, cost nothing."""
    for step in STEPS:
        if step.stage not in ("bootstrap", "train") or command not in (None, step.command):
            continue
        if step.when(recipe) and not finished_tasks(out, step.stage):
            from .pretrain.trainer import check_training

            group = getattr(recipe, step.group)
            check_training(group.training, getattr(group, "system", None))


def run(
    recipe: Recipe,
    out: Path,
    *,
    command: str | None = None,
    retry_failed: bool = False,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Run every step of the recipe (or those of one command) that is not finished in `out`.

    retry_failed: first plan another wave of requests for what failed for a passing cause.
    Raises ConfigError with nothing started, OutputError where the folder cannot be written, StoppedError
    where too much failed or no pair is left.
    """
    check(recipe, command)
    _check_towers(recipe, out, command)
    job, summary = Job(recipe, out), Summary(recipe.name, str(out))
    with locked(out):
        pin(recipe, out)
        sweep(out)
        owned = engine is None
        engine = engine or _engine(recipe.run)
        try:
            problem = _run_steps(job, summary, command, retry_failed, engine, progress or make_progress())
        finally:
            if owned:
                engine.close()
            shutil.rmtree(out / "_live", ignore_errors=True)
    from .stats.funnel import funnel

    summary.funnel = funnel(out, recipe.decide.name)
    if problem:
        raise StoppedError(problem, summary)
    return summary


def _engine(settings: Run) -> Engine:
    return Here() if settings.engine == "here" else OnRay(settings.address, cpus=settings.cpus)


def _run_steps(
    job: Job, summary: Summary, command: str | None, retry_failed: bool, engine: Engine, progress: Progress
) -> str:
    """Put a report of each step into `summary`; returns why it stopped before the last, or nothing."""
    for step in STEPS:
        if not step.when(job.recipe) or command not in (None, step.command):
            continue
        if step.stage == "fetch" and retry_failed:
            from .crawl.fetch import plan_retry

            plan_retry(job.out, job.recipe.fetch)
        tasks, stage = step.build(job)
        if not tasks and any(finished_tasks(job.out, stage) for stage in step.needs):
            return f"stage {step.stage}: no pair is left for it, so the run stops here; the funnel says why"
        inputs = step.inputs_of(tasks) if step.inputs_of else inputs_digest(job.out, *step.needs)
        if step.stage in UNPINNED:  # its settings may change, and then it is made again
            inputs += getattr(job.recipe, step.stage).model_dump_json()
        report = run_stage(job.out, stage, tasks, engine, progress, inputs=inputs)
        summary.stages[step.stage] = report
        if problem := _hopeless(report, len(tasks), job.recipe.run.max_failed):
            return problem
    return ""


def _hopeless(report: StageReport, tasks: int, max_failed: float) -> str:
    """What to say where more tasks failed than the recipe bears."""
    if not report.failed or len(report.failed) / tasks <= max_failed:
        return ""
    task, error = next(iter(report.failed.items()))
    return (
        f"stage {report.stage}: {len(report.failed)} of {tasks} tasks failed, so the run stops here;"
        f" what is finished stays. First, task {task}: {error}"
    )


def dump_summary(summary: Summary) -> str:
    """The one JSON object that a command prints."""
    return json.dumps(summary.as_json())
