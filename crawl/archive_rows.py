"""The rows of a web archive: one for each picture with each of its texts, and one for each broken record.

Pictures without a text and pairs said again within the file are no rows; they are counted beside them. What
a page says of itself travels in `given`, by the names in CARRIED.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
from xxhash import xxh3_128_digest

from ..errors import DataError, RowError
from ..recipe import Ingest
from .archive import Gap, Record, read_archive
from .given import to_json
from .images import WEB, Page, resolve
from .page import html_page
from .rows import BATCH_ROWS, as_binary, rows_batch
from .wat import wat_page

CARRIED = ("crawl_date", "language", "page_signals", "page_title", "page_url", "text_source")
MAX_KNOWN = 2**20  # pairs that copies are looked for among: 100 MB
BATCH_BYTES = 32 * 2**20


def read_archive_rows(file: BinaryIO, codec: str | None, settings: Ingest) -> Iterator[pa.RecordBatch]:
    """The rows of an archive as ROWS batches; the metadata of each tells what was counted so far.

    Raises DataError for a file that is no web archive, or of whose records not one could be read.
    """
    rows = _Rows(settings)
    n_read = 0
    for found in read_archive(file, codec, rows.skip):
        n_read += isinstance(found, Record)
        rows.add(found)
        if rows.is_full:
            yield rows.take()
    if not n_read and rows.counts and not rows.counts.keys() - {"gaps"}:
        raise DataError(
            f"not one of {rows.counts['gaps']:,} records can be read: no web archive, or a broken one"
        )
    if n_read == 0 and rows.counts["conversion"]:
        raise DataError("holds text alone (WET), no pictures: give the WAT or WARC of the same name")
    yield rows.take()


def counted(batch: pa.RecordBatch) -> dict[str, int]:
    """What was counted beside the rows of an archive up to a batch; nothing for other lists."""
    said = (batch.schema.metadata or {}).get(b"archive")
    return json.loads(said) if said else {}


class _Rows:
    """Rows until they make a batch, and what is counted beside them."""

    def __init__(self, settings: Ingest) -> None:
        self._carried = CARRIED if settings.carry is None else tuple(settings.carry)
        self.counts: Counter[str] = Counter()
        self._known: set[bytes] = set()
        self._clear()

    def _clear(self) -> None:
        self._urls: list[str] = []
        self._texts: list[str] = []
        self._given: list[str | None] = []
        self._bad: dict[int, str] = {}
        self._n_bytes = 0

    @property
    def is_full(self) -> bool:
        return len(self._urls) >= BATCH_ROWS or self._n_bytes >= BATCH_BYTES

    def skip(self, kind: str) -> None:
        """Count a record that is no page."""
        self.counts[kind] += 1

    def add(self, found: Record | Gap) -> None:
        """Take the pairs of a record, or what is wrong with it."""
        if isinstance(found, Gap):
            self._add_bad(found.where, found.reason)
            return
        try:
            if found.header is None:
                page = wat_page(found.body)
            else:
                page = html_page(found.body, found.url, found.date, found.header)
        except RowError as error:
            self._add_bad(found.url, error.reason)
            return
        self.counts["records" if page is None else "pages"] += 1
        if page is not None:
            self._add_page(page)

    def _add_bad(self, where: str, reason: str) -> None:
        self.counts["gaps"] += 1
        self._bad[len(self._urls)] = reason
        self._urls.append(where)
        self._texts.append("")
        self._given.append(None)
        self._n_bytes += len(where)

    def _add_page(self, page: Page) -> None:
        self.counts["without_text"] += page.n_without_text
        self.counts["inline"] += page.n_inline
        self.counts["copies"] += page.n_copies
        given = _Given(page, self._carried)
        known = self._known
        urls: list[str] = []
        texts: list[str] = []
        givens: list[str] = []
        for url, text, source in page.images:
            absolute = url if url.startswith(WEB) else resolve(url, page.base) or url
            name = xxh3_128_digest(f"{absolute}\0{text}".encode("utf-8", "surrogatepass"))
            if name in known:
                continue
            if len(known) >= MAX_KNOWN:
                known.clear()
            known.add(name)
            urls.append(absolute)
            texts.append(text)
            givens.append(given[source])
        self.counts["copies"] += len(page.images) - len(urls)
        self._n_bytes += sum(map(len, urls)) + sum(map(len, texts)) + sum(map(len, givens))
        self._urls += urls
        self._texts += texts
        self._given += givens

    def _reasons(self) -> pa.Array:
        n_rows = len(self._urls)
        if not self._bad:
            return pa.nulls(n_rows, pa.string())
        return pa.array(map(self._bad.get, range(n_rows)), pa.string(), size=n_rows)

    def take(self) -> pa.RecordBatch:
        """The rows since the last batch."""
        batch = rows_batch(
            len(self._urls),
            url=as_binary(self._urls),
            caption=as_binary(self._texts),
            given=pa.array(self._given, pa.string()),
            unreadable=self._reasons(),
        )
        self._clear()
        columns = {"url": "image", "caption": "text", "carried": list(self._carried), "left_out": []}
        said = {"columns": json.dumps(columns), "archive": json.dumps(dict(sorted(self.counts.items())))}
        return batch.replace_schema_metadata(said)


class _Given(dict[str, str]):
    """By source of text the JSON of what is carried of a page, written once and completed for each."""

    def __init__(self, page: Page, carried: tuple[str, ...]) -> None:
        said: dict[str, Any] = {
            "crawl_date": page.date,
            "language": page.language,
            "page_signals": page.signals,
            "page_title": page.title,
            "page_url": page.url,
        }
        kept = {name: value for name, value in said.items() if value and name in carried}
        self._page = _json(kept)[:-1]
        self._with_source = "text_source" in carried

    def __missing__(self, source: str) -> str:
        comma = "," if len(self._page) > 1 else ""
        end = f'{comma}"text_source":"{source}"}}' if self._with_source else "}"
        self[source] = self._page + end
        return self[source]


def _json(said: dict[str, Any]) -> str:
    try:
        return to_json(said)
    except TypeError:  # lone surrogates
        return to_json({name: _clean(value) for name, value in said.items()})


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _clean(inner) for name, inner in value.items()}
    return value.encode("utf-8", "replace").decode()
