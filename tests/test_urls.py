"""Canonical URLs and normal captions: boundaries, idempotence, the fast path against the slow definition."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairmill.crawl.caption import NORMAL, normal_caption, normal_captions
from pairmill.crawl.url import canonical_url, canonical_urls
from pairmill.errors import RowError

CANONICAL = {
    "http://a.com": "http://a.com/",
    " HTTPS://Example.COM:443/A b?q='x'#part ": "https://example.com/A%20b?q=%27x%27",
    "http://a.com/x/../y/./z": "http://a.com/y/z",
    "http://a.com/%2e%2E/y": "http://a.com/y",
    "http:\\\\a.com\\b": "http://a.com/b",
    "http:a.com/b": "http://a.com/b",
    "//cdn.a.com/b.jpg": "https://cdn.a.com/b.jpg",
    "http://münchen.de/ü.jpg": "http://xn--mnchen-3ya.de/%C3%BC.jpg",
    "http://0x7f.1/": "http://127.0.0.1/",
    "http://2130706433/": "http://127.0.0.1/",
    "http://[::FFFF:1.2.3.4]/": "http://[::ffff:102:304]/",
    "http://a.com:80/": "http://a.com/",
    "http://a.com:443/": "http://a.com:443/",
    "http://a.com/\ta\nb": "http://a.com/ab",
    "http://a.com/\0x": "http://a.com/%00x",
    "http://a.com/?": "http://a.com/?",
    "http://a.com/?#": "http://a.com/?",
    "http://a.com/{x}|[y]`": "http://a.com/%7Bx%7D|[y]%60",
    "http://@a.com/": "http://a.com/",
    "http://a.com./b": "http://a.com./b",
    "http://a.com/x?w=1&#038;id=2#top": "http://a.com/x?w=1&id=2",
    "http://a.com/x?w=1&amp;id=2": "http://a.com/x?w=1&id=2",
    "http://a.com/x?w=1&amp;amp;id=2": "http://a.com/x?w=1&id=2",
    "http://a.com/x?w=1&#x26;id=2&#39;": "http://a.com/x?w=1&id=2%27",
    "&#104;ttp://a.com/&quot;x&quot;.jpg": "http://a.com/%22x%22.jpg",
    "http://a.com/x?a=1&copy=2&region=3&lt=4": "http://a.com/x?a=1&copy=2&region=3&lt=4",
    "http://a.com/x?a=1&nosuch;b": "http://a.com/x?a=1&nosuch;b",
    "http://a.com/x?a&am\tp;b": "http://a.com/x?a&b",
    "http://a.com/x&#35;y": "http://a.com/x",
}
REFUSED = {
    "": "url_missing",
    " \t\n": "url_missing",
    "a.com/b.jpg": "url_invalid",
    "/b.jpg": "url_invalid",
    "http://": "url_invalid",
    "http://a b.com/": "url_invalid",
    "http://1.2.3.4.5/": "url_invalid",
    "http://a.com:99999/": "url_invalid",
    "http://xn--/": "url_invalid",
    "http://a.com/\ud800": "url_invalid",
    "file:///etc/passwd": "url_scheme",
    "data:image/png;base64,AAAA": "url_scheme",
    "javascript:alert(1)": "url_scheme",
    "ftp://a.com/b": "url_scheme",
    "http://user@a.com/": "url_credentials",
    "http://user:pass@a.com/": "url_credentials",
    "http://a.com:8080/": "url_port",
}


def slow(call: Callable[[str | None], str], value: str | None) -> tuple[str | None, str | None]:
    """What the slow definition says: the value, or the reason."""
    try:
        return call(value), None
    except RowError as error:
        return None, error.reason


@pytest.mark.parametrize("text", CANONICAL)
def test_a_url_has_one_spelling(text: str) -> None:
    assert canonical_url(text) == CANONICAL[text]


@pytest.mark.parametrize("text", REFUSED)
def test_a_url_is_refused_by_one_word(text: str) -> None:
    with pytest.raises(RowError, match=f"^{REFUSED[text]}$"):
        canonical_url(text)


def test_ports_are_refused_unless_allowed() -> None:
    assert canonical_url("http://a.com:8080/", ports=(8080,)) == "http://a.com:8080/"
    assert canonical_url("http://a.com:81/", ports=(0,)) == "http://a.com:81/"
    with pytest.raises(RowError, match="url_port"):
        canonical_url("http://a.com:81/", ports=(8080,))


def test_the_length_limit_is_of_the_canonical_url() -> None:
    room = 2_048 - len("http://a.com/")
    assert len(canonical_url("http://a.com/" + "x" * room)) == 2_048
    assert len(canonical_url("http://a.com/" + "x" * room + "#" + "y" * 5_000)) == 2_048
    for text in ("http://a.com/" + "x" * (room + 1), "http://a.com/" + " a" * (room // 3)):
        with pytest.raises(RowError, match="url_too_long"):
            canonical_url(text)


PIECES = st.sampled_from(
    [
        *[
            "http://",
            "https://",
            "//",
            "HTTP:",
            "a.com",
            "A.Com",
            "b-c.de",
            "xn--a",
            "-a.",
            "1.2.3.4",
            "0x7f.1",
        ],
        *[
            "ü.de",
            ":80",
            ":81",
            "u:p@",
            "/",
            "/.",
            "&amp;",
            "&#38;",
            "/..",
            "/%2e",
            "%2E%",
            "%41",
            ".jpg",
            "é",
            "?a=b",
            "?",
            "#f",
        ],
        *"a~'&=;,|[]{}^`\\\"<>*!$() \t\0",
    ]
)
MADE_URLS = st.one_of(st.text(max_size=30), st.lists(PIECES, max_size=9).map("".join))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), MADE_URLS, MADE_URLS.map("http://a.com/".__add__)), max_size=8))
def test_urls_by_column_equal_urls_one_by_one_and_are_idempotent(texts: list[str | None]) -> None:
    values, reasons = canonical_urls(pa.array(texts, pa.string()))
    expected = [slow(canonical_url, text) for text in texts]
    assert list(zip(values.to_pylist(), reasons.to_pylist(), strict=True)) == expected
    kept = [value for value in values.to_pylist() if value is not None]
    assert [canonical_url(value) for value in kept] == kept


CAPTIONS = {
    "  a \t\r\n b\u00a0\u3000c\u2028d ": "a b c d",
    "e\u0301": "é",
    "e\u200b\u0301": "é",
    "\ufeffa\u00adb\x07c\x1b[31m": "abc[31m",
    "a\u202egnp.exe\u202c b": "agnp.exe b",
    "a\u200db\u200c": "ab",
    "👩\u200d🚀": "👩\u200d🚀",
    "می\u200cخواهم": "می\u200cخواهم",
    "क्\u200dष": "क्\u200dष",
    "é\u200d\u200dé": "éé",
    "é \u200d é": "é é",
    "\u212a": "K",
    "<script>alert(1)</script>": "<script>alert(1)</script>",
    "=HYPERLINK(1)": "=HYPERLINK(1)",
    "a\x00b": "ab",
    "x\U000e0041y": "xy",
    "Tom &amp; Jerry&#39;s &quot;cat&quot;&nbsp;&hellip;": 'Tom & Jerry\'s "cat" …',
    "&#8220;a&#8221; &eacute; &#xe9;": "“a” é é",
    "R&D &copy 2020 &nosuch; &;": "R&D &copy 2020 &nosuch; &;",
    "&amp;lt;b&amp;gt;": "&lt;b&gt;",
    "&lt;b&gt;": "<b>",
    "&#0;&#xD800;a": "��a",
}


@pytest.mark.parametrize("text", CAPTIONS)
def test_a_caption_has_one_form(text: str) -> None:
    assert normal_caption(text) == CAPTIONS[text]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "caption_missing"),
        ("\u200b \n", "caption_missing"),
        ("a\ud800", "text_not_utf8"),
        ("é" * 50 + "a", "caption_too_long"),
    ],
)
def test_a_caption_is_refused_by_one_word(text: str | None, reason: str) -> None:
    with pytest.raises(RowError, match=f"^{reason}$"):
        normal_caption(text, max_bytes=100)
    assert normal_caption("é" * 50, max_bytes=100) == "é" * 50


ODD = st.sampled_from(
    [
        *"\u200b\u200c\u200d\u202e\u0301\u0308\u0327\u00a0\u3000\u1100\u1161\u11a8\u3099\u0085\x00\u037e",
        *"가각か ea\u212a",
    ]
)
MADE_CAPTIONS = st.lists(st.one_of(ODD, st.characters(exclude_categories=["Cs"])), max_size=12).map("".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), MADE_CAPTIONS, st.from_regex(NORMAL)), max_size=8))
def test_captions_by_column_equal_captions_one_by_one_and_are_idempotent(texts: list[str | None]) -> None:
    values, reasons = normal_captions(pa.array(texts, pa.string()))
    expected = [slow(normal_caption, text) for text in texts]
    assert list(zip(values.to_pylist(), reasons.to_pylist(), strict=True)) == expected
    kept = [value for value in values.to_pylist() if value is not None]
    assert [normal_caption(value) for value in kept] == kept
    assert all(unicodedata.is_normalized("NFC", value) for value in kept)


def test_every_character_of_the_fast_path_is_its_own_normal_form() -> None:
    every = pa.array([chr(i) for i in range(1, 0x110000) if not 0xD800 <= i < 0xE000], pa.string())
    plain = every.filter(pc.match_substring_regex(every, NORMAL)).to_pylist()
    assert {"a", "é", "中", "한", "か", "Ж", "😀"} <= set(plain)
    assert [normal_caption(text) for text in plain] == plain
    assert all(unicodedata.combining(text) == 0 for text in plain)


@pytest.mark.slow
@pytest.mark.skipif("PAIRMILL_DATA" not in os.environ, reason="needs PAIRMILL_DATA")
def test_both_paths_agree_on_a_real_list() -> None:
    path = Path(os.environ["PAIRMILL_DATA"]) / "urls-reddit" / "reddit-images.parquet"
    table = pq.read_table(path, columns=["url", "text"]).slice(0, 60_000).combine_chunks()
    for name, fast, one in (
        ("url", canonical_urls, canonical_url),
        ("text", normal_captions, normal_caption),
    ):
        column = pa.concat_arrays(table[name].chunks)
        values, reasons = fast(column)
        expected = [slow(one, text) for text in column.to_pylist()]
        assert list(zip(values.to_pylist(), reasons.to_pylist(), strict=True)) == expected
