"""A recipe run over an output folder, step by step."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, DataError, OutputError, PairmillError, RetryableError
from .pins import UNPINNED, pinned_to
from .progress import make_progress, note
from .ray_engine import OnRay
from .recipe import Recipe, Run
from .runner import Engine, Here, Progress, Stage, Task
from .shards.commit import locked, sweep
from .shards.job import (
    StageReport,
    all_finished,
    finished_tasks,
    forget_phases,
    inputs_digest,
    run_phases,
    run_stage,
)
from .shards.store_path import open_path, reach
from .steps import STEPS, Job, Step
from .steps_curation import check_curation

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


def check(recipe: Recipe, command: str | None = None, stages: Collection[str] | None = None) -> None:
    """Find what cannot work before anything is started: rules that do not bind, lists that are not there.

    The lists are looked for only where they are read: pairs outlive them.
    """
    from .crawl.address import check_places
    from .crawl.lists import list_inputs
    from .filter.decide import check_recipe_rules
    from .filter.near_order import check_keep

    if command in (None, "ingest") and (stages is None or "ingest" in stages):
        list_inputs(recipe.ingest, note)
    check_places(recipe.fetch.allow_hosts, recipe.run.resolve)
    check_recipe_rules(recipe)
    check_curation(recipe, command, stages)
    check_keep(recipe.near)
    if not any(step.when(recipe) for step in STEPS if command in (None, step.command)):
        raise ConfigError(
            f"no rule of the recipe asks for a score, so there is nothing for `pairmill {command}` to do;"
            " --set decide.max_noise=0.05 asks for one"
        )


def _check_models(recipe: Recipe, out: Path, command: str | None) -> None:
    """Find models that cannot be built, and held-out sets that are none, before hours of fetching.

    What is finished is not looked at, and costs nothing.
    """
    for step in STEPS:
        finished = finished_tasks(out, step.stage) and command != "evaluate"
        if command not in (None, step.command) or not step.when(recipe) or finished:
            continue
        if step.stage in ("bootstrap", "train"):
            from .pretrain.trainer import check_training

            group = getattr(recipe, step.group)
            check_training(group.training, getattr(group, "system", None))
            if step.stage == "bootstrap":
                from .pretrain.scorer import check_scorer

                check_scorer(group)
        elif step.stage == "evaluation":
            from .crawl.evaluation import evaluation_tasks
            from .filter.blocklist import read_blocklists

            evaluation_tasks(recipe.decontaminate)
            read_blocklists(recipe.decontaminate.blocklist)
        elif step.stage == "evaluate":
            from .pretrain.evaluation.measure import check_evaluate

            check_evaluate(recipe.evaluate)


def run(
    recipe: Recipe,
    out: Path,
    *,
    command: str | None = None,
    retry_failed: bool = False,
    engine: Engine | None = None,
    progress: Progress | None = None,
    stages: Collection[str] | None = None,
) -> Summary:
    """Run every step of the recipe (or those of one command, or of `stages`) that is not finished in `out`.

    retry_failed: first plan another wave of requests for what failed for a passing cause.
    Raises ConfigError with nothing started, OutputError where the folder is not ours to write, StoppedError
    where the run ends early: too much failed, no pair is left, the disk is full.
    """
    from .filter.corpus import check_corpora

    out = open_path(out)
    check(recipe, command, stages)
    if command in (None, "language") and (stages is None or "screen" in stages):
        check_corpora(recipe.ingest.against, out)
    _check_models(recipe, out, command)
    job, summary = Job(recipe, out), Summary(recipe.name, str(out))
    with locked(out) as claim, pinned_to(recipe, out, command):
        sweep(out)
        owned = engine is None
        engine = engine or _engine(recipe.run)
        try:
            steps = [step for step in STEPS if command in (None, step.command) and step.when(recipe)]
            steps = [step for step in steps if stages is None or step.stage in stages]
            progress = progress or make_progress()
            kept = {"kept": claim.check} if claim else {}
            problem = _run_steps(job, summary, steps, retry_failed, engine, progress, **kept)
            if problem:
                _refuse_unreachable(out, problem)
            if problem and command is None:
                _report_anyway(job, summary, progress)
        finally:
            if owned:
                engine.close()
    from .stats.funnel import funnel

    summary.funnel = funnel(out, recipe.decide.name)
    if problem:
        raise StoppedError(problem, summary)
    return summary


def _refuse_unreachable(out: Path, problem: str) -> None:
    """Where the store itself has failed, end at once: a report could not be written, nor a funnel read."""
    try:
        reach(out)
    except PairmillError as error:
        raise RetryableError(f"{problem}; what is finished stays: the same command goes on") from error


def _engine(settings: Run) -> Engine:
    return Here() if settings.engine == "here" else OnRay(settings.address, cpus=settings.cpus)


def _run_steps(
    job: Job,
    summary: Summary,
    steps: Sequence[Step],
    retry_failed: bool,
    engine: Engine,
    progress: Progress,
    *,
    kept: Callable[[], None] = lambda: None,
) -> str:
    """Put a report of each step into `summary`; returns why it stopped before the last, or nothing.

    kept: raises where the folder is no longer this run's.
    """
    for step in steps:
        kept()
        if step.stage == "fetch" and retry_failed:
            from .crawl.fetch import plan_retry

            plan_retry(job.out, job.recipe.fetch, job.recipe.run.memory_mb)
        tasks, stage = step.build(job)
        if not tasks and step.optional:
            continue
        if not tasks and any(finished_tasks(job.out, stage) for stage in step.needs):
            return f"stage {step.stage}: no pair is left for it, so the run stops here; the funnel says why"
        try:
            report = _run_step(step, job, tasks, stage, engine, progress)
        except (OutputError, RetryableError) as error:
            return str(error)
        summary.stages[step.stage] = report
        _say_choices(report, progress)
        needed = step.whole or report.stage != step.stage
        if problem := _hopeless(report, len(tasks), 0.0 if needed else job.recipe.run.max_failed, needed):
            return problem
    return ""


def _run_step(
    step: Step, job: Job, tasks: Sequence[Task], stage: Stage, engine: Engine, progress: Progress
) -> StageReport:
    """The report of the step's stage; of one of its phases where that failed, for then there is no more."""
    inputs = _inputs(step, job, tasks)
    if step.prepare is None:
        return run_stage(job.out, stage, tasks, engine, progress, inputs=inputs)
    assert isinstance(inputs, str)
    seconds = 0.0
    if not all_finished(job.out, tasks, inputs):
        phases = run_phases(job.out, step.prepare(job), engine, progress, inputs=inputs)
        if phases and phases[-1].failed:
            return phases[-1]
        seconds = sum(phase.seconds for phase in phases)
    report = run_stage(job.out, stage, tasks, engine, progress, inputs=inputs)
    report.seconds += seconds
    if not report.failed:
        forget_phases(job.out, step.stage)
    return report


def _report_anyway(job: Job, summary: Summary, progress: Progress) -> None:
    """The page of a run that ends early, which needs it most; in this process, whatever the engine."""
    (step,) = (step for step in STEPS if step.stage == "report")
    if step.stage in summary.stages:
        return
    tasks, stage = step.build(job)
    with suppress(PairmillError):  # what stopped the run is said, and no more
        summary.stages[step.stage] = run_stage(
            job.out, stage, tasks, Here(retries=0), progress, inputs=_inputs(step, job, tasks)
        )


def _inputs(step: Step, job: Job, tasks: Sequence[Task]) -> str | dict[str, str]:
    """A digest of what the step reads: of all selections just its own, for another one disturbs nothing."""
    if step.inputs_of:
        return step.inputs_of(job, tasks)
    name = job.recipe.decide.name
    if step.stage not in UNPINNED:
        return inputs_digest(job.out, *step.needs, only={"decide": (name,)})
    # its settings may change, and then it is made again
    return inputs_digest(job.out, *step.needs) + getattr(job.recipe, step.stage).model_dump_json() + name


def _say_choices(report: StageReport, progress: Progress) -> None:
    """Which columns of the lists were taken for what; which scorer is trained, and what it costs."""
    from .crawl.columns import say_choices

    for facts in report.facts.values():
        if report.stage == "tokenizer" and "scorer" in facts:
            progress.say(str(facts["scorer"]))
    tables = [facts for facts in report.facts.values() if "columns" in facts]
    for line in say_choices({facts["source"]: facts["columns"] for facts in tables}):
        progress.say(line)


def _hopeless(report: StageReport, tasks: int, bears: float, needed: bool) -> str:
    """What to say where a larger share of the tasks failed than `bears`."""
    if not report.failed or len(report.failed) / tasks <= bears:
        return ""
    task, error = next(iter(report.failed.items()))
    why = ", and the stages after it need every one," if needed and len(report.failed) < tasks else ","
    return (
        f"stage {report.stage}: {len(report.failed)} of {tasks} tasks failed{why} so the run stops here;"
        f" what is finished stays. First, task {task}: {error}"
    )


def dump_summary(summary: Summary) -> str:
    """The one JSON object that a command prints."""
    return json.dumps(summary.as_json())
