"""What the plan of a dataset says where no pair is left to plan."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pairmill.progress import Quiet
from pairmill.recipe import Write
from pairmill.runner import Here
from pairmill.shards.commit import write_table
from pairmill.shards.job import run_stage
from pairmill.shards.plan import plan_write_stage, plan_write_tasks
from pairmill.shards.schema import NOISE, RAW, make_uid
from pairmill.shards.selection import write_selection


def uid(number: int) -> bytes:
    return make_uid(f"http://a.com/{number}", "caption")


def refusal(out: Path, q_values: list[float] | None) -> str:
    """Of an empty selection; the last pair is no candidate, for another rule drops it."""
    rows = [{"uid": uid(n), "outcome": "ok", "wave": 0} for n in range(9)]
    write_table(pa.Table.from_pylist(rows, schema=RAW), out / "raw" / "00000.parquet")
    write_selection(pa.array([], pa.binary(16)), out / "selection" / "strict.parquet")
    if q_values is not None:
        scored = [{"uid": uid(n), "mismatch_q_v2": q} for n, q in enumerate(q_values)]
        write_table(pa.Table.from_pylist(scored, schema=NOISE), out / "scores" / "noise" / "00000.parquet")
        candidates = pa.array(sorted(uid(n) for n in range(len(q_values) - 1)), pa.binary(16))
        write_selection(candidates, out / "selection" / "candidates.parquet")
    tasks, stage = plan_write_tasks(out, "strict"), plan_write_stage(out, Write(), "strict")
    return run_stage(out, stage, tasks, Here(retries=0), Quiet()).failed["strict"]


def test_a_noise_that_cannot_be_promised_is_answered_with_the_least_that_can(tmp_path: Path) -> None:
    said = refusal(tmp_path, [0.9, 0.2341, 0.2349, 0.5, 0.01])
    assert "the least noise that can be promised is 23.5 %, for 2 pairs" in said
    assert "--set decide.max_noise=0.235 --set decide.name=NAME" in said


def test_a_blind_scorer_is_said_to_be_one(tmp_path: Path) -> None:
    assert "no pair can be told from a mismatched one" in refusal(tmp_path, [1.0, 1.0, 0.5])


@pytest.mark.parametrize("q_values", [None, [0.5]])
def test_without_scored_candidates_nothing_is_promised(tmp_path: Path, q_values: list[float] | None) -> None:
    assert "can be promised is" not in refusal(tmp_path, q_values)
