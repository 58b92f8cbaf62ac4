"""Dates in headers, as HTTP writes them and as people do."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_ISO = re.compile(
    r"\d{4}-\d\d-\d\d(?:[t ]\d\d:\d\d(?::\d\d)?(?:\.\d+)? ?(?:z|[+-]\d\d:?\d\d)?)?", re.IGNORECASE
)
_TIME = r"\d\d?:\d\d(?::\d\d)?"
_ZONE = r"(?:gmt|utc|z|[ecmp][sd]t|[+-]\d{4})"
# 25 Jun 2010 15:00:00 PST; 25-Jun-10; the zone is optional, as is the time
_DAY_FIRST = re.compile(
    rf"(\d\d?)[ -]([a-z]{{3}})[a-z]*[ ,-]+(\d{{4}}|\d\d)\b(?: +({_TIME}(?: *{_ZONE}\b)?))?", re.I
)
# Jun 25 15:00:00 2010; June 25, 2010
_MONTH_FIRST = re.compile(rf"\b([a-z]{{3}})[a-z]*\.? +(\d\d?),? +(?:({_TIME}) +)?(\d{{4}})\b", re.I)
_EPOCH = re.compile(r"\b\d{10}\b")


def read_date(text: str) -> float | None:
    """The first date in `text`, in seconds since 1970, or None; UTC where no zone is named."""
    try:
        if match := _ISO.search(text):
            found = datetime.fromisoformat(match[0].strip().replace(" ", "T", 1).replace(" ", ""))
        elif match := _DAY_FIRST.search(text):
            found = parsedate_to_datetime(f"{match[1]} {match[2]} {match[3]} {match[4] or '00:00:00'}")
        elif match := _MONTH_FIRST.search(text):
            found = parsedate_to_datetime(f"{match[2]} {match[1]} {match[4]} {match[3] or '00:00:00'}")
        elif match := _EPOCH.search(text):
            return float(match[0])
        else:
            return None
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def read_pause(retry_after: str, date: str, now: float) -> float | None:
    """Seconds that Retry-After asks for: a number, or a date, against the answer's own Date if it has one.

    now: seconds since 1970. None where it says nothing.
    """
    number = re.match(r"\s*(\d+(?:\.\d+)?)(?![\d:/-]|\s+[a-z]{3}\b)", retry_after, re.IGNORECASE)
    if number is not None and not _EPOCH.fullmatch(number[1]):
        return float(number[1])
    then = read_date(retry_after)
    return None if then is None else max(0.0, then - (read_date(date) or now))
