"""Tars as lists: img2dataset's shards, pairmill's own, plain WebDataset tars."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from pairmill.crawl.ingest import ingest_stage, ingest_tasks, inputs_of, iter_parts
from pairmill.errors import ConfigError
from pairmill.progress import Quiet
from pairmill.recipe import Ingest
from pairmill.runner import Here
from pairmill.shards.job import StageReport, run_stage


def ingest(out: Path, source: Path) -> StageReport:
    made = Ingest(input=(str(source),))
    tasks = ingest_tasks(out, made)
    return run_stage(out, ingest_stage(out, made), tasks, Here(retries=0), Quiet(), inputs=inputs_of(tasks))


def pairs(out: Path) -> list[dict[str, object]]:
    return [row for part in iter_parts(out) for row in pq.read_table(part).to_pylist()]


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    """A tar as other tools write it: names, owners and times of its own."""
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(data), 1_700_000_000, "bigdata"
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def img2dataset_folder(tmp_path: Path) -> Path:
    """What img2dataset 1.47 writes: 3 rows of which the second failed, tar members in another order."""
    folder = tmp_path / "i2d"
    folder.mkdir()
    keys = ["000000", "000001", "000002"]
    rows = {
        "caption": [f"caption {key}" for key in keys],
        "url": [f"http://a.com/{key}.jpg" for key in keys],
        "key": keys,
        "status": ["success", "failed_to_download", "success"],
        "width": [256, None, 256],
    }
    pq.write_table(pa.table(rows), folder / "00000.parquet")
    files: dict[str, bytes] = {}
    for key in ("000002", "000000"):
        files |= {f"{key}.jpg": b"picture " + key.encode(), f"{key}.json": b"{}", f"{key}.txt": b"c"}
    write_tar(folder / "00000.tar", files)
    (folder / "00000_stats.json").write_text(json.dumps({"count": 3}))
    return folder


def at_hand(row: dict[str, object]) -> bytes | None:
    """The bytes that a pair's tar_path, tar_offset and tar_size name."""
    if row["tar_path"] is None:
        return None
    data = Path(str(row["tar_path"])).read_bytes()
    return data[int(str(row["tar_offset"])) :][: int(str(row["tar_size"]))]


def test_img2dataset_output_brings_its_pictures(img2dataset_folder: Path, tmp_path: Path) -> None:
    report = ingest(tmp_path / "out", img2dataset_folder)
    assert report.counts == {"pair": 3}
    assert report.facts["0000"]["source"] == "00000.tar"
    found = pairs(tmp_path / "out")
    assert [row["url"] for row in found] == [f"http://a.com/00000{i}.jpg" for i in range(3)]
    assert [at_hand(row) for row in found] == [b"picture 000000", None, b"picture 000002"]
    assert json.loads(str(found[1]["given"])) == {
        "key": "000001",
        "status": "failed_to_download",
        "width": None,
    }


def test_shards_of_our_own_are_read_by_their_tars_alone(img2dataset_folder: Path, tmp_path: Path) -> None:
    (img2dataset_folder / "manifest.json").write_text(json.dumps({"samples": 3}, indent=1))
    (img2dataset_folder / "README.md").write_text("# a data card\n")
    report = ingest(tmp_path / "out", img2dataset_folder.parent)  # the folder above, too
    assert (report.counts, report.failed) == ({"pair": 3}, {})


def test_a_parquet_beside_a_tar_must_name_its_samples(img2dataset_folder: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["http://a.com"], "text": ["x"]}), img2dataset_folder / "00000.parquet")
    with pytest.raises(ConfigError, match=r"00000\.parquet: no column 'key'"):
        ingest(tmp_path / "out", img2dataset_folder)


@pytest.mark.parametrize("name", ["jpg", "image"])
def test_pictures_within_a_parquet_are_not_carried(name: str, tmp_path: Path) -> None:
    """img2dataset's format `parquet`, and that of datasets; a short column of bytes is carried as ever."""
    picture = random.Random(1).randbytes(1_100_000)
    held: list[object] = [picture if name == "jpg" else {"bytes": picture, "path": "a.jpg"}] * 2
    rows = {"url": [f"http://a.com/{i}" for i in range(2)], "caption": ["one", "two"], "sha": [b"\xff"] * 2}
    pq.write_table(pa.table({**rows, name: held}), tmp_path / "00000.parquet")
    report = ingest(tmp_path / "out", tmp_path / "00000.parquet")
    assert report.counts == {"pair": 2}
    assert [row["given"] for row in pairs(tmp_path / "out")] == ['{"sha":"ff"}'] * 2


def test_a_plain_tar_gives_a_row_for_each_sample(tmp_path: Path) -> None:
    said = json.dumps({"url": "http://a.com/1", "caption": "of the json", "width": 3}).encode()
    write_tar(
        tmp_path / "a.tar",
        {
            **{"x/1.jpg": b"one", "x/1.json": said, "x/1.txt": b"of the text\n"},
            **{"x/2.json": said, "x/2.png": b"two"},
            **{"3.txt": b"no url", "3.JPG": b"three"},
            **{"4.jpg": b"three"},
            **{"5.txt": b"no picture"},
            **{"6.jpg": b"six", "6.json": b"{broken"},
            **{"7.jpg": b"seven", "7.txt": b"\xff"},
        },
    )
    report = ingest(tmp_path / "out", tmp_path / "a.tar")
    assert report.counts == {
        **{"pair": 3, "caption_missing": 1, "picture_missing": 1, "row_unreadable": 1, "text_not_utf8": 1}
    }
    made = f"https://tar.invalid/{xxhash.xxh3_128_hexdigest(b'three')}"
    assert [(row["url"], row["caption"], row["given"], at_hand(row)) for row in pairs(tmp_path / "out")] == [
        ("http://a.com/1", "of the text", '{"width":3}', b"one"),
        ("http://a.com/1", "of the json", '{"width":3}', b"two"),
        (made, "no url", None, b"three"),
    ]


def test_a_tar_that_cannot_be_read_in_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(gzip.compress(b"x" * 2_000))
    with pytest.raises(ConfigError, match=r"a\.tar.*packed with gzip.*gunzip it"):
        ingest(tmp_path / "out", tmp_path / "a.tar")
    write_tar(tmp_path / "b.tar", {"1.jpg": b"x" * 5_000, "1.txt": b"cut"})
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:6_000])
    report = ingest(tmp_path / "out", tmp_path / "b.tar")
    assert "b.tar" in report.failed["0000"]
    assert iter_parts(tmp_path / "out") == []


@pytest.mark.filterwarnings("ignore")  # of img2dataset's own
def test_what_img2dataset_really_writes_is_read(tmp_path: Path) -> None:
    """Three pictures, of which the second is none, written by img2dataset's own writer."""
    writers = pytest.importorskip("img2dataset.writer")
    names = ["caption", "url", "key", "status", "error_message"]
    schema = pa.schema([(name, pa.string()) for name in names])
    (tmp_path / "lists").mkdir()
    writer = writers.WebDatasetSampleWriter(0, str(tmp_path / "lists"), True, 5, schema, "jpg")
    for number, picture in enumerate((b"\xff\xd8\xffone", None, b"\xff\xd8\xffthree")):
        key, caption = f"{number:09d}", f"légende {number}"
        status = "success" if picture else "failed_to_download"
        values = [caption, f"http://a.com/{number}.jpg", key, status, None]
        writer.write(picture, key, caption, dict(zip(names, values, strict=True)))
    writer.close()
    report = ingest(tmp_path / "out", tmp_path / "lists")
    assert (report.counts, report.failed) == ({"pair": 3}, {})
    found = pairs(tmp_path / "out")
    assert [row["caption"] for row in found] == ["légende 0", "légende 1", "légende 2"]
    assert [at_hand(row) for row in found] == [b"\xff\xd8\xffone", None, b"\xff\xd8\xffthree"]
