"""Lists as they are: damaged quoting, other dialects, encodings, shapes of JSON, headers that are none."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.crawl.columns import find_columns, say_choices
from pairmill.crawl.delimited import MAX_CHARS
from pairmill.crawl.lists import list_inputs, read_input
from pairmill.crawl.rows import BATCH_CHARS, chosen_columns
from pairmill.errors import ConfigError, DataError
from pairmill.recipe import Ingest

BAD = None
HEAD = "url,caption\n"


def u(number: int) -> str:
    """The URL of row `number`."""
    return f"http://a.com/{number}.jpg"


def captions(path: Path, **settings: Any) -> list[str | None]:
    """The caption of every row of a list that `list_inputs` accepts, in order; BAD for an unreadable one.

    Asserts that readable rows bear the URLs u(0), u(1), ... at their places.
    """
    made = Ingest(input=(str(path),), **settings)
    assert len(list_inputs(made)) == 1
    rows = [row for batch, _ in read_input(str(path), made, source="list") for row in batch.to_pylist()]
    for number, row in enumerate(rows):
        assert row["unreadable"] or row["url"].decode() == u(number), (number, row)
    return [BAD if row["unreadable"] else (row["caption"] or b"").decode() for row in rows]


@pytest.fixture
def put(tmp_path: Path) -> Any:
    """Writes a list under a name and gives its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


NEVER_ENDED = {
    "at the end of the file": (f'{u(0)},"never\n{u(1)},b\n{u(2)},c\n', [BAD, "b", "c"]),
    "before a quoted row": (
        f'{u(0)},a\n{u(1)},"never\n{u(2)},c\n{u(3)},"d"\n{u(4)},"e, f"\n{u(5)},g\n',
        ["a", BAD, "c", "d", "e, f", "g"],
    ),
    "before a quote that could close it": (f'{u(0)},"never\n{u(1)},12"\n{u(2)},c\n', [BAD, '12"', "c"]),
    "where every field is quoted": (f'"{u(0)}","never\n"{u(1)}","b"\n"{u(2)}","c"\n', [BAD, "b", "c"]),
    "before a caption of several lines": (
        f'{u(0)},"never\n{u(1)},b\n{u(2)},"two\nlines, here"\n{u(3)},d\n',
        [BAD, "b", "two\nlines, here", "d"],
    ),
    "in the URL": (f'"{u(0)},a\n{u(1)},b\n', [BAD, "b"]),
    "twice": (f'{u(0)},"never\n{u(1)},b\n{u(2)},"\n{u(3)},d\n', [BAD, "b", BAD, "d"]),
    "with text behind the closing quote": (f'{u(0)},"a "b" c"\n{u(1)},b\n', [BAD, "b"]),
}


@pytest.mark.parametrize("case", NEVER_ENDED)
def test_a_quote_that_never_ends_costs_its_own_row_alone(case: str, put: Any) -> None:
    text, expected = NEVER_ENDED[case]
    assert captions(put("a.csv", HEAD + text)) == expected


def test_a_quote_that_never_ends_costs_one_row_of_a_long_list(put: Any) -> None:
    """The list goes on for longer than a field may be."""
    lines = [f"{u(i)},{'x' * 2_000}" for i in range(3_000)]
    lines[5] = f'{u(5)},"never'
    found = captions(put("a.csv", HEAD + "\n".join(lines)))
    assert sum(map(len, lines)) > 2 * MAX_CHARS
    assert [i for i, caption in enumerate(found) if caption is BAD] == [5]
    assert len(found) == 3_000


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_a_csv_writer_quotes_comes_back_as_it_was(seed: int, end: str, put: Any, tmp_path: Path) -> None:
    """2,000 captions of quotes, commas, line breaks and words: as Python's own reader has them."""
    draw = random.Random(seed)
    pieces = ['"', ",", "\n", "\r\n", "word", " ", "é", "", "\\", "see http://b.com/x"]
    texts = ["".join(draw.choices(pieces, k=draw.randrange(9))) for _ in range(2_000)]
    path = tmp_path / "a.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL if seed else csv.QUOTE_MINIMAL)
        writer.writerows([["url", "caption"], *((u(i), text) for i, text in enumerate(texts))])
    assert captions(path) == texts


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("backslashes.csv", f'{u(0)},"he said \\"hi\\" ok"\n{u(1)},"12\\""\n', ['he said "hi" ok', '12"']),
        ("backslash.csv", f'{u(0)},"a \\"b\\", c"\n{u(1)},"C:\\dir\\"\n', ['a "b", c', "C:\\dir\\"]),
        ("backslash2.csv", f'{u(0)},"one\nsaid \\"hi\\" ok"\n{u(1)},b\n', ['one\nsaid "hi" ok', "b"]),
        ("stray.csv", f'{u(0)},a 3" pipe\n{u(1)},b\n', ['a 3" pipe', "b"]),
        ("spaced.csv", f'{u(0)}, "a, b"\n{u(1)},c\n', ["a, b", "c"]),
        ("padded.csv", f"{u(0)},a,\n{u(1)},b,,\n", ["a", "b"]),
        ("returns.csv", f"{u(0)},a\r{u(1)},b\n{u(2)},c\rd\n", ["a", "b", "c d"]),
        ("zeros.csv", f"{u(0)},a\n\0\0\0\0", ["a"]),
        ("blank.csv", f"\n  \n{u(0)},a\n\n{u(1)},b\n\n", ["a", "b"]),
    ],
)
def test_the_habits_of_writers_are_understood(name: str, text: str, expected: list[str], put: Any) -> None:
    assert captions(put(name, HEAD + text)) == expected


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_the_delimiter_is_found(mark: str, suffix: str, put: Any) -> None:
    rows = [["url", "caption", "w"], [u(0), '"a, b; c|d"', "3"], [u(1), '"c\td"', "4"]]
    text = "\n".join(mark.join(row) for row in rows)
    assert captions(put(f"a.{suffix}", text)) == ["a, b; c|d", "c\td"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "jsonl"])
def test_carriage_returns_alone_end_lines(suffix: str, put: Any) -> None:
    lines = {
        "csv": ["url,caption", f"{u(0)},a", f'{u(1)},"b\nc"'],
        "tsv": ["url\tcaption", f"{u(0)}\ta", f"{u(1)}\tb c"],
        "txt": [f"{u(0)}\ta", f"{u(1)}\tb c"],
        "jsonl": [json.dumps({"url": u(0), "text": "a"}), json.dumps({"url": u(1), "text": "b c"})],
    }[suffix]
    found = captions(put(f"a.{suffix}", "\r".join(lines) + "\r"))
    assert [caption and caption.replace("\n", " ") for caption in found] == ["a", "b c"]


def test_a_tsv_may_quote_line_breaks_and_may_not_mean_its_quotes(put: Any) -> None:
    text = f'{u(0)}\t"one\ntwo"\n{u(1)}\t"x\ty"\n{u(2)}\t"stray\n{u(3)}\tend"\n'
    assert captions(put("a.tsv", f"url\tcaption\n{text}")) == ["one\ntwo", "x\ty", '"stray', 'end"']


ENCODED = {
    "utf-16-le": "猫 café",
    "utf-16-be": "猫 café",
    "utf-16": "猫",
    "utf-32": "猫",
    "utf-8-sig": "猫",
    "latin-1": "café à Noël",
    "cp1252": "the dog’s “bone” – 5 €",
}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
@pytest.mark.parametrize("encoding", ENCODED)
def test_encodings_are_found_out(encoding: str, kind: str, put: Any) -> None:
    caption = ENCODED[encoding]
    text = {
        "csv": f"{HEAD}{u(0)},{caption}\n",
        "jsonl": json.dumps({"url": u(0), "caption": caption}, ensure_ascii=False),
        "txt": f"{u(0)}\t{caption}\n",
    }[kind]
    assert captions(put(f"a.{kind}", text.encode(encoding))) == [caption]


@pytest.mark.parametrize(
    ("encoding", "caption"), [("cp1251", "рыжая кошка"), ("shift-jis", "赤い猫"), ("cp1250", "żółta łódź")]
)
def test_an_encoding_that_cannot_be_known_is_asked_for(encoding: str, caption: str, put: Any) -> None:
    path = put("a.csv", f"{HEAD}{u(0)},{caption}\n".encode(encoding))
    with pytest.raises(
        ConfigError, match=r"a\.csv: 1 of the first 1 rows are not UTF-8.*ingest\.encoding=NAME"
    ):
        captions(path)
    assert captions(path, encoding=encoding) == [caption]
    with pytest.raises(ConfigError, match="no encoding is named 'klingon'"):
        captions(path, encoding="klingon")


def test_zero_bytes_behind_gzip_data_are_no_fault(put: Any) -> None:
    packed = gzip.compress(f"{HEAD}{u(0)},a\n".encode()) + gzip.compress(f"{u(1)},b\n".encode())
    assert captions(put("a.csv.gz", packed + bytes(1_000))) == ["a", "b"]
    assert captions(put("b.csv", packed)) == ["a", "b"]


RECORDS = [{"url": u(i), "caption": f"c{i}"} for i in range(3)]
COLUMNS = {"image_urls": [u(i) for i in range(3)], "captions": ["c0", "c1", "c2"]}
VALUES = [[u(i), f"c{i}"] for i in range(3)]
SHAPES = {
    "array on one line": json.dumps(RECORDS),
    "array over many lines": json.dumps(RECORDS, indent=2),
    "array, an object on each line": "[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n",
    "objects over many lines": "\n".join(json.dumps(row, indent=1) for row in RECORDS),
    "objects with commas between": ",\n".join(map(json.dumps, RECORDS)),
    "columns": json.dumps(COLUMNS),
    "columns over many lines, with a scalar": json.dumps({"version": 1, **COLUMNS}, indent=1),
    "columns on each line": "\n".join(json.dumps({"url": [url], "caption": [text]}) for url, text in VALUES),
    "pandas' default": json.dumps(
        {"url": {str(i): u(i) for i in range(3)}, "caption": {str(i): f"c{i}" for i in range(3)}}
    ),
    "pandas' split": json.dumps({"columns": ["url", "caption"], "index": [0, 1, 2], "data": VALUES}),
    "pandas' index": json.dumps({str(i): row for i, row in enumerate(RECORDS)}),
    "pandas' table": json.dumps(
        {"schema": {"fields": []}, "data": [{"index": i, **row} for i, row in enumerate(RECORDS)]}
    ),
    "pandas' values": json.dumps(VALUES),
    "values below names": json.dumps([["url", "caption"], *VALUES]),
    "values on each line": "\n".join(map(json.dumps, VALUES)),
    "below data": json.dumps({"version": 2, "data": RECORDS}),
    "below two keys": json.dumps({"meta": {"n": 3}, "result": {"images": RECORDS}}),
    "of the datasets server": json.dumps(
        {"features": [{"name": "url"}], "rows": [{"row_idx": i, "row": row} for i, row in enumerate(RECORDS)]}
    ),
}


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("shape", SHAPES)
def test_json_of_every_common_shape_is_read(shape: str, suffix: str, put: Any) -> None:
    assert captions(put(f"a.{suffix}", SHAPES[shape])) == ["c0", "c1", "c2"]


def test_a_broken_element_of_an_array_costs_itself(put: Any) -> None:
    text = json.dumps([RECORDS[0], "X", RECORDS[2]], indent=1).replace(
        '"X"', '{"url": oops, "caption": "c1"}'
    )
    assert captions(put("a.json", text)) == ["c0", BAD, "c2"]


def test_columns_of_different_lengths_are_not_mixed_up(put: Any) -> None:
    path = put("a.json", json.dumps({"url": [u(0), u(1)], "caption": ["only one"]}))
    with pytest.raises(ConfigError, match="not JSON"):
        captions(path)


def test_a_long_array_on_one_line_is_streamed(put: Any) -> None:
    rows = [{"url": u(i), "caption": f"c{i}", "more": "x" * 1_000} for i in range(3_000)]
    found = captions(put("a.json", json.dumps(rows)))
    assert found == [f"c{i}" for i in range(3_000)]
    with pytest.raises(DataError, match=r"list, .*the list breaks off .*without its closing"):
        list(read_input(str(put("b.json", json.dumps(rows)[:-1])), Ingest(), source="list"))


def test_the_url_column_of_a_list_without_header_has_most_urls(put: Any) -> None:
    text = f"http://page.com/,{u(0)}\na dog,{u(1)}\na cat,{u(2)}\n"
    assert captions(put("a.csv", text)) == ["http://page.com/", "a dog", "a cat"]
    with pytest.raises(ConfigError, match=r"column_1 and column_2 hold as many URLs.*ingest\.url_column"):
        captions(put("b.csv", f"http://page.com/,{u(0)}\n"))


def test_a_first_row_without_a_url_may_be_a_row(put: Any) -> None:
    path = put("a.csv", f",no URL\n{u(1)},b\n{u(2)},c\n")
    rows = [row for batch, _ in read_input(str(path), Ingest(), source="") for row in batch.to_pylist()]
    assert [row["caption"] for row in rows] == [b"no URL", b"b", b"c"]
    named = put("b.csv", f"none,no URL\n{u(1)},b\n")
    with pytest.raises(ConfigError, match="no url column among 'none', 'no URL'"):
        list_inputs(Ingest(input=(str(named),)))
    made = Ingest(header=False, url_column="column_1", caption_column="column_2")
    rows = [row for batch, _ in read_input(str(named), made, source="") for row in batch.to_pylist()]
    assert [(row["url"], row["caption"]) for row in rows] == [(b"none", b"no URL"), (u(1).encode(), b"b")]


def test_a_header_may_be_insisted_on(put: Any) -> None:
    path = put("a.csv", f"http://schema.org/image,name\n{u(0)},a\n")
    given = {"url_column": "http://schema.org/image", "caption_column": "name"}
    assert captions(path, header=True, **given) == ["a"]


@pytest.mark.parametrize("name", ["image_url", "imgUrl", "OriginalURL", "contentUrl", "image link"])
def test_a_name_that_is_only_a_pictures_goes_before_url(name: str) -> None:
    for names in (["url", name, "text"], ["text", name, "url"]):
        found = find_columns(names, Ingest(), "list")
        assert (found.url, found.others) == (name, ("url",))


def test_the_row_numbers_of_pandas_are_not_carried(tmp_path: Path, put: Any) -> None:
    table = {"url": [u(0)], "caption": ["a"], "__index_level_0__": [7], "n": [1]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    for path in (
        tmp_path / "a.parquet",
        put("a.csv", f",url,caption,n\n0,{u(0)},a,1\n"),
        put("b.csv", f"Unnamed: 0,url,caption,n\n0,{u(0)},a,1\n"),
    ):
        (row,) = [row for batch, _ in read_input(str(path), Ingest(), source="") for row in batch.to_pylist()]
        assert list(json.loads(row["given"])) == ["n"]


def test_the_choice_of_columns_is_said(put: Any) -> None:
    path = put("a.csv", f",url,image_url,title\n0,http://p.com,{u(0)},café\n".encode("latin-1"))
    batch, _ = next(read_input(str(path), Ingest(), source=""))
    choice = chosen_columns(batch)
    said = "URL from 'image_url', caption from 'title'; carried 'url'; left out ''; read as cp1252"
    assert say_choices({"a.csv": choice}) == [f"a.csv: {said}"]
    assert say_choices({"a.csv": choice, "b.csv": choice}) == [f"a.csv and 1 more lists: {said}"]


@pytest.mark.parametrize("values", ["one", "many"])
def test_batches_of_long_columns_are_bounded(values: str, tmp_path: Path) -> None:
    """600 rows with 60 KB each: 36 MB, of which the file shows a few hundred bytes where all are one."""
    html = ["x" * 60_000 if values == "one" else f"{i:05d}" * 12_000 for i in range(600)]
    table = pa.table({"url": [u(i) for i in range(600)], "caption": ["a"] * 600, "html": html})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    batches = [batch for batch, _ in read_input(str(tmp_path / "a.parquet"), Ingest(), source="")]
    assert sum(map(len, batches)) == 600
    assert max(batch["given"].nbytes for batch in batches) < 1.1 * BATCH_CHARS
