"""robots.txt: the examples of RFC 9309, the cases of Google's parser, and what people write."""

from __future__ import annotations

import pytest

from pairmill.crawl.reservation import is_reserved, read_tdmrep
from pairmill.crawl.robots import MAX_BYTES, Robots, decode, refuses_training

SITE = "http://example.org"
# section 5.1
SIMPLE = """\
User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""
# section 5.2
LONGEST = "User-Agent: foobot\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif\n"
# section 2.2.1: groups that name one crawler are taken together, and an empty line parts nothing
TOGETHER = """\
user-agent: ExampleBot
disallow: /foo
disallow: /bar

user-agent: ExampleBot

disallow: /baz
"""
# section 2.2.3, special characters and the table of encoded paths
SPECIAL = "User-Agent: foobot\nDisallow: /file-with-a-%2A.html\nDisallow: /foo-%24\n"


def only(rules: str) -> str:
    return f"User-agent: *\n{rules}"


# robots.txt, our name, path, whether it may be asked for
CASES: list[tuple[str, str, str, bool]] = [
    (SIMPLE, "foobot", "/example/page.html", True),
    (SIMPLE, "foobot", "/example/allowed.gif", True),
    (SIMPLE, "foobot", "/example/other.html", False),
    (SIMPLE, "foobot", "/", False),
    (SIMPLE, "barbot", "/example/page.html", False),
    (SIMPLE, "bazbot", "/example/page.html", False),
    (SIMPLE, "bazbot", "/example/", True),
    (SIMPLE, "quxbot", "/example/page.html", True),
    (SIMPLE, "quxbot", "/x.gif", True),
    (SIMPLE, "otherbot", "/x.gif", False),
    (SIMPLE, "otherbot", "/x.gif?1", True),
    (SIMPLE, "otherbot", "/example/x.html", False),
    (SIMPLE, "otherbot", "/publications/x.html", True),
    (LONGEST, "foobot", "/example/page/", True),
    (LONGEST, "foobot", "/example/page/disallowed.gif", False),
    (LONGEST, "foobot", "/example/page/disallowed.gifs", False),
    (TOGETHER, "examplebot", "/foo", False),
    (TOGETHER, "examplebot", "/bar/x", False),
    (TOGETHER, "examplebot", "/baz", False),
    (TOGETHER, "examplebot", "/qux", True),
    (SPECIAL, "foobot", "/file-with-a-*.html", False),
    (SPECIAL, "foobot", "/file-with-a-x.html", True),
    (SPECIAL, "foobot", "/foo-$", False),
    (SPECIAL, "foobot", "/foo-", True),
    # paths, encoded and not
    (only("Disallow: /foo/bar?baz=http://foo.bar"), "b", "/foo/bar?baz=http://foo.bar", False),
    (only("Disallow: /foo/bar/ツ"), "b", "/foo/bar/%E3%83%84", False),
    (only("Disallow: /foo/bar/%E3%83%84"), "b", "/foo/bar/%E3%83%84", False),
    (only("Disallow: /foo/bar/%62%61%7A"), "b", "/foo/bar/baz", False),
    (only("Disallow: /%7ejoe/"), "b", "/~joe/x", False),
    # wildcards
    (only("Disallow: /"), "b", "/", False),
    (only("Disallow: /"), "b", "/robots.txt", True),
    (only("Disallow:"), "b", "/x", True),
    (only("Disallow: /fish"), "b", "/fish.html", False),
    (only("Disallow: /fish"), "b", "/fishheads/yummy.html", False),
    (only("Disallow: /fish"), "b", "/Fish.asp", True),
    (only("Disallow: /fish"), "b", "/catfish", True),
    (only("Disallow: /fish*"), "b", "/fish.php?id=anything", False),
    (only("Disallow: /fish/"), "b", "/fish", True),
    (only("Disallow: /fish/"), "b", "/fish/salmon.htm", False),
    (only("Disallow: /*.php"), "b", "/folder/any.php.file.html", False),
    (only("Disallow: /*.php$"), "b", "/filename.php", False),
    (only("Disallow: /*.php$"), "b", "/filename.php?parameters", True),
    (only("Disallow: /fish*.php"), "b", "/fishheads/catfish.php?x", False),
    (only("Disallow: /*/private/"), "b", "/a/b/private/x.jpg", False),
    (only("Disallow: *.jpg$"), "b", "/a/x.jpg", False),
    # order does not matter, length does; a tie allows
    (only("Allow: /p\nDisallow: /"), "b", "/page", True),
    (only("Disallow: /\nAllow: /p"), "b", "/page", True),
    (only("Allow: /folder\nDisallow: /folder"), "b", "/folder/page", True),
    (only("Allow: /page\nDisallow: /*.htm"), "b", "/page.htm", False),
    (only("Allow: /$\nDisallow: /"), "b", "/", True),
    (only("Allow: /$\nDisallow: /"), "b", "/page.htm", False),
    # who is addressed
    ("User-agent: PairMill\nDisallow: /", "pairmill", "/x", False),
    ("User-agent: pairmill/1.0\nDisallow: /", "pairmill", "/x", False),
    ("User-agent: pairmill crawler\nDisallow: /", "pairmill", "/x", False),
    ("User-agent: pair\nDisallow: /", "pairmill", "/x", True),
    ("User-agent: pairmills\nDisallow: /", "pairmill", "/x", True),
    ("User-agent: mill\nDisallow: /", "pairmill", "/x", True),
    ("User-agent: pairmill-images\nDisallow: /", "pairmill", "/x", True),
    ("User-agent: *\nDisallow: /\nUser-agent: pairmill\nAllow: /", "pairmill", "/x", True),
    ("User-agent: *\nDisallow: /\nUser-agent: pairmill\nDisallow:", "pairmill", "/x", True),
    ("User-agent: pairmill\nUser-agent: *\nDisallow: /", "pairmill", "/x", False),
    ("User-agent: otherbot\nDisallow: /", "pairmill", "/x", True),
    ("User-agent: otherbot\nSitemap: http://x/s\nUser-agent: pairmill\nDisallow: /", "pairmill", "/x", False),
    ("User-agent: otherbot\n\nUser-agent: pairmill\nDisallow: /", "pairmill", "/x", False),
    ("Disallow: /\nUser-agent: *\nAllow: /", "pairmill", "/x", True),
    ("User-agent: *\nCrawl-delay: 5\nDisallow: /a", "pairmill", "/a", False),
    # how it is written
    ("user-agent:*\r\ndisallow:/a\r\n", "b", "/a", False),
    ("User-agent: *\rDisallow: /a\r", "b", "/a", False),
    ("USER-AGENT: *\nDISALLOW: /a", "b", "/a", False),
    ("  User-agent :  * \n\t Disallow :  /a  # why\n", "b", "/a", False),
    ("\ufeffUser-agent: *\nDisallow: /a", "b", "/a", False),
    ("User agent: *\nDisallow: /a", "b", "/a", False),
    ("User-agent *\nDisallow /a", "b", "/a", False),
    ("User-agent: *\nDissallow: /a", "b", "/a", False),
    ("User-agent: *\nDisallow: /a\nFoo: bar\nDisallow: /b", "b", "/b", False),
    ("# nothing\n", "b", "/a", True),
    ("", "b", "/a", True),
    ("<!DOCTYPE html><p>User-agent: *<br>Disallow: /", "b", "/a", True),
    ("\0\0User-agent: *\0\nDisallow: /a", "b", "/a", False),
]


@pytest.mark.parametrize(("text", "name", "path", "may"), CASES)
def test_what_robots_txt_says_is_done(text: str, name: str, path: str, may: bool) -> None:
    assert Robots(decode(text.encode()), (name,)).allows(SITE + path) is may


def test_each_of_our_names_is_heard_and_everyone_only_where_none_is_named() -> None:
    both = "User-agent: mybot\nDisallow: /a\nUser-agent: pairmill\nDisallow: /b\nUser-agent: *\nDisallow: /c"
    robots = Robots(both, ("mybot", "pairmill"))
    assert [robots.allows(SITE + path) for path in ("/a", "/b", "/c")] == [False, False, True]
    named = Robots("User-agent: *\nDisallow: /\nUser-agent: mybot\nAllow: /", ("mybot", "pairmill"))
    assert named.allows(SITE + "/x")


def test_what_lies_behind_the_limit_is_not_read_and_no_half_line_is_a_rule() -> None:
    head = "User-agent: *\nDisallow: /first\n" + "#" * (MAX_BYTES - 51) + "\n"
    text = decode((head + "Disallow: /page/of/mine\nDisallow: /last\n").encode())
    robots = Robots(text, ("b",))
    assert [robots.allows(SITE + path) for path in ("/first", "/page/of/me", "/last")] == [False, True, True]
    assert "/page" not in text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("User-agent: *\nCrawl-delay: 7", 7.0),
        ("User-agent: *\nCrawl-delay: 0.5", 0.5),
        ("User-agent: *\nCrawl-delay: soon", 0.0),
        ("User-agent: *\nCrawl-delay: -3", 0.0),
        ("User-agent: *\nCrawl-delay: 7\nUser-agent: pairmill\nDisallow: /x", 0.0),
        ("User-agent: otherbot\nCrawl-delay: 7", 0.0),
        ("User-agent: *\nCrawl-delay: 7\nUser-agent: pairmill\nCrawl-delay: 2", 2.0),
    ],
)
def test_a_crawl_delay_is_that_of_the_group_that_holds(text: str, seconds: float) -> None:
    assert Robots(text, ("pairmill",)).delay_s == seconds


@pytest.mark.parametrize(
    ("text", "path", "refused"),
    [
        (only("Content-Signal: search=yes, ai-train=no\nAllow: /"), "/x", True),
        (only("Content-Signal: ai-train=yes"), "/x", False),
        (only("Content-Signal: search=no, ai-input=no"), "/x", False),
        (only("Disallow: /x"), "/x", False),
        (only("Content-Usage: train-ai=n"), "/x", True),
        (only("Content-Usage: train-ai=n\nContent-Usage: /free/ train-ai=y"), "/free/x", False),
        (only("Content-Usage: /shop/ train-ai=n"), "/shop/x", True),
        (only("Content-Usage: /shop/ train-ai=n"), "/blog/x", False),
        ("User-agent: otherbot\nContent-Signal: ai-train=no", "/x", False),
        (only("Content-Signal: ai-train=no") + "\nUser-agent: pairmill\nAllow: /", "/x", False),
        (only("Content-signal: ai-train = no"), "/x", True),
        (only("Allow: /") + "\nUser-agent: pairmill\nContent-Signal: ai-train=no", "/x", True),
    ],
)
def test_a_content_signal_against_training_is_heard(text: str, path: str, refused: bool) -> None:
    robots = Robots(text, ("pairmill",))
    assert robots.refuses_training(SITE + path) is refused


@pytest.mark.parametrize(
    ("value", "refused"),
    [("train-ai=n", True), ("ai-train=no, search=yes", True), ("train-ai=y", False), ("bots=y", None)],
)
def test_a_usage_field_says_no_yes_or_nothing(value: str, refused: bool | None) -> None:
    assert refuses_training(value) is refused


@pytest.mark.parametrize(
    ("text", "path", "allowed"),
    [
        ('[{"location": "/", "tdm-reservation": 1}]', "/x.jpg", False),
        ('[{"location": "/", "tdm-reservation": 0}]', "/x.jpg", True),
        ('{"location": "/", "tdm-reservation": 1, "tdm-policy": "https://x/p"}', "/x.jpg", False),
        ('[{"location": "/", "tdm-reservation": "1"}]', "/x.jpg", False),
        ('[{"location": "/*.jpg$", "tdm-reservation": 1}]', "/a/x.jpg", False),
        ('[{"location": "/*.jpg$", "tdm-reservation": 1}]', "/a/x.png", True),
        ('[{"location": "*.jpg", "tdm-reservation": 1}]', "/a/x.jpg", False),
        ('[{"location": "images/", "tdm-reservation": 1}]', "/images/x", False),
        (
            '[{"location": "/", "tdm-reservation": 1}, {"location": "/free/", "tdm-reservation": 0}]',
            "/free/x",
            True,
        ),
        (
            '[{"location": "/free/", "tdm-reservation": 0}, {"location": "/", "tdm-reservation": 1}]',
            "/x",
            False,
        ),
        ('[{"location": "/a b#c", "tdm-reservation": 1}]', "/a%20b%23c", False),
        ('[{"location": "/\\nAllow: /", "tdm-reservation": 1}]', "/x", True),
    ],
)
def test_a_tdmrep_file_reserves_what_it_names(text: str, path: str, allowed: bool) -> None:
    rules = read_tdmrep(text.encode())
    assert rules is not None
    assert rules.allows(SITE + path) is allowed


@pytest.mark.parametrize(
    "text", ["", "<html>", "[]", "{}", "[1, 2]", '[{"location": 7}]', "null", "[" * 100_000]
)
def test_what_is_no_tdmrep_file_reserves_nothing(text: str) -> None:
    assert read_tdmrep(text.encode()) is None


@pytest.mark.parametrize(
    ("value", "reserved"), [("1", True), (" 1 ", True), ("0", False), ("", False), ("10", False), (1, True)]
)
def test_a_reservation_is_1(value: object, reserved: bool) -> None:
    assert is_reserved(value) is reserved
