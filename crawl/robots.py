"""robots.txt (RFC 9309): may we ask for this URL, how often, and may what we get be trained on?

Patterns are matched by protego. Which groups speak to us is decided here: a group names us where its product
token is one of our names (section 2.2.1), and `*` holds where none does. Only those groups are kept, so that
a file of 500 KiB costs what it says to us.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from protego import Protego

MAX_BYTES = 500 * 1024  # section 2.5: so much must be read at least; what lies behind it is not read
EVERYONE = "*"
_TOKEN = re.compile(r"\*(?=$|\s)|[\w.-]+")
_LINE = re.compile(r"\s*([A-Za-z][A-Za-z -]*?)\s*:\s*(.*?)\s*")
_AGENT = {"user-agent", "useragent", "user agent"}
_USAGE = {"content-signal", "content-usage"}  # contentsignals.org; IETF AIPREF, draft-ietf-aipref-attach
_REFUSED = re.compile(r"\b(?:ai-train|train-ai)\s*=\s*(?:no?|0|false|\?0)\b", re.IGNORECASE)
_GRANTED = re.compile(r"\b(?:ai-train|train-ai)\s*=\s*(?:y(?:es)?|1|true|\?1)\b", re.IGNORECASE)
_BETWEEN = "-:\n"  # no rule, so that a group without one does not run into the next


def refuses_training(value: str) -> bool | None:
    """Whether a Content-Signal or Content-Usage says no to training; None where it says nothing of it."""
    if _REFUSED.search(value):
        return True
    return False if _GRANTED.search(value) else None


def decode(body: bytes) -> str:
    """The text of a file by which a site speaks to crawlers: UTF-8, perhaps with a mark; 500 KiB of it."""
    if len(body) > MAX_BYTES:
        body = body[:MAX_BYTES].rpartition(b"\n")[0]  # half a line would be another rule
    return body.decode("utf-8-sig", "replace").replace("\0", "")


class Robots:
    """What a robots.txt, or a file in its language, says to a crawler of these names.

    names: lower case, what robots.txt may call us.
    """

    __slots__ = ("_addressed", "_rules")

    def __init__(self, text: str, names: Sequence[str]) -> None:
        groups = list(_groups(text))
        told = {name for agents, _ in groups for name in agents if name in names}
        self._addressed = tuple(sorted(told)) or (EVERYONE,)
        self._rules = "".join(_written(groups, self._addressed))

    def allows(self, url: str) -> bool:
        """Whether `url` may be asked for: every group that names us must let it through."""
        rules = _parsed(self._rules)
        return all(rules.can_fetch(url, _alias(name)) for name in self._addressed)

    def refuses_training(self, url: str) -> bool:
        """Whether a Content-Signal or Content-Usage that speaks to us keeps `url` out of training."""
        rules = _parsed(self._rules)
        return not all(rules.can_fetch(url, _usage_alias(name)) for name in self._addressed)

    @property
    def delay_s(self) -> float:
        """Crawl-delay, the longest of those that hold for us; 0 where there is none."""
        delays = (_parsed(self._rules).crawl_delay(_alias(name)) for name in self._addressed)
        return max((delay for delay in delays if delay), default=0.0)


@lru_cache(maxsize=512)
def _parsed(text: str) -> Protego:
    """Kept for hosts that are being asked; thousands of hosts say the same few things."""
    return Protego.parse(text)


def _alias(name: str) -> str:
    """What a group is called for protego, which takes `pair` for the beginning of `pairmill`."""
    return EVERYONE if name == EVERYONE else f"agent-{name.encode().hex()}-end"


def _usage_alias(name: str) -> str:
    """Rules on use are rules on paths as well: they are matched as those of a group of their own."""
    return f"usage-{name.encode().hex()}-end"


def _groups(text: str) -> Iterator[tuple[set[str], list[tuple[str, str]]]]:
    """The product tokens of each group, lower case, and its (field, value) lines."""
    agents: set[str] = set()
    lines: list[tuple[str, str]] = []
    for raw in text.splitlines():
        match = _LINE.fullmatch(raw.partition("#")[0])
        field, value = (match[1].lower(), match[2]) if match else ("", raw.partition("#")[0].strip())
        if field in _AGENT or (not field and value.lower().startswith("user-agent ")):
            if lines:
                yield agents, lines
                agents, lines = set(), []
            token = _TOKEN.match(value if field else value[len("user-agent ") :].strip())
            agents |= {token[0].lower()} if token else {""}
        elif value and agents and field not in ("sitemap", "host"):
            lines.append((field, value))
    yield agents, lines


def _written(groups: list[tuple[set[str], list[tuple[str, str]]]], addressed: Sequence[str]) -> Iterator[str]:
    """robots.txt anew: the groups of those that are addressed, and for each what it says of use."""
    for name in addressed:
        usage: list[str] = []
        yield f"User-agent: {_alias(name)}\n{_BETWEEN}"
        for field, value in (line for agents, lines in groups if name in agents for line in lines):
            if field in _USAGE:
                usage += _usage_rule(value)
            else:
                yield f"{field}: {value}\n" if field else f"{value}\n"
        yield f"User-agent: {_usage_alias(name)}\n{_BETWEEN}"
        yield from usage


def _usage_rule(value: str) -> list[str]:
    refused = refuses_training(value)
    if refused is None:
        return []
    path = value.split()[0] if value[:1] in ("/", "*") else "/"
    return [f"{'Disallow' if refused else 'Allow'}: {path}\n"]
