"""Near-copies of pictures: the search against brute force, and the stage over files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.errors import ConfigError, DataError
from pairmill.filter import groups as groups_module
from pairmill.filter import hamming as hamming_module
from pairmill.filter.colours import SameColours
from pairmill.filter.groups import Cosine, follow, settle
from pairmill.filter.hamming import DIAGONALS, Hamming, pieces_of
from pairmill.filter.near import (
    near_embedding_stage,
    near_embedding_tasks,
    near_files,
    near_stage,
    near_tasks,
)
from pairmill.filter.near_order import check_keep
from pairmill.progress import Quiet
from pairmill.recipe import Near
from pairmill.runner import Here, Tally
from pairmill.shards.job import read_tally, run_stage
from pairmill.shards.schema import EMBEDDING, NEAR, RAW


def name(number: int) -> bytes:
    return number.to_bytes(16, "big")


def flipped(code: bytes, bits: range | list[int]) -> bytes:
    out = bytearray(code)
    for bit in bits:
        out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def code(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(32)


def picture(number: int, pdq: bytes, captions: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """The rows of one picture; its pairs' uids are 100 * number, 100 * number + 1, …"""
    row: dict[str, Any] = dict.fromkeys(RAW.names)
    row |= {"url_hash": name(number), "outcome": "ok", "wave": 0, "sha256": number.to_bytes(32, "big")}
    row |= {"pdq_v1": pdq, "pdq_quality_v1": 90, "original_bytes": 1_000}
    row |= {"original_width": 100, "original_height": 100, **fields}
    return [{**row, "uid": name(100 * number + caption)} for caption in range(captions)]


def write_raw(out: Path, *pictures: list[dict[str, Any]], shard: str = "00000") -> None:
    (out / "raw").mkdir(exist_ok=True)
    rows = [row for one in pictures for row in one]
    pq.write_table(pa.Table.from_pylist(rows, schema=RAW), out / f"raw/{shard}.parquet")


def group(out: Path, **settings: Any) -> Tally:
    report = run_stage(out, near_stage(out, Near(**settings)), near_tasks(out), Here(), Quiet())
    assert not report.failed, report.failed
    tally = read_tally(out, "near", "near")
    assert tally is not None
    return tally


def found(out: Path, *, embedding: bool = False) -> dict[int, tuple[int, int, int]]:
    """uid -> (number of the group's best picture, rank, size)."""
    table = pq.read_table(near_files(out, embedding=embedding).parent)
    assert table.schema.equals(NEAR)
    rows = zip(*(table.column(field).to_pylist() for field in NEAR.names[:4]), strict=True)
    return {int.from_bytes(uid, "big"): (int.from_bytes(of, "big"), rank, n) for uid, of, rank, n in rows}


def adopted(out: Path, *, embedding: bool = False) -> list[int]:
    """uids of the pairs whose caption another picture takes over."""
    table = pq.read_table(near_files(out, embedding=embedding).parent)
    return [int.from_bytes(row["uid"], "big") for row in table.to_pylist() if row["near_adopted_v1"]]


def captioned(number: int, pdq: bytes, *captions: str, **fields: Any) -> list[dict[str, Any]]:
    rows = picture(number, pdq, len(captions), **fields)
    return [row | {"caption": caption} for row, caption in zip(rows, captions, strict=True)]


def slow_follow(near: np.ndarray) -> np.ndarray:
    """The definition: the first earlier leader that is near, else oneself. near: (N, N) bool."""
    leader = np.arange(len(near))
    for row in range(len(near)):
        for earlier in range(row):
            if leader[earlier] == earlier and near[row, earlier]:
                leader[row] = earlier
                break
    return leader


def hashes(n: int, seed: int) -> np.ndarray:
    """(n, 32): a third are earlier ones with 0 to 60 bits flipped, so that chains occur."""
    dice = np.random.default_rng(seed)
    out = dice.integers(0, 256, (n, 32), dtype=np.uint8)
    for row in range(1, n):
        if row % 3 == 0:
            bits = np.unpackbits(out[dice.integers(row)])
            bits[dice.permutation(256)[: dice.integers(61)]] ^= 1
            out[row] = np.packbits(bits)
    return out


# --- the search ------------------------------------------------------------------------------------


def distances(codes: np.ndarray) -> np.ndarray:
    """(N, N) bits that differ."""
    bits = np.unpackbits(codes, axis=1).astype(np.int32)
    return bits @ (1 - bits.T) + (1 - bits) @ bits.T


@pytest.fixture(params=["lists", "lists, little at once", "flat"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches, so that each way to search has something to do."""
    monkeypatch.setattr(groups_module, "BATCH", 32)
    if request.param != "flat":
        monkeypatch.setattr(hamming_module, "FEW", 0)
    if "little" in request.param:
        for bound in ("AT_ONCE", "FLAT_AT_ONCE"):
            monkeypatch.setattr(hamming_module, bound, 100)


@pytest.mark.parametrize("radius", [0, 10, 31, 47, 60])
@pytest.mark.usefixtures("search")
def test_followers_equal_brute_force(radius: int) -> None:
    codes = hashes(300, radius)
    assert np.array_equal(follow(codes, Hamming(radius)), slow_follow(distances(codes) <= radius))


@pytest.mark.usefixtures("search")
def test_followers_by_hash_and_more_equal_brute_force() -> None:
    """Behind each hash stands a byte, and near are those whose bytes differ by less than the distance."""
    codes = np.c_[hashes(300, 4), np.random.default_rng(4).integers(0, 30, 300)].astype(np.uint8)
    distance = distances(codes[:, :32])
    last = codes[:, 32].astype(int)

    def alike(one: np.ndarray, other: np.ndarray, far: np.ndarray) -> np.ndarray:
        return np.abs(one[:, 0].astype(int) - other[:, 0]) <= far

    near = (distance <= 31) & (np.abs(last[:, None] - last) <= distance)
    assert near.sum() < (distance <= 31).sum()
    assert np.array_equal(follow(codes, Hamming(31, alike)), slow_follow(near))


def test_pieces_are_the_bits_of_the_diagonals() -> None:
    codes = hashes(50, 1)
    bits = np.unpackbits(codes, axis=1)
    for piece, places in zip(pieces_of(codes), DIAGONALS, strict=True):
        assert np.array_equal(piece, bits[:, places] @ (1 << np.arange(16)[::-1]))
    assert sorted(DIAGONALS.ravel()) == list(range(256))


@pytest.mark.parametrize("at_once", [7, 10_000])
def test_followers_by_cosine_equal_brute_force(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "BATCH", 50)
    monkeypatch.setattr(groups_module, "AT_ONCE", at_once)
    dice = np.random.default_rng(0)
    vectors = np.repeat(dice.normal(size=(100, 16)), 3, axis=0) + dice.normal(size=(300, 16)) * 0.15
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[dice.permutation(300)].astype(
        np.float32
    )
    assert np.array_equal(follow(vectors, Cosine(0.97)), slow_follow(vectors @ vectors.T > 0.97))


def test_nothing_follows_nothing() -> None:
    assert follow(np.empty((0, 32), np.uint8), Hamming(31)).tolist() == []
    assert [column.tolist() for column in settle(np.empty(0, np.int64))] == [[], []]


def test_ranks_and_sizes_of_groups() -> None:
    rank, size = settle(np.array([0, 1, 0, 3, 1, 0]))
    assert rank.tolist() == [0, 0, 1, 0, 1, 2]
    assert size.tolist() == [3, 2, 3, 1, 2, 3]


# --- the stage -------------------------------------------------------------------------------------


def test_all_captions_of_the_best_picture_stay_and_those_of_its_copy_go(tmp_path: Path) -> None:
    small = picture(1, flipped(code(0), range(31)), captions=2, original_width=50)
    large = picture(2, code(0), captions=3)
    other = picture(3, code(1))
    write_raw(tmp_path, small, large, other)
    tally = group(tmp_path)
    assert dict(tally.counts) == {"ok": 4, "adopted": 0, "near_copy": 2}
    assert found(tmp_path) == {
        100: (2, 1, 2),
        101: (2, 1, 2),
        200: (2, 0, 2),
        201: (2, 0, 2),
        202: (2, 0, 2),
        300: (3, 0, 1),
    }
    assert tally.facts == {
        "pictures": 3,
        "groups": 1,
        "largest": 2,
        "near": 1,
        "same_bytes": 0,
        "low_quality": 0,
    }


def write_captioned(out: Path) -> None:
    """Three copies of a picture, best first, and another with the same caption."""
    write_raw(
        out,
        captioned(1, code(0), "a dog", "a black dog", original_width=300),
        captioned(2, code(0), "ein Hund", "a dog", original_width=200),
        captioned(3, code(0), "一只狗", "ein Hund", "a black dog"),
        captioned(4, code(9), "ein Hund"),
    )


def test_the_picture_that_stays_takes_over_each_new_caption_once(tmp_path: Path) -> None:
    write_captioned(tmp_path)
    assert dict(group(tmp_path).counts) == {"ok": 3, "adopted": 2, "near_copy": 3}
    assert adopted(tmp_path) == [200, 300]
    assert [found(tmp_path)[uid][:2] for uid in (101, 200, 300, 400)] == [(1, 0), (1, 1), (1, 2), (4, 0)]


def test_captions_of_near_copies_can_be_dropped(tmp_path: Path) -> None:
    write_captioned(tmp_path)
    assert dict(group(tmp_path, captions="drop").counts) == {"ok": 3, "adopted": 0, "near_copy": 5}
    assert adopted(tmp_path) == []


def test_a_picture_that_is_only_embedded_alike_adopts_nothing(tmp_path: Path) -> None:
    """2 follows 1 and 4 follows 3 by hash; 3 follows 1 by its embedding, so that 4 lost its leader."""
    write_raw(
        tmp_path,
        *(captioned(n, code(n <= 2), str(n), original_width=100 - n) for n in range(1, 5)),
    )
    group(tmp_path)
    assert adopted(tmp_path) == [200, 400]
    (tmp_path / "scores/embedding").mkdir()
    rows = {field: [None] * 4 for field in EMBEDDING.names}
    rows |= {"uid": [name(100 * n) for n in range(1, 5)], "fold": [0] * 4}
    pq.write_table(pa.table(rows, schema=EMBEDDING), tmp_path / "scores/embedding/00000.parquet")
    np.save(tmp_path / "scores/embedding/00000.image.npy", np.tile(np.eye(8, dtype=np.float16)[0], (4, 1)))
    stage = near_embedding_stage(tmp_path, Near(cosine=0.975))
    report = run_stage(tmp_path, stage, near_embedding_tasks(tmp_path), Here(), Quiet())
    assert not report.failed, report.failed
    assert dict(report.counts) == {"ok": 1, "adopted": 1, "near_copy": 2}
    assert adopted(tmp_path, embedding=True) == [200]


def test_thirty_two_bits_are_another_picture(tmp_path: Path) -> None:
    write_raw(tmp_path, picture(1, code(0)), picture(2, flipped(code(0), range(32))))
    assert dict(group(tmp_path).counts) == {"ok": 2, "adopted": 0, "near_copy": 0}


RED, BLUE, NONE = ([90, -30], [-30, 90], [0, 0])


def colours(cb_cr: list[int], flags: int = 0) -> bytes:
    """`chroma_v1` of a picture of one colour."""
    return np.repeat(np.array(cb_cr, np.int8), 9).tobytes() + bytes([flags])


@pytest.mark.parametrize(
    ("one", "other", "bits", "copies"),
    [
        ((RED, 0), (RED, 0), 30, True),
        ((RED, 0), (BLUE, 0), 0, False),
        ((RED, 0), (NONE, 0), 0, False),
        ((RED, 0), (NONE, 2), 30, True),  # one is grey: the copy of a photo may be
        ((NONE, 2), (NONE, 2), 30, True),
        ((RED, 1), (RED, 1), 18, True),
        ((RED, 1), (RED, 1), 20, False),  # both on white ground, where as many bits differ between products
        ((RED, 1), (RED, 0), 20, True),
        ((RED, 1), (NONE, 3), 18, True),
        ((RED, 1), (NONE, 3), 20, False),
        ((RED, 0), ([60, -20], 0), 10, True),  # paler by a third, and stronger
        ((RED, 0), ([120, -40], 0), 10, True),
        ((RED, 0), ([100, -20], 0), 10, True),
        ((RED, 0), ([90, 40], 0), 10, False),
    ],
)
def test_pictures_of_other_colours_are_no_copies(
    tmp_path: Path, one: Any, other: Any, bits: int, copies: bool
) -> None:
    first = picture(1, code(0), chroma_v1=colours(*one))
    write_raw(tmp_path, first, picture(2, flipped(code(0), range(bits)), chroma_v1=colours(*other)))
    assert group(tmp_path).counts["near_copy"] == copies
    mirrored = SameColours(18)(_row(colours(*other)), _row(colours(*one)), np.array([bits]))
    assert mirrored.tolist() == [copies]


def _row(descriptor: bytes) -> np.ndarray:
    return np.frombuffer(descriptor, np.uint8)[None]


def test_one_field_of_another_colour_is_enough() -> None:
    plain = bytearray(colours(RED))
    plain[4] = 0
    assert SameColours(18)(_row(colours(RED)), _row(bytes(plain)), np.array([0])).tolist() == [False]


def test_pictures_of_the_same_bytes_are_copies_whatever_is_known_of_them(tmp_path: Path) -> None:
    same: dict[str, Any] = {"sha256": bytes(32)}
    one, other = (picture(n, code(n), chroma_v1=colours(of), **same) for n, of in ((1, RED), (2, BLUE)))
    write_raw(tmp_path, one, other)
    assert group(tmp_path).counts["near_copy"] == 1


def test_without_colours_the_hash_alone_decides(tmp_path: Path) -> None:
    red, blue = (picture(n, code(0), chroma_v1=colours(of, 1)) for n, of in ((1, RED), (2, BLUE)))
    write_raw(tmp_path, red, blue)
    assert group(tmp_path, colour=False).counts["near_copy"] == 1


def test_raw_shards_without_colours_are_named_with_what_to_do(tmp_path: Path) -> None:
    write_raw(tmp_path, picture(1, code(0)), picture(2, code(0)))
    path = tmp_path / "raw/00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["chroma_v1"]), path)
    worker = near_stage(tmp_path, Near()).start(*near_stage(tmp_path, Near()).args)
    with pytest.raises(DataError, match=r"00000\.parquet: no column chroma_v1.*near\.colour: false"):
        worker(near_tasks(tmp_path)[0])
    assert group(tmp_path, colour=False).counts["near_copy"] == 1


def test_a_chain_does_not_join_strangers(tmp_path: Path) -> None:
    """1 - 2 - 3, thirty bits apart each: 2 follows the best, 3 is no copy of it and stays."""
    codes = [flipped(code(0), range(30 * step)) for step in range(3)]
    write_raw(tmp_path, *(picture(number + 1, pdq) for number, pdq in enumerate(codes)))
    assert found_after(tmp_path) == {100: (1, 0, 2), 200: (1, 1, 2), 300: (3, 0, 1)}


def found_after(out: Path, **settings: Any) -> dict[int, tuple[int, int, int]]:
    group(out, **settings)
    return found(out)


def test_pictures_of_little_quality_are_copies_only_by_their_bytes(tmp_path: Path) -> None:
    flat: dict[str, Any] = {"pdq_quality_v1": 49}
    same: dict[str, Any] = {"sha256": bytes(32)}
    write_raw(
        tmp_path,
        picture(1, code(0), **flat),
        picture(2, code(0), **flat),
        picture(3, code(0), **flat, **same),
        picture(4, code(0), **flat, **same),
        picture(5, code(0), pdq_quality_v1=50),
    )
    tally = group(tmp_path)
    assert found(tmp_path)[400] == (3, 1, 2)
    assert [size for _, _, size in found(tmp_path).values()] == [1, 1, 2, 2, 1]
    assert (tally.facts["same_bytes"], tally.facts["low_quality"]) == (1, 4)


def test_a_picture_without_hashes_is_alone(tmp_path: Path) -> None:
    bare: dict[str, Any] = {"pdq_v1": None, "pdq_quality_v1": None, "sha256": None}
    write_raw(tmp_path, picture(1, b"", **bare), picture(2, b"", **bare))
    assert found_after(tmp_path) == {100: (1, 0, 1), 200: (2, 0, 1)}


def test_only_fetched_pairs_of_the_highest_wave_count(tmp_path: Path) -> None:
    write_raw(tmp_path, picture(1, code(0)), picture(2, code(0), outcome="timeout", pdq_v1=None))
    write_raw(tmp_path, picture(2, code(5), wave=1), shard="w1-00000")
    assert found_after(tmp_path) == {100: (1, 0, 1), 200: (2, 0, 1)}


def test_the_recipe_says_which_picture_stays(tmp_path: Path) -> None:
    write_raw(tmp_path, picture(1, code(0)), picture(2, code(0), original_bytes=5))
    assert found_after(tmp_path, keep="original_bytes")[100] == (2, 1, 2)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (
            "width DESC, beauty",
            r"'width DESC, beauty', .*\"beauty\".*Columns at this stage: uid, url_hash, key,",
        ),
        ("width DESC,,", "near.keep is 'width DESC,,', expected SQL's ORDER BY: .*syntax"),
        ("", "near.keep is ''"),
    ],
)
def test_an_order_that_cannot_be_is_found_before_anything_is_started(keep: str, said: str) -> None:
    check_keep(Near())
    with pytest.raises(ConfigError, match=said) as caught:
        check_keep(Near(keep=keep))
    assert "\n" not in str(caught.value)


def test_an_order_that_fails_on_a_value_is_one_line_that_says_what_to_write(tmp_path: Path) -> None:
    write_raw(tmp_path, picture(1, code(0), format="jpeg"))
    settings = Near(keep="format::INT")
    check_keep(settings)
    stage = near_stage(tmp_path, settings)
    with pytest.raises(
        DataError, match=r"^near.keep \(format::INT\) .*'jpeg' to INT32.*; TRY_CAST\(x AS INT\)"
    ):
        stage.start(*stage.args)(near_tasks(tmp_path)[0])


@pytest.mark.parametrize("keep_bytes", [0, 4, -100])
def test_a_damaged_raw_table_is_one_line_that_names_it(tmp_path: Path, keep_bytes: int) -> None:
    write_raw(tmp_path, picture(1, code(0)))
    path = tmp_path / "raw" / "00000.parquet"
    path.write_bytes(path.read_bytes()[:keep_bytes])
    stage = near_stage(tmp_path, Near())
    with pytest.raises(
        DataError, match=r"^near: what it reads is broken: .*00000\.parquet.*pairmill verify"
    ) as caught:
        stage.start(*stage.args)(near_tasks(tmp_path)[0])
    assert "\n" not in str(caught.value)


def test_no_pictures_are_no_task_and_none_fetched_an_empty_table(tmp_path: Path) -> None:
    assert near_tasks(tmp_path) == []
    write_raw(tmp_path, picture(1, code(0), outcome="http_404"))
    assert found_after(tmp_path) == {}


def test_a_second_run_writes_the_same_bytes(tmp_path: Path) -> None:
    codes = hashes(400, 3)
    pictures = [picture(number, bytes(pdq), captions=2) for number, pdq in enumerate(codes, 1)]
    write_raw(tmp_path, *pictures)
    group(tmp_path)
    first = (tmp_path / "scores/near/near.parquet").read_bytes()
    (tmp_path / "_done/near/near.json").unlink()
    write_raw(tmp_path, *pictures[::-1])
    group(tmp_path, threads=1)
    assert (tmp_path / "scores/near/near.parquet").read_bytes() == first


def test_embeddings_of_one_fold_join_what_hashes_left_apart(tmp_path: Path) -> None:
    """Pictures 1 and 2 are near by hash; 3 has 1's embedding; 4 too, but in another fold."""
    write_raw(
        tmp_path,
        picture(1, code(0), captions=2),
        picture(2, code(0)),
        picture(3, code(3)),
        picture(4, code(4)),
    )
    group(tmp_path)
    (tmp_path / "scores/embedding").mkdir()
    uids, folds = [100, 101, 200, 300, 400], [0, 0, 0, 0, 1]
    rows = {
        **{field: [None] * 5 for field in EMBEDDING.names},
        "uid": [name(uid) for uid in uids],
        "fold": folds,
    }
    pq.write_table(pa.table(rows, schema=EMBEDDING), tmp_path / "scores/embedding/00000.parquet")
    np.save(tmp_path / "scores/embedding/00000.image.npy", np.tile(np.eye(8, dtype=np.float16)[0], (5, 1)))
    settings = Near(cosine=0.975)
    stage = near_embedding_stage(tmp_path, settings)
    report = run_stage(tmp_path, stage, near_embedding_tasks(tmp_path), Here(), Quiet())
    assert not report.failed, report.failed
    assert found(tmp_path, embedding=True) == {
        100: (1, 0, 3),
        101: (1, 0, 3),
        200: (1, 1, 3),
        300: (1, 2, 3),
        400: (4, 0, 1),
    }
    assert found(tmp_path)[300] == (3, 0, 1)


def test_a_broken_embedding_is_near_nothing(tmp_path: Path) -> None:
    write_raw(tmp_path, *(picture(n, code(n)) for n in range(1, 5)))
    group(tmp_path)
    (tmp_path / "scores/embedding").mkdir()
    rows = {field: [None] * 4 for field in EMBEDDING.names}
    rows |= {"uid": [name(100 * n) for n in range(1, 5)], "fold": [0] * 4}
    pq.write_table(pa.table(rows, schema=EMBEDDING), tmp_path / "scores/embedding/00000.parquet")
    vectors = np.tile(np.eye(8, dtype=np.float16)[0], (4, 1))
    vectors[0, 0], vectors[2, 0] = np.inf, np.nan
    np.save(tmp_path / "scores/embedding/00000.image.npy", vectors)
    stage = near_embedding_stage(tmp_path, Near(cosine=0.9))
    run_stage(tmp_path, stage, near_embedding_tasks(tmp_path), Here(), Quiet())
    leaders = [number for number, _, _ in found(tmp_path, embedding=True).values()]
    assert leaders == [1, 2, 3, 2]
    assert not (tmp_path / "_tmp").exists()
