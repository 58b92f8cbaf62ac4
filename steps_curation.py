"""The steps that count what captions say, and hold a crawl against other sets, as `steps.py` lists them.

Only wiring.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from .errors import ConfigError
from .recipe import Recipe
from .runner import Task
from .shards.ledger import inputs_digest
from .step import Job, Phase, Step

FETCHED = ("fetch", "reuse")


def rows_of(job: Job) -> int:
    """Rows in one partition: what is set, or fewer where the memory is short."""
    from .filter.copies import ROW_BYTES

    return min(job.recipe.run.rows_per_partition, job.recipe.run.memory_mb * 1_000_000 // ROW_BYTES)


def _frequency(job: Job) -> Phase:
    from .filter.frequency import frequency_stage, frequency_tasks

    stage = frequency_stage(job.out, job.recipe.dedup, job.recipe.run.memory_mb)
    return frequency_tasks(job.out, _captions(job)), stage


def _frequency_phases(job: Job) -> Iterable[Phase]:
    from .filter.frequency import frequency_phases

    return frequency_phases(job.out, job.recipe.dedup, job.recipe.run.memory_mb, _captions(job))


def _captions(job: Job) -> int:
    """Captions whose tokens one partition counts: a caption has some twenty of them."""
    return max(1, rows_of(job) // 10)


def _entries(job: Job) -> Phase:
    from .filter.entries import entries_stage, entries_tasks

    return entries_tasks(job.out, rows_of(job)), entries_stage(job.out, job.recipe.entries)


def _entries_phases(job: Job) -> Iterable[Phase]:
    from .filter.entries import entries_phases, needs_ranks

    recipe = job.recipe
    ranks = needs_ranks(recipe.language.rules, recipe.bootstrap.rules, recipe.decide.rules)
    told = (job.out, recipe.entries, recipe.dedup)
    return entries_phases(*told, rows=rows_of(job), ranks=ranks, memory_mb=recipe.run.memory_mb)


def _evaluation(job: Job) -> Phase:
    from .crawl.evaluation import evaluation_stage, evaluation_tasks

    return evaluation_tasks(job.recipe.decontaminate), evaluation_stage(job.out, job.recipe.fetch)


def _evaluation_inputs(job: Job, tasks: Sequence[Task]) -> dict[str, str]:
    from .crawl.evaluation import evaluation_inputs

    return evaluation_inputs(tasks)


def _decontaminate(job: Job) -> Phase:
    from .filter.leaks import decontaminate_stage, decontaminate_tasks

    recipe = job.recipe
    stage = decontaminate_stage(job.out, recipe.decontaminate, recipe.near, recipe.run.memory_mb)
    return decontaminate_tasks(job.out), stage


def _decontaminate_inputs(job: Job, tasks: Sequence[Task]) -> str:
    from .filter.blocklist import blocklists_digest

    settings = job.recipe.decontaminate
    return inputs_digest(job.out, *FETCHED, "near", "evaluation") + (
        settings.model_dump_json() + blocklists_digest(settings.blocklist)
    )


def _leaks_page(job: Job) -> Phase:
    from .stats.leaks import leaks_stage, leaks_tasks

    return leaks_tasks(job.out), leaks_stage(job.out, job.recipe.report, job.recipe.run.memory_mb)


def _held_against(recipe: Recipe) -> bool:
    """Whether the recipe names evaluation sets or blocklists."""
    return recipe.decontaminate.asked


def ranks_tokens(recipe: Recipe) -> bool:
    """Whether a rule asks how frequent a caption's rarest token is."""
    from .filter.frequency import needs_frequency

    return needs_frequency(recipe.language.rules, recipe.bootstrap.rules, recipe.decide.rules)


def matches_entries(recipe: Recipe) -> bool:
    """Whether a rule asks which entries captions hold."""
    from .filter.entries import needs_entries

    return needs_entries(recipe.language.rules, recipe.bootstrap.rules, recipe.decide.rules)


def check_curation(recipe: Recipe, command: str | None, stages: Collection[str] | None) -> None:
    """Find what must be given and is not, before anything is started. Raises ConfigError."""
    from .filter.entries import check_entries

    if command == "decontaminate" and not recipe.decontaminate.asked:
        raise ConfigError("nothing to hold the crawl against: give --against FOLDER or --blocklist FILE")
    if command in (None, "language") and (stages is None or "entries" in stages) and matches_entries(recipe):
        check_entries(recipe.entries)


COUNT_STEPS = (
    Step(
        "frequency",
        "language",
        _frequency,
        ("ingest",),
        ranks_tokens,
        prepare=_frequency_phases,
        whole=True,
    ),
    Step(
        "entries",
        "language",
        _entries,
        ("ingest", "dedup", "language"),
        matches_entries,
        prepare=_entries_phases,
        whole=True,
        settings="entries",
    ),
)
LEAK_STEPS = (
    Step("evaluation", "decontaminate", _evaluation, (), _held_against, _evaluation_inputs, optional=True),
    Step(
        "decontaminate",
        "decontaminate",
        _decontaminate,
        (*FETCHED, "near", "evaluation"),
        _held_against,
        _decontaminate_inputs,
    ),
    Step("leaks", "decontaminate", _leaks_page, ("decontaminate",), _held_against),
)
