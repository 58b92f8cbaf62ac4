"""What a WAT record says of pictures: its fast reading, out of its bytes, is that of all of its JSON."""

from __future__ import annotations

import orjson
import pytest
from archives import DATE, PAGE, image, wat_json
from hypothesis import given, settings
from hypothesis import strategies as st

from pairmill.crawl.images import Page
from pairmill.crawl.wat import wat_page, whole_page
from pairmill.errors import RowError


def test_a_wat_record_gives_what_it_says_of_pictures() -> None:
    head = {
        "Title": 'A "page"',
        "Base": "/base/",
        "Metas": [
            {"property": "og:image", "content": "/og.jpg"},
            {"property": "og:image:alt", "content": "A card"},
            {"name": "robots", "content": "noai"},
            {"http-equiv": "content-language", "content": "fr"},
        ],
    }
    links = [
        {"path": "A@/href", "url": "x.html", "text": "IMG@/src"},
        image("1.jpg", alt="One"),
        image("1.jpg", alt="One"),
        image("2.jpg", alt="", title="Two"),
        image("3.jpg"),
        image("4.jpg", alt='{"path":"IMG@/src"} \\ "'),
        image("data:x", alt="Inline"),
        {"path": "IMG@/srcset", "url": "s.jpg 1x, m.jpg 2x", "alt": "Sizes"},
        {"path": "IMG@/data-src", "url": "lazy.jpg", "alt": "Lazy"},
        {"path": "IMG@/longdesc", "url": "about.html", "alt": "No picture"},
    ]
    body = wat_json(links, head=head, headers={"X-Robots-Tag": "noimageai"})
    page = wat_page(body)
    assert page is not None
    assert page == whole_page(body)
    assert page.images == [
        ("/og.jpg", "A card", "og"),
        ("1.jpg", "One", "alt"),
        ("2.jpg", "Two", "title"),
        ("4.jpg", '{"path":"IMG@/src"} \\ "', "alt"),
        ("m.jpg", "Sizes", "alt"),
        ("lazy.jpg", "Lazy", "alt"),
    ]
    assert (page.n_without_text, page.n_inline, page.n_copies) == (1, 1, 1)
    assert (page.base, page.title, page.language) == ("https://a.org/base/", 'A "page"', "fr")
    assert page.signals == {"robots": "noai", "x-robots-tag": "noimageai"}
    assert (page.url, page.date) == (PAGE, DATE)


BRACES = [
    {"path": "IMG@/src", "url": "}", "alt": "{"},
    {"path": "IMG@/src", "url": '"}', "alt": "{"},
    {"path": "IMG@/src", "url": "},{", "title": "x"},
    {"alt": "A {", "path": "IMG@/src", "url": "x"},
    {"title": "A {", "alt": "", "path": "IMG@/src", "url": "x"},
    {"url": "{", "alt": "", "title": "x {", "path": "IMG@/src"},
    {"alt": "A:", "path": "IMG@/src", "url": "x:"},
]


@pytest.mark.parametrize("link", BRACES)
def test_a_brace_at_the_end_of_a_string_loses_no_picture(link: dict[str, str]) -> None:
    body = wat_json([image("1.jpg", alt="One"), link, image("2.jpg")])
    page = wat_page(body)
    assert page == whole_page(body)
    assert page is not None
    assert (len(page.images), page.n_without_text) == (2, 1)


def test_two_links_with_braces_do_not_become_one() -> None:
    body = wat_json([{"path": "IMG@/src", "url": "x", "alt": "}"}, {"url": "{", "path": "IMG@/src"}])
    page = wat_page(body)
    assert page is not None
    assert (page.images, page.n_without_text) == ([("x", "}", "alt")], 1)


PIECES = st.sampled_from([*'{}[]",:\\ a', "IMG@/", '"path":"IMG@/src"', '{"', '"}', "é"])
NASTY = st.lists(PIECES, max_size=12).map("".join)
LINK = st.fixed_dictionaries(
    {"path": st.sampled_from(["IMG@/src", "A@/href", "IMG@/srcset"]), "url": NASTY},
    optional={"alt": NASTY, "title": NASTY},
)
HEAD = st.fixed_dictionaries(
    {},
    optional={
        "Title": NASTY,
        "Base": NASTY,
        "Metas": st.lists(st.fixed_dictionaries({"name": st.just("robots"), "content": NASTY}), max_size=2),
    },
)


@settings(deadline=None)
@given(links=st.lists(LINK, max_size=5), head=HEAD, order=st.booleans())
def test_the_fast_reading_of_a_wat_is_that_of_all_its_json(links: list, head: dict, order: bool) -> None:
    body = wat_json(links, head=head, headers={"Content-Language": "en"})
    if order:  # records of 2015 have the links before the head
        said = orjson.loads(body)
        html = said["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
        html["Head"] = html.pop("Head")
        body = orjson.dumps(said)
    if b"IMG@" in body:
        assert wat_page(body) == whole_page(body)


@pytest.mark.parametrize("metas", [[], [{}], [{"name": "robots", "content": "}]"}], [{"name": "\\robots"}]])
@pytest.mark.parametrize("more", [{}, {"Title": '"Metas":[{"name":"robots"}]'}, {"Title": 7}, {"Base": None}])
def test_an_odd_head_is_read_as_all_of_the_json_is(metas: list, more: dict) -> None:
    body = wat_json([image("x.jpg", alt="X")], head={**more, "Metas": metas})
    try:
        expected = whole_page(body)
    except RowError as error:
        with pytest.raises(RowError, match=error.reason):
            wat_page(body)
    else:
        assert wat_page(body) == expected


TEXTS = st.sampled_from([None, "", " ", "A", " A ", "B"])
URLS = st.sampled_from([None, "", "https://a.org/1.jpg", "1.jpg", "data:x", "HTTP://a.org/1.jpg"])


@given(url=URLS, alt=TEXTS, title=TEXTS)
def test_an_image_is_taken_as_any_picture_with_two_texts_is(
    url: str | None, alt: str | None, title: str | None
) -> None:
    quick, slow = Page(PAGE, PAGE), Page(PAGE, PAGE)
    quick.add_image(url, alt, title)
    slow.add(url, (("alt", alt), ("title", title)))
    assert quick == slow


@pytest.mark.parametrize(
    "body", [b"", b"IMG@", b'{"Envelope": "IMG@"}', b"[IMG@]", wat_json([image("x")])[:-9]]
)
def test_a_wat_record_that_is_no_json_costs_itself(body: bytes) -> None:
    if body == b"":
        assert wat_page(body) is None
    else:
        with pytest.raises(RowError, match="record_unreadable"):
            wat_page(body)
