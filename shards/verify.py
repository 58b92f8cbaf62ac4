"""Does everything that was written still say the same? Re-hashed, walked through, and cross-checked.

One rule: a problem is one line that says where, what was found and what was expected; nothing is changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ConfigError, ShardError
from . import ledger
from .compare import raw_differences, sample_differences
from .counted import count_differences
from .damage import Checked, check_files
from .duck_files import reading
from .files import map_array, readable, sha256_of
from .ledger import finished_tasks, read_tally, records
from .manifest import data_card, sizes
from .schema import SIDECAR
from .selection import PAIR_OF_U8, to_u8_pairs, uids_to_array
from .write import DAMAGED

MOST = 20  # problems that one file is allowed to list
STATS = ("count", "successes", "failed_to_download", "failed_to_resize", "status_dict")


def verify(out: Path) -> dict[str, Any]:
    """Re-hash every file of every finished task; hold dataset, selections and raw shards against each other.

    Returns {"ok", "problems", "checked"}; `problems` is a list of lines. Reads every byte that the stages
    left; what is damaged by its hash is not looked at any further. Raises ConfigError where nothing is there.
    """
    stages, written = ledger.stages(out), ledger.finished_tasks(out, "write")
    if not stages and not (out / "shards").is_dir():
        raise ConfigError(f"{out}: nothing to verify: no stage has run there; run `pairmill ingest` first")
    files = check_files(out)
    return cross_checked(out, files, dataset=bool(written) or (out / "shards").is_dir())


def cross_checked(out: Path, files: Checked, *, dataset: bool) -> dict[str, Any]:
    """What `verify` returns, from the files that are as they were written."""
    bad = files.paths
    names = [*finished_tasks(out, "fetch"), *finished_tasks(out, "reuse")]
    raw = [name for name in names if not bad & _raw_files(out, name)]
    checked = {"files": files.files, "bytes": files.size, "shards": 0, "samples": 0, "selections": 0}
    checked |= {"raw_shards": len(raw)}
    problems = _dataset(out, checked, bad) if dataset else []
    for path in sorted((out / "selection").glob("*.npy")):
        if not bad & {path, path.with_suffix(".parquet")}:
            checked["selections"] += 1
            problems += _few(_twins(path), path)
    with ThreadPoolExecutor() as pool:
        for found in pool.map(
            lambda name: _few(raw_differences(out, name), out / "raw" / f"{name}.tar"), raw
        ):
            problems += found
    problems += [] if bad else _few(count_differences(out), out)
    further = [line for line in problems if line.partition(": ")[0] not in {*map(str, bad)}]
    problems = [*(damage.line for damage in files.damage), *further]
    return {"ok": not problems, "checked": checked, "problems": problems}


def _raw_files(out: Path, name: str) -> set[Path]:
    return {out / "raw" / f"{name}.{kind}" for kind in ("tar", "parquet")}


def _few(problems: Iterator[str], where: Path) -> list[str]:
    """The first problems of one file, and how many more there are."""
    found: list[str] = []
    more = 0
    try:
        for problem in problems:
            more += len(found) == MOST
            found += [problem] if len(found) < MOST else []
    except ShardError as error:
        found.append(str(error))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        found.append(f"{where}: cannot be checked: {type(error).__name__}: {error}")
    return [*found, f"{where}: {more:,} more problems"] if more else found


# The dataset


def _dataset(out: Path, checked: dict[str, int], bad: set[Path]) -> list[str]:
    path = out / "shards" / "manifest.json"
    if path in bad:
        return []
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        entries = {entry["name"]: entry for entry in manifest["shards"]}
        problems = [*_manifest(path, text, manifest), *_files(path.parent, entries)]
    except FileNotFoundError:
        return [f"{path}: missing, expected the dataset's manifest: run `pairmill write`"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{path}: not a manifest that pairmill wrote: {type(error).__name__}: {error}"]
    shards = [path.with_name(f"{name}.tar") for name in entries]
    with ThreadPoolExecutor() as pool:
        for found in pool.map(
            lambda tar: _few(_shard(out, entries[tar.stem]), tar),
            [tar for tar in shards if not bad & {tar, tar.with_suffix(".parquet")}],
        ):
            problems += found
    checked |= {"shards": len(entries), "samples": manifest["samples"]}
    # over whole files only: of a broken one there is a line already
    return problems or [
        problem for check in (_languages, _selected) for problem in _few(check(out, manifest), out)
    ]


def _manifest(path: Path, text: str, manifest: Mapping[str, Any]) -> Iterator[str]:
    """The manifest against itself, its data card and the schema."""
    if text != json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n":
        yield f"{path}: not in the form that pairmill writes (sorted keys, one space): it was edited"
    digest = hashlib.sha256(json.dumps(manifest["recipe"], sort_keys=True).encode()).hexdigest()
    if digest != manifest["recipe_sha256"]:
        yield f"{path}: recipe has sha256 {digest}, expected {manifest['recipe_sha256']}"
    columns = {field.name: str(field.type) for field in SIDECAR}
    if manifest["columns"] != columns:
        yield f"{path}: columns are {manifest['columns']}, expected {columns}"
    shards = manifest["shards"]
    for name, found in (
        ("samples", sum(shard["samples"] for shard in shards)),
        ("bytes", sum(shard[kind]["bytes"] for shard in shards for kind in ("tar", "parquet"))),
    ):
        if manifest[name] != found:
            yield f"{path}: {name} is {manifest[name]:,}, expected {found:,}, the sum over its shards"
    card = path.with_name("README.md")
    if not card.is_file() or card.read_bytes() != data_card(manifest).encode():
        found = "is not what the manifest says" if card.is_file() else "missing"
        yield f"{card}: {found}: run `pairmill write`"
    counted = path.with_name("sizes.json")
    expected = json.dumps(sizes(manifest), indent=1, sort_keys=True) + "\n"
    if not counted.is_file() or counted.read_bytes() != expected.encode():
        found = "is not what the manifest says" if counted.is_file() else "missing"
        yield f"{counted}: {found}: run `pairmill write`"


def _files(folder: Path, entries: Mapping[str, Any]) -> Iterator[str]:
    """Files that the manifest does not know."""
    known = {"manifest.json", "README.md", "sizes.json"}
    known |= {f"{name}{suffix}" for name in entries for suffix in (".tar", ".parquet", "_stats.json")}
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            yield f"{path}: not in the manifest: not part of the dataset"


def _shard(out: Path, entry: Mapping[str, Any]) -> Iterator[str]:
    """One shard: its bytes against the manifest, its tally, its sidecar and its members."""
    name, samples = entry["name"], entry["samples"]
    tar, sidecar = (out / "shards" / f"{name}.{kind}" for kind in ("tar", "parquet"))
    tally = read_tally(out, "write", name)
    if tally is None:
        yield f"{tar}: no tally _done/write/{name}.json: the shard is not finished, but in the manifest"
    elif tally.counts.get("written", 0) != samples or any(
        entry[kind] != {"path": f"{name}.{kind}", **tally.facts[kind]} for kind in ("tar", "parquet")
    ):
        yield f"{tar}: the manifest says other counts or hashes than the tally _done/write/{name}.json"
    yield from _stats(out / "shards" / f"{name}_stats.json", samples)
    differences = [_difference(path, entry[path.suffix[1:]]) for path in (tar, sidecar)]
    yield from filter(None, differences)
    if differences[1] or not tar.is_file():
        return  # a sidecar with other bytes says nothing of the tar
    rows = pq.read_table(readable(sidecar), schema=SIDECAR)
    if rows.num_rows != samples:
        yield f"{sidecar}: {rows.num_rows:,} rows, expected {samples:,}"
    yield from sample_differences(tar, rows)


def _stats(path: Path, samples: int) -> Iterator[str]:
    """img2dataset's file of counts, which says the same of every shard but the number."""
    try:
        text = path.read_text(encoding="utf-8")
        said = json.loads(text)
    except (OSError, ValueError):
        yield f"{path}: missing or not JSON"
        return
    expected = dict(zip(STATS, (samples, samples, 0, 0, {"success": samples}), strict=True))
    if said != expected or text != json.dumps(expected, indent=1, sort_keys=True) + "\n":
        yield f"{path}: {said}, expected {expected}"


def _difference(path: Path, said: Mapping[str, Any]) -> str | None:
    """How the file's bytes differ from what is said of them."""
    if not path.is_file():
        return f"{path}: missing, expected {said['bytes']:,} bytes"
    found, size = sha256_of(path)
    if size != said["bytes"]:
        return f"{path}: {size:,} bytes, expected {said['bytes']:,}"
    if found != said["sha256"]:
        return f"{path}: sha256 {found}, expected {said['sha256']}: bytes were changed"
    return None


def _languages(out: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    query = """SELECT coalesce(lang_v1, ''), count(*), count(mismatch_q_v1), max(mismatch_q_v1)
        FROM read_parquet($files) GROUP BY 1"""
    files = [str(out / "shards" / f"{entry['name']}.parquet") for entry in manifest["shards"]]
    found = {
        lang: {"pairs": pairs, "scored": scored, "worst_q": worst}
        for lang, pairs, scored, worst in (_ask(out, query, {"files": files}) if files else [])
    }
    if found != manifest["languages"]:
        yield f"{out / 'shards' / 'manifest.json'}: languages are not those of the sidecars"


def _ask(out: Path, query: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    import duckdb

    try:
        with duckdb.connect(config={"memory_limit": "1GB"}) as connection, reading(connection, out):
            return connection.execute(query, dict(values)).fetchall()
    except duckdb.Error as error:
        raise ValueError(str(error).partition("\n")[0]) from error


def _selected(out: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Every sample is selected, and every selected pair that had a picture is a sample, once."""
    name = manifest["selection"]
    path = out / "selection" / f"{name}.parquet"
    if not path.is_file():
        yield f"{path}: missing, expected the selection that the dataset was written from"
        return
    files = [str(out / "shards" / f"{entry['name']}.parquet") for entry in manifest["shards"]]
    values = {"files": files, "selection": str(path)}
    samples, selected = "(SELECT uid FROM read_parquet($files))", "(SELECT uid FROM read_parquet($selection))"
    plan = read_tally(out, "plan-write", name)
    bare = plan.counts.get("no_picture", 0) if plan is not None else 0
    bare += sum(record["counts"].get(DAMAGED, 0) for record in records(out, "write"))
    for left, right, words, allowed in (
        (samples, selected, f"samples are not in selection {name}", 0),
        (selected, samples, "selected pairs are not in the dataset", bare),
    ):
        query = f"SELECT count(*), min(uid) FROM {left} ANTI JOIN {right} USING (uid)"
        count, first = _ask(out, query, values)[0]
        if count != allowed:
            which = f"; the first is {first.hex()}" if first else ""
            yield f"{path}: {count:,} {words}, expected {allowed:,}{which}"
    twice = _ask(out, f"SELECT count(*) - count(DISTINCT uid) FROM {samples}", {"files": files})[0][0]
    if twice:
        yield f"{out / 'shards'}: {twice:,} samples lie there twice"


# Selections and raw shards


def _twins(path: Path) -> Iterator[str]:
    """A selection's .npy against its .parquet, slice by slice, and the order of both."""
    parquet = path.with_suffix(".parquet")
    try:
        pairs = map_array(path)
        file = pq.ParquetFile(readable(parquet))
        if pairs.dtype != PAIR_OF_U8 or pairs.ndim != 1:
            raise ValueError(f"{pairs.ndim}-dimensional {pairs.dtype}, expected u8,u8 in one dimension")
        with file:
            if len(pairs) != file.metadata.num_rows:
                yield f"{path}: {len(pairs):,} uids, but {file.metadata.num_rows:,} in {parquet.name}"
                return
            yield from _compared(path, pairs, file)
    except (OSError, ValueError, pa.ArrowException) as error:
        yield f"{path}: cannot be compared with {parquet.name}: {error}"


def _compared(path: Path, pairs: np.ndarray, file: pq.ParquetFile) -> Iterator[str]:
    at, last = 0, b""
    for batch in file.iter_batches(columns=["uid"]):
        uids = uids_to_array(batch.column(0))
        if not np.array_equal(to_u8_pairs(uids), pairs[at : at + len(uids)]):
            yield f"{path}: uids {at:,} to {at + len(uids) - 1:,} are not those of {path.stem}.parquet"
        text = [last, *uids.tolist()]
        if any(a >= b for a, b in pairwise(text)):
            yield f"{path}: uids {at:,} to {at + len(uids) - 1:,} are not sorted, or one is there twice"
        at, last = at + len(uids), text[-1]
