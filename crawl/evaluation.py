"""Stage `evaluation`: the hashes and captions of evaluation sets, which a crawl is held against.

The rule: a picture of an evaluation set is decoded and hashed as a fetched one is, and once more mirrored.
Folders hold pictures, with captions in a .txt of the same name, or tars as WebDataset has them; what is
neither is passed over.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from ..errors import ConfigError, DataError, RowError, ShardError
from ..recipe import Decontaminate, Fetch
from ..runner import Stage, Tally, Task, Worker, beat
from ..shards.commit import write_table
from ..shards.samples import PICTURES, Sample, read_samples
from ..shards.schema import EVALUATION
from ..shards.tar import read_at
from .caption import normal_caption
from .chroma import chroma
from .decode import decode_pixels, quiet_decoders
from .pdq import pdq_hash

FOLDER = "scores/evaluation"
AT_ONCE, THREADS = 256, 2


@dataclass(frozen=True, slots=True)
class Item:
    """A picture of an evaluation set: its name, where its bytes lie, its captions as they stand there."""

    name: str
    path: Path
    offset: int
    size: int
    text: str = ""


def evaluation_tasks(settings: Decontaminate) -> list[Task]:
    """One task for each folder or tar.

    Raises ConfigError where one is not there, or holds neither pictures nor tars.
    """
    return [
        Task("evaluation", f"{number:04d}", {"path": str(_checked(Path(path)))})
        for number, path in enumerate(settings.against)
    ]


def _checked(path: Path) -> Path:
    if not path.exists():
        raise ConfigError(f"decontaminate.against: {path}: no such folder: expected an evaluation set there")
    if not any(_usable(file) for file in _files(path)):
        n = sum(1 for _ in _files(path))
        raise ConfigError(
            f"decontaminate.against: {path}: no pictures among its {n:,} files: expected pictures"
            f" ({', '.join(sorted(PICTURES))}), or tars of these"
        )
    return path


def _files(path: Path) -> Iterator[Path]:
    """Every file of a folder that is not hidden, in the order of names; or the file itself."""
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts):
            yield file


def _usable(file: Path) -> bool:
    return file.suffix[1:].lower() in PICTURES or file.suffix == ".tar"


def evaluation_inputs(tasks: Sequence[Task]) -> dict[str, str]:
    """By task a digest of the files that it reads: their names, sizes and times."""
    found = {}
    for task in tasks:
        digest = xxhash.xxh3_64()
        for file in _files(Path(task.data["path"])):
            stat = file.stat()
            digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
        found[task.name] = digest.hexdigest()
    return found


def evaluation_stage(out: Path, settings: Fetch) -> Stage:
    """The stage `evaluation`: scores/evaluation/<number>.parquet. settings: limits of decoding."""
    return Stage("evaluation", _start, (out, settings), unit="pictures")


def _start(out: Path, settings: Fetch) -> Worker:
    quiet_decoders(settings)
    return partial(_hash_set, out, settings)


def _hash_set(out: Path, settings: Fetch, task: Task) -> Tally:
    """Counts pictures by outcome, 'ok' for those with a hash. Raises DataError where none has one."""
    path, counts, tables = Path(task.data["path"]), Counter[str](), []
    items = _items(path, counts)
    with ThreadPoolExecutor(THREADS) as pool:
        while some := list(islice(items, AT_ONCE)):
            rows = list(pool.map(partial(_hash, settings), some))
            counts.update("ok" if isinstance(row, dict) else row for row in rows)
            good = [row for row in rows if isinstance(row, dict)]
            tables.append(pa.Table.from_pylist(good, schema=EVALUATION))
            beat(task, counts.total(), counts.total() + 1)
    if not counts["ok"]:
        said = ", ".join(f"{reason} {n:,}" for reason, n in sorted(counts.items()) if n) or "none in its tars"
        raise DataError(f"decontaminate.against: {path}: no picture there can be used: {said}")
    write_table(pa.concat_tables(tables), out / FOLDER / f"{task.name}.parquet")
    return Tally(dict(sorted(counts.items())))


def _items(path: Path, counts: Counter[str]) -> Iterator[Item]:
    """The pictures of a folder or tar; samples without one are counted."""
    root = path.parent if path.is_file() else path
    for file in _files(path):
        name = f"{path.name}/{file.relative_to(root).as_posix()}" if root == path else file.name
        if file.suffix == ".tar":
            yield from _samples(file, name, counts)
        elif _usable(file):
            text = file.with_suffix(".txt")
            said = text.read_bytes().decode("utf-8", "replace") if text.is_file() else ""
            yield Item(name, file, 0, file.stat().st_size, said)


def _samples(tar: Path, name: str, counts: Counter[str]) -> Iterator[Item]:
    with open(tar, "rb") as file:
        for sample in read_samples(tar):
            if sample.picture is None:
                counts[sample.reason or "picture_missing"] += 1
                continue
            place = sample.picture
            yield Item(f"{name}/{sample.key}", tar, place.offset, place.size, _text(file, sample))


def _text(file: Any, sample: Sample) -> str:
    if sample.txt is not None:
        return read_at(file, sample.txt.offset, sample.txt.size).decode("utf-8", "replace")
    if sample.json is None:
        return ""
    try:
        said = json.loads(read_at(file, sample.json.offset, sample.json.size))
    except ValueError:
        return ""
    return str(said.get("caption") or "") if isinstance(said, dict) else ""


def _hash(settings: Fetch, item: Item) -> dict[str, Any] | str:
    """A row of EVALUATION, or why there is none."""
    try:
        with open(item.path, "rb") as file:
            data = read_at(file, item.offset, item.size)
        pixels = decode_pixels(data, settings)[3]
    except RowError as error:
        return error.reason
    except (OSError, ShardError):
        return "unreadable"
    hashed, quality = pdq_hash(pixels, enlarge=True)
    other = pixels[:, ::-1].copy()
    return {
        "item": item.name,
        "path": str(item.path.absolute()),
        "offset": item.offset,
        "size": item.size,
        "sha256": hashlib.sha256(data).digest(),
        "pdq_v1": hashed,
        "pdq_quality_v1": quality,
        "chroma_v1": chroma(pixels),
        "pdq_mirrored_v1": pdq_hash(other, enlarge=True)[0],
        "chroma_mirrored_v1": chroma(other),
        "captions": _captions(item.text),
    }


def _captions(text: str) -> list[str]:
    """Each line that has something to say: CLIP_benchmark's sets have five captions in one text."""
    found = []
    for line in text.splitlines():
        try:
            found.append(normal_caption(line))
        except RowError:
            continue
    return found
