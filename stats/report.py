"""The stage `report`: everything that a folder can tell, as one page and one JSON file.

One rule: what is missing (a run that was stopped, no scores, no models) makes the page shorter, not an error.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..recipe import Decide, Report
from ..runner import Stage, Tally, Task, Worker, beat
from ..settings import MEMORY_MB
from ..shards.commit import write_bytes, write_json
from ..shards.ledger import records
from .distributions import distributions
from .funnel import funnel, stored_decide
from .models import training_curves
from .page import Content, render
from .samples import Group, by_reason, by_score
from .tables import opened

PICTURE_BYTES = 3_500_000  # of data URIs on the page; all else is well below 1 MB


def report_tasks(out: Path) -> list[Task]:
    """The one task of `report`."""
    return [Task("report", "page")]


def report_stage(
    out: Path, settings: Report, recipe_name: str, decide: Decide | None = None, memory_mb: int = MEMORY_MB
) -> Stage:
    """Write `report/index.html` and `report/funnel.json`. decide: of the selection that is shown."""
    return Stage("report", start_report, (out, settings, recipe_name, decide, memory_mb), unit="pages")


def start_report(
    out: Path, settings: Report, recipe_name: str, decide: Decide | None = None, memory_mb: int = MEMORY_MB
) -> Worker:
    """The worker of `report`."""

    def report(task: Task) -> Tally:
        return write_report(task, out, settings, recipe_name, decide, memory_mb)

    return report


def write_report(
    task: Task,
    out: Path,
    settings: Report,
    recipe_name: str,
    decide: Decide | None = None,
    memory_mb: int = MEMORY_MB,
) -> Tally:
    """Write the page and the funnel. Counts `written`; the facts hold the bytes of the page."""
    content = collect(out, settings, recipe_name, task, decide, memory_mb)
    page = render(content).encode("utf-8")
    write_json(content.funnel.as_json(), out / "report" / "funnel.json")
    write_bytes(page, out / "report" / "index.html")
    return Tally({"written": 1}, {"bytes": len(page), "adds_up": not content.funnel.problems})


def collect(
    out: Path,
    settings: Report,
    recipe_name: str,
    task: Task,
    decide: Decide | None = None,
    memory_mb: int = MEMORY_MB,
) -> Content:
    """All that the page shows, read from `out`."""
    way = funnel(out, decide.name if decide else None)
    with opened(out, memory_mb=memory_mb) as tables:
        if way.selection is not None:
            tables.select(way.selection)
        beat(task, 0, 3, "distributions")
        found = distributions(tables)
        beat(task, 1, 3, "pictures")
        groups = by_reason(tables, settings.pictures_per_reason)
        places = by_score(tables, settings.pictures_per_reason)
    beat(task, 2, 3, "page")
    groups, places = _within(PICTURE_BYTES, groups, places)
    max_noise = decide.max_noise if decide else stored_decide(out).get("max_noise")
    return Content(
        title=settings.title or "report",
        recipe=recipe_name,
        funnel=way,
        max_noise=max_noise if isinstance(max_noise, int | float) else None,
        distributions=found,
        by_reason=groups,
        by_score=places,
        calibration=read_json(out / "scores" / "noise" / "calibration.json"),
        evaluation=read_json(out / "model" / "eval.json"),
        curves=training_curves(out),
        lists=[tally["facts"] for tally in records(out, "ingest") if tally.get("facts")],
    )


def _within(limit: int, *parts: list[Group]) -> tuple[list[Group], ...]:
    """`parts` with as many samples in each group as `limit` bytes of pictures allow."""
    most = max((len(group.samples) for part in parts for group in part), default=0)
    while most:
        cut = tuple([replace(group, samples=group.samples[:most]) for group in part] for part in parts)
        taken = sum(len(sample.data_uri or "") for part in cut for group in part for sample in group.samples)
        if taken <= limit:
            return cut
        most -= 1
    return tuple([] for _ in parts)


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file, or None where there is no such file or no mapping in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
