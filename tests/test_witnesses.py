"""Witnesses: what they say is its slow definition, and no way of being wrong breaks the promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pairmill.filter import testimony
from pairmill.filter.calibration import allowed
from pairmill.filter.evidence import Frame
from pairmill.filter.testimony import FEATURES, IN_SOURCE, PICTURE, SOURCE, Asked, Frames, hear_witnesses
from pairmill.shards.commit import write_table
from pairmill.shards.schema import RAW

from .test_noise import DIM, read_scores, score, unit, write_shard

N = 3  # captions of one language at each picture


def world(
    out: Path, pictures: int, *, wrong: float, swapped: float, astray: float, signal: float = 0.6
) -> np.ndarray:
    """Pictures with N captions in each of two languages; returns which pairs are mismatched, by row.

    Of the pictures a share `wrong` is another's altogether, of a share `astray` all German captions belong to
    one other picture; of the captions a share `swapped` is another's of that language. signal: how well the
    scorer knows its topics.
    """
    dice = np.random.default_rng(0)
    topics = dice.normal(size=(pictures, DIM)) * np.linspace(1.5, 0.3, DIM)
    of = np.repeat(np.arange(pictures), 2 * N)
    lang = np.tile(np.repeat([0, 1], N), pictures)
    said = of.copy()
    lost = dice.permutation(pictures)[: round(astray * pictures)]
    moved = dict(zip(lost.tolist(), np.roll(lost, 1).tolist(), strict=True))
    said = np.array([moved.get(at, at) if one else at for at, one in zip(of, lang, strict=True)])
    for one in (0, 1):
        mine = np.flatnonzero(lang == one)
        chosen = dice.permutation(mine)[: round(swapped * len(mine))]
        said[chosen] = said[np.roll(chosen, 1)]
    seen = np.arange(pictures)
    strange = dice.permutation(pictures)[: round(wrong * pictures)]
    seen[strange] = np.roll(strange, 1)
    image = unit(signal * topics[seen] + dice.normal(size=(pictures, DIM)) + 0.8)[of]
    text = unit(
        signal * topics[said] + dice.normal(size=(len(said), DIM)) + np.where(lang, 0.4, -0.5)[:, None]
    )
    uids, urls = ([dice.bytes(16) for _ in range(n)] for n in (len(of), pictures))
    rows: dict[str, list[Any]] = {
        "uid": uids,
        "fold": [0] * len(of),
        "lang": np.where(lang, "de", "en").tolist(),
    }
    rows |= {"url_hash": [urls[at] for at in of], "caption": [f"caption {row}" for row in range(len(of))]}
    write_shard(out, "00000", rows, image, text)
    return said != seen[of]


def kept(out: Path, mismatched: np.ndarray, asked: float) -> tuple[bool, float]:
    """Whether the promise was kept, and the share of the good pairs that was."""
    q = read_scores(out).column("mismatch_q_v2").to_numpy()
    some = q <= asked
    share = float(mismatched[some].mean()) if some.any() else 0.0
    return share <= allowed(asked, int(some.sum())), float(some[~mismatched].mean())


@pytest.mark.parametrize(
    ("wrong", "swapped", "astray"),
    [(0, 0.3, 0), (0.15, 0.3, 0), (0.3, 0, 0), (0, 0.2, 0.15), (0, 0.5, 0), (0.1, 0.1, 0.1)],
)
def test_no_way_of_being_wrong_breaks_the_promise(
    tmp_path: Path, wrong: float, swapped: float, astray: float
) -> None:
    mismatched = world(tmp_path, 1_200, wrong=wrong, swapped=swapped, astray=astray)
    said = score(tmp_path).facts["languages"]["de"]
    assert said["witnesses"]["pairs"] == 3_600
    assert said["witnesses"]["wrong_pictures"] >= wrong
    for asked in (0.05, 0.1, 0.2):
        assert kept(tmp_path, mismatched, asked)[0]


def test_witnesses_keep_more_good_pairs_than_pairs_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mismatched = world(tmp_path / "asked", 1_500, wrong=0, swapped=0.3, astray=0)
    score(tmp_path / "asked")
    world(tmp_path / "alone", 1_500, wrong=0, swapped=0.3, astray=0)
    monkeypatch.setattr("pairmill.filter.noise_files.FEWEST_PICTURES", 10**9)
    assert "witnesses" not in score(tmp_path / "alone").facts["languages"]["de"]
    heard, alone = kept(tmp_path / "asked", mismatched, 0.05), kept(tmp_path / "alone", mismatched, 0.05)
    assert heard[1] > alone[1] + 0.1
    table = read_scores(tmp_path / "asked")
    assert table["witnesses_v1"].to_pylist() == [2 * N - 1] * len(table)
    assert table["asked_v1"].to_pylist() == [True] * len(table)


def test_two_captions_of_a_picture_are_scored_by_themselves(tmp_path: Path) -> None:
    """A single witness is not asked: half of a pair of pictures with two captions may be wrong either way."""
    dice = np.random.default_rng(1)
    topics = np.repeat(dice.normal(size=(500, DIM)), 2, axis=0)
    image, text = unit(topics + dice.normal(size=(1_000, DIM))), unit(topics + dice.normal(size=(1_000, DIM)))
    uids = [dice.bytes(16) for _ in range(1_000)]
    rows = {"uid": uids, "fold": [0] * 1_000, "lang": ["en"] * 1_000}
    rows |= {
        "url_hash": [uids[row // 2 * 2] for row in range(1_000)],
        "caption": [str(r) for r in range(1_000)],
    }
    write_shard(tmp_path, "00000", rows, image, text)
    score(tmp_path)
    table = read_scores(tmp_path)
    assert table["witnesses_v1"].to_pylist() == [1] * 1_000
    assert table["asked_v1"].to_pylist() == [False] * 1_000
    assert (table["mismatch_q_v2"].to_numpy() <= 0.2).any()


def test_captions_that_are_all_equal_tell_nothing(tmp_path: Path) -> None:
    dice = np.random.default_rng(2)
    image, text = unit(dice.normal(size=(900, DIM))), np.repeat(unit(dice.normal(size=(1, DIM))), 900, axis=0)
    uids = [dice.bytes(16) for _ in range(900)]
    rows = {"uid": uids, "fold": [0] * 900, "lang": ["en"] * 900, "caption": ["the same"] * 900}
    rows |= {"url_hash": [uids[row // 3 * 3] for row in range(900)]}
    write_shard(tmp_path, "00000", rows, image, text)
    said = score(tmp_path).facts["languages"]["en"]
    assert said["kept_by_asked"]["0.2"] == 0
    assert said["least"] is None
    assert (
        read_scores(tmp_path)["witnesses_v1"].to_pylist() == [0] * 900
    )  # one caption testifies not for itself


def test_embeddings_that_are_no_numbers_do_not_testify(tmp_path: Path) -> None:
    world(tmp_path, 200, wrong=0, swapped=0.3, astray=0)
    path = tmp_path / "scores/embedding/00000.text.npy"
    text = np.load(path)
    text[::6] = np.nan
    np.save(path, text)
    assert dict(score(tmp_path).counts) == {"ok": 1_000, "not_scored": 200}
    table = read_scores(tmp_path)
    assert set(table["witnesses_v1"].to_pylist()) == {None, 2 * N - 2}


def asked_and_vectors(seed: int) -> tuple[Asked, np.ndarray, np.ndarray]:
    """300 pairs of 40 pictures, two cells, two hosts; some captions are said twice at one picture."""
    dice = np.random.default_rng(seed)
    n = 300
    group = dice.integers(0, 40, n).astype(np.uint64)
    cell, host = dice.integers(0, 2, n).astype(np.int32), dice.integers(0, 2, n).astype(np.uint64)
    caption = (group * 10 + dice.integers(0, 7, n).astype(np.uint64)) * 2 + cell.astype(np.uint64)
    said = {int(one): unit(dice.normal(size=(1, DIM)))[0] for one in np.unique(caption)}
    text = np.stack([said[int(one)] for one in caption]).astype(np.float16).astype(np.float32)
    image = unit(dice.normal(size=(n, DIM))).astype(np.float16).astype(np.float32)
    keys = np.zeros((n, 2), ">u8")
    keys[:, 1] = group
    uids = np.frombuffer(dice.bytes(16 * n), "V16")
    counted = dice.random(n) < 0.8
    whole = Asked(keys.view("V16").reshape(-1), uids, caption, host, cell, counted, np.ones(n, bool))
    return whole, image, text


def frames_for(cell: np.ndarray, image: np.ndarray, text: np.ndarray) -> Frames:
    means = np.stack([[side[cell == one].mean(0) for side in (image, text)] for one in (0, 1)])
    frames = {}
    for one in (0, 1):
        spreads = [np.cov(side[cell == one].T, bias=True) for side in (image, text)]
        frames[one] = Frame(means[one], np.stack(spreads))
    return Frames(means.astype(np.float64), frames)


@pytest.mark.parametrize("chunk", [16_384, 20])
def test_what_witnesses_say_equals_its_slow_definition(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(testimony, "CHUNK", chunk)
    asked, image, text = asked_and_vectors(0)
    frames = frames_for(asked.cell, image, text)
    records = np.zeros(300, testimony.RECORD)
    for rows, found, sworn in hear_witnesses(asked, lambda rows: (image[rows], text[rows]), frames, range(2)):
        records[rows] = found
        assert sworn.rows.tolist() == rows.tolist()
    centred = text - frames.means[asked.cell, 1]
    pictures = image - frames.means[asked.cell, 0]
    for row in range(300):
        mates = np.flatnonzero((asked.group == asked.group[row]) & (asked.caption != asked.caption[row]))
        _, first = np.unique(asked.caption[mates], return_index=True)
        assert records["n"][row] == len(first)
        witness = centred[mates[first]].sum(0) / (len(first) + 1)
        _, among = frames.units(asked.cell[row])
        across, _ = frames.units(asked.cell[row])
        features = dict(zip(FEATURES, records["features"][row].tolist(), strict=True))
        assert features["agree"] == pytest.approx(among * witness @ centred[row], abs=1e-4)
        assert features["others"] == pytest.approx(across * witness @ pictures[row], abs=1e-4)
        assert features["pair"] == pytest.approx(across * centred[row] @ pictures[row], abs=1e-4)


def test_of_a_picture_with_very_many_captions_so_many_at_a_time_testify(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(testimony, "CHUNK", 5)
    asked, image, text = asked_and_vectors(1)
    asked = replace(asked, group=np.repeat(asked.group[:3], 100), caption=np.arange(300, dtype=np.uint64))
    frames = frames_for(asked.cell, image, text)
    seen = np.zeros(300, np.int64)
    for rows, found, _ in hear_witnesses(asked, lambda rows: (image[rows], text[rows]), frames, range(2)):
        seen[rows] += 1
        assert found["n"].tolist() == [4] * 5
        assert np.isfinite(found["features"]).all()
    assert seen.tolist() == [1] * 300


def test_one_counted_pair_stands_for_its_picture_and_one_for_its_source() -> None:
    asked, image, text = asked_and_vectors(3)
    frames = frames_for(asked.cell, image, text)
    ((rows, records, _),) = hear_witnesses(asked, lambda rows: (image[rows], text[rows]), frames, range(2))
    flags = np.zeros(300, np.uint8)
    flags[rows] = records["flags"]
    stands = flags & PICTURE > 0
    assert asked.counted[stands].all()
    keys = [(bytes(asked.group[row]), asked.cell[row]) for row in np.flatnonzero(stands)]
    assert len(set(keys)) == len(keys) > 30
    for row in np.flatnonzero(flags & SOURCE > 0):
        assert flags[row] & IN_SOURCE
        others = (asked.group == asked.group[row]) & (asked.cell == asked.cell[row])
        assert len(np.unique(asked.caption[others & (asked.host == asked.host[row])])) > 1


def test_captions_from_two_hosts_are_two_sources(tmp_path: Path) -> None:
    """Of near-copies at two hosts those of one have gone astray together; raw rows say where each lies."""
    mismatched = world(tmp_path, 900, wrong=0, swapped=0.1, astray=0.15)
    path = tmp_path / "raw/00000.parquet"
    import pyarrow.parquet as pq

    raw = pq.read_table(path)
    urls = [f"https://{'a' if row // N % 2 else 'b'}.example/{row}.jpg" for row in range(len(raw))]
    write_table(raw.set_column(RAW.get_field_index("url"), "url", pa.array(urls)).cast(RAW), path)
    language = tmp_path / "scores/language/00000.parquet"
    told = pq.read_table(language)
    write_table(told.set_column(1, "lang_v1", pa.array(["en"] * len(told))), language)
    said = score(tmp_path).facts["languages"]["en"]
    assert said["witnesses"]["wrong_sources"] > 0.05
    for asked in (0.05, 0.1, 0.2):
        assert kept(tmp_path, mismatched, asked)[0]
