"""The scorer that grows, and the one that is taken over from an earlier crawl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from s3 import BUCKET, serve_s3

from pairmill.errors import ConfigError, DataError
from pairmill.pretrain.bootstrap import FOLDER, start_bootstrap
from pairmill.pretrain.bootstrap import bootstrap_tasks as tasks_of
from pairmill.pretrain.scorer import NAME, check_scorer, settle, settled, sized, take_fold
from pairmill.pretrain.tokenizer import make_tokenizer
from pairmill.pretrain.towers import build_towers, load_towers, save_towers
from pairmill.pretrain.train import mixed
from pairmill.recipe import Bootstrap, Dataset, ScorerTraining, Towers
from pairmill.shards.store_path import open_path

TINY = Towers(
    image_size=16,
    embed_dim=8,
    vision={"channels": [4, 8], "pool": True},
    text={"width": 8, "layers": 0},
    context_length=8,
    vocab_size=400,
)


def saved(folder: Path, *, folds: int = 2, vocab_size: int = 400) -> Path:
    """A scorer as a finished run leaves it."""
    for fold in range(folds):
        save_towers(build_towers(TINY, seed=fold), folder / f"fold{fold}")
    captions = [f"{number // 2 * 2654435761 % 2**32:08x}" for number in range(2_000)]
    make_tokenizer(captions, TINY.model_copy(update={"vocab_size": vocab_size}), folder)
    return folder


def test_a_scorer_grows_with_pairs_and_only_a_gpu_lets_it_grow_past_convolutions() -> None:
    views = {pairs: sized(pairs, pairs // 5, gpu=True) for pairs in (10**4, 10**5, 10**6, 10**7, 10**8)}
    names = [given["training"]["towers"].get("name") for given, _ in views.values()]
    assert names == [None, None, None, "RN50", "ViT-B-32"]
    assert [given["folds"] for given, _ in views.values()] == [5, 4, 3, 2, 2]
    seen = [given["training"]["samples_seen"] // pairs for pairs, (given, _) in views.items()]
    assert seen == [20, 20, 10, 5, 2]
    on_cpu, line = sized(10**8, 10**8, gpu=False)
    assert on_cpu["training"]["towers"]["image_size"] == 96
    assert "hours of one core" in line
    assert "bootstrap.scorer" in line


def test_captions_are_asked_only_where_pictures_have_several() -> None:
    one, several = (sized(30_000, pictures, gpu=False)[0]["training"] for pictures in (30_000, 6_000))
    assert "captions" not in one["system"]
    assert not one["by_picture"]
    assert several["system"]["captions"] == 1
    assert several["by_picture"]
    for given in (one, several):
        assert ScorerTraining.model_validate(given).samples_seen == 600_000


def test_a_saved_scorer_is_used_as_it_is(tmp_path: Path) -> None:
    folder, out = saved(tmp_path / "old", folds=3), tmp_path / "new"
    settings = Bootstrap(scorer=str(folder))
    check_scorer(settings)
    _, line = settle(out / FOLDER, settings, None)
    assert "3 models" in line
    assert settled(out / FOLDER, settings).folds == 3
    work = start_bootstrap(out, settings)
    for task in tasks_of(out, settings):
        assert work(task).facts == {"scorer": str(folder)}
        before, now = (load_towers(at / task.name).clip.state_dict() for at in (folder, out / FOLDER))
        assert all(torch.equal(before[name], now[name]) for name in before)
    assert (out / FOLDER / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_saved_scorer_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    folder, out = saved(tmp_path / "old"), tmp_path / "new"
    settle(out / FOLDER, Bootstrap(scorer=str(folder)), None)
    save_towers(build_towers(TINY, seed=9), folder / "fold1")
    with pytest.raises(DataError, match="has changed since this run began with it"):
        settle(out / FOLDER, Bootstrap(scorer=str(folder)), None)


def test_a_folder_without_models_and_another_tokenizer_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 models there, expected fold0, fold1 and more"):
        check_scorer(Bootstrap(scorer=str(tmp_path)))
    folder = saved(tmp_path / "old", vocab_size=900)
    with pytest.raises(ConfigError, match="tokens, but the models beside it know 400: it is another's"):
        check_scorer(Bootstrap(scorer=str(folder)))


def test_a_scorer_and_datasets_may_lie_in_a_store(tmp_path: Path) -> None:
    with serve_s3():
        place = open_path(f"s3://{BUCKET}/scorer")
        folder = saved(place / "model/bootstrap")
        settings = Bootstrap(scorer=str(folder))
        check_scorer(settings)
        taken, _ = settle(tmp_path, settings, None)
        take_fold(str(folder), 1, tmp_path / "fold1")
        assert taken.folds == 2
        assert load_towers(tmp_path / "fold1").dimension == TINY.embed_dim
        with pytest.raises(ConfigError, match=r"train\.data: s3://\S+/none: no shards there"):
            mixed(tmp_path, [Dataset.model_validate({"folder": str(place / "none")})])


def test_a_damaged_note_of_the_scorer_is_named(tmp_path: Path) -> None:
    folder, out = saved(tmp_path / "old"), tmp_path / "new"
    settle(out / FOLDER, Bootstrap(scorer=str(folder)), None)
    (out / FOLDER / NAME).write_text(json.dumps({"settings": {"folds": 1}}))
    with pytest.raises(DataError, match="not a scorer"):
        settled(out / FOLDER, Bootstrap(scorer=str(folder)))
