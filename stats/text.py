"""Text from outside, made harmless to look at: nothing hidden, nothing reordered, nothing endless."""

from __future__ import annotations

import html
import unicodedata
from typing import Any

JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji need them
REPLACEMENT = "\ufffd"


def visible(text: str, limit: int = 200) -> str:
    """`text` on one line of at most `limit` characters; control, bidi and zero-width ones show as `\ufffd`.

    Combining marks past the eighth in a row go too: they would be drawn over the lines around.
    """
    shown: list[str] = []
    marks = 0
    for char in text[: limit + 1]:
        kind = unicodedata.category(char)
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        if kind in ("Zl", "Zp") or char in "\n\r\t":
            shown.append(" ")
        elif kind in ("Cc", "Cf", "Cs", "Co", "Cn") and char not in JOINERS:
            shown.append(REPLACEMENT)
        elif marks <= 8:
            shown.append(char)
    return "".join(shown[:limit]) + ("…" if len(text) > limit else "")


def escape(value: Any, limit: int = 200) -> str:
    """`value` as HTML text or a quoted attribute: harmless, cut to `limit` characters, escaped."""
    return html.escape(visible(str(value), limit), quote=True)


def bdi(value: Any, limit: int = 200) -> str:
    """The same, kept from reordering what stands beside it."""
    return f'<bdi dir="auto">{escape(value, limit)}</bdi>'
