"""The loader's processes: the same batches as without them, whatever dies, and nothing left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import simplejpeg
import torch
from test_loader import SIDE, make_shards, numbers, same

from pairmill.errors import DataError, ShardError
from pairmill.pretrain import crew
from pairmill.pretrain import loader as loader_module
from pairmill.pretrain.batch import Batch
from pairmill.pretrain.loader import Loader
from pairmill.pretrain.order import Order
from pairmill.pretrain.pictures import decode_square
from pairmill.pretrain.render import characters
from pairmill.pretrain.samples import Rows, dataset_source
from pairmill.pretrain.streams import Elsewhere
from pairmill.shards.tar import read_at

DEADLY = """
import os
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
import sys

path = [entry for entry in sys.path if entry != os.path.dirname(__file__)]
spec = PathFinder.find_spec("simplejpeg", path)
real = module_from_spec(spec)
sys.modules["simplejpeg"] = real
spec.loader.exec_module(real)
plain = real.decode_jpeg_header

def decode_jpeg_header(data):
    if b"deadly" in data:
        os.kill(os.getpid(), 9)
    return plain(data)

real.decode_jpeg_header = decode_jpeg_header
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), (7, 5, 8))


def make_order(folder: Path) -> Order:
    return Order(dataset_source(folder), characters, batch=6, seed=3, window=10)


def make_loader(folder: Path, *, threads: int = 2, cache_mb: int = 0, **more: object) -> Loader:
    settings = {"size": SIDE, "context": 32, "processes": True} | more
    return Loader(make_order(folder), threads=threads, cache_mb=cache_mb, **settings)  # type: ignore[arg-type]


def take(loader: Loader, start: int, stop: int) -> list[Batch]:
    try:
        return [batch.copied() for batch in loader.batches(start, stop)]
    finally:
        loader.close()


def slow_batches(folder: Path, start: int, stop: int) -> Iterator[Batch]:
    """Picture by picture, caption by caption."""
    order = make_order(folder)
    for k in range(start, stop):
        rows = order[k]
        numbers = sorted(set(rows.picture.tolist()))
        pictures = np.zeros((len(numbers), SIDE, SIDE, 3), np.uint8)
        text = np.zeros((len(rows), -(-int(rows.length.max()) // 8) * 8), np.int64)
        good = {}
        for i in range(len(rows)):
            place = numbers.index(int(rows.picture[i]))
            with open(order.source.tar(int(rows.tar[i])), "rb") as file:
                data = read_at(file, int(rows.offset[i]), int(rows.size[i]))
            good[place] = decode_square(data, pictures[place])
            length = int(rows.length[i])
            text[i, :length] = rows.tokens[rows.start[i] : rows.start[i] + length]
        index = [numbers.index(int(number)) for number in rows.picture]
        fields = {name: getattr(rows, name) for name in ("uid", "picture", "caption", "label")}
        fields |= {"text": text, "image": pictures}
        fields["valid"] = np.array([good[place] for place in index])
        tensors = {name: torch.from_numpy(value) for name, value in fields.items()}
        yield Batch(tensors, {"image": torch.tensor(index)}, {"text": rows.length})
    order.close()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_batches_are_those_of_the_slow_definition_whatever_the_number_of_processes(
    shards: Path, threads: int
) -> None:
    slow = list(slow_batches(shards, 0, 8))
    for start in (0, 5):
        found = take(make_loader(shards, threads=threads, cache_mb=start), start, 8)
        assert len(found) == 8 - start
        assert all(same(one, other) for one, other in zip(found, slow[start:], strict=True))
    here = take(make_loader(shards, threads=threads, processes=False), 0, 8)
    assert all(same(one, other) for one, other in zip(here, slow, strict=True))


class Copies(Order):
    """Pictures of other bytes are one, as near-copies are."""

    def __getitem__(self, number: int) -> Rows:
        rows = super().__getitem__(number)
        return replace(rows, picture=rows.picture % 4)


@pytest.mark.parametrize("processes", [False, True])
def test_which_near_copy_a_batch_shows_does_not_depend_on_what_is_kept_by_then(
    shards: Path, processes: bool
) -> None:
    def batches(cache_mb: int, start: int) -> list[Batch]:
        order = Copies(dataset_source(shards), characters, batch=6, seed=3, window=10)
        loader = Loader(order, size=SIDE, context=32, threads=2, cache_mb=cache_mb, processes=processes)
        return take(loader, start, 12)

    plain = batches(0, 0)
    assert len({batch["image"].numpy().tobytes() for batch in plain}) == len(plain)
    for cache_mb, start in ((5, 0), (5, 7), (0, 7)):
        found = batches(cache_mb, start)
        assert all(same(one, other) for one, other in zip(found, plain[start:], strict=True))


def test_a_batch_holds_until_the_next_one_is_asked_for(shards: Path) -> None:
    loader = make_loader(shards)
    batches = loader.batches(0, 12)
    for _ in range(11):
        batch = next(batches)
        before = batch.copied()
        stream = loader._stream
        assert isinstance(stream, Elsewhere)
        assert stream.process.channel.poll(20)  # the one after is there, and others are being filled
        assert same(batch, before)
    loader.close()


def test_only_little_work_is_done_without_processes(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_loader(shards, processes=None)
    assert [loader._pays(batches) for batches in (3_333, 3_334)] == [False, True]
    kept = make_loader(shards, processes=None, cache_mb=1)
    assert not kept._pays(10**6)  # each picture is decoded once
    monkeypatch.setattr(loader_module, "WORTH_PROCESSES", 20)
    assert kept._pays(4)
    loader.close()
    kept.close()


@pytest.mark.parametrize("which", ["a decoder", "the feeder"])
def test_a_process_that_is_killed_costs_nothing(shards: Path, which: str) -> None:
    loader = make_loader(shards)
    found = []
    for number, batch in enumerate(loader.batches(0, 30)):
        found.append(batch.copied())
        if number in (3, 9):
            stream = loader._stream
            assert isinstance(stream, Elsewhere)
            feeder = psutil.Process(stream.process.pid)
            victims = feeder.children() if which == "a decoder" else [feeder]
            victims[0].send_signal(signal.SIGKILL)
    loader.close()
    assert len(found) == 30
    assert all(same(one, other) for one, other in zip(found, slow_batches(shards, 0, 30), strict=True))


def test_a_feeder_that_dies_at_once_ends_the_run(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "START", "raise SystemExit(3)")
    with pytest.raises(DataError, match="the loader's process ended: status 3"):
        take(make_loader(shards), 0, 3)


def test_a_picture_that_kills_its_decoder_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_shards(tmp_path / "shards", (4, 4))
    data = simplejpeg.encode_jpeg(np.full((24, 40, 3), 10, np.uint8), quality=95)
    path = folder / "00000.tar"
    whole = path.read_bytes()
    at = whole.index(data)  # of sample 1
    path.write_bytes(whole[: at + len(data) - 8] + b"deadly" + whole[at + len(data) - 2 :])
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "simplejpeg.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path / "first"))
    for cache_mb in (0, 1):
        loader = make_loader(folder, cache_mb=cache_mb)
        batches = take(loader, 0, 4)
        shown = [set(numbers(batch)) for batch in batches]
        assert set.union(*shown) == {0, 2, 3, 4, 5, 6, 7}
        assert len(loader.undecodable) == 1
        assert [batch.pairs for batch in batches] == [6] * 4
    assert not any(batch["image"][batch.shared["image"]][~batch["valid"]].any() for batch in batches)


def test_a_tar_that_was_cut_is_named_by_the_process_too(tmp_path: Path) -> None:
    folder = make_shards(tmp_path, (4,))
    path = folder / "00000.tar"
    path.write_bytes(path.read_bytes()[:1500])
    for threads in (1, 2):
        with pytest.raises(ShardError, match=r"00000\.tar"):
            take(make_loader(folder, threads=threads), 0, 1)


def test_too_many_undecodable_pictures_stop_the_run(tmp_path: Path) -> None:
    folder = make_shards(tmp_path, (8, 8))
    path = folder / "00000.tar"
    path.write_bytes(path.read_bytes().replace(b"\xff\xd8\xff", b"no!"))
    with pytest.raises(DataError, match=r"of 1,002 pairs shown cannot be decoded.*max_undecodable is 0\.1"):
        take(make_loader(folder, processes=False, max_undecodable=0.1), 0, 1000)
    assert len(take(make_loader(folder, processes=False, max_undecodable=0.6), 0, 200)) == 200


PARENT = """
import sys
from pathlib import Path
import psutil
sys.path.insert(0, sys.argv[2])
from test_loader_processes import make_loader
loader = make_loader(Path(sys.argv[1]))
batches = loader.batches(0, 1000)
next(batches)
print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
sys.stdin.read()
"""


def test_no_process_outlives_the_one_that_trains(shards: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(shards), os.path.dirname(__file__)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(children) == 3  # the feeder and two decoders
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_no_process_outlives_its_loader(shards: Path) -> None:
    others = psutil.Process().children(recursive=True)  # of tests before this one
    loader = make_loader(shards)
    batches = loader.batches(0, 1000)
    next(batches)
    children = [child for child in psutil.Process().children(recursive=True) if child not in others]
    assert len(children) >= 3
    loader.close()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_the_loaders_processes_import_no_torch() -> None:
    code = (
        "import sys\nfrom pairmill.pretrain import feeder, captions, clip_tokens\n"
        "assert 'torch' not in sys.modules and 'duckdb' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys\nfrom pairmill.pretrain import decoding\nassert 'pyarrow' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
