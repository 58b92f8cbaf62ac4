"""The crawl's input: the rows dealt to three lists of different formats, bad rows among them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

PARQUET, CSV, JSONL = "part-00000.parquet", "museum.csv", "crawl.jsonl.gz"
GOOD = "http://pictures.demo.test/bad/{}.jpg"
TEXT = "A red circle on a blue background"


class ListRow(Protocol):
    """What is written of a row."""

    url: str
    caption: str
    list: str | None
    picture: int | None


def _bad(kind: str, reason: str, urls: Sequence[str], where: str | None = None) -> list[dict[str, Any]]:
    return [
        {"url": url, "caption": TEXT, "language": None, "kind": kind, "reason": reason, "list": where}
        for url in urls
    ]


def _mute(kind: str, reason: str, captions: Sequence[str], where: str | None = None) -> list[dict[str, Any]]:
    return [
        {
            "url": GOOD.format(f"{reason}-{i}"),
            "caption": text,
            "language": None,
            "kind": kind,
            "reason": reason,
            "list": where,
        }
        for i, text in enumerate(captions)
    ]


BAD_ROWS: list[dict[str, Any]] = [
    *_bad("row without URL", "url_missing", ["", "", "   "]),
    *_bad("not a web URL", "url_scheme", ["ftp://ftp.demo.test/a.jpg", "file:///etc/passwd"]),
    *_bad("not a web URL", "url_scheme", ["data:image/gif;base64,R0lGODlhAQ==", "javascript:alert(1)"]),
    *_bad("broken URL", "url_invalid", ["not a url", "http://", "http://[::bad/a.jpg", "http://a b.test/"]),
    *_bad("broken URL", "url_invalid", ["http://pic\0tures.demo.test/a.jpg"], PARQUET),
    *_bad("URL with a password", "url_credentials", ["http://me:secret@pictures.demo.test/a.jpg"]),
    *_bad("URL with an odd port", "url_port", ["http://pictures.demo.test:8081/a.jpg", "http://cdn.demo.test:22/b"]),
    *_bad("endless URL", "url_too_long", [GOOD.format("x" * 3_000)]),
    *_mute("row without caption", "caption_missing", ["", "", " \t ", "\u200b\u200b", "\ufeff"]),
    *_mute("endless caption", "caption_too_long", [TEXT * 3_000]),
    *_mute("caption not in UTF-8", "text_not_utf8", ["Ein gr\udcfcner Kreis vor wei\udcdfem Grund"], CSV),
    *_mute("broken line", "row_unreadable", ['{"image_url": "http://cdn.demo.test/a.jpg", "alt_te'], JSONL),
]  # fmt: skip


def write_lists(folder: Path, rows: Sequence[ListRow]) -> Iterator[tuple[str, int, Any]]:
    """Write the lists and yield (file name, row number there, row) for every row."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (PARQUET, CSV, JSONL)
    dealt: dict[str, list[ListRow]] = {name: [] for name in names}
    for i, row in enumerate(rows):
        dealt[row.list or names[i % len(names)]].append(row)
    _write_parquet(folder / PARQUET, dealt[PARQUET])
    _write_csv(folder / CSV, dealt[CSV])
    _write_jsonl(folder / JSONL, dealt[JSONL])
    return ((name, number, row) for name in names for number, row in enumerate(dealt[name]))


def _write_parquet(path: Path, rows: Sequence[ListRow]) -> None:
    table = pa.table(
        {
            "URL": [row.url for row in rows],
            "TEXT": [row.caption for row in rows],
            "WIDTH": pa.array([320 + (row.picture or 0) % 640 for row in rows], pa.int32()),
            "NSFW": ["UNLIKELY" for _ in rows],
        }
    )
    pq.write_table(table, path)


def _write_csv(path: Path, rows: Sequence[ListRow]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "caption", "url"])
    writer.writerows([row.picture, row.caption, row.url] for row in rows)
    path.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))


def _write_jsonl(path: Path, rows: Sequence[ListRow]) -> None:
    lines = [
        row.caption
        if row.caption.startswith("{")
        else json.dumps({"image_url": row.url, "alt_text": row.caption, "licence": "CC0"}, ensure_ascii=False)
        for row in rows
    ]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), 6, mtime=0))
