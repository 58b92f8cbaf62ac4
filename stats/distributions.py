"""What the pairs are like: counts over the Parquet columns, as plain values.

One rule: a distribution is asked of DuckDB as an aggregate, never of rows in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .tables import Tables

Bins = list[tuple[float, int, int]]  # lower edge, all, kept among them

HOST = "split_part(url, '/', 3)"  # canonical URLs have no user and always a path
NEAR_BINS = ((1, "1"), (2, "2"), (3, "3"), (4, "4"), (5, "5–9"), (10, "10–49"), (50, "50+"))


def _binned(tables: Tables, source: str, value: str, where: str) -> Bins:
    """Count `source` by `value` (the lower edge of a bin, SQL), and the kept among them."""
    kept = "LEFT JOIN kept USING (uid)" if "kept" in tables.have else ""
    count = "count(kept.uid)" if kept else "0"
    return tables.rows(
        f"SELECT {value} AS edge, count(*), {count} FROM {source} {kept} WHERE {where}"
        " GROUP BY edge ORDER BY edge"
    )


def languages(tables: Tables, most: int = 25) -> list[dict[str, Any]]:
    """Distinct pairs, fetched and kept by language, most first; what is past `most` is one last line."""
    fetched = "raw" in tables.have
    kept = "kept" in tables.have
    found = tables.rows(
        f"""SELECT coalesce(lang_v1, '?') AS lang, count(*),
            {"count(raw.uid)" if fetched else "0"}, {"count(kept.uid)" if kept else "0"}
        FROM (SELECT DISTINCT uid, lang_v1 FROM language)
        {"LEFT JOIN (SELECT uid FROM raw WHERE outcome = 'ok') raw USING (uid)" if fetched else ""}
        {"LEFT JOIN kept USING (uid)" if kept else ""}
        GROUP BY lang ORDER BY 2 DESC, lang"""
    )
    names = ("language", "pairs", "fetched", "kept")
    top: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in found[:most]]
    if rest := found[most:]:
        sums = [sum(column) for column in list(zip(*rest, strict=True))[1:]]
        top.append(dict(zip(names, (f"{len(rest)} more", *sums), strict=True)))
    return top


def caption_lengths(tables: Tables) -> Bins:
    """Rows of the lists by caption length in characters, bins of 10, the last open."""
    select = "SELECT least(length(caption) // 10, 25) * 10 AS edge, count(*)"
    every = tables.rows(f"{select} FROM pairs GROUP BY edge")
    kept = {}
    if {"raw", "kept"} <= tables.have:
        kept = dict(tables.rows(f"{select} FROM raw SEMI JOIN kept USING (uid) GROUP BY edge"))
    return [(edge, n, kept.get(edge, 0)) for edge, n in sorted(every)]


def shorter_sides(tables: Tables) -> Bins:
    """Fetched pairs by the shorter side of the original, bins of 64 pixels, the last open."""
    edge = "least(least(original_width, original_height) // 64, 24) * 64"
    return _binned(tables, "raw", edge, "outcome = 'ok'")


def aspects(tables: Tables) -> Bins:
    """Fetched pairs by log2(width / height) in quarters: -1 is 1:2, 0 square, 1 is 2:1."""
    edge = "greatest(least(floor(4 * log2(original_width / original_height) + 0.5), 8), -8) / 4"
    return _binned(tables, "raw", edge, "outcome = 'ok' AND original_width > 0 AND original_height > 0")


def formats(tables: Tables) -> list[dict[str, Any]]:
    """Fetched pictures by format: how many, bytes of the originals and as stored."""
    return tables.records(
        """SELECT coalesce(format, '?') AS format, count(*) AS pictures,
            sum(original_bytes)::BIGINT AS original_bytes, sum(size)::BIGINT AS stored_bytes
        FROM (SELECT url_hash, any_value(format) AS format, any_value(original_bytes) AS original_bytes,
                any_value(size) AS size FROM raw WHERE outcome = 'ok' GROUP BY url_hash)
        GROUP BY 1 ORDER BY pictures DESC, format"""
    )


def near_groups(tables: Tables) -> list[tuple[str, int]]:
    """How many groups of near-copies have how many members."""
    found = tables.rows("SELECT near_size_v1, count(*) FROM near WHERE near_rank_v1 = 0 GROUP BY ALL")
    counts = dict.fromkeys((label for _, label in NEAR_BINS), 0)
    for size, n in found:
        counts[[label for least, label in NEAR_BINS if least <= max(size, 1)][-1]] += n
    return list(counts.items())


def cosines(tables: Tables) -> Bins:
    """Scored pairs by cosine, bins of 0.02."""
    return _binned(tables, "embedding", "floor(cosine_v1::DOUBLE * 50) / 50", "isfinite(cosine_v1)")


def p_values(tables: Tables) -> Bins:
    """Scored pairs by mismatch p, bins of 1/40: noise alone would be flat."""
    return _binned(
        tables, "noise", "floor(least(mismatch_p_v2::DOUBLE, 0.9999) * 40) / 40", "isfinite(mismatch_p_v2)"
    )


def statuses(tables: Tables) -> list[dict[str, Any]]:
    """Attempts by outcome and HTTP status, most first."""
    return tables.records(
        """SELECT outcome, http_status AS status, count(*) AS pairs FROM raw
        GROUP BY ALL ORDER BY pairs DESC, outcome, status LIMIT 30"""
    )


def hosts(tables: Tables, most: int = 20) -> list[dict[str, Any]]:
    """The hosts asked most: pairs, fetched, and the most frequent failure."""
    return tables.records(
        f"""SELECT host, sum(n)::BIGINT AS pairs,
            coalesce(sum(n) FILTER (outcome = 'ok'), 0)::BIGINT AS fetched,
            arg_max(outcome, (n, outcome)) FILTER (outcome <> 'ok') AS failure,
            coalesce(max(n) FILTER (outcome <> 'ok'), 0) AS failures
        FROM (SELECT {HOST} AS host, outcome, count(*) AS n FROM raw GROUP BY ALL)
        GROUP BY host ORDER BY pairs DESC, host LIMIT {most}"""
    )


def host_count(tables: Tables) -> dict[str, int]:
    """How many hosts were asked, and how many never gave a picture."""
    return tables.records(
        f"""SELECT count(*) AS hosts, count(*) FILTER (NOT fetched) AS without
        FROM (SELECT {HOST} AS host, bool_or(outcome = 'ok') AS fetched FROM raw GROUP BY host)"""
    )[0]


def changed(tables: Tables, most: int = 20) -> list[dict[str, Any]]:
    """Domains whose pictures are not what their list's hashes say: compared, near, changed; most first."""
    return tables.records(
        f"""SELECT regexp_extract({HOST}, '([^.]*\\.)?[^.]*$') AS domain, count(*) AS pairs,
            count(*) FILTER (expected_v1 = 'near') AS near,
            count(*) FILTER (expected_v1 = 'changed') AS changed
        FROM raw WHERE expected_v1 IS NOT NULL
        GROUP BY domain HAVING changed > 0 ORDER BY changed DESC, domain LIMIT {most}"""
    )


def dataset_size(tables: Tables) -> dict[str, int]:
    """Samples, shards and bytes of pictures in the dataset."""
    return tables.records(
        """SELECT count(*) AS samples, count(DISTINCT filename) AS shards,
            coalesce(sum(size), 0)::BIGINT AS bytes
        FROM samples"""
    )[0]


DISTRIBUTIONS: dict[str, tuple[str, Callable[[Tables], Any]]] = {
    "languages": ("language", languages),
    "caption_lengths": ("pairs", caption_lengths),
    "shorter_sides": ("raw", shorter_sides),
    "aspects": ("raw", aspects),
    "formats": ("raw", formats),
    "near_groups": ("near", near_groups),
    "cosines": ("embedding", cosines),
    "p_values": ("noise", p_values),
    "statuses": ("raw", statuses),
    "hosts": ("raw", hosts),
    "host_count": ("raw", host_count),
    "changed": ("raw", changed),
    "dataset": ("samples", dataset_size),
}


def distributions(tables: Tables) -> dict[str, Any]:
    """Every distribution whose columns exist; call `tables.select` first to have the kept in them."""
    return {name: ask(tables) for name, (needs, ask) in DISTRIBUTIONS.items() if needs in tables.have}
