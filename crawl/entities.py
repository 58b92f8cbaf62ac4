"""HTML character references, which lists made from pages still bear: `&amp;` `&#038;` `&#x27;` `&quot;`.

Only those that end in a semicolon: in a URL `&copy=1` is a parameter, and `R&D` is no reference.
"""

from __future__ import annotations

import html
import re
from html.entities import html5

ENTITY = "&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"
_ENTITY = re.compile(ENTITY)


def decode_entities(text: str) -> str:
    """The text with each reference replaced once, as HTML5 does it; unknown names stay."""
    return _ENTITY.sub(_decoded, text) if "&" in text else text


def _decoded(found: re.Match[str]) -> str:
    reference = found[0]
    return html.unescape(reference) if reference[1] == "#" else html5.get(reference[1:], reference)
