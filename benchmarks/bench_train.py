"""Training rate, MFU and waiting for data: pairmill's loop beside one after open_clip's, on the same shards.

    python benchmarks/bench_train.py [--samples 4096] [--steps 20] [--batch 256] [--towers small]

MFU = FLOPs per sample (forward and backward, matrix products and convolutions, counted by torch's
FlopCounterMode on the full context) x samples/s / the rate of a large matrix product on the same device
in the same precision. Before anything is printed both loops train in float32 on the same batches, and
their losses must agree within 1e-3.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from common import machine  # pyright: ignore[reportImplicitRelativeImport]
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pairmill.pretrain.augment import normalised
from pairmill.pretrain.batch import Batch
from pairmill.pretrain.loader import Loader
from pairmill.pretrain.order import Order
from pairmill.pretrain.samples import dataset_source
from pairmill.pretrain.tokenizer import make_tokenizer
from pairmill.pretrain.towers import TwoTowers, autocast_dtype, build_towers, open_encoder, pick_device
from pairmill.pretrain.trainer import BETAS, CLIP_NORM, EPS, Trainer, learning_rate
from pairmill.recipe import Towers, Training
from pairmill.shards.commit import write_table
from pairmill.shards.schema import SIDECAR, make_uid
from pairmill.shards.tar import TarWriter

TOWERS = {"small": Towers(), "ViT-B-32": Towers(name="ViT-B-32")}
WORDS = ["red", "blue", "green", "old", "new", "small", "large", "dog", "cat", "house", "tree", "river"]
CHECKED_STEPS, WARM_UP = 8, 3


def make_shards(folder: Path, samples: int, side: int) -> None:
    """Shards of 1,000 JPEGs of `side` pixels with captions of 4 to 16 words, from a seed."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for shard in range(-(-samples // 1000)):
        rows = []
        with TarWriter(folder / f"{shard:05d}.tar") as tar:
            for number in range(shard * 1000, min(samples, shard * 1000 + 1000)):
                small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
                file = io.BytesIO()
                small.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
                caption = " ".join(rng.choice(WORDS, rng.integers(4, 17)))
                uid = make_uid(str(number), caption)
                offset = tar.add(f"{uid.hex()}.jpg", file.getvalue())
                tar.add(f"{uid.hex()}.txt", caption.encode())
                row = {"uid": uid, "key": uid.hex(), "url": str(number), "caption": caption}
                rows.append({**row, "offset": offset, "size": file.tell()})
        write_table(pa.Table.from_pylist(rows, schema=SIDECAR), folder / f"{shard:05d}.parquet")


@dataclass
class Bench:
    """What both loops are given."""

    folder: Path
    training: Training
    device: torch.device
    steps: int  # that the learning rate is laid out for

    def loader(self, towers: TwoTowers) -> Loader:
        encode = open_encoder(self.folder, self.training.towers)
        source = dataset_source(self.folder / "shards")
        order = Order(source, encode, batch=self.training.batch_size, seed=0)
        threads = self.training.loader_threads
        return Loader(
            order, size=towers.image_size, context=towers.context_length, threads=threads, cache_mb=0
        )

    def towers(self) -> TwoTowers:
        return build_towers(self.training.towers).to(self.device).train()


class Peer:
    """A step as open_clip's training script makes it: its ClipLoss, its model call, the full context."""

    def __init__(self, bench: Bench, towers: TwoTowers, amp: torch.dtype | None) -> None:
        from open_clip.loss import ClipLoss

        self.bench, self.towers, self.amp, self.loss = bench, towers, amp, ClipLoss()
        named = list(towers.clip.named_parameters())
        groups = [
            {"params": [v for _, v in named if v.ndim >= 2], "weight_decay": bench.training.weight_decay},
            {"params": [v for _, v in named if v.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, betas=BETAS, eps=EPS)

    def step(self, number: int, pictures: Tensor, tokens: Tensor) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, self.bench.steps, self.bench.training)
        self.optimizer.zero_grad()
        with torch.autocast(self.bench.device.type, self.amp, enabled=self.amp is not None):
            loss = self.loss(*features(self.towers, pictures, tokens), self.towers.scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.towers.clip.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.towers.clamp_scale()
        return loss.detach()


def features(towers: TwoTowers, pictures: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows of float pictures and whole contexts: what the forward pass of open_clip's models gives."""
    clip = towers.clip
    return clip.encode_image(pictures, normalize=True), clip.encode_text(tokens, normalize=True)


def on_peer_terms(towers: TwoTowers, batch: Batch) -> tuple[Tensor, Tensor]:
    """Pictures as floats and tokens of the full context, as open_clip's model takes them."""
    missing = towers.context_length - batch["text"].shape[1]
    tokens = torch.nn.functional.pad(batch["text"], (0, missing))
    pictures = normalised(batch["image"][batch.shared["image"]], towers.mean, towers.std)
    return pictures, tokens


def check_losses(bench: Bench) -> float:
    """The largest relative difference of the two losses over CHECKED_STEPS float32 steps: small, or exit."""
    exact = bench.training.model_copy(update={"precision": "float32"})
    bench = replace(bench, training=exact)
    ours, theirs = bench.towers(), bench.towers()
    trainer, peer = Trainer(ours, exact, bench.steps), Peer(bench, theirs, None)
    loader, worst = bench.loader(ours), 0.0
    for number, batch in enumerate(loader.batches(0, CHECKED_STEPS)):
        batch = batch.to(bench.device)
        one = float(trainer.step(number, batch))
        other = float(peer.step(number, *on_peer_terms(theirs, batch)))
        worst = max(worst, abs(one - other) / other)
    loader.close()
    if worst > 1e-3:
        sys.exit(f"losses differ by {worst:.2e}: nothing is measured")
    return worst


def rate_of_ours(bench: Bench, steps: int) -> dict[str, float]:
    """Samples per second, and the share of the time spent waiting for data."""
    towers = bench.towers()
    trainer, loader = Trainer(towers, bench.training, bench.steps), bench.loader(towers)
    begun, waited = 0.0, 0.0
    for number, batch in enumerate(loader.batches(0, steps + WARM_UP)):
        if number == WARM_UP:
            begun, waited = finished(bench.device), loader.wait_s
        trainer.step(number, batch.to(bench.device))
    seconds = finished(bench.device) - begun
    wait = loader.wait_s - waited
    loader.close()
    return {"samples_per_s": steps * bench.training.batch_size / seconds, "data_wait_share": wait / seconds}


def rate_of_peer(bench: Bench, steps: int) -> dict[str, float]:
    """The same of open_clip's way: WebDataset, Pillow and its transforms in worker processes."""
    towers = bench.towers()
    peer = Peer(bench, towers, autocast_dtype(bench.training.precision, bench.device))
    begun = waited = 0.0
    batches = peer_batches(bench, towers)
    for number in range(steps + WARM_UP):
        if number == WARM_UP:
            begun, waited = finished(bench.device), 0.0
        asked = time.perf_counter()
        pictures, tokens = next(batches)
        waited += time.perf_counter() - asked
        peer.step(number, pictures.to(bench.device), tokens.to(bench.device))
    seconds = finished(bench.device) - begun
    return {"samples_per_s": steps * bench.training.batch_size / seconds, "data_wait_share": waited / seconds}


def peer_batches(bench: Bench, towers: TwoTowers) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches through webdataset and torch's DataLoader."""
    import webdataset
    from open_clip.transform import image_transform

    encode = open_encoder(bench.folder, bench.training.towers)
    transform = image_transform(towers.image_size, is_train=False)

    def tokenised(caption: str) -> Tensor:
        tokens, _ = encode([caption])
        return torch.from_numpy(np.pad(tokens, (0, towers.context_length - len(tokens))).astype(np.int64))

    tars = [str(path) for path in sorted((bench.folder / "shards").glob("*.tar"))]
    data = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).repeat().shuffle(1000)
    data = data.decode("pilrgb").to_tuple("jpg", "txt").map_tuple(transform, tokenised)
    workers = bench.training.loader_threads
    return iter(torch.utils.data.DataLoader(data, batch_size=bench.training.batch_size, num_workers=workers))


def finished(device: torch.device) -> float:
    """The clock, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def flops_per_sample(bench: Bench) -> float:
    """FLOPs of a forward and a backward pass, for one pair of full context."""
    towers, n = bench.towers(), 8
    pictures = torch.randn(n, 3, towers.image_size, towers.image_size, device=bench.device)
    tokens = torch.ones(n, towers.context_length, dtype=torch.int64, device=bench.device)
    with FlopCounterMode(display=False) as counter:
        image, text = features(towers, pictures, tokens)
        (image.sum() + text.sum()).backward()
    return counter.get_total_flops() / n


def peak_flops(bench: Bench) -> float:
    """FLOP/s of a large matrix product on the device, in the precision of the run."""
    dtype = autocast_dtype(bench.training.precision, bench.device) or torch.float32
    n = 8192 if bench.device.type == "cuda" else 1024
    a = torch.randn(n, n, device=bench.device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        begun = finished(bench.device)
        for _ in range(4):
            torch.mm(a, a)
        best = min(best, (finished(bench.device) - begun) / 4)
    return 2 * n**3 / best


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument(
        "--towers", choices=TOWERS, default="ViT-B-32" if torch.cuda.is_available() else "small"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch, and as many to load data")
    given = parser.parse_args()
    training = Training(
        towers=TOWERS[given.towers],
        batch_size=given.batch,
        crop=1.0,
        system="clip",  # as open_clip has it
        threads=given.threads,
        loader_threads=given.threads,
        compile=torch.cuda.is_available(),
    )
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), training, pick_device(), given.steps + WARM_UP)
        size = bench.towers().image_size
        make_shards(bench.folder / "shards", given.samples, 256 if size > 64 else 96)
        if training.towers.name is None:
            make_tokenizer(dataset_source(bench.folder / "shards").captions(), training.towers, bench.folder)
        print(json.dumps(measure(bench, given)))


def measure(bench: Bench, given: argparse.Namespace) -> dict[str, Any]:
    """The line: both rates, one after the other twice, the better of each."""
    difference = check_losses(bench)
    flops, peak = flops_per_sample(bench), peak_flops(bench)
    rates: dict[str, list[dict[str, float]]] = {"pairmill": [], "open_clip": []}
    for _ in range(2):
        rates["pairmill"].append(rate_of_ours(bench, given.steps))
        rates["open_clip"].append(rate_of_peer(bench, given.steps))
    found: dict[str, Any] = {
        "what": "train",
        "towers": given.towers,
        "batch": given.batch,
        "steps": given.steps,
    }
    for name, each in rates.items():
        best = max(each, key=lambda rate: rate["samples_per_s"])
        mfu = best["samples_per_s"] * flops / peak
        found[name] = {key: round(value, 4) for key, value in {**best, "mfu": mfu}.items()}
        found[name]["spread"] = round(1 - min(r["samples_per_s"] for r in each) / best["samples_per_s"], 3)
    found |= {"gflop_per_sample": round(flops / 1e9, 4), "peak_gflop_per_s": round(peak / 1e9, 1)}
    return found | {"loss_difference": float(f"{difference:.2g}"), "threads": given.threads, **machine()}


if __name__ == "__main__":
    main()
