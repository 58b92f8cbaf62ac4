"""The steps of the job, in order: for each its tasks, its stage, and the stages whose output it reads.

Only wiring: what a stage does is written in its own folder, which is imported when the step is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .model_inputs import evaluated_inputs, model_inputs
from .recipe import Recipe
from .runner import Task
from .shards.ledger import inputs_digest
from .step import Job, Phase, Step
from .steps_curation import COUNT_STEPS, FETCHED, LEAK_STEPS, rows_of


def _ingest(job: Job) -> Phase:
    from .crawl.ingest import ingest_stage, ingest_tasks

    return ingest_tasks(job.out, job.recipe.ingest), ingest_stage(job.out, job.recipe.ingest)


def _lists_digest(job: Job, tasks: Sequence[Task]) -> dict[str, str]:
    from .crawl.ingest import inputs_of

    return inputs_of(tasks)


def _dedup(job: Job) -> Phase:
    from .filter.copies import dedup_stage, dedup_tasks

    return dedup_tasks(job.out, rows_of(job)), dedup_stage(job.out)


def _dedup_phases(job: Job) -> Iterable[Phase]:
    from .filter.copies import dedup_phases

    return dedup_phases(job.out, rows_of(job))


def _language(job: Job) -> Phase:
    from .filter.language import language_stage, language_tasks

    return language_tasks(job.out), language_stage(job.out, job.recipe.language)


def _screen(job: Job) -> Phase:
    from .filter.screen import screen_stage, screen_tasks

    recipe = job.recipe
    stage = screen_stage(job.out, recipe.language, recipe.run.memory_mb, recipe.ingest.against)
    return screen_tasks(job.out), stage


def _screen_inputs(job: Job, tasks: Sequence[Task]) -> str:
    from .filter.corpus import corpora_digest

    return inputs_digest(job.out, *COLUMNS[:-1]) + corpora_digest(job.recipe.ingest.against)


def _plan_fetch(job: Job) -> Phase:
    from .crawl.fetch import check_pairs, plan_fetch_stage, plan_fetch_tasks

    check_pairs(job.out, job.recipe.fetch, job.recipe.run.resolve)
    return plan_fetch_tasks(job.out), plan_fetch_stage(job.out, job.recipe.fetch, job.recipe.run.memory_mb)


def _fetch(job: Job) -> Phase:
    from .crawl.fetch import fetch_stage, fetch_tasks

    settings, ports = job.recipe.fetch, job.recipe.ingest.ports
    stage = fetch_stage(job.out, settings, resolve=job.recipe.run.resolve, ports=ports)
    return fetch_tasks(job.out, settings, job.recipe.run.resolve), stage


def _fetch_inputs(job: Job, tasks: Sequence[Task]) -> dict[str, str]:
    from .crawl.fetch import fetch_inputs

    return fetch_inputs(job.out, tasks)


def _reuse(job: Job) -> Phase:
    from .crawl.reuse import reuse_stage, reuse_tasks

    return reuse_tasks(job.out), reuse_stage(job.out, job.recipe.run.memory_mb)


def _near(job: Job) -> Phase:
    from .filter.near import near_stage, near_tasks

    run = job.recipe.run
    return near_tasks(job.out, run.rows_per_partition), near_stage(job.out, job.recipe.near, run.memory_mb)


def _near_phases(job: Job) -> Iterable[Phase]:
    from .filter.near import near_phases

    run = job.recipe.run
    return near_phases(job.out, job.recipe.near, run.memory_mb, run.rows_per_partition)


def _choose(job: Job) -> Phase:
    from .filter.decide import choose_stage, choose_tasks

    recipe = job.recipe
    return choose_tasks(job.out), choose_stage(
        job.out, recipe.bootstrap, recipe.decide, recipe.dedup, recipe.run.memory_mb
    )


def _tokenizer(job: Job) -> Phase:
    from .pretrain.bootstrap import tokenizer_stage, tokenizer_tasks

    return tokenizer_tasks(job.out), tokenizer_stage(job.out, job.recipe.bootstrap)


def _bootstrap(job: Job) -> Phase:
    from .pretrain.bootstrap import bootstrap_stage, bootstrap_tasks

    settings = job.recipe.bootstrap
    return bootstrap_tasks(job.out, settings), bootstrap_stage(job.out, settings)


def _embed(job: Job) -> Phase:
    from .pretrain.embed import embed_stage, embed_tasks

    return embed_tasks(job.out), embed_stage(job.out, job.recipe.embed, job.recipe.bootstrap)


def _near_embedding(job: Job) -> Phase:
    from .filter.near import near_embedding_stage, near_embedding_tasks

    return near_embedding_tasks(job.out), near_embedding_stage(
        job.out, job.recipe.near, job.recipe.run.memory_mb
    )


def _noise(job: Job) -> Phase:
    from .filter.noise import noise_stage, noise_tasks

    told = (job.out, job.recipe.noise, job.recipe.run.memory_mb, job.recipe.run.rows_per_partition)
    return noise_tasks(*told), noise_stage(*told)


def _noise_phases(job: Job) -> Iterable[Phase]:
    from .filter.noise_phases import noise_phases
    from .filter.noise_plan import Plan

    run = job.recipe.run
    return noise_phases(Plan(job.out, job.recipe.noise, run.memory_mb, run.rows_per_partition))


def _decide(job: Job) -> Phase:
    from .filter.decide import decide_stage, decide_tasks

    settings = job.recipe.decide
    return decide_tasks(job.out, settings), decide_stage(
        job.out, settings, job.recipe.dedup, job.recipe.run.memory_mb
    )


def _plan_write(job: Job) -> Phase:
    from .shards.plan import plan_write_stage, plan_write_tasks

    name = job.recipe.decide.name
    return plan_write_tasks(job.out, name), plan_write_stage(
        job.out, job.recipe.write, name, job.recipe.run.memory_mb
    )


def _write(job: Job) -> Phase:
    from .shards.write import write_stage, write_tasks

    return write_tasks(job.out), write_stage(job.out)


def _write_inputs(job: Job, tasks: Sequence[Task]) -> dict[str, str]:
    """By shard a digest of its plan: where another part of the plan changes, the shard stays."""
    from .shards.plan import plan_digest

    return {task.name: plan_digest(job.out, task.name) for task in tasks}


def _manifest(job: Job) -> Phase:
    from .shards.manifest import manifest_stage, manifest_tasks

    return manifest_tasks(job.out), manifest_stage(job.out, job.recipe, job.recipe.decide.name)


def _train(job: Job) -> Phase:
    from .pretrain.train import train_stage, train_tasks

    recipe = job.recipe
    tasks = train_tasks(job.out, recipe.train, recipe.decide.name)
    return tasks, train_stage(job.out, recipe.train, recipe.evaluate)


def _evaluate(job: Job) -> Phase:
    from .pretrain.evaluate import evaluate_stage, evaluate_tasks

    return evaluate_tasks(job.out), evaluate_stage(job.out, job.recipe.evaluate)


def _report(job: Job) -> Phase:
    from .stats.report import report_stage, report_tasks

    recipe = job.recipe
    arguments = (recipe.report, recipe.name, recipe.decide, recipe.run.memory_mb)
    return report_tasks(job.out), report_stage(job.out, *arguments)


def scores_noise(recipe: Recipe) -> bool:
    """Whether any rule of the recipe needs a model's score."""
    from .filter.decide_plans import before_scores

    rules, needed = recipe.decide.rules, recipe.decide.max_noise is not None or recipe.near.cosine is not None
    free = before_scores(rules)
    return needed or (free.sets, free.extra) != (rules.sets, rules.extra)


def trains(recipe: Recipe) -> bool:
    """Whether the recipe ends with a model."""
    return recipe.train.enabled


LEAKS = "decontaminate"
REDACT = "redact"  # what `pairmill redact` left
COLUMNS = ("ingest", "dedup", "language", "frequency", "entries", "screen")
AFTERWARDS = (*FETCHED, "near", "bootstrap", "noise", "decide", "manifest", "train", "evaluate")
STEPS = (
    Step("ingest", "ingest", _ingest, inputs_of=_lists_digest),
    Step("dedup", "dedup", _dedup, ("ingest",), prepare=_dedup_phases, whole=True),
    Step("language", "language", _language, ("ingest",)),
    *COUNT_STEPS,
    Step("screen", "language", _screen, COLUMNS[:-1], inputs_of=_screen_inputs, whole=True),
    Step("plan-fetch", "fetch", _plan_fetch, ("screen",)),
    Step("fetch", "fetch", _fetch, ("plan-fetch",), inputs_of=_fetch_inputs),
    Step("reuse", "fetch", _reuse, ("plan-fetch", "fetch"), optional=True),
    Step("near", "near", _near, ("plan-fetch", *FETCHED), prepare=_near_phases),
    *LEAK_STEPS,
    Step("choose", "bootstrap", _choose, (*COLUMNS, *FETCHED, "near", LEAKS), scores_noise, whole=True),
    Step("tokenizer", "bootstrap", _tokenizer, ("choose",), scores_noise),
    Step("bootstrap", "bootstrap", _bootstrap, ("choose", "tokenizer"), scores_noise, whole=True),
    Step("embed", "embed", _embed, (*FETCHED, "bootstrap"), scores_noise),
    Step(
        "near-embedding",
        "noise",
        _near_embedding,
        ("near", "embed"),
        lambda r: r.near.cosine is not None,
        settings="near",
    ),
    Step("noise", "noise", _noise, ("embed", "choose"), scores_noise, prepare=_noise_phases, whole=True),
    Step("decide", "decide", _decide, (*COLUMNS, *FETCHED, "near", LEAKS, REDACT, "near-embedding", "noise")),
    Step("plan-write", "write", _plan_write, ("decide",)),
    Step("write", "write", _write, ("plan-write",), inputs_of=_write_inputs),
    Step("manifest", "write", _manifest, ("write", "decide")),
    Step("train", "train", _train, ("write", "decide"), trains, inputs_of=model_inputs),
    Step("evaluate", "evaluate", _evaluate, ("train",), trains, inputs_of=evaluated_inputs),
    Step("report", "report", _report, (*COLUMNS, *AFTERWARDS)),
)
