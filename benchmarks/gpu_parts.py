"""The parts of gpu.py: each measures one thing, and writes what it has found whenever it has found more.

python benchmarks/gpu_parts.py PART WORK_FOLDER RESULT_FILE [--cpu]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from bench_loader import rate_of_ours, rate_of_webdataset  # pyright: ignore[reportImplicitRelativeImport]
from common import machine  # pyright: ignore[reportImplicitRelativeImport]
from gpu_part import SMALL_TRANSFORMERS, Part  # pyright: ignore[reportImplicitRelativeImport]
from made_shards import contents, make_shards  # pyright: ignore[reportImplicitRelativeImport]
from open_clip_loop import (  # pyright: ignore[reportImplicitRelativeImport]
    Bench,
    Peer,
    as_open_clip,
    finished,
    flops_per_sample,
    loss_difference,
    on_peer_terms,
    peer_batches,
    product_flops,
)

from pairmill.pretrain.batch import Batch
from pairmill.pretrain.length_groups import groups_by_length
from pairmill.pretrain.loop import train_model
from pairmill.pretrain.onlooker import Place
from pairmill.pretrain.peaks import peak_of
from pairmill.pretrain.samples import dataset_source
from pairmill.pretrain.tokenizer import make_tokenizer
from pairmill.pretrain.towers import open_encoder
from pairmill.pretrain.trainer import Trainer
from pairmill.pretrain.unit_rows import embed_captions, embed_pictures
from pairmill.runner import Task


def shards(part: Part) -> None:
    """The shards that the others read; what the machine is."""
    begun, cores = time.perf_counter(), os.cpu_count() or 1
    some = min(1000, part.sizes.samples // 8)  # a worker of webdataset without a tar never returns
    make_shards(part.work / "shards", part.sizes.samples, 256, per_shard=some, processes=min(cores, 16))
    part.bench().prepare()
    part.note(
        samples=part.sizes.samples, made_s=round(time.perf_counter() - begun, 2), **contents(), **machine()
    )


def ceilings(part: Part) -> None:
    """Products and copies: what nothing can be faster than."""
    flops = product_flops(part.device, torch.bfloat16, part.sizes.product)
    part.note(bf16_tflop_per_s=round(flops / 1e12, 2), stated_peak=peak_of(part.card))
    pinned = part.device.type == "cuda"
    host = torch.empty(part.sizes.copied, dtype=torch.uint8, pin_memory=pinned)
    there = torch.empty(part.sizes.copied, dtype=torch.uint8, device=part.device)
    other = torch.empty_like(there)
    for name, source in (("on_device", there), ("to_device_pinned", host)):
        rate = part.rate(lambda _, source=source: other.copy_(source, non_blocking=True), source.numel())
        part.note(**{f"{name}_gb_per_s": round(rate / 1e9, 2)})


def loader(part: Part) -> None:
    """Images per second of our loader by its threads, and of webdataset with as many workers as the most."""
    most = part.bench(threads=part.sizes.threads[-1])
    towers = most.towers()
    for threads in reversed(part.sizes.threads):  # the slowest last: it may be late
        batches = 2 * max(2, threads)  # about as long for each
        rate = rate_of_ours(most, towers, batches=batches, threads=threads)
        part.note(**{f"threads_{threads}": rate.line()})
        if "to_device" not in part.found:
            rate = rate_of_ours(most, towers, batches=batches, threads=threads, device=part.device)
            part.note(to_device=rate.line())
        if "webdataset" not in part.found:
            part.note(webdataset=rate_of_webdataset(most, towers).line())


def step(part: Part) -> None:
    """Our step on one batch that lies on the device, its text computed in several ways."""
    bench = part.bench()
    batch = bench.resident(1)[0]
    short = batch.having({"text": of_length(batch["text"], part.sizes.short)})
    ways = {
        "dense": (batch.having({"text": of_length(batch["text"], bench.towers().context_length)}), 0.0),
        "length_groups": (batch, 0.0),  # captions as they are
        "short_text_half_of_patches": (short, 0.5),
    }
    for name, (resident, dropped) in ways.items():
        training = bench.training.model_copy(update={"patch_dropout": dropped})
        begun = time.perf_counter()
        trainer = Trainer(bench.towers(), training, bench.steps)
        trainer.step(0, resident)
        ready = finished(part.device) - begun
        rate = part.rate(lambda k, t=trainer, b=resident: t.step(k, b), batch.pairs)
        flops = flops_of(bench, resident, dropped=dropped)
        part.note(
            **{
                name: {
                    "samples_per_s": round(rate, 1),
                    "mfu": part.utilisation(rate, flops),
                    "gflop_per_sample": round(flops / 1e9, 3),
                    "batch": batch.pairs,
                    "first_step_s": round(ready, 1),
                }
            }
        )
        if part.device.type == "cuda":
            part.note(memory_gb=round(torch.cuda.max_memory_allocated() / 1e9, 1))
            torch.cuda.reset_peak_memory_stats()


def of_length(text: torch.Tensor, length: int) -> torch.Tensor:
    """(B, length) tokens: padded or cut, for speed does not depend on which they are."""
    return torch.nn.functional.pad(text, (0, length - text.shape[1]))


def flops_of(bench: Bench, batch: Batch, *, dropped: float = 0.0) -> float:
    """FLOPs of a pair of a batch, its captions computed at the lengths that the step gives them."""
    if "text" not in batch.lengths:
        return flops_per_sample(bench, batch["text"].shape[1], dropped=dropped)
    groups = groups_by_length(batch.lengths["text"], bench.device.type)
    found = [flops_per_sample(bench, end, dropped=dropped) * len(part) for part, end in groups]
    return sum(found) / batch.pairs


def fed(part: Part) -> None:
    """Our step fed from the shards: rate, MFU at the tokens computed, share of the time spent waiting."""
    bench = part.bench()
    towers = bench.towers()
    trainer = Trainer(towers, bench.training, bench.steps)
    ours = bench.loader(towers, device=part.device)
    taken, flops = 0, 0.0
    begun = waited = 0.0
    warm_up = 3
    for number, batch in enumerate(ours.batches(0, bench.steps)):
        if number == warm_up:
            begun, waited = finished(part.device), ours.wait_s
        trainer.step(number, batch.to(part.device))
        if number < warm_up:
            continue
        taken += 1
        flops = flops or flops_of(bench, batch)
        if taken % 8 == 0:
            finished(part.device)  # or the clock would run ahead of the device
        if taken > 1 and time.perf_counter() - begun > 2 * part.sizes.bound_s:
            break
    seconds = finished(part.device) - begun
    share = (ours.wait_s - waited) / seconds
    ours.close()
    rate = taken * bench.training.batch_size / seconds
    part.note(samples_per_s=round(rate, 1), waiting=round(share, 4), steps=taken)
    part.note(mfu=part.utilisation(rate, flops), gflop_per_sample=round(flops / 1e9, 3))


def open_clip(part: Part) -> None:
    """open_clip's step, compiled as ours is: on a batch that lies on the device, then fed by webdataset."""
    bench = part.bench()
    towers = bench.towers()
    peer = Peer(bench, towers, bench.amp, compiled=not part.cpu)
    resident = on_peer_terms(towers, bench.resident(1)[0])
    rate = part.rate(lambda k: peer.step(k, *resident), len(resident[0]))
    part.note(resident={"samples_per_s": round(rate, 1), "batch": len(resident[0])})
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]] = peer_batches(bench, towers)

    def fed_step(number: int) -> None:
        pictures, tokens = (value.to(part.device) for value in next(batches))
        peer.step(number, pictures, tokens)

    rate = part.rate(fed_step, bench.training.batch_size)
    part.note(fed={"samples_per_s": round(rate, 1), "workers": bench.training.loader_threads})


def scoring(part: Part) -> None:
    """Pairs per second embedded: forward alone, from tars through the loader, and as `embed` does it."""
    bench = part.bench(batch=1024)
    towers = bench.towers().eval()
    batch = bench.resident(1)[0]

    @torch.no_grad()
    def forward(found: Batch) -> None:
        with torch.autocast(part.device.type, bench.amp, enabled=bench.amp is not None):
            towers.encode_pictures(found["image"])
            towers.encode_captions(found["text"])

    part.note(forward_pairs_per_s=round(part.rate(lambda _: forward(batch), batch.pairs), 1))
    ours = bench.loader(towers, device=part.device)
    batches = ours.batches(0, 100_000)
    rate = part.rate(lambda _: forward(next(batches).to(part.device)), batch.pairs)
    batches.close()  # type: ignore[attr-defined]
    ours.close()
    part.note(from_tars_pairs_per_s=round(rate, 1))
    encode, pictures = open_encoder(bench.folder, bench.training.towers), batch["image"].cpu().numpy()
    captions = dataset_source(bench.folder / "shards").table(0)["caption"].to_pylist()[: len(pictures)]

    def as_embed(_: int) -> None:
        embed_pictures(towers, pictures)
        embed_captions(towers, captions, encode, 256)

    part.note(embed_step_pairs_per_s=round(part.rate(as_embed, len(pictures), warm_up=1), 1))


def trace(part: Part) -> None:
    """Losses of float32 steps beside a loop with open_clip's ClipLoss: relative difference."""
    part.note(largest_relative_difference=loss_difference(part.bench(batch=part.sizes.checked_batch)))


class _StoppedError(Exception):
    """Raised in mid-run."""


def resume(part: Part) -> None:
    """A run stopped after some steps and gone on with, beside one that was not: the same bytes."""
    source = dataset_source(part.work / "shards")
    settings = as_open_clip(SMALL_TRANSFORMERS, batch=32, threads=1)
    training = settings.model_copy(update={"samples_seen": 32 * 12, "checkpoint_every_s": 0.0})
    make_tokenizer(source.captions(), training.towers, part.work / "resume")
    encode = open_encoder(part.work / "resume", training.towers)

    def stop(done: int) -> None:
        if done == 7:
            raise _StoppedError

    folders = [part.work / "resume" / name for name in ("whole", "stopped")]
    for folder, hooks in zip(folders, ((None,), (stop, None)), strict=True):
        for hook in hooks:
            with suppress(_StoppedError):
                train_model(source, encode, training, Place(folder, folder, Task("gpu", folder.name)), hook)
    for name in ("model.safetensors", "train.json"):
        one, other = ((folder / name).read_bytes() for folder in folders)
        part.note(**{f"{name.partition('.')[0]}_bit_equal": one == other})


PARTS = {
    part.__name__: part for part in (shards, ceilings, step, fed, open_clip, loader, scoring, trace, resume)
}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("work", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--cpu", action="store_true")
    given = parser.parse_args()
    if given.cpu:
        torch.set_num_threads(1)
    PARTS[given.part](Part(given.work, given.result, cpu=given.cpu))


if __name__ == "__main__":
    main()
