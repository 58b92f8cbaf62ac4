"""What a finished dataset is: `shards/manifest.json` for programs, `shards/README.md` for people.

Everything is added up from the tallies; no row and no picture is read again.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .. import __version__
from ..errors import ShardError
from ..recipe import Recipe
from ..runner import Stage, Tally, Task, Worker
from .commit import write_bytes, write_json
from .files import readable
from .job import finished_tasks, read_tally
from .schema import SIDECAR

FUNNEL = ("ingest", "dedup", "screen", "fetch", "decide", "plan-write", "write")
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: "*.tar"
---
# {title}

{samples} pairs of a picture and its text in {shards} shards, {gigabytes:.2f} GB. Made by pairmill {version}.

Licence: {licence}. Pictures and texts belong to whoever made them; a licence of the collection
changes nothing in that.

## Read it

```python
import webdataset

shards = webdataset.WebDataset("shards/{{{first}..{last}}}.tar", shardshuffle=False)
pairs = shards.decode("pil").to_tuple("{picture}", "txt")
```

`datasets.load_dataset("shards/")` reads it too, and open_clip's trainer, with the sizes in `sizes.json`.
A sample is `<uid>.{picture}`, `<uid>.txt` and `<uid>.json`; `<shard>.parquet` beside a tar has a row for
each of its samples, in its order. The order is shuffled over the whole dataset. `manifest.json` holds the
sha256 of every file and the whole recipe.

## Languages

| language | pairs |
|---|---:|
{languages}

## What was dropped, and why

Counts by stage, each of what that stage saw. Selection: {selection}.

| stage | outcome | count |
|---|---|---:|
{funnel}

## Noise

Share of pairs whose text is not about the picture: asked for {asked}, estimated {estimated}.

## Consent

Answers that bore one of these `X-Robots-Tag` directives were not kept: {opt_outs}.

## What is not known

Who is in a picture and whether they agreed; the licence of any single picture; whether a text is true.
Language, near-copies and noise are estimates by programs. Where `picture_url` is not `url`, the text stood
beside a near-copy of its picture. Links die: the URLs may no longer lead to these pictures.
"""


def manifest_tasks(out: Path) -> list[Task]:
    """The one task of `manifest`."""
    return [Task("manifest", "all")]


def manifest_stage(out: Path, recipe: Recipe, selection_name: str) -> Stage:
    """Describe `shards/`, which was written from `selection_name` by `recipe`."""
    return Stage("manifest", start_manifest, (out, recipe, selection_name), unit="shards")


def start_manifest(out: Path, recipe: Recipe, selection_name: str) -> Worker:
    """The worker of `manifest`."""

    def describe(task: Task) -> Tally:
        return write_manifest(out, recipe, selection_name)

    return describe


def write_manifest(out: Path, recipe: Recipe, selection_name: str) -> Tally:
    """Write `README.md`, `sizes.json` and `manifest.json`; counts the shards under `described`.

    Raises ShardError where a shard is not on disk as its tally says.
    """
    tallies = {name: read_tally(out, "write", name) for name in finished_tasks(out, "write")}
    written = {name: tally for name, tally in tallies.items() if tally is not None}
    shards = [_shard(out, name, tally) for name, tally in written.items()]
    manifest = {
        "pairmill": __version__,
        "selection": selection_name,
        "samples": sum(shard["samples"] for shard in shards),
        "bytes": sum(shard[kind]["bytes"] for shard in shards for kind in ("tar", "parquet")),
        "languages": _languages(written),
        "columns": {field.name: str(field.type) for field in SIDECAR},
        "funnel": {
            stage: _counts(out, stage, selection_name) for stage in FUNNEL if finished_tasks(out, stage)
        },
        "recipe": told(recipe),
        "recipe_sha256": recipe_digest(recipe),
        "shards": shards,
    }
    manifest = json.loads(json.dumps(manifest, sort_keys=True))  # as whoever reads the file will see it
    write_bytes(data_card(manifest).encode(), out / "shards" / "README.md")
    write_json(sizes(manifest), out / "shards" / "sizes.json")
    write_json(manifest, out / "shards" / "manifest.json")
    return Tally({"described": len(shards)}, {"samples": manifest["samples"], "bytes": manifest["bytes"]})


def sizes(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Samples by tar, as open_clip's trainer reads them."""
    return {f"{shard['name']}.tar": shard["samples"] for shard in manifest["shards"]}


def told(recipe: Recipe) -> dict[str, Any]:
    """The settings that made the dataset, as plain values; lists by name, for a path is one machine's own."""
    plain = recipe.model_dump(mode="json", exclude={"run", "report", "train", "evaluate"})
    plain["ingest"]["input"] = [name.rstrip("/").rpartition("/")[2] for name in plain["ingest"]["input"]]
    return plain


def recipe_digest(recipe: Recipe) -> str:
    """sha256 in hex of the settings that made the dataset."""
    return hashlib.sha256(json.dumps(told(recipe), sort_keys=True).encode()).hexdigest()


def _shard(out: Path, name: str, tally: Tally) -> dict[str, Any]:
    described: dict[str, Any] = {"name": name, "samples": tally.counts.get("written", 0)}
    for kind in ("tar", "parquet"):
        path = out / "shards" / f"{name}.{kind}"
        said = tally.facts[kind]
        found = path.stat().st_size if path.is_file() else None
        if found != said["bytes"]:
            tally_file = f"_done/write/{name}.json"
            raise ShardError(
                path, None, f"{found} bytes, not {said['bytes']}: remove {tally_file}, write again"
            )
        described[kind] = {"path": path.name, **said}
    return described


def _languages(written: Mapping[str, Tally]) -> dict[str, dict[str, float | None]]:
    """Pairs, scored pairs and worst q by language, over all shards."""
    total: dict[str, dict[str, Any]] = {}
    for tally in written.values():
        for language, said in tally.facts["languages"].items():
            known = total.setdefault(language, {"pairs": 0, "scored": 0, "worst_q": None})
            known["pairs"] += said["pairs"]
            known["scored"] += said["scored"]
            known["worst_q"] = _worse(known["worst_q"], said["worst_q"])
    return dict(sorted(total.items()))


def _worse(one: float | None, other: float | None) -> float | None:
    return one if other is None or (one is not None and one >= other) else other


def _counts(out: Path, stage: str, selection_name: str) -> dict[str, int]:
    """A stage's counts; those of `decide`, whose tasks are selections, for this one alone.

    Pairs that a later list brought of known URLs count as fetched, as in a run over all lists at once.
    """
    if stage == "fetch":
        return dict(
            Counter(_sums(out, "fetch", finished_tasks(out, "fetch")))
            + Counter(_sums(out, "reuse", finished_tasks(out, "reuse")))
        )
    return _sums(out, stage, [selection_name] if stage == "decide" else finished_tasks(out, stage))


def _sums(out: Path, stage: str, names: Sequence[str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name in names:
        tally = read_tally(out, stage, name)
        counts.update(tally.counts if tally is not None else {})
    return dict(counts)


def dataset_digests(out: Path) -> dict[str, Any]:
    """What lies in shards/: sha256 of the manifest, what it says of each shard, and the uids of all sidecars.

    The hashes are those that were taken when the files were written; `verify` takes them again.
    Empty where nothing was written.
    """
    path, found = out / "shards" / "manifest.json", dict[str, Any](manifest=None, shards={}, uids=set())
    if not path.exists():
        return found
    text = path.read_bytes()
    found["manifest"] = hashlib.sha256(text).hexdigest()
    for shard in json.loads(text)["shards"]:
        hashes = {kind: shard[kind]["sha256"] for kind in ("tar", "parquet")}
        found["shards"][shard["name"]] = {"samples": shard["samples"], **hashes}
        sidecar = readable(out / "shards" / f"{shard['name']}.parquet")
        found["uids"].update(pq.read_table(sidecar, columns=["uid"])["uid"].to_pylist())
    return found


def estimated_noise(languages: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Share of noise among the kept: each language's worst q, weighted by its scored pairs.

    A q-value is the share of noise among all pairs at least as good, so the worst kept one speaks for
    all the kept of its language. None where nothing was scored.
    """
    scored = [said for said in languages.values() if said["scored"]]
    n = sum(said["scored"] for said in scored)
    return sum(said["worst_q"] * said["scored"] for said in scored) / n if n else None


def data_card(manifest: Mapping[str, Any]) -> str:
    """The README of a dataset in Markdown; whatever came from outside is escaped."""
    recipe, shards = manifest["recipe"], manifest["shards"]
    asked, estimated = recipe["decide"]["max_noise"], estimated_noise(manifest["languages"])
    by_size = sorted(manifest["languages"].items(), key=lambda item: (-item[1]["pairs"], item[0]))
    funnel = [(stage, *item) for stage, counts in manifest["funnel"].items() for item in _largest(counts)]
    return CARD.format(
        title=plain(recipe["write"]["title"] or recipe["name"] or "An image-text dataset"),
        samples=f"{manifest['samples']:,}",
        shards=f"{len(shards):,}",
        gigabytes=manifest["bytes"] / 1e9,
        version=manifest["pairmill"],
        licence=plain(recipe["write"]["licence"]),
        first=shards[0]["name"] if shards else "00000",
        last=shards[-1]["name"] if shards else "00000",
        picture=recipe["fetch"]["encode"],
        languages="\n".join(f"| {plain(name) or '?'} | {said['pairs']:,} |" for name, said in by_size),
        selection=plain(manifest["selection"]),
        funnel="\n".join(f"| {stage} | {plain(word)} | {n:,} |" for stage, word, n in funnel),
        asked="no limit" if asked is None else f"at most {asked:.1%}",
        estimated="not at all: nothing was scored" if estimated is None else f"at {estimated:.1%}",
        opt_outs=", ".join(plain(word) for word in recipe["fetch"]["opt_outs"]) or "none was obeyed",
    )


def _largest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def plain(text: str) -> str:
    """`text` on one line, shown by Markdown as it is: no markup, no HTML, no table cells of its own."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", line)
