"""Reading lists of every kind: what is found, what is refused beforehand, what breaks in the middle."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import json
import math
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import aiohttp
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pairmill.crawl import lists
from pairmill.crawl.columns import find_columns
from pairmill.crawl.given import json_objects
from pairmill.crawl.lists import list_inputs, read_input
from pairmill.crawl.rows import BATCH_ROWS
from pairmill.errors import ConfigError, DataError, RetryableError
from pairmill.recipe import Ingest

Row = tuple[bytes | None, bytes | None, dict[str, object] | None, str | None]
PAIRS = [(f"http://a.com/{i}.jpg", f"caption {i}") for i in range(3)]


def rows(path: Path | str, **settings: object) -> list[Row]:
    """Every row of a list: URL, caption, given, and why it is unreadable."""
    batches = [b for b, _ in read_input(str(path), Ingest(**settings), source="list")]  # type: ignore[arg-type]
    return [
        (row["url"], row["caption"], row["given"] and json.loads(row["given"]), row["unreadable"])
        for batch in batches
        for row in batch.to_pylist()
    ]


def texts(path: Path | str, **settings: object) -> list[tuple[str, str]]:
    """URLs and captions of a list whose rows are all readable."""
    return [
        ((url or b"").decode(), (caption or b"").decode()) for url, caption, _, _ in rows(path, **settings)
    ]


def inputs(*paths: Path | str, **settings: object) -> list[str]:
    found = list_inputs(Ingest(input=tuple(map(str, paths)), **settings))  # type: ignore[arg-type]
    return [file.source for file in found]


def as_csv(pairs: list[tuple[str, str]]) -> bytes:
    return "\n".join(["url,caption", *(f'{url},"{caption}"' for url, caption in pairs), ""]).encode()


def as_tsv(pairs: list[tuple[str, str]]) -> bytes:
    return "\n".join(["url\tcaption", *map("\t".join, pairs), ""]).encode()


def as_txt(pairs: list[tuple[str, str]]) -> bytes:
    return "\r\n".join(map("\t".join, pairs)).encode()


def as_jsonl(pairs: list[tuple[str, str]]) -> bytes:
    return "\n".join(json.dumps({"caption": caption, "url": url}) for url, caption in pairs).encode()


def as_parquet(pairs: list[tuple[str, str]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"URL": [p[0] for p in pairs], "TEXT": [p[1] for p in pairs]}), out)
    return out.getvalue()


KINDS = {
    "csv": as_csv,
    "tsv": as_tsv,
    "txt": as_txt,
    "jsonl": as_jsonl,
    "json": as_jsonl,
    "parquet": as_parquet,
}
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize(("kind", "codec"), [(k, c) for k in KINDS for c in PACK if k != "parquet" or not c])
def test_every_kind_of_list_gives_the_same_rows(kind: str, codec: str, tmp_path: Path) -> None:
    path = tmp_path / f"list.{kind}{codec}"
    path.write_bytes(PACK[codec](KINDS[kind](PAIRS)))
    assert texts(path) == PAIRS
    assert inputs(path) == [path.name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_several_batches_is_whole_and_in_order(kind: str, tmp_path: Path) -> None:
    pairs = [(f"http://a.com/{i}", f"c {i}") for i in range(BATCH_ROWS + 70)]
    path = tmp_path / f"list.{kind}"
    path.write_bytes(KINDS[kind](pairs))
    assert texts(path) == pairs
    shares = [share for _, share in read_input(str(path), Ingest(), source="list")]
    assert len(shares) == 2
    assert sorted(shares) == shares


@pytest.mark.parametrize(
    ("names", "url", "caption"),
    [
        (["URL", "TEXT", "similarity"], "URL", "TEXT"),
        (["uid", "url", "text", "original_width"], "url", "text"),
        (["image_id", "url", "raw_caption", "caption"], "url", "caption"),
        (["id", "image_url", "title"], "image_url", "title"),
        (["thumbnailUrl", "title", "url_page"], "thumbnailUrl", "title"),
        (["OriginalLandingURL", "OriginalURL", "Author", "Title"], "OriginalURL", "Title"),
        (["image_urls", "captions"], "image_urls", "captions"),
        (["Image URL", "Alt-Text"], "Image URL", "Alt-Text"),
        (
            ["page", "image_url", "caption_reference_description"],
            "image_url",
            "caption_reference_description",
        ),
        (["url"], "url", None),
    ],
)
def test_columns_are_found_by_their_usual_names(names: list[str], url: str, caption: str | None) -> None:
    found = find_columns(names, Ingest(), "list")
    assert (found.url, found.caption) == (url, caption)
    assert found.others == tuple(name for name in names if name not in (url, caption))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(("suffix", "mark"), [("tsv", "\t"), ("csv", ",")])
def test_a_list_without_header_starts_at_its_first_row(
    order: tuple[int, int], suffix: str, mark: str, tmp_path: Path
) -> None:
    path = tmp_path / f"cc.{suffix}"
    path.write_text("\n".join(mark.join(pair[i] for i in order) for pair in PAIRS))
    assert texts(path) == PAIRS


def test_a_list_without_header_and_with_more_columns_must_be_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("7\thttp://a.com/1\tone\n8\thttp://a.com/2\ttwo\n")
    with pytest.raises(ConfigError, match=r"no header.*'column_3'.*ingest.caption_column"):
        inputs(path)
    assert rows(path, caption_column="column_3")[1] == (b"http://a.com/2", b"two", {"column_1": "8"}, None)


def test_columns_may_be_named_and_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("link,words,w,h\nhttp://a.com/1,one,3,4\n")
    named = {"url_column": "link", "caption_column": "words"}
    assert rows(path, **named)[0][2] == {"h": "4", "w": "3"}
    assert rows(path, **named, carry=("w",))[0][2] == {"w": "3"}
    assert rows(path, **named, carry=())[0][2] is None
    with pytest.raises(
        ConfigError, match=r"a\.csv: no url column among 'link', 'words'.*ingest\.url_column="
    ):
        inputs(path)
    with pytest.raises(ConfigError, match="did you mean 'words'"):
        inputs(path, url_column="link", caption_column="word")
    with pytest.raises(ConfigError, match=r"no column 'x' \(ingest.carry\)"):
        inputs(path, **named, carry=("x",))


def test_a_quoted_line_break_is_part_of_a_csv_caption(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'\xef\xbb\xbfurl,caption\r\nhttp://a.com/1,"one\r\n""two"""\r\n\r\nhttp://a.com/2,x\r\n'
    )
    assert texts(path) == [("http://a.com/1", 'one\r\n"two"'), ("http://a.com/2", "x")]


def test_a_stray_quote_in_a_tsv_eats_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('http://a.com/1\t"one\nhttp://a.com/2\t"two ""x"""\nhttp://a.com/3\t3" pipe\n')
    assert [caption for _, caption in texts(path)] == ['"one', 'two "x"', '3" pipe']


def test_bad_csv_rows_cost_themselves(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    huge = b"x" * (3 * 2**20)
    lines = [
        b"url,caption,n",
        b"http://a.com/1,a\0b,1",
        b"http://a.com/2",
        b"u,c,n,extra",
        b"http://a.com/3,\xff\xe9,\xff",
    ]
    path.write_bytes(b"\n".join([*lines, b"http://a.com/4," + huge + b",4", b"http://a.com/5,ok,5", b""]))
    bad = (None, None, {"n": None}, "row_unreadable")
    assert [(url, text) for url, text, _, _ in rows(path)] == [
        *[(b"http://a.com/1", b"a\0b"), (None, None), (None, None)],
        *[
            (b"http://a.com/3", "\udcff\udce9".encode("utf-8", "surrogatepass")),
            (None, None),
            (b"http://a.com/5", b"ok"),
        ],
    ]
    assert [row[3] for row in rows(path)] == [None, *["row_unreadable"] * 2, None, "row_unreadable", None]
    assert rows(path)[1] == bad
    assert rows(path)[3][2] == {"n": "\ufffd\ufffd\ufffd"}


def test_bad_json_rows_cost_themselves(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        b'{"url": "http://a.com/1", "text": "one", "w": NaN, "z": {"b": [1], "a": 2.5}}',
        b"{broken",
        b'["a", "list"]',
        b'{"url": "http://a.com/2", "text": ["a", "b"]}',
        b'{"url": "http://a.com/3", "text": "\\ud800"}',
        b'{"url": null, "text": 7, "more": true}',
        b"",
        b"[" * 100_000,
        b'{"url": "http://a.com/4"}',
    ]
    path.write_bytes(b"\n".join(lines))
    bad = (None, None, None, "row_unreadable")
    assert rows(path) == [
        (b"http://a.com/1", b"one", {"w": None, "z": {"a": 2.5, "b": [1]}}, None),
        *[bad, bad, bad],
        (b"http://a.com/3", b"\xed\xa0\x80", None, None),
        (None, b"7", {"more": True}, None),
        bad,
        (b"http://a.com/4", b"", None, None),
    ]


def test_lines_of_plain_text_may_have_no_caption(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("http://a.com/1\nhttp://a.com/2\ttwo\tand more\n\nhttp://a.com/3\t\n")
    assert [(url, caption) for url, caption, _, _ in rows(path)] == [
        (b"http://a.com/1", None),
        (b"http://a.com/2", b"two\tand more"),
        (b"http://a.com/3", b""),
    ]


def test_parquet_of_any_text_type_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    url = pa.array(["http://a.com/1", None]).dictionary_encode()
    caption = pa.array([b"\xff", None], pa.large_binary())
    pq.write_table(pa.table({"url": url, "caption": caption, "n": [1, None]}), path)
    assert rows(path) == [(b"http://a.com/1", b"\xff", {"n": 1}, None), (None, b"", {"n": None}, None)]
    pq.write_table(pa.table({"url": ["a"], "caption": [["x"]]}), path)
    with pytest.raises(ConfigError, match="column 'caption' holds list"):
        inputs(path)


def test_given_is_json_with_sorted_keys() -> None:
    values = {
        "z": pa.array(['a"b\\c\n\x1b', None, "é"]),
        "f": pa.array([0.1, math.nan, math.inf]),
        "f32": pa.array([0.1, 1e30, None], pa.float32()),
        "i": pa.array([2**63 - 1, None, -1]),
        "b": pa.array([True, None, False]),
        "d": pa.array([date(2020, 1, 2), None, None]),
        "m": pa.array([Decimal("1.50"), None, None]),
        "raw": pa.array([b"\xff\x00", None, b""]),
        "l": pa.array([[{"y": 1.5, "x": math.nan}], None, []]),
        "null": pa.nulls(3),
        'odd "name"': pa.array(["x", "y", "z"]),
    }
    made = json_objects(values, 3).to_pylist()
    first = json.loads(made[0])
    assert list(first) == sorted(values)
    assert first == {
        **{
            "z": 'a"b\\c\n\x1b',
            "f": 0.1,
            "f32": 0.1,
            "i": 2**63 - 1,
            "b": True,
            "d": "2020-01-02",
            "m": "1.50",
        },
        **{"raw": "ff00", "l": [{"x": None, "y": 1.5}], "null": None, 'odd "name"': "x"},
    }
    assert json.loads(made[1]) == {
        name: "y" if name.startswith("odd") else 1e30 if name == "f32" else None for name in values
    }
    assert json.loads(made[2])["f"] is None


def test_a_folder_stands_for_its_lists_sorted(tmp_path: Path) -> None:
    for name in ("b/2.csv", "a.csv", "b/1.csv.gz", "_tmp/x.csv", ".hidden.csv", "notes.md", "b/_SUCCESS"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(as_csv(PAIRS)) if name.endswith("gz") else as_csv(PAIRS))
    assert inputs(tmp_path) == ["a.csv", "b/1.csv.gz", "b/2.csv"]
    assert inputs(f"{tmp_path}/b/*.csv*") == ["1.csv.gz", "2.csv"]
    assert inputs(f"{tmp_path}/**/2.csv") == ["b/2.csv"]
    assert inputs(tmp_path / "a.csv", tmp_path / "a.csv") == ["a.csv"]
    assert inputs(f"file://{tmp_path}/a.csv", tmp_path / "b") == ["a.csv", "1.csv.gz", "2.csv"]


def test_lists_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.csv").write_bytes(as_csv(PAIRS))
    assert inputs(tmp_path / "x", tmp_path / "y") == ["a.csv", "a.csv#1"]


def test_a_relative_path_stays_as_it_was_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_bytes(as_csv(PAIRS))
    monkeypatch.chdir(tmp_path)
    for text in ("in", "in/*", "*/a.csv", "in/a.csv"):
        assert [file.path for file in list_inputs(Ingest(input=(text,)))] == ["in/a.csv"]


def test_lists_are_read_from_any_filesystem() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/lists/a.csv.gz", gzip.compress(as_csv(PAIRS)))
    fs.pipe("/lists/b.parquet", as_parquet(PAIRS))
    found = list_inputs(Ingest(input=("memory://lists",)))
    assert [file.source for file in found] == ["a.csv.gz", "b.parquet"]
    assert [texts(file.path) for file in found] == [PAIRS, PAIRS]


def broken(kind: str) -> bytes:
    """A list that is cut, empty, or not what its name says."""
    return {
        "cut.parquet": as_parquet(PAIRS)[:-10],
        "cut.csv.gz": gzip.compress(as_csv(PAIRS))[:-12],
        "cut.jsonl.zst": zstandard.compress(as_jsonl(PAIRS))[:-4],
        "not.csv.gz": as_csv(PAIRS),
        "empty.csv": b"",
        "empty.csv.gz": gzip.compress(b""),
        "header.tsv": b"url\tcaption\n",
        "blank.txt": b"\n\n",
        "none.parquet": as_parquet([]),
        "config.json": b'{\n"version": 3,\n"names": ["a", "b"]\n}',
        "cut.json": b'[{"url": "http://a.com/1",\n "caption": "x"},',
        "one.jsonl": b'{"url": "http://a.com/1", "caption": "x"}\n' + b"oops\n" * 9,
        "gbk.csv": b"url,caption\n" + 9 * "http://a.com/1,一只红色的猫\n".encode("gbk"),
        "page.csv": b"<!DOCTYPE html><html><body>404</body></html>",
        "sheet.csv": b"PK\x03\x04\x14\x00",
        "pointer.parquet": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "names.txt": b"1.jpg\n2.jpg\n",
        "twice.csv": b"url,caption,caption\nhttp://a.com/1,a,b\n",
        "list.xlsx": b"PK",
    }[kind]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("cut.parquet", "not a whole Parquet file"),
        ("cut.csv.gz", "cannot be read as csv .*runcated"),
        ("cut.jsonl.zst", "cannot be read as jsonl .*runcated"),
        ("not.csv.gz", "cannot be read as csv"),
        ("empty.csv", "holds no rows"),
        ("empty.csv.gz", "holds no rows"),
        ("header.tsv", "a header and no rows"),
        ("blank.txt", "holds no rows"),
        ("none.parquet", "holds no rows"),
        ("config.json", "expected one object on each line"),
        ("cut.json", "without its closing ]"),
        ("one.jsonl", "9 of the first 10 rows are not JSON objects.*ingest.max_unreadable"),
        ("gbk.csv", "9 of the first 9 rows are not UTF-8.*--set ingest.encoding=NAME"),
        ("page.csv", "is a page"),
        ("sheet.csv", "is a ZIP archive"),
        ("pointer.parquet", "is a Git LFS pointer"),
        ("names.txt", "expected URL or URL<tab>caption.*'1.jpg'"),
        ("twice.csv", "two columns are named 'caption'"),
        ("list.xlsx", "unknown kind of list; lists end in .parquet"),
    ],
)
def test_a_list_that_cannot_work_is_refused_before_anything_starts(
    name: str, problem: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(broken(name))
    with pytest.raises(ConfigError, match=f"{name}: .*{problem}"):
        inputs(tmp_path / name)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ConfigError, match="no such list, folder or glob"):
        inputs(tmp_path / "missing.csv")
    with pytest.raises(ConfigError, match="no lists among 1 files"):
        inputs(tmp_path)
    with pytest.raises(ConfigError, match=r"\*\.csv: no such list, folder or glob"):
        inputs(f"{tmp_path}/*.csv")
    with pytest.raises(ConfigError, match="cannot be listed"):
        inputs("nosuch://bucket/a.csv")
    with pytest.raises(ConfigError, match="at least one list"):
        inputs()


def test_a_broken_list_in_a_folder_is_left_to_its_task(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(broken("cut.parquet"))
    (tmp_path / "e.csv").write_bytes(b"")
    with pytest.raises(ConfigError, match="not a whole Parquet file"):
        inputs(tmp_path)
    (tmp_path / "b.csv").write_bytes(as_csv(PAIRS))
    assert inputs(tmp_path) == ["a.parquet", "b.csv", "e.csv"]
    assert texts(tmp_path / "e.csv") == []
    with pytest.raises(DataError, match=r"list: .*a\.parquet: not a whole Parquet file"):
        rows(tmp_path / "a.parquet")


@pytest.mark.parametrize("codec", [".gz", ".zst"])
def test_a_list_cut_in_the_middle_names_the_place(codec: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{codec}"
    whole = PACK[codec](as_txt([(f"http://a.com/{i * 7919}", "x") for i in range(3 * BATCH_ROWS)]))
    path.write_bytes(whole[:-9])
    assert inputs(path) == [path.name]
    with pytest.raises(DataError, match=r"list, after row [1-9]\d+: the list breaks off .*fetch .* again"):
        rows(path)


def test_a_parquet_broken_in_the_middle_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    urls = [f"http://a.com/{i * 7919}" for i in range(2 * BATCH_ROWS)]
    table = pa.table({"url": urls, "text": urls})
    pq.write_table(table, path, row_group_size=BATCH_ROWS, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    data[start : start + 2_000] = b"\xff" * 2_000
    path.write_bytes(data)
    assert inputs(path) == ["a.parquet"]
    with pytest.raises(DataError, match=rf"list, after row {BATCH_ROWS}: the list breaks off"):
        rows(path)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("closed by the other side"),
        OSError(errno.EIO, "Input/output error"),
        TimeoutError(),
        aiohttp.ClientPayloadError("Response payload is not completed"),
    ],
)
def test_a_list_that_the_network_cut_off_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(as_csv(PAIRS))

    class Breaking(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise error

        readinto = readinto1 = read  # type: ignore[assignment]

    monkeypatch.setattr(lists, "open_input", lambda _: contextlib.nullcontext(Breaking(path.read_bytes())))
    with pytest.raises(RetryableError, match=r"^list(, after row 0)?: "):
        rows(path)
