"""A vectorised fast path beside its slow definition: rows that are fine stay, the others go one by one."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RowError


def patch(
    column: pa.Array, is_fine: pa.Array, slow: Callable[[str | None], str]
) -> tuple[pa.Array, pa.Array]:
    """`column` with `slow(value)` in every row that is not fine, and the reasons of the rows it refused.

    column: (N,) strings. is_fine: (N,) booleans; NULL is not fine.
    slow: gets the value or None and raises RowError for a row that cannot be used.
    Returns values (N,), NULL where refused, and reasons (N,), NULL where not refused.
    """
    is_odd = pc.invert(pc.fill_null(is_fine, False))
    values: list[str | None] = []
    reasons: list[str | None] = []
    for value in column.filter(is_odd).to_pylist():
        try:
            values.append(slow(value))
            reasons.append(None)
        except RowError as error:
            values.append(None)
            reasons.append(error.reason)
    refused = pa.nulls(len(column), pa.string())
    if not values:
        return column, refused
    patched = pc.replace_with_mask(column, is_odd, pa.array(values, pa.string()))
    return patched, pc.replace_with_mask(refused, is_odd, pa.array(reasons, pa.string()))
