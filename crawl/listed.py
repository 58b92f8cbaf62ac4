"""What a list's further columns say to the fetcher: the signals of the page that a picture was found on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

SIGNALS = "page_signals"  # the list's column, and the plan's


def plan_columns(pairs: pa.Table) -> pa.Table:
    """`pairs` with, in the place of `given`, what the fetcher reads of it; NULL where a row says nothing.

    pairs: (N,) rows of pairs/. Costs a search for the names; only rows that have one are taken apart.
    """
    given = pairs["given"].combine_chunks()
    said = pc.fill_null(pc.match_substring(given, f'"{SIGNALS}"'), False)
    values = [_text(orjson.loads(row)) for row in given.filter(said).to_pylist()]
    column = pa.nulls(len(pairs), pa.string())
    if values:
        column = pc.replace_with_mask(column, said, pa.array(values, pa.string()))
    return pairs.drop_columns(["given"]).append_column(SIGNALS, column)


def _text(given: Mapping[str, Any]) -> str | None:
    """The signals as text: a list's as JSON."""
    found = given.get(SIGNALS)
    if not found:
        return None
    return found if isinstance(found, str) else orjson.dumps(found).decode()
