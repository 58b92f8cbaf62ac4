"""Real data in the forms that training and evaluation read: Flickr8k as shards, and sets in CLIP_benchmark's
layout of Flickr8k's held-out photos, of its judged pairs, and of CIFAR-10."""

from __future__ import annotations

import csv
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pairmill.shards.commit import write_table
from pairmill.shards.schema import SIDECAR, make_uid
from pairmill.shards.tar import TarWriter

CAPTIONS = {"en": "captions.en.tsv", "zh": "captions.zh-human.tsv"}
CIFAR_ZH = ("飞机", "汽车", "鸟", "猫", "鹿", "狗", "青蛙", "马", "船", "卡车")  # in the order of the names
CIFAR_DE = ("Flugzeug", "Auto", "Vogel", "Katze", "Hirsch", "Hund", "Frosch", "Pferd", "Schiff", "Lastwagen")
TEMPLATES = {"zh": ("{c}的照片。", "一张{c}的照片。", "{c}"), "de": ("ein Foto von {c}", "{c}")}


def pictures(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of a tar's files."""
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file.read()


def captions(data: Path, language: str) -> dict[str, list[str]]:
    """By photo."""
    found = defaultdict(list)
    with open(data / "flickr8k" / CAPTIONS[language], encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            found[row["image"]].append(row["caption"])
    return found


def make_training_shards(data: Path, folder: Path, *, swapped: float, seed: int = 0) -> int:
    """Flickr8k's 6,000 training photos with all captions in both languages, a share of the captions moved to
    other photos within their language. Returns the number of pairs."""
    photos = dict(pictures(data / "flickr8k" / "images-train.tar"))
    rows = [
        (name, caption, language)
        for language in CAPTIONS
        for name, said in captions(data, language).items()
        if name in photos
        for caption in said
    ]
    rng, words = np.random.default_rng(seed), [row[1] for row in rows]
    for language in CAPTIONS:
        mine = np.flatnonzero([row[2] == language for row in rows])
        moved = rng.permutation(mine)[: round(swapped * len(mine))]
        for place, source in zip(moved, np.roll(moved, 1), strict=True):
            words[place] = rows[source][1]
    by_photo = defaultdict(list)
    for (name, _, _), caption in zip(rows, words, strict=True):
        by_photo[name].append(caption)
    names = rng.permutation(sorted(by_photo)).tolist()
    return sum(
        _write_shard(folder, number, names[start : start + 2000], photos, by_photo)
        for number, start in enumerate(range(0, len(names), 2000))
    )


def _write_shard(
    folder: Path, number: int, names: list[str], photos: dict[str, bytes], by_photo: dict[str, list[str]]
) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    with TarWriter(folder / f"{number:05d}.tar") as tar:
        for name in names:
            offset = tar.add(name, photos[name])
            for caption in by_photo[name]:
                row = {
                    "uid": make_uid(name, caption),
                    "key": Path(name).stem,
                    "url": name,
                    "caption": caption,
                }
                place = {"sha256": name.encode().ljust(32)[:32], "offset": offset, "size": len(photos[name])}
                found.append(row | place)
    table = pa.Table.from_pylist(found, schema=SIDECAR)
    write_table(table, folder / f"{number:05d}.parquet")
    return len(table)


def make_sets(data: Path, folder: Path) -> None:
    """flickr8k-en, flickr8k-zh: 1,000 photos, 5 captions each. flickr8k-judged: the judged pairs of these.
    cifar10: 2,000 pictures to learn from and 2,000 to be tested on."""
    photos = dict(pictures(data / "flickr8k" / "images-val.tar"))
    for language in CAPTIONS:
        said = captions(data, language)
        one = [
            {"jpg": photos[name], "txt": "\n".join(said[name]).encode()} for name in photos if name in said
        ]
        write_set(folder / f"flickr8k-{language}", one, kind="retrieval")
    with open(data / "flickr8k" / "match-nomatch.tsv", encoding="utf-8", newline="") as file:
        judged = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    judgement = {"match": b"1", "no-match": b"0"}
    samples = [
        {"jpg": photos[row["image"]], "txt": row["caption"].encode(), "match": judgement[row["label"]]}
        for row in judged
        if row["image"] in photos
    ]
    write_set(folder / "flickr8k-judged", samples, kind="matching")
    _make_cifar(data, folder / "cifar10")


def _make_cifar(data: Path, folder: Path) -> None:
    named = sorted(pictures(data / "cifar10" / "images.tar"))
    names = sorted({Path(path).parent.name for path, _ in named})
    halves = {
        split: [
            {"jpg": picture, "cls": str(names.index(Path(path).parent.name)).encode()}
            for path, picture in named[start::2]
        ]
        for split, start in (("train", 0), ("test", 1))
    }
    for split, samples in halves.items():
        write_set(folder, samples, split=split)
    known = json.loads((data / "classnames/en_zeroshot_classification_templates.json").read_text())
    prompts = {"": (names, known["cifar10"]), ".zh": (CIFAR_ZH, TEMPLATES["zh"])}
    prompts[".de"] = (CIFAR_DE, TEMPLATES["de"])
    for suffix, (classes, templates) in prompts.items():
        (folder / f"classnames{suffix}.txt").write_text("\n".join(classes), encoding="utf-8")
        path = folder / f"zeroshot_classification_templates{suffix}.txt"
        path.write_text("\n".join(templates), encoding="utf-8")


def write_set(
    folder: Path, samples: Iterable[dict[str, bytes]], *, kind: str = "classification", split: str = "test"
) -> None:
    """One half of a set, in one tar."""
    (folder / split).mkdir(parents=True)
    with TarWriter(folder / split / "0.tar") as tar:
        for number, sample in enumerate(samples):
            for suffix, value in sample.items():
                tar.add(f"s{number:07d}.{suffix}", value)
    (folder / split / "nshards.txt").write_text("1")
    (folder / "dataset_type.txt").write_text(kind)
