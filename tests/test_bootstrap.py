"""Folds: no model scores what it, or a near-copy of it, was trained on."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pairmill.pretrain.bootstrap import OutsideFold, bootstrap_stage, bootstrap_tasks, start_tokenizer
from pairmill.pretrain.folds import Folds
from pairmill.pretrain.samples import raw_source
from pairmill.pretrain.towers import read_config
from pairmill.recipe import Bootstrap, ScorerTraining, Towers
from pairmill.runner import Task
from pairmill.shards.commit import write_table
from pairmill.shards.schema import NEAR, fold_of, text_hash
from pairmill.shards.selection import write_selection


def table(n: int) -> pa.Table:
    """n pairs, two for each picture."""
    uids, pictures = (
        [text_hash(f"pair {i}") for i in range(n)],
        [text_hash(f"picture {i // 2}") for i in range(n)],
    )
    return pa.table({"uid": pa.array(uids, pa.binary(16)), "url_hash": pa.array(pictures, pa.binary(16))})


def write_near(out: Path, rows: list[tuple[bytes, bytes, int]], stage: str = "near") -> None:
    rows = sorted(rows)
    columns = {"uid": [r[0] for r in rows], "near_group_v1": [r[1] for r in rows]}
    columns |= {"near_rank_v1": [0] * len(rows), "near_size_v1": [r[2] for r in rows]}
    columns |= {"near_adopted_v1": [False] * len(rows)}
    write_table(pa.table(columns, schema=NEAR), out / "scores" / stage / "near.parquet")


def test_all_pairs_of_a_picture_share_its_fold(tmp_path: Path) -> None:
    pairs = table(40)
    found = Folds(tmp_path, 3)(pairs)
    assert found.tolist() == [fold_of(picture, 3) for picture in pairs["url_hash"].to_pylist()]
    assert set(found.tolist()) == {0, 1, 2}


def test_near_copies_share_the_fold_of_their_group(tmp_path: Path) -> None:
    pairs = table(40)
    uids = pairs["uid"].to_pylist()
    write_near(tmp_path, [(uid, uids[0], 30) for uid in uids[:30]])
    found = Folds(tmp_path, 3)(pairs)
    assert set(found[:30].tolist()) == {fold_of(uids[0], 3)}
    assert np.array_equal(found[30:], Folds(tmp_path / "none", 3)(pairs)[30:])


def test_a_pair_without_a_near_copy_keeps_its_pictures_fold(tmp_path: Path) -> None:
    pairs = table(40)
    write_near(tmp_path, [(uid, uid, 1) for uid in pairs["uid"].to_pylist()])
    assert np.array_equal(Folds(tmp_path, 2)(pairs), Folds(tmp_path / "none", 2)(pairs))


def test_groups_found_by_a_model_do_not_move_the_folds(tmp_path: Path) -> None:
    pairs = table(40)
    uids = pairs["uid"].to_pylist()
    write_near(tmp_path, [(uid, uid, 1) for uid in uids])
    before = Folds(tmp_path, 2)(pairs)
    write_near(tmp_path, [(uid, uids[0], 40) for uid in uids], "near-embedding")
    assert np.array_equal(Folds(tmp_path, 2)(pairs), before)


def test_near_copies_are_one_picture_in_training(tmp_path: Path) -> None:
    """An adopted caption and the captions of the picture that took it over are right for each other."""
    pairs = table(10)
    uids = pairs["uid"].to_pylist()
    for name, column in (("caption", [f"{n}" for n in range(10)]), ("outcome", ["ok"] * 10)):
        pairs = pairs.append_column(name, pa.array(column))
    for name in ("offset", "size"):
        pairs = pairs.append_column(name, pa.array(range(10), pa.int64()))
    pairs = pairs.append_column(
        "sha256", pa.array([f"{n // 2:032}".encode() for n in range(10)], pa.binary(32))
    )
    pairs = pairs.append_column("tar", pa.nulls(10, pa.string()))
    write_table(pairs, tmp_path / "raw" / "00000.parquet")

    def pictures() -> list[int]:
        return raw_source(tmp_path / "raw", None).pairs(0).picture.tolist()

    apart = pictures()
    assert [apart.index(number) for number in apart] == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]
    write_near(tmp_path, [(uid, text_hash("picture 2"), 2) for uid in uids[2:6]])
    together = pictures()
    assert [together.index(number) for number in together] == [0, 0, 2, 2, 2, 2, 6, 6, 8, 8]


def test_a_fold_is_trained_on_the_selection_without_itself(tmp_path: Path) -> None:
    pairs = table(60)
    chosen = sorted(pairs["uid"].to_pylist()[:50])
    write_selection(pa.array(chosen, pa.binary(16)), tmp_path / "selection" / "bootstrap.parquet")
    folds = Folds(tmp_path, 2)(pairs)
    masks = [OutsideFold(tmp_path, 2, fold)(pairs) for fold in range(2)]
    assert not (masks[0] & masks[1]).any()
    assert (masks[0] | masks[1]).tolist() == [True] * 50 + [False] * 10
    assert set(folds[masks[0]].tolist()) == {1}


def test_a_named_checkpoint_is_recorded_and_not_trained(tmp_path: Path) -> None:
    training = ScorerTraining(towers=Towers(name="ViT-B-32", checkpoint="laion2b_s34b_b79k"))
    settings = Bootstrap(folds=2, training=training)
    assert start_tokenizer(tmp_path, settings)(Task("tokenizer", "tokenizer")).seen == 0
    stage = bootstrap_stage(tmp_path, settings)
    work = stage.start(*stage.args)
    for task in bootstrap_tasks(tmp_path, settings):
        assert work(task).facts == {"checkpoint": "laion2b_s34b_b79k"}
        assert read_config(tmp_path / "model" / "bootstrap" / task.name) == training.towers
