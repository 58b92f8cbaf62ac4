"""The noise score, over files with known truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.errors import ShardError
from pairmill.filter import embedded
from pairmill.filter.evidence import Space
from pairmill.filter.noise import noise_stage, noise_tasks
from pairmill.progress import Quiet
from pairmill.recipe import Noise
from pairmill.runner import Here, Tally
from pairmill.shards.job import read_tally, run_stage
from pairmill.shards.schema import EMBEDDING, LANGUAGE, NOISE, RAW

DIM = 48
Truth = dict[str, np.ndarray]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def embeddings(n: int, share: float, signal: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (n, 48), texts (n, 48) and who is mismatched: topics seen through noise, some captions swapped.

    Topics are unevenly frequent, captions differ in how much they say, and both sides have a common
    offset, as real embeddings do.
    """
    dice = np.random.default_rng(seed)
    topics = dice.normal(size=(n, DIM)) * np.linspace(1.5, 0.3, DIM)
    clarity = dice.uniform(0.5, 1.5, (n, 1)) * signal
    image = unit(clarity * topics + dice.normal(size=(n, DIM)) + 0.8)
    text = unit(clarity * topics + dice.normal(size=(n, DIM)) - 0.5)
    swapped = np.zeros(n, bool)
    chosen = dice.permutation(n)[: round(share * n)]
    swapped[chosen] = True
    text[chosen] = text[np.roll(chosen, 1)]
    return image, text, swapped


def write_shard(
    out: Path, name: str, rows: dict[str, list[Any]], image: np.ndarray, text: np.ndarray
) -> None:
    """One shard's embeddings, languages and raw rows; `rows` has uid, fold, lang, url_hash, caption."""
    for folder in ("scores/embedding", "scores/language", "raw"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    cosine = (image.astype(np.float32) * text.astype(np.float32)).sum(1)
    n = len(rows["uid"])
    empty = {name: [None] * n for name in EMBEDDING.names}
    given = {**empty, "uid": rows["uid"], "fold": rows["fold"], "cosine_v1": cosine}
    pq.write_table(pa.table(given, schema=EMBEDDING), out / f"scores/embedding/{name}.parquet")
    np.save(out / f"scores/embedding/{name}.image.npy", image.astype(np.float16))
    np.save(out / f"scores/embedding/{name}.text.npy", text.astype(np.float16))
    languages = {"uid": rows["uid"], "lang_v1": rows["lang"], "lang_prob_v1": [0.9] * n}
    pq.write_table(pa.table(languages, schema=LANGUAGE), out / f"scores/language/{name}.parquet")
    raw = {**{name: [None] * n for name in RAW.names}, "outcome": ["ok"] * n, "wave": [0] * n}
    raw |= {name: rows[name] for name in ("uid", "url_hash", "caption")}
    pq.write_table(pa.table(raw, schema=RAW), out / f"raw/{name}.parquet")


def make_crawl(out: Path, parts: list[tuple[str, int, float, float]], shards: int = 3) -> Truth:
    """Two folds with an embedding space each; `parts` are (language, pairs, share of noise, signal).

    Returns uid (N,) S16, swapped (N,) and lang (N,), in the order of shards and rows.
    """
    dice = np.random.default_rng(7)
    columns: dict[str, list[Any]] = {"lang": [], "fold": [], "swapped": []}
    images, texts = [], []
    for number, (lang, n, share, signal) in enumerate(parts):
        for fold in (0, 1):
            image, text, swapped = embeddings(n // 2, share, signal, 100 * number + fold)
            turn, _ = np.linalg.qr(np.random.default_rng(fold).normal(size=(DIM, DIM)))
            images.append(image @ turn)
            texts.append(text @ turn)
            columns["lang"] += [lang] * (n // 2)
            columns["fold"] += [fold] * (n // 2)
            columns["swapped"] += swapped.tolist()
    n = len(columns["lang"])
    order = dice.permutation(n)
    image, text = np.concatenate(images)[order], np.concatenate(texts)[order]
    values = {name: np.array(column)[order] for name, column in columns.items()}
    values["uid"] = np.array([dice.bytes(16) for _ in range(n)], object)
    for shard, rows in enumerate(np.array_split(np.arange(n), shards)):
        given = {name: values[name][rows].tolist() for name in ("uid", "fold", "lang")}
        given |= {"url_hash": given["uid"], "caption": [f"caption {row}" for row in rows]}
        write_shard(out, f"{shard:05d}", given, image[rows], text[rows])
    return values


def score(out: Path, **settings: object) -> Tally:
    given = Noise.model_validate(settings)
    report = run_stage(out, noise_stage(out, given), noise_tasks(out), Here(), Quiet())
    assert not report.failed, report.failed
    tally = read_tally(out, "noise", "all")
    assert tally is not None
    return tally


def read_scores(out: Path) -> pa.Table:
    return pa.concat_tables(
        [pq.read_table(path) for path in sorted((out / "scores/noise").glob("*.parquet"))]
    )


def share_kept(out: Path, truth: Truth, asked: float, lang: str | None = None) -> tuple[float, int, float]:
    """Share of noise among the kept, how many are kept, and the share of the good pairs that is kept."""
    q = read_scores(out).column("mismatch_q_v2").to_numpy()
    mine = np.ones(len(q), bool) if lang is None else truth["lang"] == lang
    kept = (q <= asked) & mine
    good = mine & ~truth["swapped"]
    share = float(truth["swapped"][kept].mean()) if kept.any() else 0.0
    return share, int(kept.sum()), float((kept & good).sum() / good.sum())


def test_centred_scores_and_their_variances_equal_their_slow_definition() -> None:
    image, text, _ = embeddings(200, 0.3, 1.0, 0)
    space = Space(DIM)
    space.add(image[:120], text[:120])
    space.add(image[120:], text[120:])
    scores = image @ text.T
    centred = scores - scores.mean(1, keepdims=True) - scores.mean(0, keepdims=True) + scores.mean()
    slow = centred / centred.std()
    images, texts = space.frame().centred(image, text)
    assert np.allclose(images.vectors @ texts.vectors.T, slow, rtol=1e-3, atol=1e-3)
    assert np.allclose(images.variance, slow.var(1), rtol=1e-3)
    assert np.allclose(texts.variance, slow.var(0), rtol=1e-3)


def test_asked_for_a_share_of_noise_the_kept_hold_that_at_most(tmp_path: Path) -> None:
    truth = make_crawl(tmp_path, [("en", 6_000, 0.3, 1.0)])
    tally = score(tmp_path)
    said = tally.facts["languages"]["en"]
    assert dict(tally.counts) == {"ok": 6_000, "not_scored": 0}
    assert said["auc"] > 0.7 * 0.93 + 0.3 * 0.5
    assert 0.28 < said["noise"] < 0.36
    for asked in (0.05, 0.1, 0.2):
        share, kept, good = share_kept(tmp_path, truth, asked)
        assert asked / 2 < share <= asked
        assert kept == said["kept_by_asked"][f"{asked:g}"]
    assert good > 0.9


def test_a_mismatched_pair_has_a_uniform_p_value(tmp_path: Path) -> None:
    truth = make_crawl(tmp_path, [("en", 4_000, 0.5, 0.8)])
    score(tmp_path)
    p = np.sort(read_scores(tmp_path).column("mismatch_p_v2").to_numpy()[truth["swapped"]])
    distance = np.abs(p - (np.arange(len(p)) + 0.5) / len(p)).max()
    assert distance < 1.63 / np.sqrt(len(p))  # Kolmogorov and Smirnov at 1 %


def test_each_language_keeps_its_own_promise_under_a_weak_scorer(tmp_path: Path) -> None:
    truth = make_crawl(tmp_path, [("de", 3_000, 0.1, 0.9), ("en", 3_000, 0.5, 0.5), ("zh", 1_000, 0.3, 0.6)])
    said = score(tmp_path)
    languages = said.facts["languages"]
    assert sorted(languages) == ["de", "en", "zh"]
    assert languages["en"]["auc"] < 0.7
    for lang, true in (("de", 0.1), ("en", 0.5), ("zh", 0.3)):
        assert 0.9 * true < languages[lang]["noise"] < true + 0.15
        for asked in (0.05, 0.1, 0.2):
            share, kept, _ = share_kept(tmp_path, truth, asked, lang)
            assert share <= asked
        assert kept > 0  # at 20 %


def test_the_promise_holds_where_noise_is_commoner_among_captions_that_say_little(tmp_path: Path) -> None:
    """Of captions that say little 60 % are swapped, of the others 10 %."""
    poor, rich = embeddings(6_000, 0.6, 0.3, 1), embeddings(6_000, 0.1, 1.0, 2)
    image, text, swapped = (np.concatenate(both) for both in zip(poor, rich, strict=True))
    text[:6_000] = unit(text[:6_000] + np.random.default_rng(3).normal(size=(6_000, DIM)) * 0.3 - 2.0)
    dice = np.random.default_rng(4)
    order = dice.permutation(12_000)
    uids = [dice.bytes(16) for _ in order]
    rows = {"uid": uids, "fold": [0] * 12_000, "lang": ["en"] * 12_000, "url_hash": uids}
    rows |= {"caption": [str(row) for row in order]}
    write_shard(tmp_path, "00000", rows, image[order], text[order])
    truth = {"swapped": swapped[order]}
    assert score(tmp_path).facts["languages"]["en"]["noise"] > 0.33
    for asked in (0.05, 0.1, 0.2):
        share, _, good = share_kept(tmp_path, truth, asked)
        assert share <= asked
        assert good > 0.3


def test_rare_languages_are_calibrated_together(tmp_path: Path) -> None:
    make_crawl(tmp_path, [("en", 600, 0.3, 1.0), ("fr", 200, 0.3, 1.0), ("pl", 198, 0.3, 1.0)])
    languages = score(tmp_path).facts["languages"]
    assert {name: found["pairs"] for name, found in languages.items()} == {"*": 398, "en": 600}
    assert list(score(tmp_path, per_language=False).facts["languages"]) == [
        "*",
        "en",
    ]  # finished: not run again
    (tmp_path / "_done/noise/all.json").unlink()
    assert list(score(tmp_path, per_language=False).facts["languages"]) == ["*"]


def test_scores_lie_row_by_row_beside_the_embeddings(tmp_path: Path) -> None:
    make_crawl(tmp_path, [("en", 400, 0.3, 1.0)])
    score(tmp_path)
    for path in sorted((tmp_path / "scores/embedding").glob("*.parquet")):
        found = pq.read_table(tmp_path / "scores/noise" / path.name)
        assert found.schema.equals(NOISE)
        held = pq.read_table(path)
        assert found.column("uid").equals(held.column("uid"))
        assert found.column("cosine_v1").equals(held.column("cosine_v1"))


def test_a_broken_embedding_is_counted_and_has_no_score(tmp_path: Path) -> None:
    make_crawl(tmp_path, [("en", 600, 0.3, 1.0)])
    path = tmp_path / "scores/embedding/00001.image.npy"
    broken = np.load(path)
    broken[[0, 7]] = np.nan
    broken[9, 3] = np.inf
    np.save(path, broken)
    assert dict(score(tmp_path).counts) == {"ok": 597, "not_scored": 3}
    found = pq.read_table(tmp_path / "scores/noise/00001.parquet")
    assert [row for row, q in enumerate(found.column("mismatch_q_v2").to_pylist()) if q is None] == [0, 7, 9]
    assert found.column("mismatch_p_v2").null_count == 3


def test_a_scorer_that_learned_nothing_keeps_nothing(tmp_path: Path) -> None:
    make_crawl(tmp_path, [("en", 600, 0.3, 1.0)])
    for path in (tmp_path / "scores/embedding").glob("*.image.npy"):
        np.save(path, np.full((200, DIM), 0.144, np.float16))
    tally = score(tmp_path)
    assert tally.facts["languages"]["en"]["noise"] == 1.0
    assert set(tally.facts["kept_by_asked"].values()) == {0}


def test_captions_of_one_picture_are_no_negatives_of_each_other(tmp_path: Path) -> None:
    """Five equal pairs per picture: as strangers they would make every good pair look common."""
    image, text, swapped = embeddings(300, 0.3, 1.2, 0)
    image, text, swapped = (np.repeat(values, 5, axis=0) for values in (image, text, swapped))
    dice = np.random.default_rng(0)
    uids = [dice.bytes(16) for _ in range(1_500)]
    rows = {"uid": uids, "fold": [0] * 1_500, "lang": ["en"] * 1_500}
    rows |= {
        "url_hash": [uids[row // 5 * 5] for row in range(1_500)],
        "caption": [str(row) for row in range(1_500)],
    }
    write_shard(tmp_path, "00000", rows, image, text)
    score(tmp_path)
    p = read_scores(tmp_path).column("mismatch_p_v2").to_numpy()
    assert np.median(p[~swapped]) < 2e-3


def test_a_few_pairs_are_scored_and_none_is_trusted(tmp_path: Path) -> None:
    make_crawl(tmp_path, [("en", 2, 0.0, 1.0)], shards=1)
    assert dict(score(tmp_path).counts) == {"ok": 2, "not_scored": 0}
    assert read_scores(tmp_path).column("mismatch_q_v2").to_pylist() == [1.0, 1.0]


def test_no_embeddings_are_no_task(tmp_path: Path) -> None:
    assert noise_tasks(tmp_path) == []


def test_a_short_embedding_file_is_named(tmp_path: Path) -> None:
    make_crawl(tmp_path, [("en", 60, 0.3, 1.0)])
    path = tmp_path / "scores/embedding/00002.text.npy"
    np.save(path, np.load(path)[:5])
    stage = noise_stage(tmp_path, Noise())
    worker = stage.start(*stage.args)
    with pytest.raises(
        ShardError, match=r"00002.parquet: 20 rows, but embeddings of shape \(20, 48\) and \(5, 48\)"
    ):
        worker(noise_tasks(tmp_path)[0])


def test_the_bytes_depend_neither_on_shards_read_in_blocks_nor_on_a_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    for out in (once, again):
        make_crawl(out, [("en", 900, 0.3, 1.0), ("de", 400, 0.3, 1.0)])
    score(once)
    monkeypatch.setattr(embedded, "BLOCK", 64)
    score(again)
    for path in sorted((once / "scores/noise").iterdir()):
        assert path.read_bytes() == (again / "scores/noise" / path.name).read_bytes()
    said = json.loads((once / "scores/noise/calibration.json").read_text())
    assert sorted(said["languages"]) == ["de", "en"]
