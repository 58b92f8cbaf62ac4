"""TDM reservations (W3C TDMRep final report, 10 May 2024): a header, and rules in /.well-known/tdmrep.json.

Where a header and the file differ, either of them reserves: who asks us not to is not asked twice.
"""

from __future__ import annotations

import json
import re
from typing import Any

from .robots import Robots, decode

TDMREP = "/.well-known/tdmrep.json"
HEADER = "tdm-reservation"
_US = "us"


def is_reserved(value: Any) -> bool:
    """Whether a tdm-reservation, from a header or from JSON, is 1."""
    return re.match(r"\W*(?:1|true)\b", str(value), re.IGNORECASE) is not None


def read_tdmrep(body: bytes) -> Robots | None:
    """The rules of a tdmrep.json; None where it is none, such as a page that says 'not found'.

    `location` is a pattern as in robots.txt, and the most specific one holds. What it reserves is what the
    result does not allow.
    """
    try:
        rules = json.loads(decode(body))
    except (ValueError, RecursionError):
        return None
    rules = rules if isinstance(rules, list) else [rules]
    lines = [
        _rule(rule) for rule in rules if isinstance(rule, dict) and isinstance(rule.get("location"), str)
    ]
    return Robots(f"User-agent: {_US}\n" + "".join(lines), (_US,)) if lines else None


def _rule(rule: dict[str, Any]) -> str:
    location = re.sub(r"[\s#]", lambda found: f"%{ord(found[0]):02X}", rule["location"].strip())
    path = location if location[:1] in ("/", "*") else f"/{location}"
    return f"{'Disallow' if is_reserved(rule.get(HEADER)) else 'Allow'}: {path}\n"
