"""A recipe turned into stages. Only wiring: what a stage does is written in its own folder.

`STEPS` is the order of the job. A step runs again when the tallies of the steps it `needs` have
changed, and an output folder refuses settings that would change what it already holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .errors import ConfigError, DataError
from .progress import make_progress
from .recipe import Recipe, build_recipe, differences
from .runner import Engine, Progress, Stage, Task, make_engine
from .shards.commit import locked, sweep, write_bytes
from .shards.job import StageReport, finished_tasks, inputs_digest, run_stage

if TYPE_CHECKING:
    from .stats.funnel import Funnel

UNPINNED = ("run", "report")  # groups that change no byte of the data
RESOURCES = (  # nor do these: how much of the machine a stage may use, and how often it saves its state
    "dedup.memory_mb",
    "dedup.threads",
    "fetch.concurrency",
    "fetch.per_host",
    "fetch.plan_memory_mb",
    "fetch.cpus",
    "near.threads",
    "bootstrap.training.loader_threads",
    "bootstrap.training.decoded_cache_mb",
    "bootstrap.training.checkpoint_every_s",
    "embed.cpus",
    "train.training.loader_threads",
    "train.training.decoded_cache_mb",
    "train.training.checkpoint_every_s",
)


@dataclass(frozen=True)
class Job:
    """One run: the recipe and the folder it fills."""

    recipe: Recipe
    out: Path


Build = Callable[[Job], tuple[Sequence[Task], Stage]]


@dataclass(frozen=True)
class Step:
    """One stage of the job: its tally folder, its settings' group, and whose output it reads."""

    stage: str
    command: str
    build: Build
    needs: tuple[str, ...] = ()
    when: Callable[[Recipe], bool] = field(default=lambda _: True)
    inputs_of: Callable[[Sequence[Task]], str] | None = None  # where tallies do not tell what is read


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


def _ingest(job: Job) -> tuple[Sequence[Task], Stage]:
    from .crawl.ingest import ingest_stage, ingest_tasks

    return ingest_tasks(job.out, job.recipe.ingest), ingest_stage(job.out, job.recipe.ingest)


def _lists_digest(tasks: Sequence[Task]) -> str:
    from .crawl.ingest import inputs_of

    return inputs_of(tasks)


def _dedup(job: Job) -> tuple[Sequence[Task], Stage]:
    from .filter.copies import dedup_stage, dedup_tasks

    return dedup_tasks(job.out), dedup_stage(job.out, job.recipe.dedup)


def _language(job: Job) -> tuple[Sequence[Task], Stage]:
    from .filter.language import language_stage, language_tasks

    return language_tasks(job.out), language_stage(job.out, job.recipe.language)


def _frequency(job: Job) -> tuple[Sequence[Task], Stage]:
    from .filter.frequency import frequency_stage, frequency_tasks

    return frequency_tasks(job.out), frequency_stage(job.out, job.recipe.dedup)


def _screen(job: Job) -> tuple[Sequence[Task], Stage]:
    from .filter.screen import screen_stage, screen_tasks

    return screen_tasks(job.out), screen_stage(job.out, job.recipe.language)


def _plan_fetch(job: Job) -> tuple[Sequence[Task], Stage]:
    from .crawl.fetch import plan_fetch_stage, plan_fetch_tasks

    return plan_fetch_tasks(job.out), plan_fetch_stage(job.out, job.recipe.fetch)


def _fetch(job: Job) -> tuple[Sequence[Task], Stage]:
    from .crawl.fetch import fetch_stage, fetch_tasks

    settings = job.recipe.fetch
    return fetch_tasks(job.out, settings), fetch_stage(job.out, settings, resolve=job.recipe.run.resolve)


def _near(job: Job) -> tuple[Sequence[Task], Stage]:
    from .filter.near import near_stage, near_tasks

    return near_tasks(job.out), near_stage(job.out, job.recipe.near)


def _choose(job: Job) -> tuple[Sequence[Task], Stage]:
    from .filter.decide import choose_stage, choose_tasks

    return choose_tasks(job.out), choose_stage(job.out, job.recipe.bootstrap, job.recipe.dedup)


def _tokenizer(job: Job) -> tuple[Sequence[Task], Stage]:
    from .pretrain.bootstrap import tokenizer_stage, tokenizer_tasks

    return tokenizer_tasks(job.out), tokenizer_stage(job.out, job.recipe.bootstrap)


def _bootstrap(job: Job) -> tuple[Sequence[Task], Stage]:
    from .pretrain.bootstrap import bootstrap_stage, bootstrap_tasks

    settings = job.recipe.bootstrap
    return bootstrap_tasks(job.out, settings), bootstrap_stage(job.out, settings)


def _embed(job: Job) -> tuple[Sequence[Task], Stage]:
    from .pretrain.embed import embed_stage, embed_tasks

    return embed_tasks(job.out), embed_stage(job.out, job.recipe.embed, job.recipe.bootstrap)


def _near_embedding(job: Job) -> tuple[Sequence[Task], Stage]:
    from .filter.near import near_embedding_stage, near_embedding_tasks

    return near_embedding_tasks(job.out), near_embedding_stage(job.out, job.recipe.near)


def _noise(job: Job) -> tuple[Sequence[Task], Stage]:
    from .filter.noise import noise_stage, noise_tasks

    return noise_tasks(job.out), noise_stage(job.out, job.recipe.noise)


def _decide(job: Job) -> tuple[Sequence[Task], Stage]:
    from .filter.decide import decide_stage, decide_tasks

    settings = job.recipe.decide
    return decide_tasks(job.out, settings), decide_stage(job.out, settings, job.recipe.dedup)


def _plan_write(job: Job) -> tuple[Sequence[Task], Stage]:
    from .shards.plan import plan_write_stage, plan_write_tasks

    name = job.recipe.decide.name
    return plan_write_tasks(job.out, name), plan_write_stage(job.out, job.recipe.write, name)


def _write(job: Job) -> tuple[Sequence[Task], Stage]:
    from .shards.write import write_stage, write_tasks

    return write_tasks(job.out), write_stage(job.out)


def _manifest(job: Job) -> tuple[Sequence[Task], Stage]:
    from .shards.manifest import manifest_stage, manifest_tasks

    return manifest_tasks(job.out), manifest_stage(job.out, job.recipe, job.recipe.decide.name)


def _train(job: Job) -> tuple[Sequence[Task], Stage]:
    from .pretrain.train import train_stage, train_tasks

    settings = job.recipe.train
    return train_tasks(job.out, settings, job.recipe.decide.name), train_stage(job.out, settings)


def _evaluate(job: Job) -> tuple[Sequence[Task], Stage]:
    from .pretrain.evaluate import evaluate_stage, evaluate_tasks

    return evaluate_tasks(job.out), evaluate_stage(job.out, job.recipe.evaluate)


def _report(job: Job) -> tuple[Sequence[Task], Stage]:
    from .stats.report import report_stage, report_tasks

    return report_tasks(job.out), report_stage(job.out, job.recipe.report, job.recipe.name)


def scores_noise(recipe: Recipe) -> bool:
    """Whether any rule of the recipe needs a model's score."""
    decide = recipe.decide
    words = [*decide.rules.sets, *(rule.where for rule in decide.rules.extra)]
    asked = any(word in " ".join(words) for word in ("noise", "clip_score", "cosine_v1", "mismatch"))
    return decide.max_noise is not None or asked or recipe.near.cosine is not None


def ranks_tokens(recipe: Recipe) -> bool:
    """Whether a rule asks how frequent a caption's rarest token is."""
    from .filter.frequency import needs_frequency

    return needs_frequency(recipe.language.rules, recipe.bootstrap.rules, recipe.decide.rules)


def trains(recipe: Recipe) -> bool:
    """Whether the recipe ends with a model."""
    return recipe.train.enabled


COLUMNS = ("ingest", "dedup", "language", "frequency", "screen")
AFTERWARDS = ("fetch", "near", "bootstrap", "noise", "decide", "manifest", "train", "evaluate")
STEPS = (
    Step("ingest", "ingest", _ingest, inputs_of=_lists_digest),
    Step("dedup", "dedup", _dedup, ("ingest",)),
    Step("language", "language", _language, ("ingest",)),
    Step("frequency", "language", _frequency, ("ingest",), ranks_tokens),
    Step("screen", "language", _screen, ("ingest", "dedup", "language", "frequency")),
    Step("plan-fetch", "fetch", _plan_fetch, ("screen",)),
    Step("fetch", "fetch", _fetch, ("plan-fetch",)),
    Step("near", "near", _near, ("fetch",)),
    Step("choose", "bootstrap", _choose, (*COLUMNS, "fetch", "near"), scores_noise),
    Step("tokenizer", "bootstrap", _tokenizer, ("choose",), scores_noise),
    Step("bootstrap", "bootstrap", _bootstrap, ("choose", "tokenizer"), scores_noise),
    Step("embed", "embed", _embed, ("fetch", "bootstrap"), scores_noise),
    Step("near-embedding", "noise", _near_embedding, ("near", "embed"), lambda r: r.near.cosine is not None),
    Step("noise", "noise", _noise, ("embed",), scores_noise),
    Step("decide", "decide", _decide, (*COLUMNS, "fetch", "near", "near-embedding", "noise")),
    Step("plan-write", "write", _plan_write, ("decide",)),
    Step("write", "write", _write, ("plan-write",)),
    Step("manifest", "write", _manifest, ("write", "decide")),
    Step("train", "train", _train, ("write", "decide"), trains),
    Step("evaluate", "evaluate", _evaluate, ("train",), trains),
    Step("report", "report", _report, (*COLUMNS, *AFTERWARDS)),
)
GROUP_OF = {"frequency": "language", "screen": "language", "plan-fetch": "fetch", "choose": "bootstrap", "tokenizer": "bootstrap",
            "near-embedding": "near", "plan-write": "write", "manifest": "write"}  # fmt: skip


def pinned(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide bytes, as plain values."""
    dumped = recipe.model_dump(mode="json", exclude=set(UNPINNED))
    for key in RESOURCES:
        group, _, name = key.rpartition(".")
        inner = dumped
        for part in group.split("."):
            inner = inner[part]
        inner.pop(name)
    return dumped


def pin(recipe: Recipe, out: Path) -> None:
    """Write `recipe.yaml` into the folder, or compare with the one that is there.

    Raises ConfigError naming the keys whose change would alter finished work.
    """
    path = out / "recipe.yaml"
    if path.exists():
        _refuse_other(stored_recipe(out), recipe, out)
    elif any((out / name).exists() for name in ("pairs", "raw", "shards", "_done")):
        raise ConfigError(f"{out}: holds pairs or shards but no recipe.yaml: give a new folder as --out")
    text = yaml.safe_dump(
        recipe.model_dump(mode="json", exclude_defaults=True), allow_unicode=True, sort_keys=False
    )
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_bytes(text.encode(), path)


def stored_recipe(out: Path) -> Recipe:
    """The recipe that a folder was made with. Raises ConfigError where there is none."""
    path = out / "recipe.yaml"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{out}: no recipe.yaml there: not an output folder of pairmill") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    return build_recipe(raw or {}, str(path))


def _refuse_other(old: Recipe, new: Recipe, out: Path) -> None:
    finished = {GROUP_OF.get(step.stage, step.stage) for step in STEPS if finished_tasks(out, step.stage)}
    changed = differences(pinned(old), pinned(new))
    fixed = [key for key in changed if key.partition(".")[0] in finished]
    if not fixed:
        return
    before, after = (_values(recipe, fixed[0]) for recipe in (old, new))
    hint = (
        "give the new selection a name of its own with --set decide.name=..."
        if all(key.startswith("decide.") for key in fixed)
        else "give another folder as --out"
    )
    raise ConfigError(
        f"{out}: was made with other settings, and finished work would change: {', '.join(fixed)}"
        f" ({fixed[0]}: {before!r} there, {after!r} here); {hint}"
    )


def _values(recipe: Recipe, key: str) -> Any:
    value: Any = recipe.model_dump(mode="json")
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def check(recipe: Recipe) -> None:
    """Find what cannot work before anything is started: rules that do not bind, lists that are not there."""
    from .crawl.lists import list_inputs
    from .filter.decide import check_recipe_rules

    list_inputs(recipe.ingest)
    check_recipe_rules(recipe)


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
    Raises ConfigError with nothing started, OutputError where the folder cannot be written.
    """
    check(recipe)
    job = Job(recipe, out)
    with locked(out):
        pin(recipe, out)
        sweep(out)
        owned = engine is None
        engine = engine or make_engine(recipe.run.engine, address=recipe.run.address, cpus=recipe.run.cpus)
        try:
            summary = _run_steps(job, command, retry_failed, engine, progress or make_progress())
        finally:
            if owned:
                engine.close()
            with suppress(OSError):
                (out / "_live").rmdir()
    from .stats.funnel import funnel

    summary.funnel = funnel(out, recipe.decide.name)
    return summary


def _run_steps(
    job: Job, command: str | None, retry_failed: bool, engine: Engine, progress: Progress
) -> Summary:
    summary = Summary(job.recipe.name, str(job.out))
    for step in STEPS:
        if not step.when(job.recipe) or command not in (None, step.command):
            continue
        if step.stage == "fetch" and retry_failed:
            from .crawl.fetch import plan_retry

            plan_retry(job.out, job.recipe.fetch)
        tasks, stage = step.build(job)
        inputs = step.inputs_of(tasks) if step.inputs_of else inputs_digest(job.out, *step.needs)
        if step.stage in UNPINNED:  # its settings may change, and then it is made again
            inputs += getattr(job.recipe, step.stage).model_dump_json()
        report = run_stage(job.out, stage, tasks, engine, progress, inputs=inputs)
        summary.stages[step.stage] = report
        _stop_if_hopeless(report, len(tasks), job.recipe.run.max_failed)
    return summary


def _stop_if_hopeless(report: StageReport, tasks: int, max_failed: float) -> None:
    if not report.failed or len(report.failed) / tasks <= max_failed:
        return
    task, error = next(iter(report.failed.items()))
    raise DataError(
        f"stage {report.stage}: {len(report.failed)} of {tasks} tasks failed, so the run stops here;"
        f" what is finished stays. First, task {task}: {error}"
    )


def dump_summary(summary: Summary) -> str:
    """The one JSON object that a command prints."""
    return json.dumps(summary.as_json())
