"""Training as several processes: the same model as by one, and an end for all where one ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from test_trainer import make_world

from pairmill.errors import ConfigError
from pairmill.pretrain.checkpoint import found_checkpoints
from pairmill.pretrain.order import Order
from pairmill.pretrain.rank_group import joined, reported
from pairmill.pretrain.samples import Rows, Selected, raw_source
from pairmill.pretrain.share import Share, whole_batch
from pairmill.pretrain.towers import open_encoder
from pairmill.pretrain.train import follow_training, start_train
from pairmill.recipe import Towers, Training
from pairmill.runner import Task
from pairmill.shards.selection import read_selection, write_selection
from pairmill.train_ranks import ranks_asked

TASK = Task("train", "everything", {"source": "raw"})
LAYERS = Towers(  # no batch norm: its means would be of each rank's own pictures
    image_size=32,
    embed_dim=16,
    vision={"layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    text={"width": 32, "heads": 2, "layers": 1},
    context_length=16,
    vocab_size=400,
)
TRAINING = Training(
    towers=LAYERS,
    batch_size=16,
    samples_seen=640,
    lr=1e-3,
    flip=True,
    system={"name": "nlip", "two": 0.0},
    precision="float32",
    checkpoint_every_s=0,
    ema=0.9,
)
CHILD = """
import sys
from pathlib import Path
from typing import Any
sys.path.insert(0, {tests!r})
from test_ranks import run_rank
run_rank(Path({out!r}), {slow!r})
"""


def run_rank(out: Path, slow: float) -> None:
    """What one process does; `slow`: seconds that each step takes besides."""

    def wait(_: int) -> None:
        time.sleep(slow)

    def follow(_: Path, *job: Any) -> None:
        follow_training(out, *job)  # its own folder, whatever rank 0 has

    with joined(os.environ) as group, reported():
        if group.rank:
            group.follow(follow)
        else:
            start_train(out, TRAINING, hook=wait)(TASK)
            group.dismiss()


def start_ranks(outs: list[Path], slow: float = 0.0) -> list[subprocess.Popen[str]]:
    """A process for each folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = []
    for rank, out in enumerate(outs):
        said = {"RANK": str(rank), "WORLD_SIZE": str(len(outs)), "MASTER_ADDR": "127.0.0.1"}
        said |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        code = CHILD.format(tests=str(Path(__file__).parent), out=str(out), slow=slow)
        found.append(
            subprocess.Popen(
                [sys.executable, "-c", code], env=os.environ | said, text=True, stderr=subprocess.PIPE
            )
        )
    return found


def part_of(world: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("raw", "selection"):
        (folder / name).symlink_to(world / name)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with 3 raw shards and a selection of all pairs, trained on by one process."""
    out = make_world(tmp_path_factory.mktemp("world"))
    start_train(out, TRAINING)(TASK)
    return out


def trace(out: Path) -> list[float]:
    return json.loads((out / "model/everything/train.json").read_text())["curve"]["loss"]


def alike(out: Path, world: Path) -> None:
    """The same losses and weights, but for the order in which floats were added."""
    assert trace(out) == pytest.approx(trace(world), abs=2e-4)
    found, expected = (load_file(one / "model/everything/model.safetensors") for one in (out, world))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-3, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_two_processes_train_what_one_trains(world: Path, tmp_path: Path) -> None:
    out = part_of(world, tmp_path / "out")
    for process in start_ranks([out, out]):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    alike(out, world)
    names = sorted(path.name for path in (out / "model/everything").iterdir())
    assert names == sorted(path.name for path in (world / "model/everything").iterdir())


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_where_one_is_killed_the_others_end_and_one_process_goes_on(
    world: Path, tmp_path: Path, killed: int
) -> None:
    out = part_of(world, tmp_path / "out")
    ranks = start_ranks([out, out], slow=0.05)
    limit = time.monotonic() + 100
    while len(found_checkpoints(out / "model/everything")) < 2 and time.monotonic() < limit:
        time.sleep(0.02)
    ranks[killed].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    _, said = ranks[1 - killed].communicate(timeout=60)
    assert time.monotonic() - begun < 60
    assert ranks[1 - killed].returncode == 1
    assert f"rank {killed} is gone" in said
    ranks[killed].communicate()
    assert len(found_checkpoints(out / "model/everything")) == 2
    start_train(out, TRAINING)(TASK)
    alike(out, world)


def test_ranks_with_other_data_are_refused(world: Path, tmp_path: Path) -> None:
    """Rank 1 sees a folder of the same name with fewer pairs, as on a machine with an older copy."""
    out, other = part_of(world, tmp_path / "out"), tmp_path / "other"
    other.mkdir()
    (other / "raw").symlink_to(world / "raw")
    kept = sorted(read_selection(world / "selection/everything.parquet").tolist())
    write_selection(pa.array(kept[3:], pa.binary(16)), other / "selection/everything.parquet")
    for process in start_ranks([out, other]):
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "rank 1: what it trains on is not that of rank 0" in said
    assert not (out / "model/everything/model.safetensors").exists()


@pytest.fixture
def order(world: Path) -> Iterator[Order]:
    """Of the pairs of the world, 16 in a batch."""
    source = raw_source(world / "raw", Selected(world / "selection/everything.parquet"))
    made = Order(source, open_encoder(world / "model/everything"), batch=16, seed=0)
    yield made
    made.close()


def test_a_batch_that_cannot_be_shared_is_refused(order: Order) -> None:
    with pytest.raises(ConfigError, match="a batch of 16 pairs cannot be shared by 3 ranks"):
        Share(order, 0, 3)


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_shares_of_a_batch_are_the_batch(order: Order, ranks: int) -> None:
    shares = [Share(order, rank, ranks) for rank in range(ranks)]
    for k in (0, 3, order.per_epoch):
        whole, parts = order[k], [share[k] for share in shares]
        assert [uid for part in parts for uid in part.uid.tolist()] == whole.uid.tolist()
        assert captions(whole) == [caption for part in parts for caption in captions(part)]
        assert whole_batch(shares[1], k).uid.tolist() == whole.uid.tolist()


def captions(rows: Rows) -> list[list[int]]:
    """The tokens of each."""
    spans = zip(rows.start.tolist(), rows.length.tolist(), strict=True)
    return [rows.tokens[start : start + length].tolist() for start, length in spans]


def test_a_launcher_that_says_half_of_it_is_refused() -> None:
    assert ranks_asked({}) == 1
    with pytest.raises(ConfigError, match="not MASTER_ADDR and MASTER_PORT: start with torchrun"):
        ranks_asked({"RANK": "0", "WORLD_SIZE": "2"})
