"""Stage `leaks`: the pairs of evaluation sets beside their originals, on a page and as a table to publish.

One rule: what is on a blocklist is counted, and neither shown nor listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import ShardError
from ..recipe import Report
from ..runner import Stage, Tally, Task, Worker
from ..settings import MEMORY_MB
from ..shards.commit import write_bytes, write_table
from ..shards.ledger import read_tally
from ..shards.tar import read_at
from .page import POLICY, STYLE
from .samples import Sample, look_up, shrink
from .tables import Tables, opened
from .text import bdi, escape
from .widgets import cards, table

SHOWN = 200  # hits on the page
PUBLISHED = pa.schema(
    [
        ("uid", pa.string()),  # 32 hex digits
        ("url", pa.string()),
        ("evaluation_picture", pa.string()),
        ("distance", pa.int16()),
        ("mirrored", pa.bool_()),
        ("evaluation_caption", pa.string()),
    ]
)
HITS = """
SELECT uid, lower(hex(uid)) AS key, url, leak_of_v1, leak_distance_v1, leak_mirrored_v1, leak_caption_of_v1
FROM leaks JOIN raw USING (uid)
WHERE NOT blocked_v1 AND coalesce(leak_of_v1, leak_caption_of_v1) IS NOT NULL ORDER BY uid
"""


def leaks_tasks(out: Path) -> list[Task]:
    """The one task of `leaks`."""
    return [Task("leaks", "page")]


def leaks_stage(out: Path, settings: Report, memory_mb: int = MEMORY_MB) -> Stage:
    """Write `report/leaks.html` and `report/leaks.parquet`."""
    return Stage("leaks", _start, (out, settings, memory_mb), unit="pages")


def _start(out: Path, settings: Report, memory_mb: int) -> Worker:
    return partial(_write, out, settings, memory_mb)


def _write(out: Path, settings: Report, memory_mb: int, task: Task) -> Tally:
    """Counts the hits as 'listed'."""
    tally = read_tally(out, "decontaminate", "leaks")
    counts = dict(tally.counts) if tally else {}
    with opened(out, memory_mb=memory_mb) as tables:
        hits = tables.rows(HITS)
        figures = _figures(tables, [row for row in hits if row[3]][:SHOWN])
    rows = [list(column) for column in zip(*(row[1:] for row in hits), strict=True)] or [
        [] for _ in PUBLISHED
    ]
    write_table(pa.table(rows, schema=PUBLISHED), out / "report" / "leaks.parquet")
    write_bytes(
        _page(settings.title, counts, figures, len(hits)).encode("utf-8"), out / "report" / "leaks.html"
    )
    return Tally({"listed": len(hits)})


def _figures(tables: Tables, hits: Sequence[tuple[Any, ...]]) -> str:
    """Each hit and its original, side by side."""
    known = look_up(tables, [row[0] for row in hits]) if hits else {}
    items = [row[3] for row in hits]
    places = {}
    if "evaluation" in tables.have:
        sql = 'SELECT item, path, "offset", size FROM evaluation WHERE item IN (SELECT unnest(?::VARCHAR[]))'
        places = {item: place for item, *place in tables.rows(sql, [items])}
    parts = []
    for uid, _, url, item, distance, mirrored, _ in hits:
        if uid not in known:
            continue
        original = Sample(item, item, "", None, None, _original(places.get(item)))
        how = f"{distance} of 256 bits differ" + (", mirrored" if mirrored else "")
        pair = _figure(known[uid].data_uri, known[uid].caption, url) + _figure(original.data_uri, item, item)
        head = f"<h3>{escape(item)} <span>{how}</span></h3>"
        parts.append(f'<div class="group">{head}<div class="strip">{pair}</div></div>')
    return "".join(parts)


def _original(place: Sequence[Any] | None) -> bytes | None:
    """The evaluation picture, small; None where its folder is gone."""
    if place is None:
        return None
    try:
        with open(place[0], "rb") as file:
            return shrink(read_at(file, place[1], place[2]))
    except (OSError, ShardError):
        return None


def _figure(uri: str | None, caption: str, title: str) -> str:
    picture = f'<img src="{uri}" alt="{escape(caption, 120)}" loading="lazy">' if uri else "no preview"
    return (
        f'<figure><div class="frame">{picture}</div>'
        f'<figcaption title="{escape(title, 600)}">{bdi(caption)}</figcaption></figure>'
    )


def _page(title: str, counts: dict[str, int], figures: str, hits: int) -> str:
    rows = [[f"<code>{escape(word)}</code>", f"{n:,}"] for word, n in sorted(counts.items())]
    note = (
        f"<p>Up to {SHOWN} hits, the first by uid: the crawled picture and the one of the evaluation set."
        " All are in <code>report/leaks.parquet</code>. The rule set <code>leaks</code> drops them.</p>"
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title or "leaks")} · leaks · pairmill</title>
<style>{STYLE.read_text(encoding="utf-8")}</style></head>
<body><header><p class="brand"><b>pairmill</b> · {escape(title or "report")}, leaks</p>
<h1>{hits:,} fetched pairs are of an evaluation set.</h1></header>
<main><section><h2>Pairs</h2>{cards([table("Fetched pairs", ["outcome", "pairs"], rows)])}</section>
<section><h2>Hits beside their originals</h2>{note}{figures}</section></main></body></html>
"""
