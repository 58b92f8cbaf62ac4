"""open_clip's way to train, beside ours: its loss, its model call, its pictures and tokens, its loader."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pairmill.pretrain.augment import normalised
from pairmill.pretrain.batch import Batch
from pairmill.pretrain.loader import Loader
from pairmill.pretrain.optimizer import BETAS, EPS, learning_rate
from pairmill.pretrain.order import Order
from pairmill.pretrain.samples import dataset_source
from pairmill.pretrain.tokenizer import make_tokenizer
from pairmill.pretrain.towers import TwoTowers, autocast_dtype, build_towers, open_encoder
from pairmill.pretrain.trainer import Trainer
from pairmill.recipe import Towers, Training

CHECKED_STEPS = 8
TOWERS = {"small": Towers(), "ViT-B-32": Towers(name="ViT-B-32")}


def as_open_clip(towers: Towers, *, batch: int, threads: int, compiled: bool = False) -> Training:
    """Settings under which both loops compute the same: CLIP's loss, no crops."""
    return Training(
        towers=towers,
        batch_size=batch,
        crop=1.0,
        system="clip",
        threads=threads,
        loader_threads=threads,
        compile=compiled,
    )


@dataclass
class Bench:
    """What both loops are given: `folder` holds `shards/` and, for small towers, a tokenizer."""

    folder: Path
    training: Training
    device: torch.device
    steps: int  # that the learning rate is laid out for

    def prepare(self) -> None:
        """Train the tokenizer, where the towers are not a named model's."""
        if self.training.towers.name is None:
            captions = dataset_source(self.folder / "shards").captions()
            make_tokenizer(captions, self.training.towers, self.folder)

    def loader(
        self, towers: TwoTowers, *, threads: int | None = None, device: torch.device | None = None
    ) -> Loader:
        """Ours, without a cache: every picture is decoded anew, by processes. device: where batches go."""
        encode = open_encoder(self.folder, self.training.towers)
        source = dataset_source(self.folder / "shards")
        order = Order(source, encode, batch=self.training.batch_size, seed=0)
        threads = threads or self.training.loader_threads
        return Loader(
            order,
            size=towers.image_size,
            context=towers.context_length,
            threads=threads,
            cache_mb=0,
            device=device,
            processes=True,
        )

    def towers(self) -> TwoTowers:
        """The model, the same each time."""
        return build_towers(self.training.towers).to(self.device).train()

    @property
    def amp(self) -> torch.dtype | None:
        """What is multiplied in besides float32."""
        return autocast_dtype(self.training.precision, self.device)

    def resident(self, number: int) -> list[Batch]:
        """The first `number` batches, on the device."""
        loader = self.loader(self.towers())
        batches = [batch.copied().to(self.device) for batch in loader.batches(0, number)]
        loader.close()
        return batches


class Peer:
    """A step as open_clip's training script makes it: its ClipLoss, its model call, the full context."""

    def __init__(
        self, bench: Bench, towers: TwoTowers, amp: torch.dtype | None, *, compiled: bool = False
    ) -> None:
        from open_clip.loss import ClipLoss

        self.bench, self.towers, self.amp, self.loss = bench, towers, amp, ClipLoss()
        self.features = torch.compile(features) if compiled else features
        named = list(towers.clip.named_parameters())
        groups = [
            {"params": [v for _, v in named if v.ndim >= 2], "weight_decay": bench.training.weight_decay},
            {"params": [v for _, v in named if v.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, betas=BETAS, eps=EPS)

    def step(self, number: int, pictures: Tensor, tokens: Tensor) -> Tensor:
        """Do one step. Returns its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, self.bench.steps, self.bench.training)
        self.optimizer.zero_grad()
        with torch.autocast(self.bench.device.type, self.amp, enabled=self.amp is not None):
            loss = self.loss(*self.features(self.towers, pictures, tokens), self.towers.scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            self.towers.clip.parameters(), self.bench.training.clip_norm or math.inf
        )
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


def loss_difference(bench: Bench, steps: int = CHECKED_STEPS) -> float:
    """The largest relative difference of the two losses over float32 steps on the same batches."""
    exact = bench.training.model_copy(update={"precision": "float32", "compile": False})
    bench = replace(bench, training=exact)
    ours, theirs = bench.towers(), bench.towers()
    trainer, peer = Trainer(ours, exact, bench.steps), Peer(bench, theirs, None)
    loader, worst = bench.loader(ours), 0.0
    for number, batch in enumerate(loader.batches(0, steps)):
        batch = batch.to(bench.device)
        one = float(trainer.step(number, batch))
        other = float(peer.step(number, *on_peer_terms(theirs, batch)))
        worst = max(worst, abs(one - other) / other)
    loader.close()
    return worst


def check_losses(bench: Bench, steps: int = CHECKED_STEPS) -> float:
    """The same: small, or exit."""
    worst = loss_difference(bench, steps)
    if worst > 1e-3:
        sys.exit(f"losses differ by {worst:.2e}: nothing is measured")
    return worst


def peer_batches(
    bench: Bench, towers: TwoTowers, *, epochs: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches through webdataset, Pillow and torch's DataLoader, without end where no `epochs` are given."""
    import webdataset
    from open_clip.transform import image_transform

    encode = open_encoder(bench.folder, bench.training.towers)
    transform = image_transform(towers.image_size, is_train=False)

    def tokenised(caption: str) -> Tensor:
        tokens, _ = encode([caption])
        return torch.from_numpy(np.pad(tokens, (0, towers.context_length - len(tokens))).astype(np.int64))

    tars = [str(path) for path in sorted((bench.folder / "shards").glob("*.tar"))]
    more = (
        {"empty_check": False}
        if "empty_check" in signature(webdataset.WebDataset.__init__).parameters
        else {}
    )
    data = webdataset.WebDataset(tars, shardshuffle=False, **more)  # open_clip's own wants 0.2.86, without it
    data = data.repeat(nepochs=epochs) if epochs is not None else data.repeat()
    data = data.shuffle(1000).decode("pilrgb").to_tuple("jpg", "txt").map_tuple(transform, tokenised)
    workers = bench.training.loader_threads
    return iter(torch.utils.data.DataLoader(data, batch_size=bench.training.batch_size, num_workers=workers))


def finished(device: torch.device) -> float:
    """The clock, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def flops_per_sample(bench: Bench, tokens: int | None = None, *, dropped: float = 0.0) -> float:
    """FLOPs of a forward and a backward pass for one pair, its caption `tokens` long (the whole context).

    Matrix products and convolutions, by torch's FlopCounterMode. dropped: share of the patches left out.
    """
    towers, n = bench.towers(), 8
    towers.drop_patches(dropped)
    pictures = torch.zeros(n, towers.image_size, towers.image_size, 3, dtype=torch.uint8, device=bench.device)
    text = torch.ones(n, tokens or towers.context_length, dtype=torch.int64, device=bench.device)
    with FlopCounterMode(display=False) as counter:
        (towers.encode_pictures(pictures).sum() + towers.encode_captions(text).sum()).backward()
    return counter.get_total_flops() / n


def product_flops(device: torch.device, dtype: torch.dtype, n: int) -> float:
    """FLOP/s of a matrix product of side `n`: the best of five times four."""
    a = torch.randn(n, n, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        begun = finished(device)
        for _ in range(4):
            torch.mm(a, a)
        best = min(best, (finished(device) - begun) / 4)
    return 2 * n**3 / best
