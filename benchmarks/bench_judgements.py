"""The scorer against human judgements: captions of photos, each judged to match or not.

PAIRMILL_DATA=folder python benchmarks/bench_judgements.py FOLDER

FOLDER: what `bench_flickr8k.py --out FOLDER` left. AUC of each fold's cosine and of the folds' mean, on all
photos that are at hand, and on those that were in no list: no fold has seen these.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from bench_flickr8k import auc  # pyright: ignore[reportImplicitRelativeImport]
from common import data_folder, machine  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.pretrain.embed import embed_captions, embed_pictures
from pairmill.pretrain.pictures import decode_square
from pairmill.pretrain.towers import load_towers, open_encoder
from pairmill.shards.tar import members, read_at

BATCH = 256


def read_pictures(data: Path, names: set[str], side: int) -> tuple[dict[str, int], np.ndarray]:
    """The place of each picture that is at hand, and (P, S, S, 3) uint8."""
    places: dict[str, int] = {}
    pictures = []
    for archive in (data / "images-train.tar", data / "images-val.tar"):
        with open(archive, "rb") as file:
            for member in members(archive):
                block = np.zeros((side, side, 3), np.uint8)
                wanted = member.name in names
                if wanted and decode_square(read_at(file, member.offset, member.size), block):
                    places[member.name] = len(pictures)
                    pictures.append(block)
    return places, np.stack(pictures)


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    models = parser.parse_args().folder / "model/bootstrap"
    data = data_folder("flickr8k") / "flickr8k"
    with open(data / "match-nomatch.tsv", encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    folds = [path.parent for path in sorted(models.glob("fold*/model.safetensors"))]
    towers = [load_towers(fold) for fold in folds]
    places, pictures = read_pictures(data, {row["image"] for row in rows}, towers[0].image_size)
    rows = [row for row in rows if row["image"] in places]
    listed = set((data / "split.train.txt").read_text().split())
    match = np.array([row["label"] == "match" for row in rows])
    unseen = np.array([row["image"] not in listed for row in rows])
    of_row = [places[row["image"]] for row in rows]
    encode = open_encoder(models, towers[0].settings)
    cosines = []
    for model in towers:
        image = np.concatenate(
            [embed_pictures(model, pictures[at : at + BATCH]) for at in range(0, len(pictures), BATCH)]
        )
        text = embed_captions(model, [row["caption"] for row in rows], encode, BATCH)
        cosines.append((image[of_row] * text).sum(1))
    figures: dict[str, object] = {"what": "judgements", "rows": len(rows), "unseen": int(unseen.sum())}
    for name, some in (("all", np.ones(len(rows), bool)), ("unseen", unseen)):
        each = [auc(found[some & match], found[some & ~match]) for found in cosines]
        mean = np.mean(cosines, 0)
        figures[f"auc_{name}"] = [round(one, 4) for one in each]
        figures[f"auc_{name}_mean"] = round(auc(mean[some & match], mean[some & ~match]), 4)
    print(json.dumps({**figures, **machine()}))


if __name__ == "__main__":
    main()
