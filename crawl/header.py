"""Whether the first row of a table is its header, and which columns hold what where there is none.

Judged by the first hundred rows. A row with a URL in it is no header; nor is one that is empty where most of
the others have a URL, unless it bears a usual name. `ingest.header` says it for certain.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError
from ..recipe import Ingest
from .columns import URL_NAMES, Columns, find_columns, is_url, usual_name


def has_header(rows: Sequence[Sequence[str]], settings: Ingest) -> bool:
    """Whether the first of these rows names the columns."""
    if settings.header is not None:
        return settings.header
    first = rows[0]
    if any(is_url(cell) for cell in first):
        return False
    if settings.url_column in first or usual_name(first, URL_NAMES) is not None:
        return True
    urls = url_shares(rows[1:], len(first))
    most = max(range(len(first)), key=urls.__getitem__)
    return urls[most] < 0.5 or first[most].strip() != ""


def url_shares(rows: Sequence[Sequence[str]], n_columns: int) -> list[float]:
    """For each column the share of rows that have a URL in it."""
    whole = [row for row in rows if len(row) == n_columns]
    return [sum(is_url(row[i]) for row in whole) / max(len(whole), 1) for i in range(n_columns)]


def made_names(n_columns: int) -> tuple[str, ...]:
    """The names of columns that have none: column_1, column_2, ..."""
    return tuple(f"column_{i + 1}" for i in range(n_columns))


def headless_columns(rows: Sequence[Sequence[str]], settings: Ingest, path: str) -> Columns:
    """Without a header the URL is in the column with most URLs, the caption in the other one of two.

    Raises ConfigError where two columns have as many, or where there are more to choose the caption from.
    """
    names = made_names(len(rows[0]))
    where = f"{path} (no header; the first row is {[cell[:40] for cell in rows[0][:10]]})"
    known: dict[str, str] = {}
    if settings.url_column is None:
        shares = url_shares(rows, len(names))
        best = [name for name, share in zip(names, shares, strict=True) if share == max(shares)]
        if not max(shares):
            raise ConfigError(
                f"{where}: no URL in the first {len(rows)} rows; name it with --set ingest.url_column"
            )
        if len(best) > 1:
            raise ConfigError(
                f"{where}: {' and '.join(best)} hold as many URLs: --set ingest.url_column=NAME says which"
            )
        known["url_column"] = best[0]
    url = settings.url_column or known["url_column"]
    rest = [name for name in names if name != url]
    if len(rest) == 1 and settings.caption_column is None:
        known["caption_column"] = rest[0]
    return find_columns(names, settings.model_copy(update=known), where)
