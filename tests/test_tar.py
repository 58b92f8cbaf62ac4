"""The tar writer and reader, against Python's tarfile, GNU tar and whatever else a file may hold."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pairmill.errors import ShardError
from pairmill.shards.tar import SIZE_MAX, Member, TarWriter, entries, members, read_at

FILES = [("a.jpg", b"\xff\xd8" * 300), ("a.txt", b""), ("b.c.json", b"{}" * 256), ("d" * 96 + ".txt", b"1")]


def write_ours(path: Path) -> Path:
    with TarWriter(path) as tar:
        for name, data in FILES:
            tar.add(name, data)
    return path


def write_theirs(path: Path, *infos: tuple[tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for info, data in infos:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return path


def info(name: str, **values: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(made, key, value)
    return made


def problem(path: Path) -> str:
    """What the reader says about a tar that it must refuse."""
    with pytest.raises(ShardError) as caught:
        list(members(path))
    assert caught.value.path == str(path)
    return caught.value.problem


def test_tarfile_reads_what_we_write(tmp_path: Path) -> None:
    with tarfile.open(write_ours(tmp_path / "a.tar")) as tar:
        found = tar.getmembers()
        assert [(member.name, tar.extractfile(member).read()) for member in found] == FILES  # type: ignore[union-attr]
        assert {(member.mode, member.uid, member.mtime, member.uname) for member in found} == {
            (0o644, 0, 0, "root")
        }


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar on PATH")
def test_gnu_tar_reads_what_we_write_without_a_word(tmp_path: Path) -> None:
    path = write_ours(tmp_path / "a.tar")
    listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
    assert (listed.stdout.split(), listed.stderr) == ([name for name, _ in FILES], "")
    one = subprocess.run(["tar", "-xOf", path, "b.c.json"], capture_output=True, check=True)
    assert (one.stdout, one.stderr) == (FILES[2][1], b"")


def test_headers_are_those_of_tarfile_but_for_the_device_numbers(tmp_path: Path) -> None:
    ours = bytearray(write_ours(tmp_path / "a.tar").read_bytes())
    infos = [(info(name, uname="root", gname="root"), data) for name, data in FILES]
    theirs = bytearray(write_theirs(tmp_path / "b.tar", *infos).read_bytes())
    for member in members(tmp_path / "a.tar"):
        start = member.offset - 512
        for tar in (ours, theirs):
            tar[start + 148 : start + 156] = bytes(8)  # the checksum
            tar[start + 329 : start + 345] = bytes(16)  # the device numbers
    assert theirs[: len(ours)] == ours
    assert set(theirs[len(ours) :]) == {0}  # tarfile pads to 10,240 bytes


def test_we_read_what_we_write_and_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with TarWriter(path) as tar:
        offsets = [tar.add(name, data) for name, data in FILES]
    found = list(members(path))
    assert [(member.name, member.offset, member.size) for member in found] == [
        (name, offset, len(data)) for (name, data), offset in zip(FILES, offsets, strict=True)
    ]
    with open(path, "rb") as file:
        assert [read_at(file, member.offset, member.size) for member in found] == [data for _, data in FILES]


@pytest.mark.parametrize(
    ("name", "stem", "suffix"),
    [
        ("0001.jpg", "0001", "jpg"),
        ("a.b/0001.seg.PNG", "a.b/0001", "seg.png"),
        ("./0001.txt", "./0001", "txt"),
        ("plain", "plain", ""),
    ],
)
def test_keys_are_cut_as_webdataset_cuts_them(name: str, stem: str, suffix: str) -> None:
    member = Member(name, 0, 0)
    assert (member.stem, member.suffix) == (stem, suffix)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_other_tools_are_read(tmp_path: Path, form: int) -> None:
    infos = [
        (info("dir", type=tarfile.DIRTYPE), b""),
        (info("dir/0.jpg", mtime=1.5), b"xy"),
        (info("1.txt"), b"z"),
    ]
    if form == tarfile.USTAR_FORMAT:
        infos.append((info(f"{'p' * 90}/{'n' * 60}.txt"), b"prefix"))
    path = write_theirs(tmp_path / "a.tar", *infos, form=form)
    with tarfile.open(path) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]
    assert [(member.name, member.offset, member.size) for member in members(path)] == expected


@pytest.mark.parametrize("name", ["x" * 101, "ä.txt"])
def test_names_that_do_not_fit_are_not_written(tmp_path: Path, name: str) -> None:
    with TarWriter(tmp_path / "a.tar") as tar, pytest.raises(ValueError, match=r"fit|ascii"):
        tar.add(name, b"")


def test_the_longest_name_and_the_largest_size_fit() -> None:
    from pairmill.shards.tar import _header

    assert len(_header("x" * 100, SIZE_MAX)) == 512
    with pytest.raises(ValueError, match="does not fit"):
        _header("x", SIZE_MAX + 1)


def where(path: Path) -> list[tuple[str, bytes]]:
    """Every file of a tar that can be read in place, by its byte range alone."""
    data = path.read_bytes()
    return [(m.name, data[m.offset : m.offset + m.size]) for m in entries(path) if not m.problem]


def extracted(path: Path) -> list[tuple[str, bytes]]:
    """The same by Python's tarfile, links followed."""
    with tarfile.open(path, "r:", ignore_zeros=True) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar if not member.isdir()]  # type: ignore[union-attr]


LONG = "n" * 150 + ".txt"
DEEP = "/".join(["folder" * 9] * 6) + "/a.jpg"
NAMES = [LONG, DEEP, "Ünïcödé/日本語.jpg", "x" * 100, "y" * 101, "ö" * 60 + ".jpg", "a b.jpg", "0.jpg"]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_names_of_any_script_are_read(tmp_path: Path, form: int) -> None:
    files = [(info(name, mtime=1.5), name.encode() * 9) for name in NAMES]
    path = write_theirs(tmp_path / "a.tar", *files, form=form)
    assert where(path) == extracted(path) == [(name, name.encode() * 9) for name in NAMES]


def test_a_name_that_is_not_utf8_is_read_as_latin1(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name in ("é.jpg", "è.jpg"):
            tar.addfile(info(name))
    assert [member.name for member in entries(path)] == ["é.jpg", "è.jpg"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_link_is_read_where_its_file_lies(tmp_path: Path, form: int) -> None:
    infos = [
        (info("d/later.jpg", type=tarfile.SYMTYPE, linkname="../a.jpg"), b""),
        (info("a.jpg"), b"picture"),
        (info("d/hard.jpg", type=tarfile.LNKTYPE, linkname="a.jpg"), b""),
        (info("evil.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
    ]
    path = write_theirs(tmp_path / "a.tar", *infos, form=form)
    assert where(path) == [("d/later.jpg", b"picture"), ("a.jpg", b"picture"), ("d/hard.jpg", b"picture")]
    assert [m.problem for m in entries(path) if m.problem] == [
        "a link to '/etc/passwd', which is no file of this tar"
    ]
    assert problem(path) == f"member 'evil.jpg' is {[*entries(path)][-1].problem}: refused"


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_devices_pipes_and_folders_hold_nothing(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        odd = info("odd", type=kind)
        odd.size = 700  # some tools write a size that has no bytes behind it
        tar.addfile(odd)
        tar.addfile(info("a.jpg"))
    assert [member.name for member in entries(path)] == ["a.jpg"]


def test_a_member_of_an_unknown_kind_is_a_file(tmp_path: Path) -> None:
    path = write_theirs(tmp_path / "a.tar", (info("a.jpg"), b"x"))
    assert where(patched(path, 156, tarfile.CONTTYPE)) == [("a.jpg", b"x")]


gnu_tar = pytest.mark.skipif(shutil.which("tar") is None, reason="no tar on PATH")


@gnu_tar
@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_what_gnu_tar_writes_is_read(tmp_path: Path, form: str) -> None:
    """Long and foreign names, a folder, both kinds of links, with ./ before all names."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    names = ["a.jpg", "sub/b.txt"] + ([LONG, "日本語.jpg"] if form in ("oldgnu", "gnu", "pax") else [])
    for name in names:
        (tmp_path / "in" / name).write_bytes(name.encode() * 300)
    (tmp_path / "in" / "sub" / "hard.jpg").hardlink_to(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "soft.jpg").symlink_to("sub/b.txt")
    path = tmp_path / "a.tar"
    subprocess.run(["tar", "--format", form, "-C", tmp_path / "in", "-cf", path, "."], check=True)
    found = [(name.removeprefix("./"), data) for name, data in where(path)]
    same = {"sub/hard.jpg": "a.jpg", "soft.jpg": "sub/b.txt"}
    assert sorted(found) == sorted((name, same.get(name, name).encode() * 300) for name in [*names, *same])


@gnu_tar
@pytest.mark.parametrize(
    "flags", [["--format=gnu"], *([f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0"))]
)
def test_a_sparse_file_says_that_it_lies_in_pieces(tmp_path: Path, flags: list[str]) -> None:
    flags = flags if flags[0].startswith("--format") else ["--format=pax", *flags]
    with open(tmp_path / "holes.jpg", "wb") as file:
        for i in range(40):  # more pieces than the old header has room for
            file.seek(i * 100_000)
            file.write(b"x" * 5_000)
        file.truncate(5_000_000)
    (tmp_path / "z.txt").write_text("behind it")
    path = tmp_path / "a.tar"
    subprocess.run(["tar", *flags, "-S", "-C", tmp_path, "-cf", path, "holes.jpg", "z.txt"], check=True)
    assert where(path) == [("z.txt", b"behind it")]
    assert next((m.name, m.problem) for m in entries(path)) == (
        "holes.jpg", "a sparse file, which does not lie in one piece"
    )  # fmt: skip


def test_joined_tars_are_read_to_the_end_of_the_last(tmp_path: Path) -> None:
    path = write_theirs(tmp_path / "a.tar", (info("a.jpg"), b"one"))
    ours = write_ours(tmp_path / "b.tar").read_bytes()
    path.write_bytes(path.read_bytes() + ours + bytes(70_000))
    assert where(path) == extracted(path) == [("a.jpg", b"one"), *FILES]
    path.write_bytes(path.read_bytes() + b"rubbish" * 100)
    assert problem(path) == "header checksum is wrong: cut, overwritten, or no tar from here on"


@pytest.mark.parametrize(
    ("pack", "said"),
    [
        (gzip.compress, "gunzip"), (bz2.compress, "bunzip2"), (lzma.compress, "unxz"),
        (zstandard.compress, "unzstd"),
    ],
)  # fmt: skip
def test_a_packed_tar_is_refused_with_the_cure(
    tmp_path: Path, pack: Callable[[bytes], bytes], said: str
) -> None:
    path = write_ours(tmp_path / "a.tar")
    path.write_bytes(pack(path.read_bytes() + os.urandom(2_000)))
    assert problem(path).endswith(f"no picture can be read in place: {said} it")
    path.write_bytes(pack(b""))
    assert problem(path).endswith(f"no picture can be read in place: {said} it")


def patched(path: Path, at: int, field: bytes, *, resum: bool = True) -> Path:
    """The tar with `field` written over its first header at `at`, its checksum made right again."""
    data = bytearray(path.read_bytes())
    data[at : at + len(field)] = field
    if resum:
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    return path


def with_pax(path: Path, body: bytes) -> Path:
    """A tar whose one file stands behind an extended header with this body."""
    with TarWriter(path) as tar:
        tar.add("pax", body)
        tar.add("a.txt", b"x")
    return patched(path, 156, b"x")


@pytest.mark.parametrize("key", [b"path", b"size", b"linkpath", b"GNU.sparse.size"])
def test_no_header_moves_all_members(tmp_path: Path, key: bytes) -> None:
    record = b"%d %s=1\n" % (len(key) + 5 + (len(key) > 5), key)
    path = patched(with_pax(tmp_path / "a.tar", record), 156, b"g")
    assert f"a global header sets {key!r} of all members: refused" in problem(path)


@pytest.mark.parametrize("value", [b"-1", b"1.5", b"0x9", b"9" * 19])
def test_a_pax_size_that_is_no_number_is_refused(tmp_path: Path, value: bytes) -> None:
    record = b"%d size=%s\n" % (len(value) + 9, value)
    assert problem(with_pax(tmp_path / "a.tar", record)).startswith("extended header ")


def test_a_pax_size_counts_over_the_headers_own(tmp_path: Path) -> None:
    path = with_pax(tmp_path / "a.tar", b"10 size=5\n")
    assert [member.size for member in entries(path)] == [5]


def test_pax_headers_with_times_and_owners_are_passed_over(tmp_path: Path) -> None:
    path = with_pax(tmp_path / "a.tar", b"13 mtime=1.5\n30 SCHILY.fflags=extents=here\n9 uid=12\n")
    assert [member.name for member in members(path)] == ["a.txt"]


@pytest.mark.parametrize(
    "body",
    [b"7 mtime", b"x mtime=1\n", b"0 mtime=1\n", b"99 mtime=1\n", b"1\n", b"-3 a=b\n", b" ", b"9" * 30],
)
def test_malformed_pax_headers_are_refused(tmp_path: Path, body: bytes) -> None:
    assert problem(with_pax(tmp_path / "a.tar", body)) == "extended header is malformed"


def test_an_endless_pax_header_is_refused(tmp_path: Path) -> None:
    path = with_pax(tmp_path / "a.tar", b"9 uid=12\n" * 120_000)
    assert problem(path) == "extended header longer than 1048576 bytes: refused"


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (b"\x80\0\0\0\0\0\0\0\xff\0\0\1", "reaches past the end"),
        (b"\xff" * 12, "is not octal"),
        (b"-0000000001\0", "is not octal"),
        (b"+0000000001\0", "is not octal"),
        (b"0_000000001\0", "is not octal"),
        (b"0o000000001\0", "is not octal"),
        (b"00000000009\0", "is not octal"),
        (b"77777777777\0", "reaches past the end"),
    ],
)
def test_sizes_that_lie_are_refused(tmp_path: Path, field: bytes, said: str) -> None:
    assert said in problem(patched(write_ours(tmp_path / "a.tar"), 124, field))


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.jpg", "a/../../b.jpg", ".."])
def test_names_that_leave_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    path = patched(write_ours(tmp_path / "a.tar"), 0, name.encode().ljust(100, b"\0"))
    assert problem(path) == f"member name {name!r} leaves the archive: refused"


def test_a_checksum_of_signed_bytes_is_right_too(tmp_path: Path) -> None:
    path = write_theirs(tmp_path / "a.tar", (info("日.jpg"), b"x"))
    data = bytearray(path.read_bytes())
    signed = sum(data[:148]) + sum(data[156:512]) + 8 * 32 - 3 * 256  # 日 is three bytes over 127
    patched(path, 148, b"%06o\0 " % signed, resum=False)
    assert where(path) == [("日.jpg", b"x")]


def test_a_size_in_base_256_is_read(tmp_path: Path) -> None:
    path = patched(write_ours(tmp_path / "a.tar"), 124, b"\x80" + (600).to_bytes(11, "big"))
    assert where(path) == FILES


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    assert "checksum is wrong" in problem(patched(write_ours(tmp_path / "a.tar"), 0, b"x", resum=False))


def test_a_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    """Cut at a member's border too, where tarfile sees a whole, shorter tar."""
    whole = write_ours(tmp_path / "a.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    for length in [0, 1, 511, *range(512, len(whole) - 1024 + 1, 512), len(whole) - 1023]:
        cut.write_bytes(whole[:length])
        assert problem(cut)


def swallow(read: Callable[[], object]) -> None:
    """Nothing but ShardError may come out."""
    try:
        read()
    except ShardError:
        return


@given(
    st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=12), st.booleans()), max_size=4),
    st.integers(0, 6000),
)
def test_nothing_but_a_shard_error_escapes(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, bytes, bool]], length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.tar"
    data = bytearray(write_ours(path).read_bytes())
    for at, field, resum in edits:
        data[at : at + len(field)] = field
        start = at // 512 * 512
        if resum:
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    path.write_bytes(data[:length])
    swallow(lambda: list(members(path)))


@given(st.binary(max_size=2048))
def test_any_bytes_at_all_are_a_shard_error_or_members(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.tar"
    path.write_bytes(data)
    swallow(lambda: list(members(path)))


@pytest.mark.parametrize(("offset", "size"), [(-1, 4), (0, -1), (0, 10**6), (10**9, 1)])
def test_places_outside_a_file_are_refused(tmp_path: Path, offset: int, size: int) -> None:
    with open(write_ours(tmp_path / "a.tar"), "rb") as file, pytest.raises(ShardError, match=str(size)):
        read_at(file, offset, size)


def fail_halfway(path: Path) -> None:
    with TarWriter(path) as tar:
        tar.add("a.txt", b"x")
        raise KeyError


def test_a_writer_that_failed_leaves_no_end_mark(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fail_halfway(tmp_path / "a.tar")
    assert "without its end mark" in problem(tmp_path / "a.tar")
