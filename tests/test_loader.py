"""Samples, their order and their batches: a pure function of the seed and the batch's number."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pairmill.errors import DataError, ShardError
from pairmill.pretrain.augment import batch_seed, cropped, draw_crops, normalised
from pairmill.pretrain.batch import Batch
from pairmill.pretrain.loader import Loader
from pairmill.pretrain.order import Order
from pairmill.pretrain.pictures import decode_square
from pairmill.pretrain.render import characters
from pairmill.pretrain.samplers import by_picture
from pairmill.pretrain.samples import dataset_source
from pairmill.pretrain.window import TokenFile, Window
from pairmill.shards.commit import write_table
from pairmill.shards.schema import SIDECAR, make_uid
from pairmill.shards.tar import TarWriter

SIDE = 16


def make_shards(folder: Path, sizes: tuple[int, ...] = (7, 5, 8)) -> Path:
    """A dataset of one sample per number; the caption is the number, and so is the picture's grey."""
    number = 0
    for shard, size in enumerate(sizes):
        rows = []
        folder.mkdir(parents=True, exist_ok=True)
        with TarWriter(folder / f"{shard:05d}.tar") as tar:
            for _ in range(size):
                data = simplejpeg.encode_jpeg(np.full((24, 40, 3), 10 * number, np.uint8), quality=95)
                uid = make_uid(str(number), str(number))
                offset = tar.add(f"{uid.hex()}.jpg", data)
                row = {"uid": uid, "key": uid.hex(), "url": "u", "caption": str(number)}
                rows.append({**row, "offset": offset, "size": len(data)})
                number += 1
        write_table(pa.Table.from_pylist(rows, schema=SIDECAR), folder / f"{shard:05d}.parquet")
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


def make_loader(
    folder: Path, *, batch: int = 6, cache_mb: int = 1, threads: int = 2, window: int = 100
) -> Loader:
    order = Order(dataset_source(folder), characters, batch=batch, seed=3, window=window)
    return Loader(order, size=SIDE, context=32, threads=threads, cache_mb=cache_mb)


def numbers(batch: Batch) -> list[int]:
    """Which samples a batch holds, read from its captions."""
    return [
        int("".join(chr(token) for token in row if token)) for row in batch["text"][batch["valid"]].tolist()
    ]


def take(loader: Loader, start: int, stop: int) -> list[Batch]:
    try:
        return [batch.copied() for batch in loader.batches(start, stop)]
    finally:
        loader.close()


def same(one: Batch, other: Batch) -> bool:
    fields = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    lengths = np.array_equal(one.lengths["text"], other.lengths["text"])
    return fields and lengths and torch.equal(one.shared["image"], other.shared["image"])


def test_an_epoch_shows_every_sample_at_most_once(shards: Path) -> None:
    batches = take(make_loader(shards), 0, 6)
    for epoch in (batches[:3], batches[3:]):
        shown = [number for batch in epoch for number in numbers(batch)]
        assert len(shown) == len(set(shown)) == 18
    assert numbers(batches[0]) != numbers(batches[3])


def test_each_caption_comes_with_its_own_picture(shards: Path) -> None:
    for batch in take(make_loader(shards), 0, 3):
        greys = batch["image"][batch.shared["image"]].float().mean((1, 2, 3)) / 10
        assert greys.round().int().tolist() == numbers(batch)


@pytest.mark.parametrize("window", [100, 10, 1])
def test_a_batch_depends_on_its_number_only(shards: Path, window: int) -> None:
    whole = take(make_loader(shards, window=window), 0, 9)
    for start in (1, 4, 8):
        resumed = take(make_loader(shards, window=window, threads=1), start, 9)
        assert all(same(one, other) for one, other in zip(whole[start:], resumed, strict=True))


def test_a_window_of_one_shard_shows_shard_after_shard(shards: Path) -> None:
    shown = [
        number for batch in take(make_loader(shards, batch=4, window=1), 0, 5) for number in numbers(batch)
    ]
    assert sorted(shown) == list(range(20))
    of_shard = np.searchsorted([7, 12, 20], shown, "right")
    assert (np.diff(of_shard) != 0).sum() == 2


def test_by_picture_all_pairs_of_a_picture_follow_each_other(tmp_path: Path) -> None:
    """Pairs 0 to 4 of each shard are of one picture, in all shards the same; the others have their own."""
    folder = make_shards(tmp_path)
    for path in sorted(folder.glob("*.parquet")):
        rows = pq.read_table(path).to_pylist()
        for row in rows[:5]:
            row["sha256"] = bytes(32)
        write_table(pa.Table.from_pylist(rows, schema=SIDECAR), path)
    order = Order(dataset_source(folder), characters, batch=5, seed=3, sampler=by_picture)
    epochs = [np.concatenate([order[k].picture for k in range(first, first + 4)]) for first in (0, 4)]
    order.close()
    for shown in epochs:
        assert len(shown) == 20
        assert (np.diff(shown) != 0).sum() == 20 - 15  # 6 runs: 15 pairs of one picture, 5 pictures more
    assert not np.array_equal(epochs[0], epochs[1])


def test_pictures_from_the_cache_equal_decoded_ones(shards: Path) -> None:
    cached, plain = (take(make_loader(shards, cache_mb=mb), 0, 9) for mb in (1, 0))
    assert all(same(one, other) for one, other in zip(cached, plain, strict=True))


def test_a_batch_larger_than_the_set_holds_all_of_it(shards: Path) -> None:
    (batch,) = take(make_loader(shards, batch=999), 0, 1)
    assert sorted(numbers(batch)) == list(range(20))


def test_a_picture_with_several_captions_is_decoded_once(tmp_path: Path) -> None:
    folder = make_shards(tmp_path, (1,))
    (row,) = pq.read_table(folder / "00000.parquet").to_pylist()
    row |= {"sha256": bytes(32)}
    rows = [{**row, "uid": make_uid("0", str(n)), "caption": str(n)} for n in range(4)]
    write_table(pa.Table.from_pylist(rows, schema=SIDECAR), folder / "00000.parquet")
    (batch,) = take(make_loader(folder), 0, 1)
    assert len(batch["image"]) == 1
    assert batch.shared["image"].tolist() == [0, 0, 0, 0]
    assert len(set(batch["caption"].tolist())) == 4


def test_a_picture_that_cannot_be_decoded_is_not_valid_and_the_batch_keeps_its_shape(tmp_path: Path) -> None:
    folder = make_shards(tmp_path, (4,))
    import pyarrow.parquet as pq

    row = pq.read_table(folder / "00000.parquet").to_pylist()[2]
    with open(folder / "00000.tar", "r+b") as file:
        file.seek(row["offset"])
        file.write(b"\xff\xd8\xff" + b"no picture at all")
    for cache_mb in (1, 0):
        loader = make_loader(folder, cache_mb=cache_mb)
        batches = take(loader, 0, 2)
        assert [sorted(numbers(batch)) for batch in batches] == [[0, 1, 3]] * 2
        assert len(loader.undecodable) == 1  # though it was left out twice
        assert [batch.pairs for batch in batches] == [4, 4]
        valid = batches[0]["valid"]
        greys = batches[0]["image"][batches[0].shared["image"]].float().mean((1, 2, 3)) / 10
        assert greys[valid].round().int().tolist() == numbers(batches[0])
        assert greys[~valid].tolist() == [0]


def test_a_tar_that_was_cut_is_named(tmp_path: Path) -> None:
    folder = make_shards(tmp_path, (4,))
    path = folder / "00000.tar"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ShardError, match=r"00000\.tar"):
        take(make_loader(folder), 0, 1)


def test_a_tar_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = make_shards(tmp_path, (4,))
    (folder / "00000.tar").unlink()
    with pytest.raises(DataError, match=r"00000\.tar"):
        take(make_loader(folder), 0, 1)


def test_a_folder_without_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 pairs to learn from"):
        dataset_source(tmp_path)


def photo(width: int, height: int) -> np.ndarray:
    """(height, width, 3) smooth colours."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    return np.stack([255 * x, 255 * y, 127 + 120 * np.sin(6 * x)], -1).astype(np.uint8)


@pytest.mark.parametrize(("width", "height"), [(300, 200), (100, 240), (64, 64), (40, 50)])
def test_scaled_decoding_is_close_to_decoding_whole(width: int, height: int) -> None:
    pixels = photo(width, height)
    fast, slow = (np.zeros((SIDE, SIDE, 3), np.uint8) for _ in range(2))
    assert decode_square(simplejpeg.encode_jpeg(pixels, quality=95), fast)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (int(left), int(top), int(left) + side, int(top) + side)
    slow = np.asarray(Image.fromarray(pixels).crop(box).resize((SIDE, SIDE), Image.Resampling.BOX))
    assert np.abs(fast.astype(int) - slow.astype(int)).mean() < 4


@pytest.mark.parametrize("side", [256, 270])
def test_a_picture_is_shrunk_as_the_published_models_shrink_it(side: int) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (side // 4, side // 4, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    data, ours = simplejpeg.encode_jpeg(pixels, quality=95), np.zeros((224, 224, 3), np.uint8)
    assert decode_square(data, ours)
    whole = Image.fromarray(simplejpeg.decode_jpeg(data))
    theirs = np.asarray(whole.resize((224, 224), Image.Resampling.BICUBIC))
    assert np.abs(ours.astype(int) - theirs.astype(int)).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P"])
def test_every_kind_that_a_shard_holds_is_decoded(kind: str, mode: str) -> None:
    if (kind, mode) in (("PNG", "CMYK"), ("JPEG", "RGBA"), ("JPEG", "P")):
        pytest.skip("no such file")
    file = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), 100, np.uint8)).convert(mode).save(file, kind)
    out = np.zeros((SIDE, SIDE, 3), np.uint8)
    assert decode_square(file.getvalue(), out)
    assert abs(float(out.mean()) - 100) < 12


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF"]))
def test_bytes_that_are_no_picture_are_refused_quietly(data: bytes, magic: bytes) -> None:
    assert not decode_square(magic + data, np.zeros((SIDE, SIDE, 3), np.uint8))


def test_augmentation_depends_on_its_seed_only() -> None:
    pictures = torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    one, again, other = (
        cropped(pictures, draw_crops(5, crop=0.7, flip=True, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(cropped(pictures, draw_crops(5, crop=1.0, flip=False, seed=1)), pictures)


def test_a_crop_is_a_part_of_the_picture() -> None:
    ramp = torch.linspace(0, 1, SIDE).expand(64, 3, SIDE, SIDE).contiguous()
    crops = cropped(ramp, draw_crops(64, crop=0.5, flip=True, seed=0))
    spans = crops.amax((1, 2, 3)) - crops.amin((1, 2, 3))
    assert float(spans.min()) > 0.4
    assert float(spans.max()) < 1.0
    mirrored = crops[:, 0, 0, 0] > crops[:, 0, 0, -1]
    assert 16 < int(mirrored.sum()) < 48


def test_seeds_of_steps_do_not_meet() -> None:
    seeds = {batch_seed(seed, step) for seed in range(20) for step in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_normalising_is_its_definition() -> None:
    pictures = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    slow = ((pictures / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(normalised(pictures, mean, std), slow)


def words_of(window: Window, index: list[int]) -> list[str]:
    rows = window.take(np.array(index))
    spans = zip(rows.start, rows.length, strict=True)
    return ["".join(map(chr, rows.tokens[start : start + length])) for start, length in spans]


def test_a_caption_becomes_tokens_once_also_when_its_window_was_left(shards: Path) -> None:
    asked: list[str] = []

    def counted(captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        asked.extend(captions)
        return characters(captions)

    source, known = dataset_source(shards), TokenFile()
    first = Window({1: source.pairs(1), 2: source.pairs(2)}, counted, known)
    assert words_of(first, [3, 0, 6]) == ["10", "7", "13"]
    assert words_of(first, [0, 4]) == ["7", "11"]
    assert asked == ["7", "10", "13", "11"]  # in their order within what is asked
    first.keep_tokens()
    other = Window({2: source.pairs(2), 0: source.pairs(0), 1: source.pairs(1)}, counted, known)
    assert words_of(other, [0, 1, 15, 18, 19]) == ["12", "13", "7", "10", "11"]
    assert asked[4:] == ["12"]
    known.close()
