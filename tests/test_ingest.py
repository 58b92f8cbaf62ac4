"""The stage `ingest`: each row counted once, the same bytes always, nothing left of a broken list."""

from __future__ import annotations

import gzip
import json
import pickle
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.crawl.ingest import ingest_stage, ingest_tasks, inputs_of, iter_parts, start_ingest
from pairmill.errors import ConfigError, DataError
from pairmill.progress import Quiet
from pairmill.recipe import Ingest
from pairmill.runner import Here, Task
from pairmill.shards.job import StageReport, run_stage
from pairmill.shards.schema import PAIRS, REJECTED, make_uid, text_hash

BAD = {
    "url_missing": ("", "x"),
    "url_invalid": ("a.com/x.jpg", "x"),
    "url_scheme": ("file:///etc/passwd", "x"),
    "url_credentials": ("http://u:p@a.com/", "x"),
    "url_port": ("http://a.com:81/", "x"),
    "url_too_long": ("http://a.com/" + "x" * 2_048, "x"),
    "caption_missing": ("http://a.com/1", " \u200b"),
    "caption_too_long": ("http://a.com/1", "x" * 2**20),
}


def ingest(out: Path, *paths: Path | str, **settings: object) -> StageReport:
    made = Ingest(input=tuple(map(str, paths)), **settings)  # type: ignore[arg-type]
    tasks = ingest_tasks(out, made)
    return run_stage(out, ingest_stage(out, made), tasks, Here(retries=0), Quiet(), inputs=inputs_of(tasks))


def bytes_of(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted((out / "pairs").rglob("*.parquet"))}


def pairs(out: Path) -> list[dict[str, object]]:
    return [row for part in iter_parts(out) for row in pq.read_table(part).to_pylist()]


def rejected(out: Path) -> list[dict[str, object]]:
    files = sorted((out / "pairs" / "rejected").glob("*.parquet"))
    return [row for path in files for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two Parquet lists with other columns: 25 good rows and every bad one; 10 good rows."""
    folder = tmp_path / "lists"
    folder.mkdir()
    rows = [(f"http://A.com/{i}.jpg#x", f" caption  {i} é") for i in range(25)]
    rows[10:10] = BAD.values()
    table = {"URL": [url for url, _ in rows], "TEXT": [text for _, text in rows], "width": range(len(rows))}
    pq.write_table(pa.table(table), folder / "a.parquet")
    other = {"caption": [f"other {i}" for i in range(10)], "url": [f"https://b.org/{i}" for i in range(10)]}
    pq.write_table(pa.table({**other, "width": ["wide"] * 10}), folder / "b.parquet")
    return folder


def test_every_row_is_a_pair_or_has_one_reason(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = ingest(out, source, rows_per_part=10)
    assert report.counts == Counter({"pair": 35, **dict.fromkeys(BAD, 1)})
    size = {path.stem: path.stat().st_size for path in source.iterdir()}
    a = {"url": "URL", "caption": "TEXT", "carried": ["width"], "left_out": []}
    b = {"url": "url", "caption": "caption", "carried": ["width"], "left_out": []}
    assert report.facts == {
        "0000": {"source": "a.parquet", "size": size["a"], "parts": 3, "rows": 25, "columns": a},
        "0001": {"source": "b.parquet", "size": size["b"], "parts": 1, "rows": 10, "columns": b},
    }
    assert [part.name for part in iter_parts(out)] == [
        *["0000-00000.parquet", "0000-00001.parquet", "0000-00002.parquet", "0001-00000.parquet"]
    ]
    assert [pq.read_table(part).num_rows for part in iter_parts(out)] == [10, 10, 5, 10]
    rows = [(row["source"], row["source_row"]) for row in (*pairs(out), *rejected(out))]
    assert sorted(rows) == [("a.parquet", i) for i in range(33)] + [("b.parquet", i) for i in range(10)]


def test_a_pair_has_its_name_and_its_columns(source: Path, tmp_path: Path) -> None:
    ingest(tmp_path, source)
    table = pq.read_table(iter_parts(tmp_path)[0])
    assert table.schema.equals(PAIRS)
    row = table.to_pylist()[3]
    url, caption = "http://a.com/3.jpg", "caption 3 é"
    assert row == {
        **{"uid": make_uid(url, caption), "url_hash": text_hash(url), "caption_hash": text_hash(caption)},
        **{"url": url, "caption": caption, "source": "a.parquet", "source_row": 3, "given": '{"width":3}'},
        **{"tar_path": None, "tar_offset": None, "tar_size": None},
    }
    assert pq.read_table(iter_parts(tmp_path)[1])["given"][0].as_py() == '{"width":"wide"}'


def test_a_rejected_row_is_kept_as_it_was_given(source: Path, tmp_path: Path) -> None:
    ingest(tmp_path, source)
    assert pq.read_schema(tmp_path / "pairs" / "rejected" / "0000.parquet").equals(REJECTED)
    assert [(row["reason"], row["url"], row["caption"]) for row in rejected(tmp_path)] == [
        (reason, url[:2_000], caption[:2_000]) for reason, (url, caption) in BAD.items()
    ]


def test_bad_utf8_and_unreadable_rows_cost_themselves(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"url,caption\nhttp://a.com/\xff,x\nhttp://a.com/1,\xff\nhttp://a.com/2\nhttp://a.com/3,a\0b\n,\xff\n"
    )
    report = ingest(tmp_path / "out", path)
    assert report.counts == {"text_not_utf8": 2, "row_unreadable": 1, "pair": 1, "url_missing": 1}
    assert [row["caption"] for row in pairs(tmp_path / "out")] == ["ab"]


def test_a_list_of_urls_alone_gives_pictures_without_captions(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("http://a.com/1\nhttp://a.com/2\ttwo\nhttp://a.com/3\t\n")
    report = ingest(tmp_path / "out", tmp_path / "a.txt")
    assert report.counts == {"pair": 2, "caption_missing": 1}
    assert [row["caption"] for row in pairs(tmp_path / "out")] == ["", "two"]


def test_limits_are_those_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "http://a.com:81/12345\tabc\nhttp://a.com:81/123456\tabc\nhttp://a.com\tabcd\n"
    )
    report = ingest(tmp_path / "out", tmp_path / "a.txt", ports=(81,), max_url_bytes=21, max_caption_bytes=3)
    assert report.counts == {"pair": 1, "url_too_long": 1, "caption_too_long": 1}


def test_a_row_with_huge_further_columns_is_refused(tmp_path: Path) -> None:
    table = {"url": ["http://a.com"] * 2, "caption": ["x"] * 2, "html": ["y" * 2**20, "y"]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert ingest(tmp_path / "out", tmp_path / "a.parquet").counts == {"given_too_long": 1, "pair": 1}


def test_a_stopped_run_ends_with_the_same_bytes(source: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = ingest(whole, source, rows_per_part=10)
    ingest(stopped, source, rows_per_part=10)
    (stopped / "_done" / "ingest" / "0000.json").unlink()  # killed after some of its parts
    (stopped / "pairs" / "0000-00001.parquet").unlink()
    (stopped / "pairs" / "0000-00007.parquet").write_bytes(b"of an older, longer list")
    again = ingest(stopped, source, rows_per_part=10)
    assert (again.counts, again.skipped) == (expected.counts, 1)
    assert bytes_of(stopped) == bytes_of(whole)


def test_the_bytes_do_not_depend_on_where_the_lists_lie(source: Path, tmp_path: Path) -> None:
    ingest(tmp_path / "one", source)
    source.rename(tmp_path / "moved")
    ingest(tmp_path / "two", tmp_path / "moved")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_a_list_that_breaks_off_fails_alone_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    lines = "".join(f"http://a.com/{i * 7919}\tcaption {i}\n" for i in range(70_000)).encode()
    (source / "c.txt.gz").write_bytes(gzip.compress(lines)[:-50])
    out = tmp_path / "out"
    report = ingest(out, source, rows_per_part=30_000)
    assert list(report.failed) == ["0002"]
    assert "c.txt.gz, after row" in report.failed["0002"]
    assert report.counts["pair"] == 35
    assert [part.name for part in iter_parts(out)] == ["0000-00000.parquet", "0001-00000.parquet"]
    (source / "c.txt.gz").write_bytes(gzip.compress(lines))
    mended = ingest(out, source, rows_per_part=30_000)
    assert mended.failed == {}
    assert mended.counts["pair"] == 35 + 70_000


@pytest.mark.parametrize("change", ["gone", "longer", "one before it"])
def test_a_list_that_was_read_must_stay_as_it_was(source: Path, tmp_path: Path, change: str) -> None:
    ingest(tmp_path, source)
    before = bytes_of(tmp_path)
    if change == "gone":
        (source / "b.parquet").unlink()
    elif change == "longer":
        pq.write_table(pa.table({"url": ["http://c.com"] * 99, "text": ["new"] * 99}), source / "b.parquet")
    else:
        (source / "aa.csv").write_text("url,caption\nhttp://c.com,new\n")
    with pytest.raises(ConfigError, match=r"other lists: number 0001 was b\.parquet of .* put it back"):
        ingest(tmp_path, source)
    assert bytes_of(tmp_path) == before


def test_a_list_may_be_added_behind_the_others(source: Path, tmp_path: Path) -> None:
    ingest(tmp_path, source)
    (source / "c.csv").write_text("url,caption\nhttp://c.com,new\n")
    assert ingest(tmp_path, source).counts["pair"] == 36


def test_the_stage_survives_the_way_to_another_process(source: Path, tmp_path: Path) -> None:
    settings = Ingest(input=(str(source),))
    stage = pickle.loads(pickle.dumps(ingest_stage(tmp_path, settings)))
    task = pickle.loads(pickle.dumps(ingest_tasks(tmp_path, settings)[1]))
    assert stage.start(*stage.args)(task).counts == {"pair": 10}


def test_a_missing_list_fails_its_task_with_a_message(tmp_path: Path) -> None:
    worker = start_ingest(tmp_path, Ingest())
    with pytest.raises(DataError, match=r"a\.csv, after row 0: .*No such file"):
        worker(Task("ingest", "0000", {"path": str(tmp_path / "a.csv"), "source": "a.csv", "size": 0}))


def test_a_url_with_html_entities_is_two_pictures_and_is_carried_as_it_stood(tmp_path: Path) -> None:
    urls = [f"http://a.com/a.jpg?w=1&#038;id={i}" for i in (1, 2)]
    pq.write_table(
        pa.table({"link": [*urls, "http://a.com/3"], "text": ["a &amp; b"] * 3}), tmp_path / "a.parquet"
    )
    report = ingest(tmp_path / "out", tmp_path / "a.parquet", url_column="link")
    assert report.counts == {"pair": 3}
    found = pairs(tmp_path / "out")
    assert [row["url"] for row in found] == [
        *["http://a.com/a.jpg?w=1&id=1", "http://a.com/a.jpg?w=1&id=2", "http://a.com/3"]
    ]
    assert [row["given"] for row in found] == [
        *[json.dumps({"link": u}, separators=(",", ":")) for u in urls],
        None,
    ]
    assert found[0]["uid"] == make_uid("http://a.com/a.jpg?w=1&id=1", "a & b")


@pytest.mark.parametrize("batch", [7, 1_000])
def test_parts_are_bounded_by_bytes_as_by_rows(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 300 kB: three to a MB; the last, of 1 B, are bounded by their number. However they are read."""
    monkeypatch.setattr("pairmill.crawl.readers.BATCH_ROWS", batch)
    html = ["x" * 300_000] * 7 + ["y"] * 23
    table = {"url": [f"http://a.com/{i}" for i in range(30)], "caption": ["c"] * 30, "html": html}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    ingest(tmp_path / "out", tmp_path / "a.parquet", mb_per_part=1, rows_per_part=20)
    assert [pq.read_table(part).num_rows for part in iter_parts(tmp_path / "out")] == [3, 3, 20, 4]


def test_a_list_that_turns_out_unreadable_fails_as_a_whole(tmp_path: Path) -> None:
    lines = [f'{{"url": "http://a.com/{i}", "caption": "x"}}' for i in range(100)] + ["oops"] * 500
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    report = ingest(tmp_path / "out", tmp_path / "a.jsonl")
    assert "500 of 600 rows cannot be read" in report.failed["0000"]
    assert iter_parts(tmp_path / "out") == []
    borne = ingest(tmp_path / "borne", tmp_path / "a.jsonl", max_unreadable=0.9)
    assert borne.counts == {"pair": 100, "row_unreadable": 500}
