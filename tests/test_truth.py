"""What the demo says of a run: reckoned right on a run made by hand, and strict about every bar."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from pairmill.demo.screen import WIDTH, render
from pairmill.demo.truth import auc, compare, within
from pairmill.demo.web import TRUTH
from pairmill.shards.commit import write_json, write_table
from pairmill.shards.schema import EMBEDDING, LANGUAGE, NEAR, NOISE, PAIRS, REASONS, REJECTED, SCREEN
from pairmill.shards.selection import write_selection

# kind, reason, swapped, picture, and what the run made of it: uid, fate, near group, mismatch q
ROWS = (
    ("clean", None, False, 1, "a", "kept", "A", 0.01),
    ("clean", None, False, 2, "b", "kept", "B", 0.02),
    ("clean", None, True, 3, "c", "noise", "C", 0.30),
    ("clean", None, True, 4, "d", "kept", "D", 0.04),
    ("pair again", None, False, 1, "a", "pair_copy", "A", 0.01),
    ("exact copy", None, False, 2, "e", "near_copy", "B", 0.01),
    ("re-encoded copy", None, False, 2, "f", "near_copy", "B", 0.01),
    ("cropped copy", None, False, 1, "g", "kept", "G", 0.03),
    ("not found (404)", "not_found", False, 5, "h", "not_found", None, None),
    ("timeout", "timeout", False, 6, "i", "connection", None, None),
    ("row without URL", "url_missing", False, None, None, "url_missing", None, None),
)


def uid(letter: str) -> bytes:
    return letter.encode() * 16


def table(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(
        [{name: row.get(name) for name in schema.names} for row in rows], schema=schema
    )


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Path]:
    """ROWS as the truth of a web, and as the output folder of a run over it."""
    out, web = tmp_path / "out", tmp_path / "web"
    named = ("kind", "reason", "swapped", "picture", "letter", "fate", "group", "q")
    rows: list[dict[str, Any]] = [dict(zip(named, row, strict=True)) for row in ROWS]
    for number, row in enumerate(rows):
        row |= {
            "list": "l.csv",
            "row": number,
            "source": "some/l.csv",
            "source_row": number,
            "language": "en",
        }
        row |= {
            "url": f"http://x.test/{row['letter']}",
            "caption": f"caption {row['letter']}",
            "lang_v1": "en",
        }
        row |= {
            "uid": uid(row["letter"]) if row["letter"] else None,
            "mismatch_q_v2": row["q"],
            "cosine_v1": 0.5,
        }
        row |= {"near_group_v1": row["group"] and uid(row["group"]), "cosine_in_sample_v1": 0.5}
        row["mismatch_p_v2"] = row["q"]
    rows[1]["lang_v1"] = "de"
    write_table(table(TRUTH, rows), web / "truth.parquet")
    pairs = [row for row in rows if row["letter"]]
    write_table(table(PAIRS, pairs), out / "pairs" / "0000-00000.parquet")
    write_table(table(LANGUAGE, pairs), out / "scores" / "language" / "0000-00000.parquet")
    screened = [row | {"reason": "pair_copy" if row["fate"] == "pair_copy" else None} for row in pairs]
    write_table(table(SCREEN, screened), out / "selection" / "screen" / "0000-00000.parquet")
    rejected = [row for row in rows if not row["letter"]]
    write_table(table(REJECTED, rejected), out / "pairs" / "rejected" / "0000.parquet")
    first = [row for row in pairs if row["fate"] != "pair_copy"]
    write_table(
        table(REASONS, [row | {"reason": row["fate"]} for row in first if row["fate"] != "kept"]),
        out / "selection" / "dataset.reasons.parquet",
    )
    kept = [row["uid"] for row in first if row["fate"] == "kept"]
    write_selection(pa.array(kept, pa.binary(16)), out / "selection" / "dataset.parquet")
    fetched = [row for row in first if row["group"]]
    write_table(table(NEAR, fetched), out / "scores" / "near" / "near.parquet")
    write_table(table(EMBEDDING, fetched), out / "scores" / "embedding" / "00000.parquet")
    write_table(table(NOISE, fetched), out / "scores" / "noise" / "00000.parquet")
    return out, web


def model(recall: float) -> dict[str, Any]:
    at = {"R@1": recall / 5, "R@5": recall / 2, "R@10": recall}
    ways = {"picture_to_caption": at, "caption_to_picture": at}
    return {"retrieval": ways, "classification": {"en": {"top1": recall}, "zh": {"top1": recall}}}


def perfect() -> dict[str, Any]:
    """Figures of a run that found everything."""
    found = {"planted": 10, "found": 10}
    asked = [{"asked": share, "true": share, "kept": 900, "good_kept": 0.9} for share in (0.05, 0.1, 0.2)]
    copies = ("exact copy", "re-encoded copy", "resized copy", "cropped copy")
    return {
        "rows": 1_000,
        "lost": 0,
        "kinds": {
            "clean": {"rows": 900, "right": 890, "expected": None, "fates": {"kept": 890}},
            "timeout": {"rows": 5, "right": 5, "expected": "timeout", "fates": {"timeout": 5}},
            "moved": {"rows": 9, "right": 9, "expected": None, "fates": {"kept": 9}},
        },
        "mismatches": [],
        "pair_copies": {**found, "recall": 1.0},
        "near": {
            "kinds": dict.fromkeys(copies, found),
            "exact_recall": 1.0,
            "recall": 0.97,
            "precision": 1.0,
        },
        "language": {"accuracy": 0.99, "languages": {"de": 1.0, "en": 0.99, "zh": 0.98}},
        "noise": {
            **{"pairs": 900, "swapped": 0.3, "auc": 0.95, "auc_cosine": 0.94, "auc_in_sample": 0.8},
            "asked": asked,
        },
        "models": {"dataset": model(0.3), "everything": model(0.2)},
    }


def test_every_row_finds_its_fate(run: tuple[Path, Path]) -> None:
    figures = compare(*run)
    assert (figures["rows"], figures["lost"]) == (len(ROWS), 0)
    assert {kind: (each["rows"], each["right"]) for kind, each in figures["kinds"].items()} == {
        "clean": (4, 4),
        "pair again": (1, 1),
        "exact copy": (1, 1),
        "re-encoded copy": (1, 1),
        "cropped copy": (1, 1),
        "not found (404)": (1, 1),
        "timeout": (1, 0),
        "row without URL": (1, 1),
    }
    assert [(row["kind"], row["reason"], row["fate"]) for row in figures["mismatches"]] == [
        ("timeout", "timeout", "connection")
    ]


def test_a_run_that_scored_nothing_is_compared_all_the_same(run: tuple[Path, Path]) -> None:
    for score in ("embedding", "noise"):
        shutil.rmtree(run[0] / "scores" / score)
    figures = compare(*run)
    assert (figures["rows"], figures["lost"], figures["noise"]["pairs"]) == (len(ROWS), 0, 0)
    assert "noise asked for 5%, got nothing" in within(figures)


def test_copies_are_counted_by_picture(run: tuple[Path, Path]) -> None:
    figures = compare(*run)
    assert figures["pair_copies"] == {"planted": 1, "found": 1, "recall": 1.0}
    near = figures["near"]
    assert (near["exact_recall"], near["recall"], near["precision"]) == (1.0, 0.5, 1.0)
    assert near["kinds"]["cropped copy"] == {"planted": 1, "found": 0}
    assert near["kinds"]["resized copy"] == {"planted": 0, "found": 0}


def test_noise_is_counted_among_the_pairs_that_were_scored_and_not_dropped_before(
    run: tuple[Path, Path],
) -> None:
    found = compare(*run)["noise"]
    assert (found["pairs"], found["swapped"]) == (5, 0.4)
    assert found["auc"] == 1.0
    assert [(each["kept"], each["true"], each["good_kept"]) for each in found["asked"]] == [
        (4, 0.25, 1.0)
    ] * 3
    assert found["auc_cosine"] == 0.5


def test_languages_are_counted_for_each_row_that_became_a_pair(run: tuple[Path, Path]) -> None:
    assert compare(*run)["language"] == {"accuracy": 0.9, "languages": {"en": 0.9}}


def test_a_row_without_a_fate_is_lost(run: tuple[Path, Path]) -> None:
    out, web = run
    (out / "selection" / "dataset.parquet").unlink()
    write_selection(pa.array([uid("a")], pa.binary(16)), out / "selection" / "dataset.parquet")
    figures = compare(out, web)
    assert figures["lost"] == 3
    assert "rows without a fate: 3" in within(figures)


def test_trained_models_are_read_where_there_are_any(run: tuple[Path, Path]) -> None:
    out, web = run
    assert compare(out, web)["models"] == {}
    write_json({"models": {"dataset": model(0.5)}}, out / "model" / "eval.json")
    assert compare(out, web)["models"] == {"dataset": model(0.5)}


def test_auc_equals_its_slow_definition_with_ties() -> None:
    dice = np.random.default_rng(0)
    scores, bad = dice.integers(0, 6, 80).astype(float), dice.random(80) < 0.4
    wins = [(good > worse) + (good == worse) / 2 for good in scores[~bad] for worse in scores[bad]]
    assert auc(scores, bad) == pytest.approx(np.mean(wins))
    assert auc(scores, np.zeros(80, bool)) is None
    assert auc(np.full(80, np.nan), bad) is None


def test_a_run_within_all_bars_has_no_problems() -> None:
    assert within(perfect()) == []


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("pair_copies", "recall"), 0.99, "pairs said again"),
        (("near", "exact_recall"), 0.99, "exact copies"),
        (("near", "recall"), 0.949, "near copies, recall"),
        (("near", "precision"), 0.949, "near copies, precision"),
        (("near", "precision"), None, "near copies, precision: nothing"),
        (("language", "accuracy"), 0.969, "languages"),
        (("noise", "auc"), 0.929, "swapped captions"),
        (("noise", "asked", 1, "true"), 0.101, "noise asked for 10%"),
        (("noise", "asked", 2, "true"), 0.201, "noise asked for 20%"),
        (("noise", "asked", 0, "true"), None, "noise asked for 5%, got nothing"),
        (("lost",), 1, "without a fate"),
        (("kinds", "timeout", "right"), 4, "timeout: 1 of 5"),
        (("kinds", "moved", "right"), 8, "moved: 1 of 9"),
        (("models", "dataset"), model(0.2), "retrieval"),
    ],
)
def test_one_figure_past_its_bar_is_one_problem(where: tuple[Any, ...], value: object, said: str) -> None:
    figures = copy.deepcopy(perfect())
    place: Any = figures
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    problems = within(figures)
    assert len(problems) == 1
    assert said in problems[0]


@pytest.mark.parametrize(
    "figures", [perfect(), json.loads(json.dumps(perfect())) | {"models": {}, "lost": 2}]
)
def test_the_screen_fits_its_width_and_says_the_verdict(figures: dict[str, Any], capsys: Any) -> None:
    console = Console(width=WIDTH, record=True)
    console.print(render(figures, Path("out/report/index.html"), 300))
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert ("All within the bars" in text) == (figures["lost"] == 0)
    assert "report/index.html" in text
    for word in ("timeout", "cross-fitted", "asked for"):
        assert word in text
