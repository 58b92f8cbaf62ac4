"""Real photos made worse in known ways: does the noise score keep its promise?

python benchmarks/bench_stress.py FOLDER [--seed N]

FOLDER: what `bench_flickr8k.py --out FOLDER` left, and FOLDER-web with the truth. Its embeddings are taken as
they are, without training anything: 15 % of the pictures put to another picture's captions altogether; all
Chinese captions of 5 and of 15 % of the pictures put together to another picture; 60 % of the good pairs of
which the scorer knows little left out; swapped captions, or good ones, left out until 10 and 50 % are wrong.
One JSON line for each: by language what was asked, the true share among the kept, of the good ones kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_flickr8k import auc, truth_by_uid  # pyright: ignore[reportImplicitRelativeImport]
from common import machine  # pyright: ignore[reportImplicitRelativeImport]
from flickr8k_web import Web  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.filter.calibration import ASKED, allowed
from pairmill.filter.noise import noise_stage, noise_tasks
from pairmill.progress import Quiet
from pairmill.recipe import Noise
from pairmill.runner import Here
from pairmill.shards.job import run_stage
from pairmill.shards.selection import write_selection

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class World:
    """The scored pairs, in the order of the shards: embeddings (N, D), truth and places (N,)."""

    image: np.ndarray
    text: np.ndarray
    bad: np.ndarray
    counted: np.ndarray  # candidates
    lang: np.ndarray
    fold: np.ndarray
    group: np.ndarray  # number of the picture
    uid: np.ndarray


def read_world(out: Path) -> World:
    """What a run of `bench_flickr8k.py` left."""
    names = sorted(path.stem for path in (out / "scores/embedding").glob("*.parquet"))
    scores = pa.concat_tables(pq.read_table(out / f"scores/embedding/{name}.parquet") for name in names)
    image, text = (
        np.concatenate([np.load(out / f"scores/embedding/{name}.{side}.npy") for name in names])
        for side in ("image", "text")
    )
    folder = out.with_name(out.name + "-web")
    web = Web(*(folder / name for name in ("list.parquet", "truth.parquet", "", "", "")))
    with duckdb.connect() as connection:
        connection.register(
            "asked", scores.select(["uid"]).append_column("place", pa.array(range(len(scores))))
        )
        found = connection.sql(
            f"""{truth_by_uid(out, web)}
            SELECT t.lang, t.swapped, coalesce(n.near_group_v1, r.url_hash) AS shown,
                c.uid IS NOT NULL AS counted
            FROM asked JOIN first USING (uid) JOIN truth t USING (source_row)
            JOIN (SELECT DISTINCT uid, url_hash FROM read_parquet('{out}/raw/*.parquet')) r USING (uid)
            LEFT JOIN read_parquet('{out}/scores/near/*.parquet') n USING (uid)
            LEFT JOIN read_parquet('{out}/selection/candidates.parquet') c USING (uid) ORDER BY place"""
        ).to_arrow_table()
    group = found.column("shown").combine_chunks().dictionary_encode().indices.to_numpy()
    bad, counted = (np.array(found.column(name).to_pylist(), bool) for name in ("swapped", "counted"))
    lang, fold = np.array(found.column("lang").to_pylist()), scores["fold"].to_numpy()
    return World(image, text, bad, counted, lang, fold, group, np.array(scores["uid"].to_pylist(), object))


def moved(world: World, share: float, side: str, dice: np.random.Generator) -> World:
    """A share of the pictures, within their folds, shown ('image') or said in Chinese ('text') as another."""
    bad, rows = world.bad.copy(), getattr(world, side).copy()
    mine = np.ones(len(bad), bool) if side == "image" else world.lang == "zh"
    for fold in np.unique(world.fold):
        groups = np.unique(world.group[world.fold == fold])
        chosen = dice.permutation(groups)[: round(share * len(groups))]
        places = [np.flatnonzero((world.group == group) & mine) for group in chosen]
        for own, other in zip(places, places[1:] + places[:1], strict=True):
            if len(own) and len(other):
                rows[own] = getattr(world, side)[np.resize(other, len(own))]
                bad[own] = True
    return replace(world, bad=bad, **{side: rows})


def thinned(world: World, dice: np.random.Generator) -> World:
    """Without 60 % of the good pairs in the half of which the scorer knows less."""
    little = np.zeros(len(world.bad), bool)
    for fold in np.unique(world.fold):
        for lang in LANGUAGES:
            mine = np.flatnonzero((world.fold == fold) & (world.lang == lang))
            sides = (side[mine].astype(np.float32) for side in (world.image, world.text))
            known = np.prod([np.linalg.norm(side - side.mean(0), axis=1) for side in sides], 0)
            little[mine] = known < np.median(known)
    return replace(world, counted=world.counted & ~(little & ~world.bad & (dice.random(len(little)) < 0.6)))


def mixed(world: World, noise: float, dice: np.random.Generator) -> World:
    """With a share `noise` of swapped captions among the candidates: of too many kinds some are left out."""
    odds = noise / (1 - noise) * (~world.bad & world.counted).sum() / (world.bad & world.counted).sum()
    drawn = dice.random(len(world.bad))
    out = world.bad & (drawn > odds) if odds < 1 else ~world.bad & (drawn > 1 / odds)
    return replace(world, counted=world.counted & ~out)


STRESS: dict[str, Callable[[World, np.random.Generator], World]] = {
    "as it is": lambda world, _: world,
    "15 % wrong pictures": lambda world, dice: moved(world, 0.15, "image", dice),
    "5 % accomplices": lambda world, dice: moved(world, 0.05, "text", dice),
    "15 % accomplices": lambda world, dice: moved(world, 0.15, "text", dice),
    "thinned": thinned,
    "10 % swapped": lambda world, dice: mixed(world, 0.1, dice),
    "50 % swapped": lambda world, dice: mixed(world, 0.5, dice),
}


def scored(source: Path, world: World) -> dict[str, object]:
    """The stage `noise` over a world, and by language what it kept."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for name in ("raw", "scores/near", "scores/language"):
            shutil.copytree(source / name, out / name, ignore=shutil.ignore_patterns("*.tar"))
        (out / "scores/embedding").mkdir()
        at = 0
        for path in sorted((source / "scores/embedding").glob("*.parquet")):
            shutil.copy(path, out / "scores/embedding")
            rows = slice(at, at := at + pq.read_metadata(path).num_rows)
            for side in ("image", "text"):
                np.save(out / f"scores/embedding/{path.stem}.{side}.npy", getattr(world, side)[rows])
        chosen = pa.array(sorted(world.uid[world.counted].tolist()), pa.binary(16))
        write_selection(chosen, out / "selection/candidates.parquet")
        report = run_stage(out, noise_stage(out, Noise()), noise_tasks(out), Here(retries=0), Quiet())
        if report.failed:
            sys.exit(str(report.failed))
        files = sorted((out / "scores/noise").glob("*.parquet"))
        table = pa.concat_tables(pq.read_table(path) for path in files)
        said = json.loads((out / "scores/noise/calibration.json").read_text())["languages"]
    q, p = (table[f"mismatch_{name}_v2"].to_numpy() for name in ("q", "p"))
    return {lang: {**said[lang], **kept(world, world.lang == lang, q, p)} for lang in LANGUAGES}


def kept(world: World, mine: np.ndarray, q: np.ndarray, p: np.ndarray) -> dict[str, object]:
    """Figures of one language's candidates."""
    mine = mine & world.counted
    good, bad = mine & ~world.bad, mine & world.bad
    lines, broken = [], []
    for asked in ASKED:
        some = mine & (q <= asked)
        share = float(world.bad[some].mean()) if some.any() else 0.0
        lines.append([asked, round(share, 4), round(float((q[good] <= asked).mean()), 3)])
        broken += [asked] if share > allowed(asked, int(some.sum())) else []
    true = round(float(bad.sum() / mine.sum()), 4)
    return {"true": true, "auc": round(auc(-p[good], -p[bad]), 4), "asked_got_kept": lines, "broken": broken}


def main() -> None:
    """One JSON line for each stress; ends with 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    world, broken = read_world(given.folder), False
    for name, change in STRESS.items():
        figures = scored(given.folder, change(world, np.random.default_rng(given.seed)))
        broken |= any(figures[lang]["broken"] for lang in LANGUAGES)  # type: ignore[index]
        print(json.dumps({"what": "stress", "stress": name, **figures, **machine()}), flush=True)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
