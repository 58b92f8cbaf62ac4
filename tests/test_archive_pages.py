"""What a page says of its pictures, in HTML and in WAT: which URL of an element counts, in which encoding."""

from __future__ import annotations

import time

import pytest
from archives import DATE, PAGE

from pairmill.crawl.charset import page_text
from pairmill.crawl.images import Page, base_of, best_url, largest, resolve
from pairmill.crawl.page import html_page
from pairmill.crawl.url import canonical_url
from pairmill.errors import RowError


def read(html: str | bytes, **headers: str) -> Page:
    body = html.encode() if isinstance(html, str) else html
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    return html_page(body, PAGE, DATE, said.get)


@pytest.mark.parametrize(
    ("srcset", "url"),
    [
        ("a.jpg 1x, b.jpg 2x", "b.jpg"),
        ("a.jpg 480w, b.jpg 1080w, c.jpg 800w", "b.jpg"),
        ("a.jpg", "a.jpg"),
        ("a.jpg, b.jpg 1.5x", "b.jpg"),
        ("a.jpg 100w 50h, b.jpg 90w 500h", "a.jpg"),
        ("/x,y/a.jpg 100w,/x,z/b.jpg 200w", "/x,z/b.jpg"),
        ("data:image/gif;base64,AA== 1x, b.jpg 0.5x", "b.jpg"),
        (" , ,a.jpg 2x,", "a.jpg"),
        ("a.jpg 1x, b.jpg 1x", "a.jpg"),
        ("", None),
    ],
)
def test_the_largest_of_a_srcset_is_taken(srcset: str, url: str | None) -> None:
    assert largest(srcset) == url


BLANK = "data:image/gif;base64,R0lGODlhAQABAAAAACw="


@pytest.mark.parametrize(
    ("attributes", "url"),
    [
        ({"src": "a.jpg"}, "a.jpg"),
        ({"src": "a.jpg", "srcset": "b.jpg 2x"}, "b.jpg"),
        ({"src": BLANK, "data-src": "a.jpg"}, "a.jpg"),
        ({"data-original": "a.jpg"}, "a.jpg"),
        ({"src": "/img/blank.gif", "data-lazy-src": "a.jpg"}, "a.jpg"),
        ({"src": BLANK, "data-srcset": "a.jpg 1x, b.jpg 2x", "data-src": "c.jpg"}, "b.jpg"),
        ({"src": "small.jpg", "data-src": "a.jpg"}, "small.jpg"),
        ({"src": "/lazy-dog-photo.jpg"}, "/lazy-dog-photo.jpg"),
        ({"src": "/blank.gif"}, "/blank.gif"),
        ({"src": BLANK}, BLANK),
        ({}, None),
    ],
)
def test_a_placeholder_gives_way_to_the_lazy_url(attributes: dict[str, str], url: str | None) -> None:
    assert best_url(attributes.get) == url


def test_a_page_gives_each_picture_with_each_of_its_texts() -> None:
    page = read(
        """<!doctype html><html lang="de-AT"><head><title> A  page </title>
        <meta name="Robots" content="noai"><meta name="tdm-reservation" content="1">
        <meta property="og:image" content="/og.jpg"><meta property="og:image:alt" content="A card">
        <meta property="og:image" content="/og2.jpg">
        <script type="application/ld+json">{"@graph": [{"@type": "ImageObject", "contentUrl": "ld.jpg",
          "caption": "Linked", "name": "Linked"}, {"image": {"@type": ["ImageObject"], "url": "ld2.jpg",
          "description": "Deep"}}]}</script><script type="application/ld+json">{broken</script></head>
        <body><img src="1.jpg" alt=" One "><img src="2.jpg" alt="" title="Two"><img src="3.jpg">
        <img src="4.jpg" alt="Four" title="Four"><img src="data:x" alt="Five">
        <figure><div><img src="6.jpg" alt="Six"></div><figcaption>The <b>sixth</b></figcaption></figure>
        <picture><source srcset="7.webp 1x, 7b.webp 2x"><img data-x="" alt="Seven"></picture>
        <script>document.write('<img src="no.jpg" alt="No">')</script><!-- <img src="no.jpg" alt="No"> -->
        </body></html>""",
        x_robots_tag="noimageai",
    )
    assert page.images == [
        ("1.jpg", "One", "alt"),
        ("2.jpg", "Two", "title"),
        ("4.jpg", "Four", "alt"),
        ("6.jpg", "Six", "alt"),
        ("6.jpg", "The sixth", "figcaption"),
        ("7b.webp", "Seven", "alt"),
        ("/og.jpg", "A card", "og"),
        ("ld.jpg", "Linked", "jsonld"),
        ("ld2.jpg", "Deep", "jsonld"),
    ]
    assert (page.n_without_text, page.n_inline) == (2, 1)
    assert (page.url, page.title, page.language, page.date) == (PAGE, "A page", "de-AT", DATE)
    assert page.signals == {"robots": "noai", "tdm-reservation": "1", "x-robots-tag": "noimageai"}


def test_the_language_is_the_elements_then_the_metas_then_the_servers() -> None:
    assert read('<html lang="fr"><meta name="language" content="de">').language == "fr"
    assert read('<meta http-equiv="Content-Language" content="de">', content_language="en").language == "de"
    assert read("<p>", content_language="en").language == "en"
    assert read("<p>").language is None


@pytest.mark.parametrize(
    ("href", "base"),
    [
        ("https://cdn.org/x/", "https://cdn.org/x/"),
        ("/top/", "https://a.org/top/"),
        ("ftp://f.org/", "ftp://f.org/"),
        ("data:text/html,x", PAGE),
        ("javascript:1", PAGE),
        ("https://[broken", PAGE),
        ("", PAGE),
        (None, PAGE),
    ],
)
def test_a_base_holds_unless_it_is_none(href: str | None, base: str) -> None:
    assert base_of(PAGE, href) == base


# Of the URL Standard's test data (web-platform-tests, url/resources/urltestdata.json): input and href.
BASE = "http://example.org/foo/bar"
WHATWG = {
    "http:foo.com": "http://example.org/foo/foo.com",
    "\t   :foo.com   \n": "http://example.org/foo/:foo.com",
    " foo.com  ": "http://example.org/foo/foo.com",
    "http://f:00000000000000000000080/c": "http://f/c",
    "http://f:b/c": None,
    "http://f: /c": None,
    "http://f:\n/c": "http://f/c",
    "http://f:fifty-two/c": None,
    "http://f:999999/c": None,
    "http://f: 21 / b ? d # e ": None,
    "": "http://example.org/foo/bar",
    "  \t": "http://example.org/foo/bar",
    ":foo.com/": "http://example.org/foo/:foo.com/",
    ":foo.com\\": "http://example.org/foo/:foo.com/",
    ":": "http://example.org/foo/:",
    ":\\": "http://example.org/foo/:/",
    ":#": "http://example.org/foo/:",
    "#": "http://example.org/foo/bar",
    "#;?": "http://example.org/foo/bar",
    "?": "http://example.org/foo/bar?",
    "/": "http://example.org/",
    "/:23": "http://example.org/:23",
    "\\x": "http://example.org/x",
    "\\\\x\\hello": "http://x/hello",
    "::": "http://example.org/foo/::",
    "::23": "http://example.org/foo/::23",
    "http::@c:29": "http://example.org/foo/:@c:29",
    "http://foo.com/\\@": "http://foo.com//@",
    "http:\\\\foo.com\\": "http://foo.com/",
    "http:\\\\a\\b:c\\d@foo.com\\": "http://a/b:c/d@foo.com/",
}


@pytest.mark.parametrize(("url", "href"), WHATWG.items())
def test_relative_urls_are_resolved_as_the_standard_has_it(url: str, href: str | None) -> None:
    """But for what pairmill decides: no fragment, and surrounding spaces are not part of a URL in a list."""
    resolved = resolve(url, BASE)
    assert resolved is not None
    if href is None:
        with pytest.raises(RowError, match="url_invalid"):
            canonical_url(resolved)
    else:
        assert canonical_url(resolved) == href


def test_character_references_are_decoded_before_a_url_is_resolved() -> None:
    assert resolve("a.jpg?x=1&#038;y=2", BASE) == "http://example.org/foo/a.jpg?x=1&y=2"
    assert resolve("a.jpg", "mailto:x") is None


SAID = "Größe 日本"


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        (SAID.encode(), None, SAID),
        (b"\xef\xbb\xbf" + SAID.encode(), "text/html; charset=latin1", SAID),
        (b"\xff\xfe" + SAID.encode("utf-16-le"), None, SAID),
        ("Größe".encode("latin1"), "text/html; charset=ISO-8859-1", "Größe"),
        (
            b"<meta charset='windows-1251'>" + "Привет".encode("cp1251"),
            None,
            "<meta charset='windows-1251'>Привет",
        ),
        (
            b"<meta charset=shift_jis>" + "写真".encode("shift_jis"),
            "text/html",
            "<meta charset=shift_jis>写真",
        ),
        ("Привет, мир. Как дела?".encode("cp1251"), None, "Привет, мир. Как дела?"),
        (SAID.encode(), "text/html; charset=no-such", SAID),
        (SAID.encode() * 3 + b"\xff", "text/html; charset=utf-8", SAID * 3 + "\ufffd"),
        ("写真".encode("iso-2022-jp"), "text/html; charset=iso-2022-jp", "写真"),
        ("“x”".encode("cp1252"), "text/html; charset=utf-8", "“x”"),
    ],
)
def test_a_page_is_read_in_its_encoding(body: bytes, content_type: str | None, text: str) -> None:
    assert page_text(body, content_type) == text


@pytest.mark.parametrize(
    ("html", "reason"),
    [
        ("<img " + " ".join(f"a{i}=1" for i in range(50_000)) + ">", "page_attributes"),
        ("<img alt='" + "x" * 10_000_000 + "'>", "page_too_long"),
        ("<div>" * 200_000, "page_too_deep"),
        ("<div>" * 200_000 + "</div>" * 200_000, "page_too_deep"),
        ("<a><b>" * 100_000, "page_too_deep"),
        ('<b a="' * 300_000, "page_attributes"),
    ],
)
def test_a_page_that_would_take_too_long_is_refused_at_once(html: str, reason: str) -> None:
    """Each would take the parser minutes."""
    begun = time.process_time()
    with pytest.raises(RowError, match=reason):
        read(html)
    assert time.process_time() - begun < 2


def test_an_ordinary_long_page_is_not_refused() -> None:
    rows = "<tr><td><p>x<img src='a.jpg' alt='b'>" * 5_000
    assert len(read(f"<table>{rows}</table>").images) == 5_000
    nested = "<div>" * 400 + "<img src='a.jpg' alt='b' data-x='" + "y " * 5_000 + "'>" + "</div>" * 400
    assert len(read(nested * 10).images) == 10


def test_a_page_of_100_000_pictures_is_read_in_one_go() -> None:
    caption = "<figcaption>" + "x" * 100_000 + "</figcaption>"
    page = read("<figure>" + '<img src="a.jpg" alt="b">' * 100_000 + caption + "</figure>")
    assert len(page.images) == 200_000
