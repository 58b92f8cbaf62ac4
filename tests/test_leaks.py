"""Evaluation pictures and captions, and blocked hashes, found in a crawl; what is no leak is none."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fetching import picture  # pyright: ignore[reportImplicitRelativeImport]
from PIL import Image, ImageOps

from pairmill.commands import start
from pairmill.crawl.chroma import chroma
from pairmill.crawl.evaluation import evaluation_stage, evaluation_tasks
from pairmill.crawl.pdq import pdq_hash
from pairmill.errors import ConfigError
from pairmill.filter.blocklist import read_blocklists
from pairmill.filter.leaks import decontaminate_stage, decontaminate_tasks
from pairmill.progress import Quiet
from pairmill.recipe import Decontaminate, Fetch, Near
from pairmill.runner import Here
from pairmill.shards.job import StageReport, run_stage
from pairmill.shards.schema import LEAKS, RAW, make_uid, text_hash


def photo(number: int, side: int = 192) -> Image.Image:
    """A picture of its own for every number: detail of every size, mostly in brightness."""
    dice = np.random.default_rng(number)
    coarse = dice.integers(30, 226, (32, 32, 1)) + dice.integers(-30, 31, (32, 32, 3))
    return Image.fromarray(coarse.astype(np.uint8)).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "png", **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg 30": lambda image: Image.open(io.BytesIO(encoded(image, "jpeg", quality=30))),
    "webp 50": lambda image: Image.open(io.BytesIO(encoded(image, "webp", quality=50))).convert("RGB"),
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "double": lambda image: image.resize((image.width * 2, image.height * 2)),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "mirrored": ImageOps.mirror,
}


def raw_rows(images: list[tuple[str, Image.Image, str]]) -> list[dict[str, Any]]:
    rows = []
    for url, image, caption in images:
        pixels = np.asarray(image.convert("RGB"))
        hashed, quality = pdq_hash(pixels, enlarge=True)
        rows.append(
            {"uid": make_uid(url, caption), "url_hash": text_hash(url), "url": url, "caption": caption}
            | {"outcome": "ok", "wave": 0, "sha256": hashlib.sha256(encoded(image)).digest()}
            | {"pdq_v1": hashed, "pdq_quality_v1": quality, "chroma_v1": chroma(pixels)}
        )
    return rows


def write_raw(out: Path, rows: list[dict[str, Any]], name: str = "00000") -> None:
    (out / "raw").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, RAW), out / "raw" / f"{name}.parquet")


def run(out: Path, settings: Decontaminate) -> dict[bytes, dict[str, Any]]:
    """By uid, what both stages say."""
    for tasks, stage in (
        (evaluation_tasks(settings), evaluation_stage(out, Fetch())),
        (decontaminate_tasks(out), decontaminate_stage(out, settings, Near())),
    ):
        report: StageReport = (
            run_stage(out, stage, tasks, Here(retries=0), Quiet()) if tasks else StageReport("")
        )
        assert report.failed == {}
    table = pq.read_table(out / "scores" / "leaks" / "leaks.parquet")
    assert table.schema == LEAKS
    rows = table.to_pylist()
    assert [row["uid"] for row in rows] == sorted(row["uid"] for row in rows)
    return {row["uid"]: row for row in rows}


def evaluation_set(
    folder: Path, images: dict[str, Image.Image], captions: dict[str, str] | None = None
) -> Path:
    folder.mkdir(parents=True)
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(encoded(image))
    for name, text in (captions or {}).items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_planted_evaluation_pictures_are_found_under_edits_and_nothing_else_is(tmp_path: Path) -> None:
    held = {str(number): photo(number) for number in range(20)}
    images = [(f"http://a.test/{n}", photo(n), f"other {n}") for n in range(1_000, 1_400)]
    planted = {f"http://b.test/{name}/{edit}": (name, edit) for name in held for edit in EDITS}
    images += [(url, EDITS[edit](held[name]), f"copy {url}") for url, (name, edit) in planted.items()]
    write_raw(tmp_path, raw_rows(images))
    found = run(tmp_path, Decontaminate(against=(str(evaluation_set(tmp_path / "ev", held)),)))
    said = {url: found[make_uid(url, caption)] for url, _, caption in images}
    assert {url for url, row in said.items() if row["leak_of_v1"]} == set(planted)
    for url, (name, edit) in planted.items():
        assert said[url]["leak_of_v1"] == f"ev/{name}.png"
        assert said[url]["leak_mirrored_v1"] == (edit == "mirrored"), edit
        assert said[url]["leak_distance_v1"] <= 31
    assert all(row["leak_caption_of_v1"] is None and row["blocked_v1"] is False for row in found.values())


def test_mirrored_pictures_can_be_left_alone_and_other_colours_are_no_leak(tmp_path: Path) -> None:
    image = photo(1)
    luma = image.convert("L")
    dim = luma.point(lambda value: value * 0.6)
    image, swapped = (
        Image.merge("RGB", bands) for bands in ((luma, dim, dim), (dim, luma.point(lambda v: v * 0.8), dim))
    )
    write_raw(tmp_path, raw_rows([("http://a.test/m", ImageOps.mirror(image), "m")]))
    ev = evaluation_set(tmp_path / "ev", {"1": image, "plain": Image.new("RGB", (80, 60), "white")})
    assert [
        row["leak_of_v1"] for row in run(tmp_path, Decontaminate(against=(str(ev),), mirrored=False)).values()
    ] == [None]
    other = tmp_path / "other"
    blank = Image.new("RGB", (90, 70), "white")  # flat: its hash is no evidence
    write_raw(other, raw_rows([("http://a.test/s", swapped, "s"), ("http://a.test/w", blank, "w")]))
    assert [row["leak_of_v1"] for row in run(other, Decontaminate(against=(str(ev),))).values()] == [
        None,
        None,
    ]


def test_sets_are_read_from_tars_with_several_captions_in_a_text(tmp_path: Path) -> None:
    tar = tmp_path / "clip_benchmark" / "test" / "0.tar"
    tar.parent.mkdir(parents=True)
    with tarfile.open(tar, "w") as file:
        for number in range(3):
            data = {
                "jpg": encoded(photo(number), "jpeg", quality=95),
                "cls": b"1",
                "txt": b"A  dog runs.\ntwo dogs\n\n",
            }
            for kind, content in data.items():
                member = tarfile.TarInfo(f"s{number:07d}.{kind}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo("s0000009.cls")
        file.addfile(member)
    (tar.parent.parent / "README.md").write_text("not a picture")
    images = [
        ("http://a.test/1", photo(1), "x"),
        ("http://a.test/9", photo(9), "TWO dogs"),
        ("http://a.test/8", photo(8), "two dogs!"),
    ]
    write_raw(tmp_path, raw_rows(images))
    found = run(tmp_path, Decontaminate(against=(str(tar.parent.parent),)))
    said = [
        (found[make_uid(url, caption)]["leak_of_v1"], found[make_uid(url, caption)]["leak_caption_of_v1"])
        for url, _, caption in images
    ]
    assert said == [
        ("clip_benchmark/test/0.tar/s0000001", None),
        (None, "clip_benchmark/test/0.tar/s0000000"),
        (None, None),
    ]
    assert json.loads((tmp_path / "_done/evaluation/0000.json").read_text())["counts"] == {
        "ok": 3,
        "picture_missing": 1,
    }


def test_the_last_attempt_counts_and_an_adopted_caption_goes_with_its_new_picture(tmp_path: Path) -> None:
    from pairmill.shards.schema import NEAR

    rows = raw_rows([("http://a.test/1", photo(1), "x"), ("http://a.test/2", photo(2), "y")])
    again = [
        {**rows[0], "wave": 1, **{k: rows[1][k] for k in ("pdq_v1", "chroma_v1", "sha256", "pdq_quality_v1")}}
    ]
    write_raw(tmp_path, rows)
    write_raw(tmp_path, again, "w1-00000")
    ev = Decontaminate(against=(str(evaluation_set(tmp_path / "ev", {"1": photo(1)})),))
    assert {row["leak_of_v1"] for row in run(tmp_path, ev).values()} == {
        None
    }  # its picture is another by now
    (tmp_path / "raw" / "w1-00000.parquet").unlink()
    near = [
        {
            "uid": rows[0]["uid"],
            "near_group_v1": rows[0]["url_hash"],
            "near_rank_v1": 0,
            "near_adopted_v1": False,
        },
        {
            "uid": rows[1]["uid"],
            "near_group_v1": rows[0]["url_hash"],
            "near_rank_v1": 1,
            "near_adopted_v1": True,
        },
    ]
    (tmp_path / "scores" / "near").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(near, NEAR), tmp_path / "scores" / "near" / "near.parquet")
    shutil.rmtree(tmp_path / "_done" / "decontaminate")
    assert {row["leak_of_v1"] for row in run(tmp_path, ev).values()} == {"ev/1.png"}


def test_blocked_hashes_are_found_by_bytes_by_look_and_by_the_lists_md5(tmp_path: Path) -> None:
    from pairmill.shards.schema import PAIRS

    images = [(f"http://a.test/{n}", photo(n), f"c{n}") for n in range(5)]
    rows = raw_rows(images)
    write_raw(tmp_path, rows)
    (tmp_path / "pairs").mkdir()
    md5 = hashlib.md5(b"x").hexdigest()
    pairs = [
        {"uid": row["uid"], "given": json.dumps({"md5": md5.upper() if n == 3 else "0" * 32})}
        for n, row in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(pairs, PAIRS), tmp_path / "pairs" / "0000-00000.parquet")
    near = bytearray(rows[1]["pdq_v1"])
    near[0] ^= 0xFF
    path = tmp_path / "list.txt"
    path.write_text(f"# kept apart\n{rows[0]['sha256'].hex().upper()}\n{near.hex()}, by look\n\n{md5}\n")
    found = run(tmp_path, Decontaminate(blocklist=(str(path),)))
    assert [found[row["uid"]]["blocked_v1"] for row in rows] == [True, True, False, True, False]


@pytest.mark.parametrize("line", ["zz", "ab" * 15, "ab" * 33, "0x" + "a" * 62])
def test_a_line_that_is_no_hash_is_named_and_not_shown(tmp_path: Path, line: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"{'ab' * 32}\n{line}\n")
    with pytest.raises(ConfigError, match="line 2: no hash: expected 64 hex digits") as caught:
        read_blocklists([str(path)])
    assert line not in str(caught.value).replace(str(path), "")
    with pytest.raises(ConfigError, match="No such file or directory: no list there"):
        read_blocklists([str(tmp_path / "none.txt")])


@pytest.fixture
def out(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run / "out", tmp_path / "out")
    return tmp_path / "out"


def test_a_folder_without_pictures_or_none_at_all_is_one_line(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.csv").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_text("no picture")
    for flags, code, message in (
        ((), 2, "give --against FOLDER or --blocklist FILE"),
        (("--against", tmp_path / "empty"), 2, "empty: no pictures among its 1 files: expected pictures"),
        (("--against", tmp_path / "nope"), 2, "nope: no such folder"),
        (("--blocklist", tmp_path / "nope"), 2, "nope: No such file or directory"),
        (("--against", tmp_path / "broken"), 1, "broken: no picture there can be used: not_image 1"),
    ):
        assert start(["decontaminate", str(out), *map(str, flags), "--engine", "here"]) == code
        said = capsys.readouterr().err
        assert message in said, said
        assert code == 1 or said.count("\n") == 1


def test_the_command_marks_leaks_shows_them_beside_their_originals_and_never_shows_what_is_blocked(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ev = tmp_path / "ev"
    ev.mkdir()
    for number in (3, 11):
        (ev / f"{number}.jpg").write_bytes(picture(number))
    (ev / "3.txt").write_text("Picture number 7")
    blocked = hashlib.sha256(picture(21)).hexdigest()
    (tmp_path / "list.txt").write_text(blocked)
    flags = ["--against", str(ev), "--blocklist", str(tmp_path / "list.txt"), "--engine", "here"]
    assert start(["decontaminate", str(out), *flags]) == 0
    said = json.loads(capsys.readouterr().out)
    expected = {"blocked": 1, "clean": 38, "leak": 2, "leak_caption": 1}
    assert said["stages"]["decontaminate"]["counts"] == expected
    page = (out / "report" / "leaks.html").read_text()
    assert page.count("<img") == 4  # two hits, two originals
    assert "picture number 21" not in page
    table = pq.read_table(out / "report" / "leaks.parquet").to_pylist()
    assert sorted((row["url"][-2:], row["evaluation_picture"]) for row in table) == [
        ("/3", "ev/3.jpg"),
        ("/7", None),
        ("11", "ev/11.jpg"),
    ]
    assert (
        start(
            [
                "decide",
                str(out),
                "--name",
                "clean",
                "--set",
                "decide.rules.sets=[leaks]",
                "decide.baseline=false",
                "--engine",
                "here",
            ]
        )
        == 0
    )
    counts = json.loads(capsys.readouterr().out)["stages"]["decide"]["counts"]
    assert counts == {"blocked": 1, "kept": 39, "leak": 2, "not_found": 4}
    report = (out / "report" / "index.html").read_text()
    assert "picture number 21" not in report  # blocked: counted, and never shown
    assert start(["verify", str(out)]) == 0
    assert blocked not in capsys.readouterr().out + page + report
    assert (
        start(
            [
                "decide",
                str(out),
                "--name",
                "any",
                "--set",
                "decide.rules.sets=[]",
                "decide.baseline=false",
                "--engine",
                "here",
            ]
        )
        == 0
    )
    counts = json.loads(capsys.readouterr().out)["stages"]["decide"]["counts"]
    assert counts == {"blocked": 1, "kept": 41, "not_found": 4}  # no selection keeps it
