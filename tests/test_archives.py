"""Web archives as inputs of `ingest`: pairs from WAT, WARC and ARC; what is broken costs itself, once."""

from __future__ import annotations

import gzip
import io
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from archives import DATE, PAGE, gzipped, image, page_record, warc_record, wat_json, wat_record

from pairmill.crawl.archive import Gap, Record, read_archive
from pairmill.crawl.archive_rows import read_archive_rows
from pairmill.crawl.ingest import ingest_stage, ingest_tasks, inputs_of, iter_parts
from pairmill.crawl.lists import list_inputs
from pairmill.errors import ConfigError, DataError
from pairmill.progress import Quiet
from pairmill.recipe import Ingest
from pairmill.runner import Here
from pairmill.shards.job import StageReport, run_stage


def ingest(out: Path, *paths: Path | str, **settings: object) -> StageReport:
    made = Ingest(input=tuple(map(str, paths)), **settings)  # type: ignore[arg-type]
    tasks = ingest_tasks(out, made)
    return run_stage(out, ingest_stage(out, made), tasks, Here(retries=0), Quiet(), inputs=inputs_of(tasks))


def pairs(out: Path) -> list[dict[str, object]]:
    return [row for part in iter_parts(out) for row in pq.read_table(part).to_pylist()]


def rejected(out: Path) -> Counter[str]:
    files = (out / "pairs" / "rejected").glob("*.parquet")
    return Counter(reason for path in files for reason in pq.read_table(path)["reason"].to_pylist())


def found(body: bytes) -> list[str]:
    """The records of an archive: `ok`, or the reason of a gap; others by their kind in parentheses."""
    said: list[str] = []
    records = read_archive(io.BytesIO(body), None, lambda kind: said.append(f"({kind})"))
    said.extend(one.reason if isinstance(one, Gap) else "ok" for one in records)
    return said


WAT = [wat_record(wat_json([image(f"/{i}.jpg", alt=f"Number {i}")])) for i in range(4)]


def test_a_wat_gives_pairs_with_what_is_known_of_their_page(tmp_path: Path) -> None:
    head = {"Title": "A page", "Metas": [{"name": "robots", "content": "noai"}]}
    links = [
        image("1.jpg", alt="One"),
        image("1.jpg", alt="One"),
        image("2.jpg"),
        image("ftp://x/3", alt="x"),
    ]
    first = wat_json(links, head=head, headers={"Content-Language": "fr"})
    again = wat_json([image("/dir/1.jpg", alt="One")], url="https://a.org/other")
    path = tmp_path / "x.warc.wat.gz"
    path.write_bytes(gzipped([wat_record(first), wat_record(again), wat_record(b"{}")]))
    report = ingest(tmp_path / "out", path)
    assert report.counts == Counter({"pair": 1, "url_scheme": 1})
    (pair,) = pairs(tmp_path / "out")
    assert (pair["url"], pair["caption"]) == ("https://a.org/dir/1.jpg", "One")
    assert json.loads(str(pair["given"])) == {
        "crawl_date": DATE,
        "language": "fr",
        "page_signals": {"robots": "noai"},
        "page_title": "A page",
        "page_url": PAGE,
        "text_source": "alt",
    }
    assert report.facts["0000"]["archive"] == {
        "copies": 2, "inline": 0, "pages": 2, "records": 1, "without_text": 1,
    }  # fmt: skip


def test_a_warc_and_an_arc_of_one_page_give_the_same_pairs(tmp_path: Path) -> None:
    html = (
        '<base href="https://cdn.org/"><img src="1.jpg" alt="Größe"><img src="/2.jpg" title="Two">'.encode()
    )
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + html
    arc = b"filedesc://x.arc 0.0.0.0 20260102030405 text/plain 9\n1 0 x\n\n\n\n"
    arc += f"{PAGE} 1.2.3.4 20260102030405 text/html {len(answer)}\n".encode() + answer + b"\n"
    warc = page_record(html, content_type="text/html; charset=utf-8")
    files = {"a.warc": warc, "b.warc.gz": gzipped([warc]), "c.arc": arc, "d.arc.gz": gzip.compress(arc)}
    said = []
    for name, body in files.items():
        (tmp_path / name).write_bytes(body)
        ingest(tmp_path / name[0], tmp_path / name)
        said.append([(row["url"], row["caption"], row["given"]) for row in pairs(tmp_path / name[0])])
    assert [row[:2] for row in said[0]] == [
        ("https://cdn.org/1.jpg", "Größe"),
        ("https://cdn.org/2.jpg", "Two"),
    ]
    assert said == [said[0]] * 4


def test_what_is_no_page_is_passed_over_and_counted() -> None:
    other = [
        warc_record(b"software: x\r\n", kind="warcinfo", content_type="application/warc-fields"),
        warc_record(
            b"GET / HTTP/1.1\r\n\r\n", kind="request", content_type="application/http; msgtype=request"
        ),
        page_record(b"<img src=a alt=b>", status=404),
        page_record(b"\x89PNG", content_type="image/png"),
        warc_record(b"fetchTimeMs: 1", kind="metadata", content_type="application/warc-fields"),
        page_record(b"<p>", content_type=""),
    ]
    assert found(b"".join(other)) == ["(warcinfo)", "(request)", "(not_ok)", "(no_page)", "(metadata)", "ok"]


def broken(i: int, change: Callable[[bytes], bytes]) -> list[bytes]:
    """Four WAT records, gzipped each, one of them changed."""
    members = [gzip.compress(record, mtime=0) for record in WAT]
    members[i] = change(members[i])
    return members


def flipped(member: bytes) -> bytes:
    return member[:40] + bytes([member[40] ^ 0xFF]) + member[41:]


@pytest.mark.parametrize(
    ("body", "outcomes"),
    [
        (b"".join(broken(1, flipped)), ["ok", "record_broken", "ok", "ok"]),
        (b"".join(broken(1, lambda m: b"JUNK" * 99)), ["ok", "record_broken", "ok", "ok"]),
        (b"".join(broken(1, lambda m: m[:-60])), ["ok", "record_broken", "ok", "ok"]),
        (b"".join(broken(3, lambda m: m[:-60])), ["ok", "ok", "ok", "record_cut"]),
        (b"".join(broken(3, lambda m: m[:5])), ["ok", "ok", "ok", "record_cut"]),
        (b"".join(WAT)[:-100], ["ok", "ok", "ok", "record_cut"]),
        (WAT[0] + wat_record(b"", length=0) + WAT[1], ["ok", "record_empty", "ok"]),
        (WAT[0] + wat_record(b"{}", length=10**15) + WAT[1], ["ok", "record_too_long", "ok"]),
        (WAT[0] + wat_record(b"{}" * 99, length=-5) + WAT[1], ["ok", "record_empty", "ok"]),
        (WAT[0] + wat_record(b"{}" * 99, length=50) + WAT[1], ["ok", "ok", "record_broken", "ok"]),
        (WAT[0] + page_record(b"") + WAT[1], ["ok", "record_empty", "ok"]),
        (WAT[0].replace(b"\r\n", b"\n") + WAT[1].replace(b"\r\n", b"\n"), ["ok", "ok"]),
        (b"", []),
    ],
)  # fmt: skip
def test_a_broken_record_costs_itself_once(body: bytes, outcomes: list[str]) -> None:
    assert found(body) == outcomes


def test_a_page_in_wrong_chunks_is_read_or_counted() -> None:
    html = b"<img src=a.jpg alt=b>"
    chunked = "Transfer-Encoding: chunked\r\n"
    right = page_record(b"15\r\n" + html + b"\r\n0\r\n\r\n", headers=chunked)
    wrong = page_record(b"ffff\r\n" + html, headers=chunked)
    bare = page_record(html, headers=chunked)
    assert len(found(right + wrong + bare + right)) == 4


@pytest.mark.parametrize(
    "body", [b"url,caption\n", gzip.compress(b"<html>"), b"\x1f\x8b\x08garbage", b"PK\x03\x04"]
)
def test_what_is_no_archive_fails_with_one_line(body: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.warc.gz").write_bytes(body)
    report = ingest(tmp_path / "out", tmp_path / "x.warc.gz")
    (said,) = report.failed.values()
    assert "no web archive" in said
    assert "\n" not in said
    assert not list((tmp_path / "out" / "pairs").rglob("*.parquet"))


def test_text_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.warc.wet.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match="WET holds text alone"):
        list_inputs(Ingest(input=(str(tmp_path / "x.warc.wet.gz"),)))
    (tmp_path / "x.warc.bz2").write_bytes(b"")
    with pytest.raises(ConfigError, match="pack it anew"):
        list_inputs(Ingest(input=(str(tmp_path / "x.warc.bz2"),)))
    body = warc_record(b"text", kind="conversion", content_type="text/plain")
    with pytest.raises(DataError, match="WET"):
        list(read_archive_rows(io.BytesIO(body), None, Ingest()))


def test_a_page_of_100_000_pictures_and_a_text_of_10_mb(tmp_path: Path) -> None:
    many = wat_json([image(f"/{i}.jpg", alt=f"Number {i}") for i in range(100_000)])
    long = wat_json([image("/x.jpg", alt="x" * 10_000_000)], head={"Title": "y" * 10_000_000})
    path = tmp_path / "x.wat"
    path.write_bytes(wat_record(many) + wat_record(long))
    assert ingest(tmp_path / "out", path).counts == Counter({"pair": 100_000, "caption_too_long": 1})


def test_a_list_of_archives_stands_for_them_and_opens_none(tmp_path: Path) -> None:
    (tmp_path / "crawl").mkdir()
    for i in range(2):
        (tmp_path / "crawl" / f"{i}.warc.wat.gz").write_bytes(gzipped([WAT[i]]))
    paths = tmp_path / "wat.paths.gz"
    paths.write_bytes(gzip.compress(b"crawl/0.warc.wat.gz\ncrawl/1.warc.wat.gz\n\n"))
    base = f"file://{tmp_path}"
    report = ingest(tmp_path / "out", paths, archive_base=base)
    assert report.counts == Counter({"pair": 2})
    assert {facts["source"] for facts in report.facts.values()} == {
        f"crawl/{i}.warc.wat.gz" for i in range(2)
    }
    paths.write_bytes(gzip.compress(b"".join(b"no/such/%d.warc.wat.gz\n" % i for i in range(90_000))))
    begun = time.perf_counter()
    tasks = ingest_tasks(tmp_path / "new", Ingest(input=(str(paths),)))
    assert time.perf_counter() - begun < 30
    assert tasks[-1].data["path"] == "https://data.commoncrawl.org/no/such/89999.warc.wat.gz"
    assert [task.name for task in tasks] == sorted(task.name for task in tasks)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "names no archives"),
        (b"a.warc.gz\nb.txt\n", "line 2: 'b.txt' is no WARC"),
        (b"a.wet.gz\n", "WET holds text alone"),
        (b"\x1f\x8b\x08cut", "cannot be read"),
    ],
)
def test_a_list_of_archives_that_is_none(body: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.paths").write_bytes(body)
    with pytest.raises(ConfigError, match=said):
        list_inputs(Ingest(input=(str(tmp_path / "x.paths"),)))


def test_a_crawl_is_known_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "crawl-data" / "CC-MAIN-2026-04"
    folder.mkdir(parents=True)
    (folder / "warc.paths.gz").write_bytes(gzip.compress(b"a.warc.gz\n"))
    (tmp_path / "a.warc.gz").write_bytes(gzipped([WAT[0]]))
    asked = Ingest(input=("CC-MAIN-2026-04",), archive_base=str(tmp_path), crawl_files="warc")
    assert [file.path for file in list_inputs(asked)] == [f"{tmp_path}/a.warc.gz"]
    with pytest.raises(ConfigError, match=r"CC-MAIN-2026-99/wat.paths.gz: no such list"):
        list_inputs(Ingest(input=("CC-MAIN-2026-99",), archive_base=str(tmp_path)))


def test_only_what_is_to_be_carried_is(tmp_path: Path) -> None:
    (tmp_path / "x.wat").write_bytes(WAT[0])
    for carry, given in (((), "{}"), (("page_url",), json.dumps({"page_url": PAGE}, separators=(",", ":")))):
        batch = next(iter(read_archive_rows(io.BytesIO(WAT[0]), None, Ingest(carry=carry))))
        assert batch["given"].to_pylist() == [given]


def mutated(body: bytes, draw: random.Random) -> bytes:
    """The archive with a few bytes changed, cut, doubled or put in."""
    made = bytearray(body)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(made))
        size = draw.choice([1, 1, 8, 200])
        kind = draw.randrange(4)
        if kind == 0:
            made[at : at + size] = draw.randbytes(size)
        elif kind == 1:
            del made[at : at + size]
        elif kind == 2:
            made[at:at] = made[at : at + size] * draw.choice([1, 2, 50])
        else:
            made[at:at] = draw.choice(
                [b"WARC/1.0\r\n", b"\x1f\x8b\x08", b"\0" * size, b'"IMG@/src"', b"<div>" * 99]
            )
        if len(made) < 10:
            break
    return bytes(made) or b"\0"


def hostile(n: int) -> None:
    """`n` archives with random damage are read without any other error than DataError, in time."""
    draw = random.Random(n)
    html = (
        b"<html><title>x</title><img src=a.jpg alt=b><figure><img src=c><figcaption>d</figcaption></figure>"
    )
    pages = [page_record(html), page_record(html, headers="Content-Encoding: gzip\r\n"), *WAT]
    arc = (
        b"filedesc://x.arc 0.0.0.0 20260102030405 text/plain 9\n1 0 x\n\n\n\n"
        + b"http://a/ 1 2 text/html 5\nhello\n"
    )
    whole = [
        b"".join(pages),
        gzipped(pages),
        b"".join(WAT),
        gzipped(WAT),
        gzip.compress(b"".join(pages)),
        arc,
    ]
    slowest, n_read, n_refused = 0.0, 0, 0
    for _ in range(n):
        body = mutated(draw.choice(whole), draw)
        begun = time.process_time()
        try:
            for batch in read_archive_rows(io.BytesIO(body), None, Ingest()):
                assert batch.num_columns == 7
        except (DataError, OSError) as error:
            n_refused += not getattr(error, "errno", None)
        else:
            n_read += 1
        slowest = max(slowest, time.process_time() - begun)
    assert n_read + n_refused == n
    assert n_read > n / 2
    assert slowest < 5


def test_damaged_archives_are_read_in_time() -> None:
    hostile(100)


@pytest.mark.slow
def test_a_thousand_damaged_archives_are_read_in_time() -> None:
    hostile(1_000)


def test_a_bomb_fills_no_memory() -> None:
    zeros = gzip.compress(b"\0" * 80_000_000, mtime=0)
    html = page_record(zeros, headers="Content-Encoding: gzip\r\n")
    metadata = wat_record(b"\0" * 80_000_000)
    records = [*read_archive(io.BytesIO(gzipped([metadata, html, WAT[0]])), None, lambda _: None)]
    assert [type(record) for record in records] == [Gap, Record, Record]
    assert max(len(record.body) for record in records if isinstance(record, Record)) < 10_000_000
