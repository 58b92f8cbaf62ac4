"""X-Robots-Tag, in the spellings that hosts use."""

from __future__ import annotations

import pytest

from pairmill.crawl.optout import directives, opted_out
from pairmill.recipe import Fetch

OBEYED = Fetch().opt_outs

SAYS_NO = [
    ["noai"],
    ["noai, max-image-preview: large"],
    ["max-image-preview: large, noai"],
    ["noindex, unavailable_after: 25 Jun 2030 15:00:00 PST"],
    ["unavailable_after: 25 Jun 2030 15:00:00 PST, noindex"],
    ["unavailable_after: Saturday, 25-Jun-30 15:00:00 PST, noimageai"],
    ["unavailable_after: 2030-06-25T15:00:00Z, noai"],
    ["googlebot: nofollow, pairmill: noai"],
    ["googlebot: nofollow, pairmill: nofollow, noindex"],
    ["PairMill: NoAI"],
    ["*: noai"],
    ["none"],
    ["NOINDEX"],
    ["noarchive,noml"],
    ["  noai  ,  noimageai  "],
    ["noarchive; noai"],
    ["nofollow", "noimageindex"],
    ["googlebot: noindex", "noai"],
    ["pairmill:noindex"],
    ["pairmill : noindex"],
]
SAYS_NOTHING = [
    [],
    [""],
    [",,,:;"],
    ["all"],
    ["index, follow"],
    ["nofollow, noarchive"],
    ["googlebot: noindex"],
    ["googlebot: noindex, noai"],
    ["pairmill: nofollow, otherbot: noai"],
    ["max-snippet: 0, max-image-preview: none"],
    ["unavailable_after: 25 Jun 2010 15:00:00 PST"],
    ["noaix, xnoai, no ai"],
    ["googlebot: none"],
]


@pytest.mark.parametrize("fields", SAYS_NO)
def test_an_opt_out_is_heard(fields: list[str]) -> None:
    assert opted_out(fields, OBEYED)


@pytest.mark.parametrize("fields", SAYS_NOTHING)
def test_what_is_no_opt_out_or_addresses_another_is_not(fields: list[str]) -> None:
    assert not opted_out(fields, OBEYED)


def test_only_the_named_directives_are_obeyed() -> None:
    assert not opted_out(["noindex"], ("noai",))
    assert opted_out(["NoTrain"], ("notrain",))
    assert not opted_out(["none"], ("noai",))
    assert not opted_out(["noai"], ())


def test_the_name_in_the_user_agent_is_ours_too() -> None:
    assert opted_out(["mybot: noai"], OBEYED, "MyBot/2.1 (+https://example.com)")
    assert not opted_out(["mybot: noai"], OBEYED, "OtherBot/1")
    assert opted_out(["pairmill: noai"], OBEYED, "OtherBot/1")


def test_a_crawler_is_addressed_to_the_end_of_its_field() -> None:
    ours = frozenset({"pairmill"})
    assert directives("nofollow, googlebot: noindex, noai, pairmill: noml, noarchive", ours) == {
        "nofollow",
        "noml",
        "noarchive",
    }
    assert directives("none", ours) >= {"noindex", "nofollow"}
