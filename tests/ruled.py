"""A pair that every rule set keeps, and what rules say of it with some columns changed."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from pairmill.filter.columns import stage_columns
from pairmill.filter.rules import compile_rules
from pairmill.filter.sql import database
from pairmill.filter.text import TEXT, with_text
from pairmill.recipe import Rules

VALUES: dict[str, Any] = {"noise": {"max_noise": 0.05}, "clip_score": {"min_cosine": 0.3}}
ROW: dict[str, Any] = {  # what a set needs beside the usual pair, to keep it
    "wukong_text": {"caption": "雪地里的红狐狸"},
    "redcaps": {"url": "https://i.redd.it/a.jpg"},
}
GIVEN: dict[str, Any] = {  # columns of the list
    "NSFW": "UNLIKELY",
    "in_imagenet_cluster": True,
    "detoxify": 0.01,
    "clip_nsfw": 0.02,
    "nsfw_score_opennsfw2": 0.1,
    "nsfw_score_gantman": 0.2,
    "score": 5,
    "over_18": False,
    "ocr": "sale today",
}
USUAL: dict[str, Any] = {  # a pair that every rule set keeps
    "uid": bytes(16),
    "url_hash": bytes(16),
    "given": json.dumps(GIVEN),
    "n_entries_v1": 2,
    "entry_share_v1": 0.5,
    "entry_draw_v1": 0.25,
    "entry_rank_v1": 3,
    "leak_of_v1": None,
    "leak_caption_of_v1": None,
    "blocked_v1": False,
    "url": "https://example.com/a.jpg",
    "caption": "a red fox in deep snow",
    "pair_rank_v1": 0,
    "caption_rank_v1": 0,
    "captions_per_image_v1": 1,
    "images_per_caption_v1": 1,
    "rarest_token_rank_v1": 7,
    "lang_v1": "en",
    "lang_prob_v1": 0.9,
    "original_width": 640,
    "original_height": 480,
    "original_bytes": 50_000,
    "format": "jpeg",
    "near_rank_v1": 0,
    "host_copies_v1": 1,
    "cosine_v1": 0.5,
    "mismatch_q_v2": 0.01,
}


def reasons(rules: Rules, *rows: dict[str, Any]) -> list[str | None]:
    """The reasons of these rows, each the usual pair with some columns changed."""
    stored = pa.schema([field for field in stage_columns("decide") if field.name not in TEXT.names])
    table = pa.Table.from_pylist([{**USUAL, **row} for row in rows], stored)
    compiled = compile_rules(rules)
    with database() as connection:
        connection.register("rows", table.append_column("place", pa.array(range(len(rows)))))
        branches = compiled.branches or "WHEN false THEN NULL"
        sql = f"SELECT CASE {branches} END FROM {with_text('rows', compiled.words)} ORDER BY place"
        return [reason for (reason,) in connection.execute(sql, compiled.values).fetchall()]


def reason_of(name: str, values: dict[str, Any] | None = None, **row: Any) -> str | None:
    given = {**VALUES.get(name, {}), **(values or {})}
    return reasons(Rules(sets=(name,), values=given), row)[0]


def words(n: int) -> str:
    return " ".join(["word"] * n)
