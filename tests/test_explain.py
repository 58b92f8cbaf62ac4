"""The story of one pair, from the list to the dataset."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pairmill.errors import ConfigError, RowError
from pairmill.shards import schema
from pairmill.shards.commit import write_table
from pairmill.shards.selection import write_selection
from pairmill.stats.explain import MOST_PAIRS, explain
from pairmill.stats.story import _near_words, render_story

URL = "https://example.org/cat.jpg"
CAT, KITTEN, SHORT, DEAD = (
    (URL, "a cat"),
    (URL, "a kitten"),
    ("https://example.org/x.jpg", "x"),
    ("https://example.org/gone.jpg", "gone"),
)


def uid(pair: tuple[str, str]) -> bytes:
    return schema.make_uid(*pair)


def put(path: Path, columns: pa.Schema, rows: list[dict[str, Any]]) -> None:
    write_table(pa.Table.from_pylist(rows, schema=columns), path)


def pair_row(pair: tuple[str, str], row: int, given: str | None = None) -> dict[str, Any]:
    url, caption = pair
    return {
        "uid": uid(pair),
        "url_hash": schema.text_hash(url),
        "caption_hash": schema.text_hash(caption),
        "url": url,
        "caption": caption,
        "source": "list.csv",
        "source_row": row,
        "given": given,
    }


def attempt(pair: tuple[str, str], outcome: str, wave: int = 0) -> dict[str, Any]:
    key = schema.text_hash(pair[0])
    row = {"uid": uid(pair), "url_hash": key, "key": key.hex(), "url": pair[0], "caption": pair[1]}
    row |= {"outcome": outcome, "wave": wave, "http_status": 200 if outcome == "ok" else 503}
    if outcome == "ok":
        row |= {"format": "jpeg", "original_bytes": 5000, "original_width": 640, "original_height": 480}
        row |= {"width": 64, "height": 48, "offset": 512, "size": 700}
    return row


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Four pairs: a cat (twice in the list, kept), its near-copy, a short caption, a dead link tried twice.

    Row 5 of the list was rejected.
    """
    rows = [pair_row(CAT, 0, '{"w": 640}'), pair_row(KITTEN, 1), pair_row(SHORT, 2), pair_row(DEAD, 3)]
    rows.append(pair_row(CAT, 4))
    uids = [row["uid"] for row in rows]
    part = "0000-00000.parquet"
    put(tmp_path / "pairs" / part, schema.PAIRS, rows)
    rejected = {
        "source": "list.csv",
        "source_row": 5,
        "reason": "url_scheme",
        "url": "ftp://x/y",
        "caption": "b",
    }
    put(tmp_path / "pairs" / "rejected" / "0000.parquet", schema.REJECTED, [rejected])
    copies = [{"uid": u, "pair_rank_v1": rank, "pair_copies_v1": 2 - (0 < i < 4)}
              for i, (u, rank) in enumerate(zip(uids, [0, 0, 0, 0, 1], strict=True))]  # fmt: skip
    put(tmp_path / "scores" / "copies" / part, schema.COPIES, copies)
    spoken = [{"uid": u, "lang_v1": "en", "lang_prob_v1": 0.5} for u in uids]
    put(tmp_path / "scores" / "language" / part, schema.LANGUAGE, spoken)
    reasons = [None, None, "caption_short", None, "pair_copy"]
    screen = [{"uid": u, "reason": reason} for u, reason in zip(uids, reasons, strict=True)]
    put(tmp_path / "selection" / "screen" / part, schema.SCREEN, screen)
    first = [attempt(CAT, "ok"), attempt(KITTEN, "ok"), attempt(DEAD, "http_503")]
    put(tmp_path / "raw" / "00000.parquet", schema.RAW, first)
    put(tmp_path / "raw" / "w1-00000.parquet", schema.RAW, [attempt(DEAD, "timeout", wave=1)])
    group = {"near_group_v1": schema.text_hash(CAT[0]), "near_size_v1": 2, "near_adopted_v1": False}
    near = [{"uid": uid(pair), "near_rank_v1": rank, **group}
            for rank, pair in enumerate((CAT, KITTEN))]  # fmt: skip
    put(tmp_path / "scores" / "near" / "near.parquet", schema.NEAR, near)
    put(
        tmp_path / "scores" / "noise" / "00000.parquet",
        schema.NOISE,
        [
            {
                "uid": uid(CAT),
                "cosine_v1": 0.5,
                "mismatch_p_v2": 0.25,
                "mismatch_q_v2": 0.125,
                "witnesses_v1": 1,
                "asked_v1": False,
                "agree_v1": 2.5,
                "others_v1": 1.5,
            },
            {"uid": uid(KITTEN), "mismatch_p_v2": 0.5, "mismatch_q_v2": 0.5, "witnesses_v1": 1},
        ],
    )
    write_selection(pa.array([uid(CAT)], pa.binary(16)), tmp_path / "selection" / "dataset.parquet")
    dropped = {KITTEN: "near_copy", SHORT: "caption_short", DEAD: "timeout"}
    put(
        tmp_path / "selection" / "dataset.reasons.parquet",
        schema.REASONS,
        [{"uid": uid(pair), "reason": reason} for pair, reason in dropped.items()],
    )
    sample = {
        "uid": uid(CAT),
        "key": uid(CAT).hex(),
        "url": URL,
        "caption": "a cat",
        "offset": 512,
        "size": 700,
    }
    put(tmp_path / "shards" / "00007.parquet", schema.SIDECAR, [sample])
    return tmp_path


def one(out: Path, pair: tuple[str, str]) -> dict[str, Any]:
    (found,) = explain(out, uid(pair).hex()).pairs
    return found


def test_a_kept_pair_is_followed_from_its_rows_to_its_shard(out: Path) -> None:
    cat = one(out, CAT)
    assert [(row["source"], row["source_row"], row["given"]) for row in cat["rows"]] == [
        ("list.csv", 0, {"w": 640}),
        ("list.csv", 4, None),
    ]
    assert cat["copies"]["pair_copies_v1"] == 2
    assert cat["language"] == {"lang_v1": "en", "lang_prob_v1": 0.5}
    assert cat["screen"] == "passed"
    noise = {"mismatch_p_v2": 0.25, "mismatch_q_v2": 0.125, "witnesses_v1": 1, "asked_v1": False}
    assert cat["noise"] == noise | {"agree_v1": 2.5, "others_v1": 1.5, "picture_p_v1": None}
    assert cat["witnesses"] == [
        {"uid": uid(KITTEN).hex(), "caption": "a kitten", "url": URL, "mismatch_q_v2": 0.5}
    ]
    assert cat["decisions"] == {"dataset": "kept"}
    assert cat["dataset"] == [{"shard": "00007", "key": uid(CAT).hex(), "offset": 512, "size": 700}]
    assert cat["summary"] == f"in the dataset: shard 00007, key {uid(CAT).hex()}"


def test_a_near_copy_names_the_pair_that_stayed_in_its_stead(out: Path) -> None:
    kitten = one(out, KITTEN)
    assert kitten["near"]["near_group_v1"] == schema.text_hash(CAT[0]).hex()
    assert kitten["near"]["best"] == {"url": URL, "caption": "a cat"}
    assert kitten["summary"] == "dropped from dataset: near_copy"


def test_a_caption_that_another_picture_took_over_says_so(out: Path) -> None:
    path = out / "scores" / "near" / "near.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[[row["uid"] for row in rows].index(uid(KITTEN))]["near_adopted_v1"] = True
    put(path, schema.NEAR, rows)
    kitten, cat = one(out, KITTEN), one(out, CAT)
    assert kitten["near"]["near_adopted_v1"]
    said = _near_words(kitten["near"])
    assert said.endswith(f"{schema.text_hash(CAT[0]).hex()} {URL}, which takes over the caption")
    assert _near_words(cat["near"]) == "the best of 2 near-copies"


def test_a_dead_link_shows_every_attempt(out: Path) -> None:
    attempts = [
        (row["shard"], row["wave"], row["outcome"], row["http_status"]) for row in one(out, DEAD)["fetch"]
    ]
    assert attempts == [("00000", 0, "http_503", 503), ("w1-00000", 1, "timeout", 503)]


def test_a_screened_pair_was_never_asked_for(out: Path) -> None:
    short = one(out, SHORT)
    assert (short["screen"], short["fetch"]) == ("caption_short", [])


def test_a_url_lists_the_pairs_of_all_its_captions(out: Path) -> None:
    story = explain(out, URL)
    assert {pair["caption"] for pair in story.pairs} == {"a cat", "a kitten"}


def test_the_key_of_a_raw_picture_finds_its_pairs(out: Path) -> None:
    assert len(explain(out, schema.text_hash(URL).hex().upper()).pairs) == 2


def test_a_url_is_found_as_the_list_spelled_it(out: Path) -> None:
    def canonical(url: str) -> str:
        return url.replace("EXAMPLE.org:443", "example.org").partition("#")[0]

    story = explain(out, "https://EXAMPLE.org:443/x.jpg#top", canonical)
    assert [pair["uid"] for pair in story.pairs] == [uid(SHORT).hex()]


def test_a_rejected_row_is_told(out: Path) -> None:
    def canonical(url: str) -> str:
        raise RowError("url_scheme")

    story = explain(out, "ftp://x/y", canonical)
    assert story.pairs == ()
    assert [(row["reason"], row["source_row"]) for row in story.rejected] == [("url_scheme", 5)]


def test_an_unknown_uid_says_what_was_looked_at(out: Path) -> None:
    with pytest.raises(ConfigError, match=r"uid or key .*looked through 5 pairs and 1 rejected rows"):
        explain(out, "0" * 32)


def test_an_empty_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run `pairmill ingest` first"):
        explain(tmp_path, URL)


def test_a_run_that_only_ingested_is_told_so_far(out: Path, tmp_path: Path) -> None:
    early = tmp_path / "early"
    (early / "pairs").mkdir(parents=True)
    (early / "pairs" / "0000-00000.parquet").write_bytes((out / "pairs" / "0000-00000.parquet").read_bytes())
    story = one(early, CAT)
    assert (story["screen"], story["fetch"], story["decisions"]) == (None, [], {})
    assert story["summary"] == "not fetched yet"


def test_a_url_with_very_many_captions_is_cut_and_says_so(tmp_path: Path) -> None:
    rows = [pair_row((URL, f"caption {number}"), number) for number in range(MOST_PAIRS + 3)]
    put(tmp_path / "pairs" / "0000-00000.parquet", schema.PAIRS, rows)
    story = explain(tmp_path, URL)
    assert (len(story.pairs), story.more) == (MOST_PAIRS, 3)


def test_the_story_is_json_and_harmless_on_a_terminal(tmp_path: Path) -> None:
    nasty = (URL, "\x1b[31mred\x1b[0m [bold]x[/bold] \u202egnp")
    put(tmp_path / "pairs" / "0000-00000.parquet", schema.PAIRS, [pair_row(nasty, 0, "not json")])
    story = explain(tmp_path, URL)
    assert json.loads(json.dumps(story.as_json()))["pairs"][0]["caption"] == nasty[1]
    shown_in = io.StringIO()
    console = Console(file=shown_in, width=100)
    console.print(render_story(story))
    shown = shown_in.getvalue()
    assert "[bold]x[/bold]" in shown
    assert not {"\x1b", "\u202e"} & set(shown)
