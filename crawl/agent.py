"""Under which name we ask: the User-Agent, the names by which a site may address us, and whom to write to."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

import yarl

from .. import __version__
from ..errors import ConfigError
from ..recipe import Fetch
from ..settings_fetch import NAMELESS
from .address import is_public
from .optout import OUR_NAME, names_of

_CONTACT = re.compile(r"https?://[^\s/]+\.[^\s]+|[^\s@]+@[^\s@]+\.[^\s@]+", re.IGNORECASE)
# names that no name server gives to anyone (RFC 6761)
_NOBODYS = (".test", ".invalid", ".example", ".localhost", ".local")


def user_agent(settings: Fetch) -> str:
    """The User-Agent that is sent: what the recipe says, or its agent and contact put together."""
    if settings.user_agent != NAMELESS or not (settings.agent or settings.contact):
        return settings.user_agent
    name = settings.agent or OUR_NAME
    return f"{name}/{__version__} (+{settings.contact})" if settings.contact else f"{name}/{__version__}"


def agent_of(settings: Fetch) -> str:
    """The one name under which what a site said was asked for."""
    others = names_of(settings.user_agent) - {OUR_NAME}
    return settings.agent or min(others, default=OUR_NAME)


def names_of_agent(settings: Fetch) -> frozenset[str]:
    """All names, lower case, by which a site may address this crawler."""
    named = {settings.agent.lower()} if settings.agent else set()
    return names_of(settings.user_agent) | named


def check_agent(settings: Fetch, urls: Collection[str], own: Collection[str]) -> None:
    """Ask for a name and a contact before a host of the public web is asked for anything.

    urls: canonical. own: host:port pairs that the recipe itself names.
    Raises ConfigError.
    """
    named = settings.agent or settings.user_agent != NAMELESS
    reached = _CONTACT.search(settings.contact or settings.user_agent)
    if settings.contact is not None and not reached:
        raise ConfigError(
            f"fetch.contact: {settings.contact!r} is neither a URL nor an e-mail address, such as"
            " https://example.org/crawler or crawler@example.org"
        )
    if named and reached:
        return
    public = next((host for url in urls if (host := _public_host(url, own))), None)
    if public is not None:
        missing = "fetch.contact" if named else "fetch.agent" if reached else "fetch.agent and fetch.contact"
        raise ConfigError(
            f"{missing}: missing, and {public} is a host of the public web: say who asks and where to write"
            " to, with --set fetch.agent=MyCrawler --set fetch.contact=https://example.org/crawler"
        )


def _public_host(url: str, own: Collection[str]) -> str | None:
    """The host of a URL, or None where nobody but us answers there."""
    parsed = yarl.URL(url, encoded=True)
    host = (parsed.raw_host or "").removesuffix(".")
    if f"{host}:{parsed.port}" in own or host == "localhost" or host.endswith(_NOBODYS):
        return None
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host or None
    return host if is_public(host) else None
