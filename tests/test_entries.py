"""Entries that captions hold, and balancing by them: equal to the slow definition, and to its law."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruled import reasons  # pyright: ignore[reportImplicitRelativeImport]
from whole import go, recipe  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.commands import start as start_command
from pairmill.errors import ConfigError
from pairmill.filter.balance import draws, entry_shares, pair_shares, rarest, t_of_share, tail_share
from pairmill.filter.entries import check_entries, entries_phases, entries_stage, entries_tasks, thresholds
from pairmill.filter.matching import Matcher, entry_files, holds, read_entries
from pairmill.progress import Quiet
from pairmill.recipe import Dedup, Entries, Rules
from pairmill.runner import Here
from pairmill.shards.job import run_phases, run_stage
from pairmill.shards.schema import COPIES, ENTRIES, LANGUAGE, PAIRS, make_uid

WORDS = ["red", "fox", "dog", "a", "the", "U.S.", "snow", "红", "狐狸", "红狐狸", "ネコ", "cat,", "Nike"]
ENTRIES_ = [
    "fox",
    "red fox",
    "dog",
    "snow",
    "a",
    "狐狸",
    "红",
    "ネコ",
    "Nike",
    "U.S.",
    ",",
    "fox dog",
    "red  x",
]


@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), max_size=12),
    st.sampled_from(["substring", "word"]),
)
def test_the_automaton_equals_the_slow_definition(captions: list[str], match: str) -> None:
    edges, found = Matcher(ENTRIES_, match).find(captions)
    for caption, low, high in zip(captions, edges[:-1], edges[1:], strict=True):
        assert found[low:high].tolist() == [
            n for n, entry in enumerate(ENTRIES_) if holds(caption, entry, match)
        ]


def test_entries_are_held_between_spaces_and_those_without_spaces_anywhere() -> None:
    assert holds("a red fox, asleep", "red fox")
    assert not holds("a red foxglove", "red fox")
    assert not holds("a Red fox", "red fox")  # letters as they are
    assert holds("雪地里的红狐狸", "狐狸")
    assert holds("Nike 红鞋", "Nike")
    assert not holds("iNike 红鞋", "Nike")
    assert holds("A Dog.", "dog.", "word")
    assert not holds("A Dog.", "dog", "word")  # DataComp splits at spaces alone


def test_a_pair_stays_with_the_probability_that_one_of_its_entries_draws_it() -> None:
    counts = np.array([10, 100, 1_000])
    shares = entry_shares(counts, 50)
    assert shares.tolist() == [1.0, 0.5, 0.05]
    edges = np.array([0, 1, 1, 3, 4])
    entries = np.array([0, 1, 2, 2])
    found = pair_shares(edges, shares[entries])
    assert found == pytest.approx([1.0, 0.0, 1 - 0.5 * 0.95, 0.05])
    assert rarest(edges, entries, counts[entries]).tolist() == [0, -1, 1, 2]


def test_draws_are_uniform_seeded_and_of_the_uid_alone() -> None:
    uids = np.array([make_uid("http://a.test", str(n)) for n in range(20_000)], "V16")
    found = draws(uids, 0)
    assert found.min() >= 0
    assert found.max() < 1
    histogram = np.histogram(found, 20, (0, 1))[0]
    assert abs(histogram - 1_000).max() < 5 * 31
    assert (draws(uids[::-1], 0) == found[::-1]).all()
    assert abs(np.corrcoef(found, draws(uids, 1))[0, 1]) < 0.03


def test_a_languages_t_leaves_the_reference_tail() -> None:
    counts = np.array([1, 2, 3, 4, 90])
    assert tail_share(counts, 4) == 0.06
    assert t_of_share(np.array([10, 20, 30, 40, 900]), 0.06) == 30
    assert t_of_share(np.array([5]), 0.5) == 5
    assert t_of_share(np.array([0]), 0.5) == 1


def made(out: Path, rows: list[tuple[str, str]], parts: int = 3) -> list[dict[str, Any]]:
    """Pairs of (caption, language) in some parts, with the columns that the stage reads."""
    folders = {name: out / name for name in ("pairs", "scores/copies", "scores/language")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    found = []
    for part in range(parts):
        mine = [
            {
                "uid": make_uid(f"http://a.test/{n}", caption),
                "caption": caption,
                "lang_v1": lang,
                "pair_rank_v1": 0,
            }
            for n, (caption, lang) in enumerate(rows)
            if n % parts == part
        ]
        for (_, folder), schema in zip(folders.items(), (PAIRS, COPIES, LANGUAGE), strict=True):
            pq.write_table(pa.Table.from_pylist(mine, schema), folder / f"0000-{part:05d}.parquet")
        found += mine
    return found


def run(out: Path, settings: Entries, rows: int = 10**6, ranks: bool = True) -> list[dict[str, Any]]:
    tasks = entries_tasks(out, rows)
    phases = entries_phases(out, settings, Dedup(threads=1), rows=rows, ranks=ranks)
    assert [report.failed for report in run_phases(out, phases, Here(retries=0), Quiet())][-1] == {}
    report = run_stage(out, entries_stage(out, settings), tasks, Here(retries=0), Quiet())
    assert report.failed == {}
    tables = [pq.read_table(path) for path in sorted((out / "scores/entries").glob("*.parquet"))]
    assert {table.schema for table in tables} == {ENTRIES}
    return pa.concat_tables(tables).to_pylist()


def captions(n: int) -> list[tuple[str, str]]:
    dice = random.Random(0)
    words = ["fox"] * 30 + ["red fox"] * 10 + ["dog"] * 5 + ["snow", "x", "y"]
    return [(" ".join(dice.choices(words, k=3)), dice.choice(["en", "en", "de"])) for _ in range(n)]


def test_the_stage_equals_the_slow_definition_however_it_is_cut(tmp_path: Path) -> None:
    entries = ["fox", "red fox", "dog", "snow", "none"]
    (tmp_path / "e.txt").write_text("\n".join(entries))
    settings = Entries(file=str(tmp_path / "e.txt"), t=100, seed=3)
    pairs = made(tmp_path / "one", captions(600))
    found = run(tmp_path / "one", settings)
    held = [[entry for entry in entries if holds(pair["caption"], entry)] for pair in pairs]
    counts = Counter(entry for some in held for entry in some)
    draw = draws(np.array([pair["uid"] for pair in pairs], "V16"), 3)
    order = sorted(range(len(pairs)), key=lambda row: (draw[row], row))
    rank: dict[int, int] = {}
    for entry in entries:
        for place, row in enumerate(row for row in order if entry in held[row]):
            rank[row] = min(place, rank.get(row, 10**9))
    for row, (pair, some, said) in enumerate(zip(pairs, held, found, strict=True)):
        missed = np.prod([1 - min(1, 100 / counts[entry]) for entry in some])
        assert said["uid"] == pair["uid"]
        assert said["n_entries_v1"] == len(some)
        assert said["entry_share_v1"] == pytest.approx(1 - missed, abs=1e-6)
        assert said["entry_draw_v1"] == draw[row]
        assert said["entry_rank_v1"] == rank.get(row)
        assert said["rarest_entry_v1"] == min(
            some, key=lambda entry: (counts[entry], entries.index(entry)), default=None
        )
    made(tmp_path / "cut", captions(600))
    assert len(entries_tasks(tmp_path / "cut", 200)) == 3
    assert run(tmp_path / "cut", settings, rows=200) == found
    tail = [row for row, some in enumerate(held) if "snow" in some]
    assert counts["snow"] < 100
    assert all(found[row]["entry_share_v1"] == 1 for row in tail)  # the tail stays whole
    drawn = reasons(Rules(sets=("metaclip",)), *found)
    expected = sum(said["entry_share_v1"] for said in found)
    assert abs(drawn.count(None) - expected) < 4 * np.sqrt(expected)
    capped = reasons(Rules(sets=("clip_queries",), values={"max_pairs_per_query": 20}), *found)
    kept = [some for some, reason in zip(held, capped, strict=True) if reason is None]
    assert 20 * 3 <= len(kept) <= 20 * 4  # each query brings 20, some of them the same
    assert all(sum(entry in some for some in kept) >= min(20, counts[entry]) for entry in entries)


def test_each_language_has_its_own_entries_and_its_own_t(tmp_path: Path) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "en.txt").write_text("fox\nsnow\nred fox\n")
    (folder / "zh.json").write_text(json.dumps(["狐狸", "雪"], ensure_ascii=False))
    rows = (
        [("a red fox", "en")] * 60
        + [("snow", "en")] * 3
        + [("红狐狸", "zh")] * 20
        + [("雪 fox", "zh")] * 2
        + [("fox", "de")]
    )
    made(tmp_path / "out", [(f"{caption}", lang) for caption, lang in rows], parts=1)
    found = run(tmp_path / "out", Entries(file=str(folder), t=10, per_language=True), ranks=False)
    said = Counter((row["n_entries_v1"], row["rarest_entry_v1"]) for row in found)
    assert said == {(2, "fox"): 60, (1, "snow"): 3, (1, "狐狸"): 20, (1, "雪"): 2, (0, None): 1}
    assert {row["entry_rank_v1"] for row in found} == {None}
    facts = json.loads((tmp_path / "out/_done/entries/all.json").read_text())["facts"]
    share = 3 / (60 + 60 + 3)
    assert facts["t"] == {"en": 10, "zh": t_of_share(np.array([20, 2]), share)} == {"en": 10, "zh": 2}
    with pytest.raises(ConfigError, match="name the language that t is meant for; there are: en, zh"):
        thresholds({"en": np.ones(1), "zh": np.ones(1)}, Entries(per_language=True, reference="fr"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file|No such file"),
        (b"", "no entries there"),
        (b"fox\nF\xe4he\n", "line 2: not UTF-8: save it as UTF-8"),
    ],
)
def test_a_bad_list_of_entries_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "e.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_entries(path)
    with pytest.raises(ConfigError, match=r"expected files named by language there"):
        entry_files(_empty(tmp_path))
    with pytest.raises(ConfigError, match=r"--set entries\.file=FILE"):
        check_entries(Entries())


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir(exist_ok=True)
    return folder / "empty"


def test_a_run_balances_by_its_entries_before_it_fetches(
    finished_run: Path, picture_server: Any, tmp_path: Path
) -> None:
    for name in ("a.parquet", "b.parquet"):
        shutil.copy(finished_run / name, tmp_path / name)
    (tmp_path / "e.txt").write_text("number 1\nnumber 21\nnumber\n")
    rules = {"sets": ["copies", "clip_queries"], "values": {"max_pairs_per_query": 12}}
    told = recipe(
        tmp_path, picture_server.port, language={"rules": rules}, entries={"file": str(tmp_path / "e.txt")}
    )
    summary = go(told, tmp_path / "out")
    assert summary.exit_code == 0
    kept = summary.stages["screen"].counts["kept"]
    assert 12 <= kept <= 14
    assert summary.stages["screen"].counts["entry_surplus"] == 46 - kept
    assert [path for path in (tmp_path / "out" / "_exchange").rglob("*") if path.is_file()] == []
    from pairmill.shards.verify import verify

    assert verify(tmp_path / "out")["problems"] == []


def test_a_recipe_that_needs_entries_says_so_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("url,caption\nhttp://a.test/1,a red fox\n")
    told = ["run", "metaclip", "--input", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out")]
    assert start_command(told) == 2
    said = capsys.readouterr().err
    assert "none are given: name a file of them with --set entries.file=FILE" in said
    assert start_command([*told, "--set", f"entries.file={tmp_path / 'none.txt'}"]) == 2
    assert "none.txt: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
