"""The screen and the decision: one fate for every uid, whatever the rules, threads and waves."""

from __future__ import annotations

import pickle
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.errors import ConfigError, DataError
from pairmill.filter.copies import dedup_stage, dedup_tasks
from pairmill.filter.decide import (
    check_recipe_rules,
    choose_stage,
    choose_tasks,
    decide_plans,
    decide_stage,
    decide_tasks,
)
from pairmill.filter.language import language_stage, language_tasks
from pairmill.filter.screen import screen_stage, screen_tasks
from pairmill.recipe import Bootstrap, Decide, Dedup, Language, Recipe, Rule, Rules
from pairmill.runner import Stage, Tally, Task
from pairmill.shards.schema import NEAR, NOISE, PAIRS, RAW, REASONS, SCREEN, make_uid, text_hash
from pairmill.shards.selection import read_selection

CAPTIONS = (
    "a red fox in the snow",
    "IMG_1234",
    "ein roter Fuchs im Schnee",
    "fox",
    "two dogs on a green lawn",
)
SCREENED = Language(rules=Rules(sets=("copies", "plain_text")))


def run(stage: Stage, tasks: list[Task]) -> list[Tally]:
    worker = stage.start(*stage.args)
    return [worker(task) for task in tasks]


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def write_pairs(out: Path) -> None:
    """Three parts of 40 pairs: 30 URLs, 5 captions, some pairs more than once, from a seed."""
    dice = random.Random(5)
    for part in range(3):
        rows = []
        for row in range(40):
            url, caption = f"https://a.b/{dice.randrange(30)}.jpg", CAPTIONS[dice.randrange(len(CAPTIONS))]
            hashes = {"url_hash": text_hash(url), "caption_hash": text_hash(caption)}
            given = {"source": "list", "source_row": row, "given": f'{{"part": {part}, "word": "n/a"}}'}
            rows.append({"uid": make_uid(url, caption), "url": url, "caption": caption, **hashes, **given})
        write(out / "pairs" / f"0000-{part:05d}.parquet", rows, PAIRS)


def write_raw(out: Path) -> None:
    """Two raw shards and one of a second wave for what the screen lets through.

    By the URL's number n: n % 5 == 0 is a 404 in wave 0, and ok in wave 1 where n % 10 == 0;
    n == 7 was never asked for; the width is 100 * n.
    """
    shards: dict[str, list[dict[str, Any]]] = {"00000": [], "00001": [], "w1-00000": []}
    for pair in worthy(out):
        number = int(pair["url"].rpartition("/")[2].removesuffix(".jpg"))
        row = {**pair, "wave": 0, "original_width": 100 * number, "original_height": 500}
        if number != 7:
            shards[f"0000{number % 2}"].append({**row, "outcome": "ok" if number % 5 else "http_404"})
        if number % 5 == 0:
            again = "http_404" if number % 10 else "ok"
            shards["w1-00000"].append({**row, "wave": 1, "outcome": again})
    for name, rows in shards.items():
        write(out / "raw" / f"{name}.parquet", rows, RAW)


def worthy(out: Path) -> list[dict[str, Any]]:
    """The rows of pairs that the screen gives no reason."""
    found = []
    for path in sorted((out / "pairs").glob("*.parquet")):
        reasons = pq.read_table(out / "selection" / "screen" / path.name).column("reason").to_pylist()
        rows = pq.read_table(path, columns=["uid", "url", "caption", "url_hash"]).to_pylist()
        found += [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    return found


def write_scores(out: Path) -> None:
    """Near-copies and noise for every pair that was fetched: rank and q by the URL's number."""
    fetched = {
        row["uid"]: row["original_width"] // 100
        for path in sorted((out / "raw").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
        if row["outcome"] == "ok"
    }
    near = [
        {"uid": uid, "near_group_v1": uid, "near_rank_v1": int(number == 3), "near_size_v1": 1}
        for uid, number in sorted(fetched.items())
    ]
    noise = [
        {"uid": uid, "cosine_v1": 0.3, "mismatch_p_v2": 0.1, "mismatch_q_v2": number / 30}
        for uid, number in sorted(fetched.items())
        if number != 4
    ]
    write(out / "scores" / "near" / "near.parquet", near, NEAR)
    write(out / "scores" / "noise" / "00000.parquet", noise, NOISE)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything before `decide`; each test decides under a name of its own."""
    out = tmp_path_factory.mktemp("out")
    write_pairs(out)
    run(dedup_stage(out), dedup_tasks(out))
    run(language_stage(out, Language()), language_tasks(out))
    run(screen_stage(out, SCREENED), screen_tasks(out))
    write_raw(out)
    write_scores(out)
    return out


@pytest.fixture
def own(out: Path, tmp_path: Path) -> Path:
    """A copy of `out` that a test may change, without selections."""
    shutil.copytree(out, tmp_path / "own", ignore=shutil.ignore_patterns("*.npy", "*.reasons.parquet"))
    return tmp_path / "own"


def first_rows(out: Path) -> dict[bytes, dict[str, Any]]:
    """uid -> the first row of pairs with the screen's reason, by the slow definition."""
    found: dict[bytes, dict[str, Any]] = {}
    for path in sorted((out / "pairs").glob("*.parquet")):
        reasons = pq.read_table(out / "selection" / "screen" / path.name).column("reason").to_pylist()
        for row, reason in zip(pq.read_table(path).to_pylist(), reasons, strict=True):
            found.setdefault(row["uid"], {**row, "screened": reason})
    return found


def slow_fate(row: dict[str, Any], max_noise: float | None = None) -> str:
    """What `decide` should say about a first row, with the rules near_copies (and noise)."""
    number = int(row["url"].rpartition("/")[2].removesuffix(".jpg"))
    if row["screened"]:
        return row["screened"]
    if number == 7:
        return "not_fetched"
    if number % 5 == 0 and number % 10:
        return "http_404"
    if number == 3:
        return "near_copy"
    if max_noise is None:
        return "kept"
    if number == 4:
        return "not_scored"
    return "noise" if np.float32(number / 30) > np.float32(max_noise) else "kept"


def fates(out: Path, name: str) -> dict[bytes, str]:
    """uid -> reason, or 'kept', from the files of a selection."""
    selection = out / "selection"
    kept = pq.read_table(selection / f"{name}.parquet").column("uid").to_pylist()
    reasons = pq.read_table(selection / f"{name}.reasons.parquet")
    assert reasons.schema.equals(REASONS)
    assert kept == sorted(set(kept))
    dropped = reasons.column("uid").to_pylist()
    assert dropped == sorted(set(dropped))
    assert not set(kept) & set(dropped)
    assert (read_selection(selection / f"{name}.npy") == read_selection(selection / f"{name}.parquet")).all()
    return {
        **dict.fromkeys(kept, "kept"),
        **dict(zip(dropped, reasons.column("reason").to_pylist(), strict=True)),
    }


def test_the_screen_counts_every_row_and_drops_copies_always(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    run(dedup_stage(tmp_path), dedup_tasks(tmp_path))
    run(language_stage(tmp_path, Language()), language_tasks(tmp_path))
    distinct = len(
        {row["uid"] for path in (tmp_path / "pairs").iterdir() for row in pq.read_table(path).to_pylist()}
    )
    for rules in (Rules(), SCREENED.rules):
        tallies = run(screen_stage(tmp_path, Language(rules=rules)), screen_tasks(tmp_path))
        assert [tally.seen for tally in tallies] == [40, 40, 40]
        assert sum(tally.counts["pair_copy"] for tally in tallies) == 120 - distinct
        for path in sorted((tmp_path / "pairs").glob("*.parquet")):
            table = pq.read_table(tmp_path / "selection" / "screen" / path.name)
            assert table.schema.equals(SCREEN)
            assert table.column("uid").to_pylist() == pq.read_table(path).column("uid").to_pylist()
    assert {reason for tally in tallies for reason in tally.counts} == {
        *("kept", "pair_copy", "filename", "caption_short"),
    }


def test_every_uid_has_the_fate_of_the_slow_definition(out: Path) -> None:
    settings = Decide(name="plain")
    (tally,) = run(decide_stage(out, settings), decide_tasks(out, settings))
    expected = {uid: slow_fate(row) for uid, row in first_rows(out).items()}
    assert fates(out, "plain") == expected
    assert dict(tally.counts) == dict(Counter(expected.values()))
    assert set(tally.counts) == {"kept", "near_copy", "http_404", "not_fetched", "filename", "caption_short"}


def test_max_noise_drops_what_is_over_it_and_what_has_no_score(out: Path) -> None:
    for share in (0.2, 0.5):
        settings = Decide(name=f"noise{int(share * 10)}", max_noise=share)
        run(decide_stage(out, settings), decide_tasks(out, settings))
        expected = {uid: slow_fate(row, share) for uid, row in first_rows(out).items()}
        assert fates(out, settings.name) == expected
        assert {"noise", "not_scored", "kept"} <= set(expected.values())


def test_the_baseline_keeps_all_that_was_fetched(out: Path) -> None:
    settings = Decide(name="strict", max_noise=0.1, baseline=True)
    run(decide_stage(out, settings), decide_tasks(out, settings))
    found = fates(out, "everything")
    expected = {uid: slow_fate(row).replace("near_copy", "kept") for uid, row in first_rows(out).items()}
    assert found == expected


def test_rules_see_columns_of_every_kind(out: Path) -> None:
    rules = Rules(
        extra=(
            Rule("german", "lang_v1 = $language AND n_words_v1 > 3"),
            Rule("first_part", "given->>'$.part' = '0' AND captions_per_image_v1 > 2"),
            Rule("wide", "original_width > $width"),
            Rule("second_wave", "wave = 1"),
            Rule("dog", "caption LIKE '%dogs%' AND url LIKE 'https:%'"),
        ),
        values={"language": "de", "width": 1_500},
    )
    settings = Decide(name="columns", rules=rules)
    (tally,) = run(decide_stage(out, settings), decide_tasks(out, settings))
    assert all(tally.counts[rule.reason] > 0 for rule in rules.extra)
    assert tally.seen == len(first_rows(out))


FAULTS = {  # a rule that some row's value is too much for, and what is said of it
    "conversion": (
        "(given->>'$.word')::INT < 110",
        r"Conversion Error: Could not convert string 'n/a' to INT32; TRY_CAST\(x AS INT\) is NULL",
    ),
    "format": ("strptime(caption, '%Y') > DATE '2020-01-01'", r"Could not parse string .*; TRY\(x\) is NULL"),
    "range": ("length(caption) * 9223372036854775807 > 1", r"Out of Range Error: .*; TRY\(x\) is NULL"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", ["screen", "choose", "decide"])
def test_a_rule_that_fails_on_a_value_is_named_in_one_line(own: Path, stage: str, fault: str) -> None:
    """Before it and behind it stand rules that can be evaluated, and one that would fail is never reached."""
    where, said = FAULTS[fault]
    rules = Rules(
        sets=("copies",),
        extra=(
            Rule("short", "length(caption) < $least"),
            Rule("wrong", where),
            Rule("all", "true"),
            Rule("unreached", "caption::INT > 1"),
        ),
        values={"least": 2},
    )
    made, listed = {
        "screen": lambda: (screen_stage(own, Language(rules=rules)), screen_tasks(own)),
        "choose": lambda: (choose_stage(own, Bootstrap(rules=rules), Decide()), choose_tasks(own)),
        "decide": lambda: (decide_stage(own, Decide(name="x", rules=rules)), [Task("decide", "x")]),
    }[stage]()
    with pytest.raises(DataError, match=said) as caught:
        run(made, listed)
    message = str(caught.value)
    assert message.startswith(f"extra: rule 'wrong' ({where}) cannot be evaluated: ")
    assert message.endswith("and a rule that is NULL drops nothing")
    assert "\n" not in message


def test_threads_and_a_second_run_change_no_byte(own: Path) -> None:
    found = []
    for threads, memory in ((1, 200), (4, 1_000)):
        settings = Decide(max_noise=0.3, baseline=True)
        stage = decide_stage(own, settings, Dedup(threads=threads), memory)
        for _ in range(2):
            run(stage, decide_tasks(own, settings))
            files = sorted(path for path in (own / "selection").rglob("*") if path.is_file())
            found.append([(path.name, path.read_bytes()) for path in files])
        assert not list(own.glob("_tmp/*"))
    assert all(other == found[0] for other in found[1:])


def test_choose_works_before_there_is_noise(own: Path) -> None:
    (own / "scores" / "noise" / "00000.parquet").unlink()
    settings = Bootstrap(
        rules=Rules(sets=("fetched", "near_copies", "rare"), values={"max_images_per_caption": 99})
    )
    decide = Decide(rules=settings.rules.model_copy(update={"sets": ("noise", *settings.rules.sets)}))
    tallies = run(choose_stage(own, settings, decide), choose_tasks(own))
    expected = {uid: slow_fate(row) for uid, row in first_rows(own).items()}
    for name, tally in zip(("bootstrap", "candidates"), tallies, strict=True):
        assert fates(own, name) == expected  # the candidates are what decide keeps but for its noise rules
        assert dict(tally.counts) == dict(Counter(expected.values()))


def test_a_rule_sees_the_picture_that_took_over_the_caption(own: Path) -> None:
    """The picture with number 3, 300 pixels wide, is a copy of number 6, with 600: the bound is between."""
    path = own / "scores" / "near" / "near.parquet"
    rows = pq.read_table(path).to_pylist()
    best = {row["uid"]: text_hash("https://a.b/6.jpg") for row in rows if row["near_rank_v1"] > 0}
    taken = set(sorted(best)[::2])
    rows = [
        row
        | {
            "near_group_v1": best.get(row["uid"], row["near_group_v1"]),
            "near_adopted_v1": row["uid"] in taken,
        }
        for row in rows
    ]
    write(path, rows, NEAR)
    narrow = Rule(reason="narrow", where="original_width < 500")
    settings = Decide(rules=Rules(sets=("fetched", "near_copies"), extra=(narrow,)))
    run(decide_stage(own, settings), decide_tasks(own, settings))
    found = fates(own, "dataset")
    assert 0 < len(taken) < len(best)
    assert {found[uid] for uid in taken} == {"kept"}
    assert {found[uid] for uid in best if uid not in taken} == {"near_copy"}
    assert "narrow" in found.values()


def test_scores_that_a_rule_needs_must_be_there(own: Path) -> None:
    (own / "scores" / "noise" / "00000.parquet").unlink()
    settings = Decide(max_noise=0.1)
    with pytest.raises(DataError, match="a rule needs mismatch_q_v2"):
        run(decide_stage(own, settings), decide_tasks(own, settings))
    (own / "scores" / "near" / "near.parquet").unlink()
    with pytest.raises(DataError, match="a rule needs near_adopted_v1"):
        run(decide_stage(own, Decide()), decide_tasks(own, Decide()))
    run(decide_stage(own, Decide(rules=Rules())), decide_tasks(own, Decide()))


def test_without_any_raw_shard_nothing_was_fetched(own: Path) -> None:
    for path in (own / "raw").iterdir():
        path.unlink()
    (tally,) = run(decide_stage(own, Decide(rules=Rules())), decide_tasks(own, Decide()))
    assert set(tally.counts) == {"filename", "caption_short", "not_fetched"}
    assert len(read_selection(own / "selection" / "dataset.parquet")) == 0


def test_a_uid_that_was_fetched_twice_in_one_wave_is_told(own: Path) -> None:
    rows = pq.read_table(own / "raw" / "00001.parquet").to_pylist()
    write(own / "raw" / "00002.parquet", rows[:1], RAW)
    with pytest.raises(DataError, match="hold a uid twice"):
        run(decide_stage(own, Decide()), decide_tasks(own, Decide()))


def test_names_that_pairmill_uses_itself_are_refused(tmp_path: Path) -> None:
    assert list(decide_plans(Decide(name="a", baseline=True))) == ["a", "everything"]
    for settings in (
        Decide(name="bootstrap"),
        Decide(name="everything", baseline=True),
        Decide(name="screen"),
    ):
        with pytest.raises(ConfigError, match=r"decide\.name"):
            decide_plans(settings)
    assert decide_tasks(tmp_path, Decide()) == choose_tasks(tmp_path) == screen_tasks(tmp_path) == []


def test_a_recipe_is_checked_before_anything_starts() -> None:
    check_recipe_rules(Recipe())
    bad = Rules(extra=(Rule("bad", "no_such_column > 1"),))
    for recipe in (
        Recipe(language=Language(rules=bad)),
        Recipe(bootstrap=Bootstrap(rules=bad)),
        Recipe(decide=Decide(rules=bad)),
        Recipe(language=Language(model=Path("absent.bin"))),
        Recipe(language=Language(among=("en", "klingon"))),
    ):
        with pytest.raises(ConfigError, match=r"no_such_column|absent\.bin|klingon"):
            check_recipe_rules(recipe)


def test_stages_can_be_sent_to_another_process(tmp_path: Path) -> None:
    stages = [
        dedup_stage(tmp_path),
        language_stage(tmp_path, Language()),
        screen_stage(tmp_path, SCREENED),
        choose_stage(tmp_path, Bootstrap(), Decide()),
        decide_stage(tmp_path, Decide(max_noise=0.1)),
    ]
    assert pickle.loads(pickle.dumps(stages)) == stages
