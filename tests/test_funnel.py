"""The funnel: from tallies alone, and honest where they do not add up."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from pairmill.runner import Tally, Task
from pairmill.shards.ledger import write_tally
from pairmill.stats.funnel import funnel, render_funnel
from pairmill.stats.tallies import stage_sums

Put = Callable[..., None]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Writes one tally into `tmp_path`: put(stage, task, counts)."""

    def write(stage: str, task: str, counts: dict[str, int], seconds: float = 2.0) -> None:
        write_tally(tmp_path, Task(stage, task), Tally(counts), seconds=seconds)

    return write


def finish(put: Put, **changes: dict[str, int]) -> None:
    """100 rows in two lists: 10 rejected, 5 copies, 15 screened, 20 not fetched, 12 ruled out, 38 kept."""
    put("ingest", "0000", {"pair": 60, "url_missing": 7})
    put("ingest", "0001", {"pair": 30, "caption_missing": 3})
    put("dedup", "all", {"kept": 90})
    put("screen", "0000-00000", {"kept": 40, "pair_copy": 5, "caption_short": 15})
    put("screen", "0001-00000", {"kept": 30})
    put("fetch", "00000", {"ok": 45, "http_404": 15, "timeout": 10})
    put("fetch", "w1-00000", {"ok": 5, "timeout": 5})
    decided = {"kept": 38, "caption_short": 15 + 2, "http_404": 15, "timeout": 5, "near_copy": 10}
    put("decide", "dataset", changes.get("dataset", decided))


def test_every_row_is_in_one_step_under_one_reason(put: Put, tmp_path: Path) -> None:
    finish(put)
    found = funnel(tmp_path)
    assert [(step.name, dict(step.reasons), step.left) for step in found.steps] == [
        ("ingest", {"url_missing": 7, "caption_missing": 3}, 90),
        ("copies", {"pair_copy": 5}, 85),
        ("screen", {"caption_short": 15}, 70),
        ("fetch", {"http_404": 15, "timeout": 5}, 50),
        ("decide", {"near_copy": 10, "caption_short": 2}, 38),
    ]
    assert (found.rows, found.kept, found.problems, found.unfinished) == (100, 38, (), ())
    assert found.rows == sum(step.dropped for step in found.steps) + (found.kept or 0)


def test_the_json_has_counts_and_percents_of_the_rows_seen(put: Put, tmp_path: Path) -> None:
    finish(put)
    found = funnel(tmp_path).as_json()
    assert found["kept"] == {"count": 38, "percent": 38.0}
    assert found["steps"][3]["reasons"]["timeout"] == {"count": 5, "percent": 5.0}
    assert found["adds_up"] is True
    assert found["stages"][0] == {"stage": "ingest", "tasks": 2, "seen": 100, "seconds": 4.0, "per_s": 25.0}


def test_the_verdict_is_one_sentence(put: Put, tmp_path: Path) -> None:
    finish(put)
    said = funnel(tmp_path).verdict(0.05)
    assert said == "100 rows in, 38 pairs kept (38 %); asked for at most 5 % noise"


def test_a_lost_row_is_said_plainly(put: Put, tmp_path: Path) -> None:
    finish(put, dataset={"kept": 37, "caption_short": 17, "http_404": 15, "timeout": 5, "near_copy": 10})
    found = funnel(tmp_path)
    assert found.problems == ("100 rows were seen, but 62 dropped + 37 kept = 99: 1 missing",)
    assert found.as_json()["adds_up"] is False


def test_a_screen_that_saw_other_rows_than_ingest_wrote_is_said(put: Put, tmp_path: Path) -> None:
    finish(put)
    put("screen", "0001-00000", {"kept": 29})
    assert "ingest wrote 90 pairs, but screen saw 89" in funnel(tmp_path).problems


def test_a_stopped_run_is_shown_as_unfinished(put: Put, tmp_path: Path) -> None:
    put("ingest", "0000", {"pair": 90, "url_missing": 10})
    put("screen", "0000-00000", {"kept": 70, "pair_copy": 20})
    put("fetch", "00000", {"ok": 30, "http_404": 5})
    found = funnel(tmp_path)
    assert found.kept is None
    assert found.left == 65
    assert "fetch has asked for the pictures of 35 of 70 pairs" in found.unfinished
    assert found.as_json()["kept"] is None
    assert "not finished" in found.verdict()


def test_a_folder_without_tallies_has_an_empty_funnel(tmp_path: Path) -> None:
    found = funnel(tmp_path)
    assert (found.rows, found.kept, found.stages) == (0, None, ())
    assert found.unfinished[0] == "ingest has not run"
    assert found.percent(0) == 0.0


def test_a_damaged_tally_is_no_finished_task(put: Put, tmp_path: Path) -> None:
    finish(put)
    (tmp_path / "_done" / "decide" / "dataset.json").write_text('{"counts": {"ke')
    assert funnel(tmp_path).kept is None


def test_the_recipe_names_the_selection_that_is_shown(put: Put, tmp_path: Path) -> None:
    finish(put)
    put("decide", "strict", {"kept": 8, "caption_short": 17, "http_404": 15, "timeout": 5, "near_copy": 40})
    put("decide", "everything", {"kept": 50, "caption_short": 15, "http_404": 15, "timeout": 5})
    assert funnel(tmp_path).selection == "dataset"
    (tmp_path / "recipe.yaml").write_text("decide:\n  name: strict\n")
    found = funnel(tmp_path)
    assert (found.selection, found.kept) == ("strict", 8)
    assert found.selections == {"dataset": 38, "everything": 50, "strict": 8}


def test_stages_come_in_the_order_of_the_job(put: Put, tmp_path: Path) -> None:
    finish(put)
    put("something-new", "all", {"kept": 1})
    assert list(stage_sums(tmp_path)) == [
        "ingest", "dedup", "screen", "fetch", "decide", "something-new"
    ]  # fmt: skip


def test_the_terminal_shows_steps_reasons_and_problems(put: Put, tmp_path: Path) -> None:
    finish(put, dataset={"kept": 30})
    shown_in = io.StringIO()
    console = Console(file=shown_in, width=100)
    console.print(render_funnel(funnel(tmp_path)))
    shown = shown_in.getvalue()
    for words in ("rows in the lists", "url_missing", "pair_copy", "kept", "does not add up"):
        assert words in shown
