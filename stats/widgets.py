"""The few shapes that the page is made of: boxes, tables, bars, and numbers in words."""

from __future__ import annotations

from collections.abc import Sequence

from .text import escape

KEPT_KEY = (
    '<p class="legend"><span><span class="key"></span>all</span>'
    '<span><span class="key kept"></span>kept</span></p>'
)


def card(title: str, chart: str, note: str = "", *, key: str = KEPT_KEY) -> str:
    """A chart in its box."""
    foot = f"<p>{note}</p>" if note else ""
    return f'<div class="card"><h3>{escape(title)}</h3>{chart}{key}{foot}</div>'


def cards(parts: Sequence[str]) -> str:
    """Boxes side by side, as many as fit."""
    return f'<div class="cards">{"".join(parts)}</div>' if any(parts) else ""


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 1) -> str:
    """A table in a box; cells are HTML already, and those from column `numbers` on are right-aligned."""

    def cell(place: int, inner: str) -> str:
        if place == 0:
            return f'<th scope="row">{inner}</th>'
        kind = (
            ' class="barred"'
            if inner.startswith('<span class="bar"')
            else ' class="n"'
            if place >= numbers
            else ""
        )
        return f"<td{kind}>{inner}</td>"

    heads = "".join(
        f'<th scope="col"{" class=n" if place >= numbers else ""}>{name}</th>'
        for place, name in enumerate(head)
    )
    lines = "".join(
        f"<tr>{''.join(cell(place, inner) for place, inner in enumerate(row))}</tr>" for row in rows
    )
    wide = " wide" if any('<span class="bar"' in row[-1] for row in rows) else ""
    return (
        f'<div class="card scroll{wide}" tabindex="0" role="region" aria-label="{escape(title)}"><table>'
        f"<caption>{escape(title)}</caption><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def bar(shares: Sequence[tuple[str, float]]) -> str:
    """A bar of (class, share of the whole in [0, 1])."""
    inner = "".join(
        f'<i class="{kind}" style="width:{100 * share:.2f}%"></i>' for kind, share in shares if share > 0
    )
    return f'<span class="bar">{inner}</span>'


def share(part: float, whole: float) -> str:
    """A percentage with one digit, or a dash."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def size(count: float) -> str:
    """Bytes in words: 950 B, 1.2 kB, 34 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
