"""What a list's further columns say to the fetcher: signals of a picture's page, hashes of the picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from ..settings_fetch import Expect
from .expected import read_expected

SIGNALS = "page_signals"  # the list's column, and the plan's
EXPECTED = "expected"  # the plan's: hashes as `read_expected` gives them


def plan_columns(pairs: pa.Table, expect: Expect) -> pa.Table:
    """`pairs` with, in the place of `given`, what the fetcher reads of it; NULL where a row says nothing.

    pairs: (N,) rows of pairs/. Costs a search for the names; only rows that have one are taken apart.
    """
    given = pairs["given"].combine_chunks()
    names = "|".join(re.escape(name) for name in (SIGNALS, *sorted(expect.hashes)))
    said = pc.fill_null(pc.match_substring_regex(given, f'"(?:{names})":'), False)
    rows = [orjson.loads(row) for row in given.filter(said).to_pylist()]
    found = {
        SIGNALS: [_text(row) for row in rows],
        EXPECTED: [read_expected(row, expect) for row in rows],
    }
    pairs = pairs.drop_columns(["given"])
    for name, values in found.items():
        column = pa.nulls(len(pairs), pa.string())
        if values:
            column = pc.replace_with_mask(column, said, pa.array(values, pa.string()))
        pairs = pairs.append_column(name, column)
    return pairs


def _text(given: Mapping[str, Any]) -> str | None:
    """The signals as text: a list's as JSON."""
    found = given.get(SIGNALS)
    if not found:
        return None
    return found if isinstance(found, str) else orjson.dumps(found).decode()
