"""Systems trained alike on Flickr8k, clean and with 30 % of the captions swapped: retrieval both ways, judged
pairs, CIFAR-10 zero-shot and by linear probe. One JSON line for each model, its time in it.

PAIRMILL_DATA=folder python benchmarks/bench_real.py [--systems clip ...] [--samples-seen N] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from common import data_folder, machine  # pyright: ignore[reportImplicitRelativeImport]
from real_sets import make_sets, make_training_shards  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.pretrain.evaluate import evaluate_model
from pairmill.pretrain.onlooker import Place
from pairmill.pretrain.samples import dataset_source
from pairmill.pretrain.train import train_on
from pairmill.pretrain.trainer import check_training
from pairmill.recipe import Evaluate, Towers, Training
from pairmill.runner import Task

SYSTEMS = ("clip", "siglip", "otter", "nlip", "filip", "lit")  # LiT's pictures are those of CLIP's model
SWAPPED = {"clean": 0.0, "swapped": 0.3}
OWN: dict[str, Any] = {"embed_dim": 128, "context_length": 32, "vocab_size": 4000}
TOWERS = {  # FILIP needs tokens of both sides, so that what is compared with it has transformers too
    "transformers": Towers(
        image_size=48,
        vision={"layers": 3, "width": 128, "head_width": 32, "patch_size": 8},
        text={"width": 128, "heads": 4, "layers": 2},
        **OWN,
    ),
    "small": Towers(**OWN),
}


def settings(given: argparse.Namespace, system: str, out: Path, kind: str) -> Training:
    """The same for all but the system."""
    named: Any = system
    if system == "lit":
        named = {"name": "lit", "image_from": str(out / "model" / f"clip-{kind}"), "cached": False}
    return Training(
        towers=TOWERS[given.towers],
        batch_size=256,
        samples_seen=given.samples_seen,
        lr=1e-3,
        weight_decay=0.2,
        crop=0.7,
        flip=True,
        system=named,
        threads=given.threads,
        loader_threads=1,
    )


def scores(found: dict[str, Any]) -> dict[str, Any]:
    """The few numbers of a line, each with its interval."""
    sets, line = found["sets"], {}
    for language in ("en", "zh"):
        said = sets[f"flickr8k-{language}"]["retrieval"]
        for way in ("picture_to_caption", "caption_to_picture"):
            for k in (1, 10):
                name = f"{language} {way} R@{k}"
                line[name] = [said[way][f"R@{k}"], *said[way][f"R@{k}_interval"]]
    judged = sets["flickr8k-judged"]["matching"]
    line["judged auc"] = [judged["auc"], *judged["auc_interval"]]
    for language, said in sets["cifar10"]["classification"].items():
        line[f"cifar10 zero-shot {language or 'en'}"] = [said["top1"], *said["top1_interval"]]
    probe = sets["cifar10"]["linear_probe"]
    return line | {"cifar10 linear probe": [probe["top1"], *probe["top1_interval"]]}


def main() -> None:
    """Make the data, train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS))
    parser.add_argument("--kinds", nargs="+", default=list(SWAPPED))
    parser.add_argument("--towers", choices=list(TOWERS), default="transformers")
    parser.add_argument("--samples-seen", type=int, default=60_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    data = data_folder("flickr8k")
    out = given.out or Path(tempfile.mkdtemp())
    if not (out / "sets").exists():
        make_sets(data, out / "sets")
    asked = Evaluate(sets=(str(out / "sets"),))
    for kind in given.kinds:
        shards = out / f"shards-{kind}"
        if not shards.exists():
            make_training_shards(data, shards, swapped=SWAPPED[kind])
        for system in given.systems:
            name = f"{system}-{kind}"
            training = settings(given, system, out, kind)
            check_training(training)
            place = Place(out / "model" / name, out / "_log" / "train", Task("train", name))
            begun, cpu = time.perf_counter(), time.process_time()
            facts = train_on(dataset_source(shards), training, place).facts
            took = {"seconds": round(time.perf_counter() - begun, 1)}
            took["cpu_s"] = round(time.process_time() - cpu, 1)
            line = {
                "bench": "real",
                "system": system,
                "captions": kind,
                "towers": given.towers,
                "loss": facts["loss"],
                **took,
            }
            line |= {"pairs": facts["samples"], "samples_seen": facts["samples_seen"]}
            print(json.dumps(line | scores(evaluate_model(place.folder, asked)) | machine()), flush=True)


if __name__ == "__main__":
    main()
