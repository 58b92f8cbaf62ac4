"""Every system on the same made world, several seeds: recall both ways, on clean and on swapped captions.

    python benchmarks/bench_systems.py [--seeds 3] [--steps 200] [--swapped 0.2] [--only clip,otter]

One JSON line per system, then the table of docs/systems.md. Towers from scratch: strided convolutions for
32-pixel pictures and open_clip's transformer for captions; CLIPPO reads 64-pixel pages with its one tower.
LiT and the locked, reduced FILIP take over the picture tower of a CLIP trained before on other, clean pairs,
so their rows are not to be compared with the others'. Nothing is asserted but that each learns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from common import machine  # pyright: ignore[reportImplicitRelativeImport]
from shapes_world import SIDE, World, encode, make_world, vocabulary  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.pretrain.batch import Batch
from pairmill.pretrain.captions import grouped_encode
from pairmill.pretrain.objectives.encode import encode as encode_sides
from pairmill.pretrain.objectives.registry import find_system, names
from pairmill.pretrain.objectives.system import System, Tokens
from pairmill.pretrain.render import characters
from pairmill.pretrain.tokenizer import Encode, pad_groups
from pairmill.pretrain.towers import build_towers
from pairmill.pretrain.trainer import Trainer, with_towers
from pairmill.recipe import Towers, Training

PAIRS, HELD_OUT, BATCH, CONTEXT, CHANCE = 6_000, 400, 128, 16, 1 / 400
SMALL = Towers(
    image_size=32,
    embed_dim=64,
    vision={"channels": [24, 48, 64]},
    text={"width": 64, "heads": 4, "layers": 2},
    context_length=CONTEXT,
    vocab_size=301,
)
ROWS: dict[str, dict[str, Any]] = {name: {"name": name} for name in names()}
ROWS["filip, reduced and locked"] = {"name": "filip", "reduce": 12, "locked": True}
OPTIONS = {  # for towers of this size
    "filip": {"dim": 64, "tile": BATCH},
    "bagformer": {"dim": 64, "tile": BATCH},
    "bow": {"bank": 1024},
}
TAUGHT = ("lit", "filip, reduced and locked")  # whose picture tower was trained before


class Pairs:
    """A world's pairs as batches: what a loader gives."""

    def __init__(self, world: World, system: System, side: int, *, fit: Sequence[str] | None = None) -> None:
        pages = bool(system.towers)
        self.encode: Encode = characters if pages else encode
        self.encode = grouped_encode(system.captions, fit or world.captions, self.encode, CONTEXT)
        self.world, self.context = world, 768 if pages else CONTEXT
        shrink = SIDE // side
        cut = world.pictures.reshape(-1, side, shrink, side, shrink, 3)
        self.pictures = torch.from_numpy(cut.mean((2, 4)).astype(np.uint8))
        self.tokens, self.lengths = self.encode(world.captions)
        self.starts = np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    def uids(self) -> np.ndarray:
        """The number of every pair."""
        return np.arange(len(self.pictures))

    def batch(self, rows: np.ndarray) -> Batch:
        """Some pairs."""
        block = pad_groups(self.tokens, self.starts[rows], self.lengths[rows], self.context)
        numbers = torch.from_numpy(rows)
        said = torch.from_numpy(self.world.said[rows])
        fields = {
            "uid": numbers,
            "valid": torch.ones(len(rows), dtype=torch.bool),
            "image": self.pictures[numbers],
            "text": torch.from_numpy(block[0]),
            "picture": numbers,
            "caption": said,
            "label": said,
        }
        return Batch(fields if block[1] is None else {**fields, "group": torch.from_numpy(block[1])})


def train(
    row: str, seed: int, steps: int, swapped: float, taught: dict[str, torch.Tensor] | None = None
) -> tuple[Trainer, Pairs]:
    """A system trained on a world of its seed; `taught`: weights of its picture tower, where it is locked."""
    reference = {**ROWS[row], **OPTIONS.get(ROWS[row]["name"], {})}
    training = Training(
        towers=SMALL, system=reference, batch_size=BATCH, lr=2e-3, weight_decay=0.1, crop=1.0, seed=seed,
        precision="float32", threads=torch.get_num_threads(),
    )  # fmt: skip
    system = find_system(reference)
    if system.towers:
        training = with_towers(
            training.model_copy(update={"towers": SMALL.model_copy(update={"image_size": 64})})
        )
    pairs = Pairs(make_world(PAIRS, 1000 + seed, swapped=swapped), system, training.towers.image_size)
    towers = build_towers(training.towers, temperature=system.temperature, seed=seed)
    if row in TAUGHT and taught is not None:
        towers.clip.visual.load_state_dict(taught)
    trainer = Trainer(towers, training, steps, pairs)  # type: ignore[arg-type]
    dice, each = np.random.default_rng(seed), PAIRS // BATCH
    order = np.concatenate([dice.permutation(PAIRS)[: each * BATCH] for _ in range(-(-steps // each))])
    for step in range(steps):
        if step and step % each == 0:
            trainer.end_epoch()
        trainer.step(step, pairs.batch(order[step * BATCH : (step + 1) * BATCH]))
    return trainer, pairs


@torch.no_grad()
def recall(trainer: Trainer, pairs: Pairs, seed: int) -> tuple[float, float]:
    """R@1 from picture to caption and from caption to picture, among HELD_OUT distinct scenes."""
    trainer.towers.eval()
    trainer.objective.eval()
    size = trainer.towers.image_size
    held = Pairs(
        make_world(HELD_OUT, 5000 + seed, distinct=True), trainer.system, size, fit=pairs.world.captions
    )
    sides = encode_sides(trainer.objective, trainer.system, held.batch(np.arange(HELD_OUT)))
    terms = trainer.system.terms
    term = next((term for term in terms if term.interact.reads == "tokens"), terms[0])
    left, right = (sides[name].map(torch.Tensor.detach) for name in (term.left, term.right))
    own = torch.arange(HELD_OUT)
    return hits(term.interact, left, right, own), hits(term.interact, right, left, own)


def hits(interact: Any, queries: Tokens, keys: Tokens, own: torch.Tensor) -> float:
    """The share of queries that find their own key first."""
    return float((interact(queries, keys).argmax(1) == own).float().mean())


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0.0:.3f}"


def measure(
    row: str, seed: int, steps: int, swapped: float, taught: dict[str, torch.Tensor] | None
) -> tuple[float, float, float]:
    """Recall both ways, and the seconds that it took; one thread."""
    torch.set_num_threads(1)
    begun = time.perf_counter()
    trainer, pairs = train(row, seed, steps, swapped, taught)
    return *recall(trainer, pairs, seed), time.perf_counter() - begun


def teach(seed: int, steps: int) -> dict[str, torch.Tensor]:
    """The picture tower of a CLIP trained on other pairs, none of them swapped."""
    torch.set_num_threads(1)
    return train("clip", 100 + seed, steps, 0.0)[0].towers.clip.visual.state_dict()


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--swapped", type=float, default=0.2)
    parser.add_argument("--only", default="")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    assert len(vocabulary()) + 3 <= SMALL.vocab_size
    chosen = given.only.split(",") if given.only else list(ROWS)
    seeds = range(given.seeds)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.processes, mp_context=spawn) as pool:
        asked = seeds if set(chosen) & set(TAUGHT) else ()
        taught = dict(zip(asked, pool.map(teach, asked, [given.steps] * given.seeds), strict=False))
        runs = {
            row: [
                pool.submit(measure, row, seed, given.steps, given.swapped, taught.get(seed))
                for seed in seeds
            ]
            for row in chosen
        }
        lines = [show(row, [run.result() for run in runs[row]], given) for row in chosen]
    print("| system | R@1 picture to caption | R@1 caption to picture | seconds a run |\n|---|---|---|---|")
    print("\n".join(lines))


def show(row: str, found: list[tuple[float, float, float]], given: argparse.Namespace) -> str:
    """Print a row's JSON line; return its line of the table."""
    there, back, seconds = ([one[i] for one in found] for i in range(3))
    if min(there) < 4 * CHANCE:
        raise SystemExit(f"{row}: R@1 {there} is near chance: nothing was learned")
    line = {"what": "systems", "system": row, "swapped": given.swapped, "steps": given.steps}
    line |= {"picture_to_caption": there, "caption_to_picture": back, "seconds": round(np.mean(seconds), 1)}
    print(json.dumps(line | machine()), flush=True)
    return f"| {row} | {spread(there)} | {spread(back)} | {np.mean(seconds):.0f} |"


if __name__ == "__main__":
    main()
