"""Datasets mixed by weight: exact shares of a batch, each pair in its turn, the same from any batch on."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_loader import make_shards

from pairmill.errors import ConfigError
from pairmill.pretrain.loader import Loader
from pairmill.pretrain.mixed import MixedOrder, make_order, shares
from pairmill.pretrain.order import Order
from pairmill.pretrain.render import characters
from pairmill.pretrain.samplers import shuffled
from pairmill.pretrain.samples import dataset_source, mixed_source
from pairmill.pretrain.train import mixed, train_stage
from pairmill.recipe import Dataset, Train


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Datasets of 4 and of 12 pairs; the pairs of the first are the first four of the second."""
    folder = tmp_path_factory.mktemp("sets")
    return make_shards(folder / "small" / "shards", (3, 1)), make_shards(folder / "large" / "shards", (5, 7))


def make_mixed(folders: tuple[Path, Path], weights: tuple[float, float], batch: int = 4) -> MixedOrder:
    source = mixed_source(dict(zip(folders, weights, strict=True)))
    return MixedOrder(source, characters, batch=batch, seed=1, window=6)


def test_each_dataset_fills_its_share_and_goes_through_all_its_pairs(folders: tuple[Path, Path]) -> None:
    order = make_mixed(folders, (1, 3))
    assert order.shares.tolist() == [1, 3]
    batches = [order[k] for k in range(8)]
    assert all((rows.tar < 2).tolist() == [True, False, False, False] for rows in batches)
    for start in (0, 4):  # each shows its pairs once, then all again
        some = batches[start : start + 4]
        assert len({int(rows.offset[0]) + 10**6 * int(rows.tar[0]) for rows in some}) == 4
        assert len({place for rows in some for place in rows.uid[1:].tolist()}) == 12
    again = make_mixed(folders, (1, 3))
    assert all((again[k].uid == batches[k].uid).all() for k in (5, 2, 7))
    order.close()
    again.close()


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.integers(1, 500))
def test_shares_fill_the_batch_and_are_within_a_pair_of_exact(weights: list[float], batch: int) -> None:
    found, given_ = shares(np.array(weights), batch), np.array(weights)
    assert found.sum() == batch
    assert (np.abs(found - given_ / given_.sum() * batch) < 1 + 1e-9).all()


def test_a_mixture_comes_through_the_loaders_processes_as_it_does_without(
    folders: tuple[Path, Path],
) -> None:
    shown = []
    for processes in (True, False):
        order = make_mixed(folders, (1, 1), batch=6)
        loader = Loader(order, size=16, context=32, threads=2, cache_mb=0, processes=processes)
        shown.append([batch.copied() for batch in loader.batches(2, 6)])
        loader.close()
    assert [b["uid"].tolist() for b in shown[0]] == [b["uid"].tolist() for b in shown[1]]
    assert all(bool((one["image"] == other["image"]).all()) for one, other in zip(*shown, strict=True))


def test_one_dataset_alone_is_not_mixed(folders: tuple[Path, Path]) -> None:
    order = make_order(dataset_source(folders[0]), characters, batch=2, seed=0, sampler=shuffled)
    assert isinstance(order, Order)
    order.close()


def test_a_weight_too_small_for_the_batch_is_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(
        ConfigError, match=r"small/shards no pair is in a batch of 4 with the weight 0\.01 of"
    ):
        make_mixed(folders, (0.01, 1))


def test_what_is_no_dataset_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    run = folders[0].parent
    assert mixed(run, [Dataset(weight=2), Dataset(folder=folders[1])]).weights == {
        folders[0]: 2.0,
        folders[1]: 1.0,
    }
    with pytest.raises(ConfigError, match="is named twice"):
        mixed(run, [Dataset(), Dataset(folder=run)])
    with pytest.raises(ConfigError, match=r"no shards there"):
        mixed(run, [Dataset(folder=tmp_path)])
    with pytest.raises(ConfigError, match=r"set train\.source to shards"):
        train_stage(run, Train(source="raw", data=(Dataset(),)))
