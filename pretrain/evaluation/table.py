"""Measures as a table of each model, row by row the same, so that models are compared by reading across."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

HEAD = "# What the models can do\n\nShares from 0 to 1, with 95 % intervals over the samples of each set.\n"


def markdown(models: Mapping[str, Mapping[str, Any]]) -> str:
    """A table for each model, all with the rows that any of them has, in one order."""
    cells = {name: dict(rows(found)) for name, found in models.items()}
    order = list(dict.fromkeys(key for found in cells.values() for key in found))
    parts = [HEAD]
    for name, found in cells.items():
        lines = ["| measure | value | from | to |", "|---|---|---|---|"]
        for key in order:
            value, low, high = (f"{number:.4f}" for number in found[key]) if key in found else ("–",) * 3
            lines.append(f"| {key} | {value} | {low} | {high} |")
        parts.append(f"\n## {name}\n\n" + "\n".join(lines) + "\n")
    return "".join(parts)


def rows(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, tuple[float, float, float]]]:
    """(path in words, (value, low, high)) of every number that has an interval beside it."""
    for key, value in found.items():
        path = f"{prefix} {key}".strip()
        if isinstance(value, Mapping):
            yield from rows(value, path)
        elif f"{key}_interval" in found:
            yield path, (value, *found[f"{key}_interval"])
