"""X-Robots-Tag: may this picture be used? A header that opts out is obeyed, however it is written.

Grammar: a field holds items parted by commas; `name:` before an item addresses one crawler, and holds
for the items after it in that field; a few directives have a value behind a colon of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

OUR_NAME = "pairmill"
_VALUED = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
_ADDRESSED = re.compile(r"([^\s:,;]+)\s*:(.*)", re.DOTALL)


def directives(field: str, names: frozenset[str]) -> set[str]:
    """The directives of one X-Robots-Tag field that address everyone or one of `names`, lower case.

    `none` is written out as noindex and nofollow. The comma and the colons inside a date give items
    that are no directive, and address nobody.
    """
    found: set[str] = set()
    ours = True
    for raw in re.split("[,;]", field):
        item = raw.strip().lower()
        match = _ADDRESSED.match(item)
        if match is not None and match[1] not in _VALUED and not match[1][0].isdigit():
            ours = match[1] == "*" or match[1] in names
            item = match[2].strip()
        if ours and item:
            found.add(item.partition(":")[0].strip())
    return found | {"noindex", "nofollow"} if "none" in found else found


def opted_out(fields: Iterable[str], obeyed: Iterable[str], user_agent: str = "") -> bool:
    """Whether any of the X-Robots-Tag `fields` says one of the `obeyed` directives to us.

    We answer to our own name and to the product that `user_agent` begins with.
    """
    product = user_agent.partition("/")[0].strip().lower()
    names = frozenset({OUR_NAME, product})
    wanted = {directive.lower() for directive in obeyed}
    return any(directives(field, names) & wanted for field in fields)
