"""Which members of a tar are one sample: keys, members that are no neighbours, hidden ones, members twice."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pairmill.crawl.ingest import ingest_file
from pairmill.errors import DataError
from pairmill.recipe import Ingest
from pairmill.runner import Task
from pairmill.shards.samples import read_samples

Files = list[tuple[str, bytes]]


def write_tar(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def ingested(folder: Path, files: Files) -> tuple[list[tuple[str, bytes]], list[tuple[str, str]]]:
    """The (caption, bytes at its range) of every pair, and the (reason, URL) of every other row."""
    tar = write_tar(folder / "a.tar", files)
    task = Task("ingest", "0000", {"path": str(tar), "source": "a.tar", "size": 1})
    tally = ingest_file(task, out=folder, settings=Ingest())
    data = tar.read_bytes()
    pairs = [
        row
        for part in sorted((folder / "pairs").glob("*.parquet"))
        for row in pq.read_table(part).to_pylist()
    ]
    refused = pq.read_table(folder / "pairs" / "rejected" / "0000.parquet").to_pylist()
    assert tally.seen == len(pairs) + len(refused)
    held = [(row["caption"], data[row["tar_offset"] :][: row["tar_size"]]) for row in pairs]
    return held, [(row["reason"], row["url"]) for row in refused]


def named(*names: str) -> Files:
    """Members whose bytes are their names."""
    return [(name, name.encode()) for name in names]


A_AND_B = [("a.txt", b"a.jpg"), ("b.txt", b"b.jpg")]


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.txt", "b.jpg", "b.txt"],
        ["a.jpg", "b.jpg", "a.txt", "b.txt"],
        ["a.txt", "b.jpg", "a.jpg", "b.txt"],
        ["a.txt", "b.txt", "b.jpg", "a.jpg"],
        ["._a.jpg", "a.jpg", "._a.txt", "a.txt", "b.jpg", "._b.jpg", "b.txt"],
        ["./._a.jpg", "./a.jpg", "./a.txt", "./b.jpg", "b.txt", ".DS_Store", "x/.hidden/c.jpg"],
        ["a.jpg", "a.txt", "__MACOSX/a.jpg", "__MACOSX/._a.txt", "b.jpg", "b.txt", "Thumbs.db"],
    ],
)
def test_members_make_samples_wherever_they_stand(names: list[str], tmp_path: Path) -> None:
    data = [(name, name.rpartition("/")[2].encode()) for name in names]
    held, refused = ingested(tmp_path, data)
    assert (sorted(held), refused) == (A_AND_B, [])


def test_a_tar_with_more_members_than_are_held_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "a.tar", named("a.jpg", "b.jpg", "b.txt", "c.jpg", "a.txt", "c.txt"))
    expected = list(read_samples(path))
    assert [sample.key for sample in expected] == ["b", "a", "c"]
    monkeypatch.setattr("pairmill.shards.samples.HELD", 2)
    assert list(read_samples(path)) == expected


@pytest.mark.parametrize(
    ("names", "held"),
    [
        (["x.input.jpg", "x.txt"], [("x.txt", "x.input.jpg")]),
        (["x.input.jpg", "x.input.txt", "x.txt"], [("x.input.txt", "x.input.jpg")]),
        (["dsc.2019.jpg", "dsc.2019.txt"], [("dsc.2019.txt", "dsc.2019.jpg")]),
        (
            ["d.1.jpg", "d.1.txt", "e.jpg", "e.txt", "d.2.jpg", "d.2.txt"],
            [("e.txt", "e.jpg"), ("d.1.txt", "d.1.jpg"), ("d.2.txt", "d.2.jpg")],
        ),
        (["x.jpg", "x.mask.png", "x.txt"], [("x.txt", "x.jpg")]),
        (["x.mask.png", "x.txt", "x.jpg"], [("x.txt", "x.jpg")]),
        (["x.jpg", "x.txt", "x.2.jpg", "x.2.txt"], [("x.txt", "x.jpg"), ("x.2.txt", "x.2.jpg")]),
        (["v1.0/x.JPG", "v1.0/x.TXT"], [("v1.0/x.TXT", "v1.0/x.JPG")]),
        (["v1.0\\x.jpg", "v1.0\\x.txt"], [("v1.0\\x.txt", "v1.0\\x.jpg")]),
        (["/abs/x.jpg", "/abs/x.txt"], [("/abs/x.txt", "/abs/x.jpg")]),
        (["../x.jpg", "../x.txt"], [("../x.txt", "../x.jpg")]),
        (["日本/語.jpg", "日本/語.txt"], [("日本/語.txt", "日本/語.jpg")]),
        (["k" * 120 + ".jpg", "k" * 120 + ".txt"], [("k" * 120 + ".txt", "k" * 120 + ".jpg")]),
        (["a/x.jpg", "b/x.jpg", "a/x.txt", "b/x.txt"], [("a/x.txt", "a/x.jpg"), ("b/x.txt", "b/x.jpg")]),
    ],
)
def test_keys_go_to_the_first_dot_and_pictures_find_their_texts(
    names: list[str], held: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert ingested(tmp_path, named(*names)) == ([(text, name.encode()) for text, name in held], [])


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (["x.wav", "x.txt"], ("picture_missing", "x.wav x.txt")),
        (["x", "x.txt"], ("picture_missing", "x x.txt")),
        (["x.in.jpg", "x.out.jpg", "x.txt"], ("picture_unclear", "x.in.jpg x.out.jpg x.txt")),
    ],
)
def test_a_sample_without_one_picture_is_rejected_by_its_members_names(
    names: list[str], refused: tuple[str, str], tmp_path: Path
) -> None:
    assert ingested(tmp_path, named(*names, "b.jpg", "b.txt")) == ([("b.txt", b"b.jpg")], [refused])


def test_a_picture_without_caption_is_rejected_by_its_name(tmp_path: Path) -> None:
    held, refused = ingested(tmp_path, named("x/1.input.jpg", "b.jpg", "b.txt"))
    assert len(held) == 1
    assert [(reason, url.partition("#")[2]) for reason, url in refused] == [
        ("caption_missing", "x/1.input.jpg")
    ]


def test_a_link_to_nowhere_is_rejected_with_where_it_leads(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("x.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/data/x.jpg"
        tar.addfile(link)
    (sample,) = read_samples(path)
    assert (sample.reason, sample.named) == (
        "picture_missing", "x.jpg (a link to '/data/x.jpg', which is no file of this tar)"
    )  # fmt: skip


def test_the_same_member_twice_is_one(tmp_path: Path) -> None:
    files = [("a.jpg", b"one"), ("a.txt", b"a"), ("b.jpg", b"b"), ("b.txt", b"b"), ("a.jpg", b"one")]
    assert ingested(tmp_path, files) == ([("b", b"b"), ("a", b"one")], [])


def test_another_member_of_the_same_name_costs_the_sample(tmp_path: Path) -> None:
    files = [("a.jpg", b"one"), ("a.jpg", b"two"), ("a.txt", b"a"), ("b.jpg", b"b"), ("b.txt", b"b")]
    assert ingested(tmp_path, files) == ([("b", b"b")], [("member_twice", "a.jpg a.jpg a.txt")])


def test_joined_tars_that_number_alike_keep_all_their_samples(tmp_path: Path) -> None:
    files = [
        ("0.jpg", b"one"),
        ("0.txt", b"same"),
        ("1.jpg", b"x"),
        ("1.txt", b"y"),
        ("0.jpg", b"two"),
        ("0.txt", b"same"),
    ]
    held, refused = ingested(tmp_path, files)
    assert (held, refused) == ([("y", b"x"), ("same", b"one"), ("same", b"two")], [])


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_json_member_may_hold_what_lists_may_hold(value: str, tmp_path: Path) -> None:
    said = f'{{"caption": "of the json", "score": {value}}}'.encode()
    held, refused = ingested(
        tmp_path, [("a.jpg", b"one"), ("a.json", b"\xef\xbb\xbf" + said), *named("b.jpg", "b.txt")]
    )
    assert (held, refused) == ([("of the json", b"one"), ("b.txt", b"b.jpg")], [])
    assert json.loads(pq.read_table(tmp_path / "pairs" / "0000-00000.parquet")["given"][0].as_py()) == {
        "score": None
    }


def test_a_cut_tar_gives_nothing_and_says_where(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "b.tar", named("a.jpg", "a.txt", "b.jpg", "b.txt"))
    path.write_bytes(path.read_bytes()[:2_048])
    with pytest.raises(DataError, match=r"a list, after row 0: .*b\.tar, byte 2048: .*cut"):
        ingest_file(
            Task("ingest", "0000", {"path": str(path), "source": "a list", "size": 1}),
            out=tmp_path,
            settings=Ingest(),
        )
