"""Which files an input stands for: spellings, folders with other things, packings, every filesystem."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import lzma
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.crawl.find import expand_braces
from pairmill.crawl.lists import list_inputs, read_input
from pairmill.errors import ConfigError, DataError
from pairmill.recipe import Ingest

CSV = b"url,caption\nhttp://a.com/1.jpg,one\n"
ROW = [(b"http://a.com/1.jpg", b"one")]


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"url": ["http://a.com/1.jpg"], "caption": ["one"]}), out)
    return out.getvalue()


def look(*texts: Path | str) -> tuple[list[str], list[str]]:
    """The sources of the lists found, and the lines about what was passed over."""
    lines: list[str] = []
    found = list_inputs(Ingest(input=tuple(map(str, texts))), lines.append)
    for file in found:
        rows = [row for batch, _ in read_input(file.path, Ingest(), source="x") for row in batch.to_pylist()]
        assert [(row["url"], row["caption"]) for row in rows] == ROW, file
    return [file.source for file in found], lines


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_braces_are_expanded_as_a_shell_does() -> None:
    assert expand_braces("a/{00008..00010}.tar") == [f"a/{n:05d}.tar" for n in (8, 9, 10)]
    assert expand_braces("{2..0}{x,y}") == ["2x", "2y", "1x", "1y", "0x", "0y"]
    assert expand_braces("{a}{}b") == ["{a}{}b"]
    assert expand_braces("plain") == ["plain"]


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("we[ird]", ["a.csv"]),
        ("we[ird]/", ["a.csv"]),
        ("we[ird]/*.csv", ["a.csv"]),
        ("we[ird]/a.csv", ["a.csv"]),
        ("parts/*.parquet", ["one.parquet/part-0", "two.parquet/part-0.parquet"]),
        ("parts/**/part-0*", ["one.parquet/part-0", "two.parquet/part-0.parquet"]),
        ("n/{0..2}.csv", ["0.csv", "1.csv", "2.csv"]),
        ("n/{0,2}.csv", ["0.csv", "2.csv"]),
        ("n/[01].csv", ["0.csv", "1.csv"]),
        ("b{0,1}.csv", ["b{0,1}.csv"]),
        ("x.csv?download=true", ["x.csv"]),
        ("what?.csv", ["what?.csv"]),
        ("linked", ["a.csv"]),
        ("over", ["linked/a.csv"]),
        ("no_suffix", ["no_suffix"]),
        ("a::b.csv", ["a::b.csv"]),
    ],
)
def test_every_spelling_finds_its_files(
    text: str, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        "we[ird]/a.csv",
        "n/0.csv",
        "n/1.csv",
        "n/2.csv",
        "b{0,1}.csv",
        "x.csv?download=true",
        "what?.csv",
    ]
    fill(tmp_path, dict.fromkeys([*names, "no_suffix", "a::b.csv"], CSV))
    fill(tmp_path / "parts", {"one.parquet/part-0": parquet(), "two.parquet/part-0.parquet": parquet()})
    (tmp_path / "linked").symlink_to("we[ird]")
    (tmp_path / "over").mkdir()
    (tmp_path / "over" / "linked").symlink_to("../linked")
    (tmp_path / "over" / "round").symlink_to("../over")
    monkeypatch.chdir(tmp_path)
    assert look(text) == (sources, [])
    assert look(tmp_path / text) == (sources, [])
    assert look(f"file://{tmp_path / text}") == (sources, [])


def test_a_missing_one_of_several_is_named(tmp_path: Path) -> None:
    fill(tmp_path, {"0.csv": CSV})
    with pytest.raises(ConfigError, match=r"/1\.csv: no such list, folder or glob"):
        look(f"{tmp_path}/{{0..1}}.csv")


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": lambda data: bz2.compress(data[:9]) + bz2.compress(data[9:]),
    ".xz": lambda data: lzma.compress(data[:9]) + lzma.compress(data[9:]),
    ".lzma": functools.partial(lzma.compress, format=lzma.FORMAT_ALONE),
    ".lz4": lambda data: pa.compress(data, "lz4", asbytes=True),
    ".br": lambda data: pa.compress(data, "brotli", asbytes=True),
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


# no magic number tells the old LZMA and Brotli: there the name must say what is inside
UNMARKED = (".lzma", ".br")


@pytest.mark.parametrize(
    ("stem", "suffix"),
    [
        (stem, end)
        for stem in ("a.csv", "part-0004")
        for end in PACKED
        if stem == "a.csv" or end not in UNMARKED
    ],
)
def test_packed_lists_are_found_and_read(stem: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"{stem}{suffix}"
    path.write_bytes(PACKED[suffix](CSV))
    assert look(tmp_path) == look(path) == ([path.name], [])


@pytest.mark.parametrize("suffix", [".bz2", ".xz"])
def test_a_packed_list_that_is_cut_says_where(suffix: str, tmp_path: Path) -> None:
    rows = b"".join(b"http://a.com/%d,x\n" % (i * 7919) for i in range(80_000))
    pack = {".bz2": bz2.compress, ".xz": functools.partial(lzma.compress, preset=0)}[suffix]
    path = tmp_path / f"a.csv{suffix}"
    path.write_bytes(pack(b"url,caption\n" + rows)[:-9])
    assert list_inputs(Ingest(input=(str(path),)))
    with pytest.raises(DataError, match=r"x, after row [1-9]\d+: the list breaks off"):
        list(read_input(str(path), Ingest(), source="x"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.csv.snappy", "unpack it, or write another"),
        ("a.csv.lzo", "unpack it"),
        ("a.csv.zip", r"give zip://\*::"),
        ("a.xlsx", "unknown kind of list"),
        ("a.tgz", "gunzip it"),
        ("a.tar.gz", "gunzip it"),
    ],
)
def test_what_is_not_read_is_refused_in_one_line_with_a_cure(name: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(os.urandom(3_000)))
    with pytest.raises(ConfigError, match=said) as caught:
        look(path)
    assert "\n" not in str(caught.value)


def test_a_packed_list_that_is_not_read_fails_in_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, {"a.csv": CSV, "b.csv.snappy": b"xx", "c.tgz": gzip.compress(b"x" * 1_000)})
    files = list_inputs(Ingest(input=(str(tmp_path),)))
    assert [file.source for file in files] == ["a.csv", "b.csv.snappy", "c.tgz"]
    for file, cure in zip(files[1:], ("unpack it", "gunzip it"), strict=True):
        with pytest.raises(DataError, match=cure):
            list(read_input(file.path, Ingest(), source=file.source))


JSONL = b'{"url": "http://a.com/1.jpg", "caption": "one"}\n'


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("part-0004", CSV), ("part-00000-c000", CSV.replace(b",", b"\t")), ("part-1", JSONL),
        ("part-2", parquet()), ("part-3", b"http://a.com/1.jpg\tone\n"), ("x.00", CSV), ("part-0.c000", CSV),
        ("_c.csv", CSV), ("_part.txt", b"http://a.com/1.jpg\tone\n"), ("UPPER.CSV", CSV), ("one.json", JSONL),
        ("list.csv.part", CSV),
    ],
)  # fmt: skip
def test_lists_of_unusual_names_are_found_in_a_folder(name: str, data: bytes, tmp_path: Path) -> None:
    fill(tmp_path, {name: data})
    assert look(tmp_path) == ([name], [])


NO_LISTS = {
    "README.txt": b"Pictures of cats\nhttps://example.com/cats\nhttps://example.com/dogs\n",
    "notes.txt": b"a line\nanother one\nhttps://example.com\n",
    "LICENSE": b"MIT\n",
    "requirements.txt": b"numpy\npandas\n",
    "dataset_infos.json": json.dumps({"default": {"homepage": "https://a.com", "url": "x"}}).encode(),
    "dataset_info.json": b'{"homepage": "https://a.com", "license": ""}',
    "state.json": b'{\n  "_fingerprint": "1",\n  "url": "http://a.com"\n}',
    "_stats.json": b'{"count": 3, "successes": 2}',
    "00000_stats.json": b'{"count": 3, "successes": 2}',
    "classes.json": b'["cat", "dog"]',
    "broken.json": b"{broken",
    "empty.txt": b"",
    "_SUCCESS": b"",
    "_metadata": b"PAR1",
    "._a.csv": b"\0\5\x16\7",
    ".part-0000.crc": b"crc",
    "_temporary/0/part-0000.csv": CSV,
    ".git/list.csv": CSV,
    "a.jpg": b"\xff\xd8",
    "a.jpg.md5": b"0",
    "card.md": b"# http://a.com",
    "00000.tfrecord": b"\0\0",
    "checksums": b"0cc175b9c0f1b6a8  a.csv\n",
    "binary": os.urandom(5_000),
}


@pytest.mark.parametrize("name", NO_LISTS)
def test_what_is_no_list_is_passed_over_and_counted(name: str, tmp_path: Path) -> None:
    fill(tmp_path, {"list.csv": CSV, name: NO_LISTS[name]})
    sources, lines = look(tmp_path)
    assert sources == ["list.csv"]
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path}: 1 file is no list and is passed over: ")
    assert lines[0].endswith(f"({name})")


def test_the_line_about_what_is_passed_over_counts_all(tmp_path: Path) -> None:
    fill(tmp_path, {"list.csv": CSV, **NO_LISTS})
    (line,) = look(tmp_path)[1]
    assert f"{len(NO_LISTS)} files are no lists and are passed over: " in line
    assert "7 .json, 5 no suffix, 4 .txt, 3 .csv" in line
    assert len(line) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("folder", ["00000/", ""])
def test_pictures_as_files_with_texts_beside_them_leave_their_table(folder: str, tmp_path: Path) -> None:
    """img2dataset's format `files`: a text and a JSON object with a URL beside each picture."""
    beside = {
        f"{folder}000000000{end}": data
        for end, data in ((".jpg", b"x"), (".txt", b"http://a.com"), (".json", JSONL))
    }
    fill(tmp_path, {"00000.parquet": parquet(), "00000_stats.json": b'{"count": 1}', **beside})
    sources, (line,) = look(tmp_path)
    assert sources == ["00000.parquet"]
    assert "4 files are no lists" in line


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("b.csv", b"link,words\nhttp://a.com/1,x\n", "no url column among 'link', 'words'"),
        ("b.parquet", parquet()[:-9], "not a whole Parquet file"),
        ("b.csv.gz", CSV, "cannot be read as csv"),
        ("b.json", b'[{"link": "http://a.com/1.jpg", "caption": "x"}, {"link"', "b.json"),
        ("b.xz", lzma.compress(CSV)[:-5], "b.xz"),
    ],
)
def test_what_looks_like_a_list_and_is_broken_is_an_error(
    name: str, data: bytes, said: str, tmp_path: Path
) -> None:
    fill(tmp_path, {"a.csv": CSV, name: data})
    files = list_inputs(Ingest(input=(str(tmp_path),)))
    assert [file.source for file in files] == ["a.csv", name]
    with pytest.raises(DataError, match=said) as caught:
        list(read_input(files[1].path, Ingest(), source=name))
    if name == "b.csv":
        assert "breaks off" not in str(caught.value)


def test_a_file_whose_name_is_not_utf8_is_read(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.csv")
    Path(path).write_bytes(CSV)
    assert look(tmp_path) == (["\\xff\\xe9.csv"], [])
    os.rename(path, path.replace(".csv", ".tar"))
    with pytest.raises(ConfigError, match=r"\\xff\\xe9\.tar: the name is not UTF-8.*rename it"):
        look(tmp_path)


FILES = {
    "a.csv": CSV,
    "sub/b.csv.gz": gzip.compress(CSV),
    "sub/c.parquet": parquet(),
    "sub/part-0": CSV,
    "d.md": b"#",
}
INSIDE = ["a.csv", "sub/b.csv.gz", "sub/c.parquet", "sub/part-0"]


def check_filesystem(folder: str, behind: str = "") -> None:
    """A file, a folder and a glob of a filesystem that holds FILES; and what is not there."""
    assert look(f"{folder}/a.csv{behind}") == (["a.csv"], [])
    assert look(f"{folder}/sub/part-0{behind}") == (["part-0"], [])
    sources, (line,) = look(f"{folder}/{behind}")
    assert sources == INSIDE
    assert line.endswith("1 file is no list and is passed over: 1 .md (d.md)")
    assert look(f"{folder}/sub/{behind}") == ([name[4:] for name in INSIDE[1:]], [])
    assert look(f"{folder}/*.csv{behind}") == (["a.csv"], [])
    assert look(f"{folder}/sub/{{b.csv.gz,c.parquet}}{behind}") == (["b.csv.gz", "c.parquet"], [])
    for text in (f"{folder}/none.csv{behind}", f"{folder}/*.tsv{behind}"):
        with pytest.raises(ConfigError, match="no such list, folder or glob") as caught:
            look(text)
        assert "\n" not in str(caught.value)


def test_lists_in_memory() -> None:
    fs = fsspec.filesystem("memory")
    for name, data in FILES.items():
        fs.pipe(f"/found/{name}", data)
    check_filesystem("memory://found")
    assert look("memory://found/*")[0] == INSIDE


def test_lists_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        for name, data in FILES.items():
            packed.writestr(f"in/{name}", data)
    check_filesystem("zip://in", f"::{tmp_path}/x.zip")
    assert look(f"zip://::{tmp_path}/x.zip")[0] == [f"in/{name}" for name in INSIDE]
    assert look(f"zip://*::{tmp_path}/x.zip")[0] == [f"in/{name}" for name in INSIDE]
    assert look(f"simplecache::zip://in/a.csv::file://{tmp_path}/x.zip") == (["a.csv"], [])
    with pytest.raises(ConfigError, match=r"nope\.zip: cannot be listed: "):
        look(f"zip://a.csv::{tmp_path}/nope.zip")
    with pytest.raises(ConfigError, match=r"x\.zip: unknown kind of list.*give zip://\*::"):
        look(tmp_path / "x.zip")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path.startswith("/secret"):
            self.send_error(403)
            return
        super().do_GET()

    do_HEAD = do_GET


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A server on loopback that shows FILES as a folder, knows no ranges, and refuses /secret."""
    fill(tmp_path / "web", FILES)
    handler = functools.partial(_Quiet, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_lists_on_a_web_server(web: str) -> None:
    check_filesystem(web)
    assert look(f"{web}/a.csv?download=true") == (["a.csv"], [])
    assert look(f"{web}/sub/c.parquet?x=1.2#top") == (["c.parquet"], [])
    with pytest.raises(ConfigError, match=r"secret\.csv: cannot be listed: 403"):
        look(f"{web}/secret.csv")
    with pytest.raises(ConfigError, match=r"cannot be listed: .*127\.0\.0\.1:1"):
        look("http://127.0.0.1:1/a.csv")


def test_lists_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    server_of = pytest.importorskip("moto.server")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "made",
            "AWS_SECRET_ACCESS_KEY": "up",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        fs = fsspec.filesystem("s3", skip_instance_cache=True)
        fs.mkdir("bucket")
        for name, data in FILES.items():
            fs.pipe(f"bucket/in/{name}", data)
        check_filesystem("s3://bucket/in")
        with pytest.raises(ConfigError, match="s3://nowhere/"):
            look("s3://nowhere/a.csv")
    finally:
        server.stop()


@pytest.mark.parametrize(
    "text", ["nosuch://a/b.csv", "zip://a.csv", "http://", "hf://datasets/a/b/*.parquet"]
)
def test_a_filesystem_that_fails_is_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ConfigError) as caught:
        look(text)
    assert str(caught.value).startswith(f"{text}: ")
    assert "\n" not in str(caught.value)
