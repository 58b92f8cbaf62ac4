"""X-Robots-Tag, in the spellings that hosts use."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from pairmill.crawl.optout import directives, names_of, opted_out, robots_fields
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
    ["unavailable_after: 25 Jun 2090 15:00:00 PST"],
    ["noaix, xnoai, no ai"],
    ["googlebot: none"],
]

BROWSER_LIKE = "Mozilla/5.0 (compatible; MyBot/1.0; +https://example.com/bot)"
JULY_2026 = 1_782_864_000.0
SAYS_NO_TO_MYBOT = [
    "max-age: 3600, noai",
    "rating: adult, noai",
    "pairmill/0.1: noai",
    "mybot: noai",
    "MyBot/2: noai",
    "noai noindex",
    "noarchive\tnoai",
    '"noai"',
    "'noai, noindex'",
    "noindex:",
    "noai.",
    "noai!",
    "noai|noml",
    "noai/noimageai",
    "noai:true",
    "noai = 1",
    "[noai]",
    '{"noai": true}',
    "robots: noai",
    "x-robots-tag: noai",
    "X-Robots-Tag noindex",
    "*:noai",
    "unavailable_after: 25 Jun 2010 15:00:00 PST",
    "unavailable_after: 2010-06-25",
    "unavailable_after: Friday, 25-Jun-10 15:00:00 PST, all",
    "unavailable_after: June 25, 2010",
    "unavailable_after: Fri Jun 25 15:00:00 2010",
    "unavailable_after: 1277478000",
    "unavailable_after:",
    "mozilla: nofollow, noai; mybot: noai",
    "Mozilla/5.0 (compatible; MyBot/1.0): noai",
    "no-ai",
    "no_index",
    "foo: bar baz, noai",
    "all, noai",
    "noindex; max-snippet:-1",
    "max-image-preview: none, noai",
    "googlebot: nofollow; *: noai",
    "googlebot : noindex, mybot : noml",
    "mybot-images: noai",
    "license: https://x.y/z, noai",
    "see https://x.y:80/p noai",
    "noai, see http://a.b",
    "date: 2020-01-01T10:00:00Z, noai",
    "“noai”",
    "noai\xa0",
    "NOAI",
    "max-snippet: noai",
    "index, follow, max-image-preview:large, noai",
    "bot: noimageai",
    "unavailable_after: 31/12/2010",
    "googlebot noindex",
    "unavailable_after: garbage",
    "pairmill (images): noai",
    "noindex=true",
    "none.",
    "x: 1 y: 2 noai",
    "ttl: 30; noai",
    "noindex: googlebot",
]
SAYS_NOTHING_TO_MYBOT = [
    "mozilla: noai",
    "googlebot: noai",
    "otherbot/1.0: noai, noindex",
    "googlebot: noindex, max-age: 3600",
    "max-image-preview: none",
    "max-image-preview:none, all",
    "max-snippet:0",
    "unavailable_after: 25 Jun 2090 15:00:00 PST",
    "unavailable_after: 2090-06-25",
    "unavailable_after: Saturday, 25-Jun-50 15:00:00 PST",
    "unavailable_after: 31/12/2090",
    "unavailable_after: June 25, 2090",
    "unavailable_after: Fri Jun 25 15:00:00 2090",
    "unavailable_after: 3277478000",
    "all",
    "index",
    "noarchive nosnippet",
    "googlebot: unavailable_after: 25 Jun 2010",
    "mybotx: noai",
    "rating: adult",
    "foo",
    "googlebot:noindex,otherbot:none",
    "archive.org_bot: noai",
    "",
    "noaix",
    "compatible: noai",
    "ccbot: noai, gptbot: noai",
    "img2dataset: noai",
]


@pytest.mark.parametrize("field", SAYS_NO_TO_MYBOT)
def test_a_field_that_can_be_read_as_an_opt_out_is_one(field: str) -> None:
    assert opted_out([field], OBEYED, BROWSER_LIKE, JULY_2026)


@pytest.mark.parametrize("field", SAYS_NOTHING_TO_MYBOT)
def test_a_field_that_plainly_says_something_else_is_none(field: str) -> None:
    assert not opted_out([field], OBEYED, BROWSER_LIKE, JULY_2026)


@pytest.mark.parametrize(
    ("user_agent", "names"),
    [
        (BROWSER_LIKE, {"mybot"}),
        ("MyBot", {"mybot"}),
        ("MyBot-Images/2.1 (someone@example.com) Python/3.11", {"mybot-images", "python"}),
        (
            "Mozilla/5.0 (X11; Linux) (KHTML, like Gecko; compatible; MyBot; http://a.b/c) Safari/1",
            {"mybot"},
        ),
        (Fetch().user_agent, set()),
        ("", set()),
    ],
)
def test_our_names_are_the_products_of_the_user_agent(user_agent: str, names: set[str]) -> None:
    assert names_of(user_agent) == {"pairmill"} | names


def test_a_date_is_past_from_its_second_on() -> None:
    field = "unavailable_after: Wed, 01 Jul 2026 00:00:00 GMT"
    assert [opted_out([field], OBEYED, now=JULY_2026 + late) for late in (-1, 0, 1)] == [False, True, True]


def test_fields_are_read_under_every_spelling_of_the_name() -> None:
    names = (
        "X-Robots-Tag",
        "x-robots-tag",
        "X_Robots_Tag",
        "X-Robots-Tags",
        "X-Robots",
        "Robots-Tag",
        "X Robots Tag",
    )
    fields = CIMultiDict(
        [*((name, name) for name in names), ("X-Robotics", "no"), ("X-Robots-Tag-Version", "1")]
    )
    assert robots_fields(fields) == list(names)


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
