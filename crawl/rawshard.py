"""A raw shard on disk: its plan comes in, its tar, sidecar, log and tally go out."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..runner import Tally
from ..shards.files import readable
from ..shards.schema import RAW, bytes_hash
from ..shards.selection import uids_to_array
from ..shards.tar import TarWriter
from .decode import Picture
from .listed import EXPECTED, SIGNALS
from .turns import host_of

# _log/fetch/<shard>.parquet: how it went; no data, for it differs from run to run
LOG = pa.schema(
    [
        ("key", pa.string()),
        ("outcome", pa.string()),
        ("tries", pa.int16()),
        ("fetch_s", pa.float32()),  # from the first try to the last answer, pauses included
        ("decode_s", pa.float32()),  # in the decoder's queue and the decoder
        ("detail", pa.string()),
    ]
)


@dataclass(slots=True)
class Result:
    """What became of one URL."""

    outcome: str
    status: int | None = None
    final_url: str | None = None
    original_bytes: int | None = None
    sha256: bytes | None = None
    picture: Picture | None = None  # its `data` was moved to the spill file
    spilled: tuple[int, int] = (0, 0)  # offset and size there
    tries: int = 0
    fetch_s: float = 0.0
    decode_s: float = 0.0
    detail: str = ""
    consent: str | None = None  # what was said against its use
    expected: str | None = None  # what became of it since its list was made
    stored: tuple[int | None, int | None] = field(default=(None, None))  # offset and size in the tar
    xxh3: int | None = None  # of the bytes there


class ShardPlan:
    """One plan file: its rows, and its distinct URLs."""

    def __init__(self, path: Path) -> None:
        self.table = pq.read_table(readable(path)).combine_chunks()
        hashes = uids_to_array(self.table["url_hash"])
        is_first = np.ones(len(hashes), bool)
        is_first[1:] = hashes[1:] != hashes[:-1]
        self.first = np.flatnonzero(is_first)  # (U,) row where each URL starts
        self.url_of_row = np.cumsum(is_first) - 1  # (N,)
        self.keys = [hashes[row].tobytes().hex() for row in self.first]

    def jobs(self) -> list[dict[str, Any]]:
        """(U,) of each URL: key, url, tar_path, tar_offset, tar_size, a picture at hand being preferred; and
        page_signals and expected, lists of what its pairs' rows say.
        """
        columns = ["url", "tar_path", "tar_offset", "tar_size"]
        jobs = self.table.select(columns).take(self.first).to_pylist()
        at_hand = np.flatnonzero(self.table["tar_path"].is_valid().to_numpy())
        for row, job in zip(at_hand, self.table.select(columns).take(at_hand).to_pylist(), strict=True):
            if jobs[self.url_of_row[row]]["tar_path"] is None:
                jobs[self.url_of_row[row]] = job
        for key, job in zip(self.keys, jobs, strict=True):
            job["key"] = key
            job[SIGNALS], job[EXPECTED] = [], []
        for name in (SIGNALS, EXPECTED):
            said = np.flatnonzero(self.table[name].is_valid().to_numpy())
            for row, text in zip(said, self.table[name].take(said).to_pylist(), strict=True):
                jobs[self.url_of_row[row]][name].append(text)
        return jobs

    def pairs_of(self, number: int) -> tuple[list[str], list[str]]:
        """Captions and hex uids of the URL, ordered by uid."""
        start = int(self.first[number])
        end = int(self.first[number + 1]) if number + 1 < len(self.first) else self.table.num_rows
        rows = self.table.slice(start, end - start)
        return rows["caption"].to_pylist(), [uid.hex() for uid in rows["uid"].to_pylist()]


def write_pictures(
    tar: TarWriter, plan: ShardPlan, results: list[Result], spill: BinaryIO, suffix: str
) -> None:
    """The members of each stored picture, in order of key: the picture, its first caption, its facts."""
    for number, (key, result) in enumerate(zip(plan.keys, results, strict=True)):
        if result.picture is None:
            continue
        offset, size = result.spilled
        data = os.pread(spill.fileno(), size, offset)
        result.stored, result.xxh3 = (tar.add(key + suffix, data), size), bytes_hash(data)
        captions, uids = plan.pairs_of(number)
        tar.add(f"{key}.txt", captions[0].encode())
        tar.add(f"{key}.json", _facts(plan, number, result, captions, uids))


def _facts(plan: ShardPlan, number: int, result: Result, captions: list[str], uids: list[str]) -> bytes:
    picture = result.picture
    assert picture is not None
    assert result.sha256 is not None
    facts = {
        "key": plan.keys[number],
        "url": plan.table["url"][int(plan.first[number])].as_py(),
        "captions": captions,
        "uids": uids,
        "outcome": result.outcome,
        "width": picture.width,
        "height": picture.height,
        "original_width": picture.original_width,
        "original_height": picture.original_height,
        "format": picture.format,
        "sha256": result.sha256.hex(),
    }
    return json.dumps(facts, ensure_ascii=False).encode()


def make_sidecar(plan: ShardPlan, results: list[Result], wave: int, agent: str) -> pa.Table:
    """RAW: a row per pair; what is known of a picture stands in the row of each of its pairs."""
    pictures = [result.picture for result in results]
    of_url: dict[str, list[Any]] = {
        "key": plan.keys,
        "outcome": [result.outcome for result in results],
        "wave": [wave] * len(results),
        "http_status": [result.status for result in results],
        "final_url": [result.final_url for result in results],
        "original_bytes": [result.original_bytes for result in results],
        "sha256": [result.sha256 for result in results],
        "offset": [result.stored[0] for result in results],
        "size": [result.stored[1] for result in results],
        "stored_xxh3": [result.xxh3 for result in results],
        "tar": [None] * len(results),
        "consent_v1": [result.consent for result in results],
        "consent_agent_v1": [agent] * len(results),
        "expected_v1": [result.expected for result in results],
        "host_copies_v1": _host_copies(plan, results),
        "pdq_v1": [picture and picture.pdq for picture in pictures],
        "pdq_quality_v1": [picture and picture.pdq_quality for picture in pictures],
        "chroma_v1": [picture and picture.chroma for picture in pictures],
    }
    for name in ("format", "original_width", "original_height", "width", "height"):
        of_url[name] = [picture and getattr(picture, name) for picture in pictures]
    take = pa.array(plan.url_of_row)
    columns = [
        pa.array(of_url[name], RAW.field(name).type).take(take)
        if name in of_url
        else plan.table[name].combine_chunks()
        for name in RAW.names
    ]
    return pa.Table.from_arrays(columns, schema=RAW)


def _host_copies(plan: ShardPlan, results: list[Result]) -> list[int | None]:
    """(U,) how many URLs of its host in this shard brought the same bytes; None where none came.

    A picture that stands for many that are gone is known by that: a host says 200, and shows its logo.
    """
    urls = plan.table["url"].take(pa.array(plan.first)).to_pylist()
    names = [(host_of(url), result.sha256) for url, result in zip(urls, results, strict=True)]
    counts = Counter(name for name in names if name[1] is not None)
    return [counts[name] if name[1] is not None else None for name in names]


def make_log(plan: ShardPlan, results: list[Result]) -> pa.Table:
    columns = [plan.keys, *([getattr(result, name) for result in results] for name in LOG.names[1:])]
    return pa.table(
        [pa.array(column, kind.type) for column, kind in zip(columns, LOG, strict=True)], schema=LOG
    )


def make_tally(plan: ShardPlan, results: list[Result]) -> Tally:
    n_pairs = np.bincount(plan.url_of_row, minlength=len(results))
    counts: Counter[str] = Counter()
    for result, pairs in zip(results, n_pairs, strict=True):
        counts[result.outcome] += int(pairs)
    facts = {
        "urls": len(results),
        "urls_ok": sum(result.outcome == "ok" for result in results),
        "fetched_bytes": sum(result.original_bytes or 0 for result in results),
        "stored_bytes": sum(result.stored[1] or 0 for result in results),
    }
    return Tally(counts, facts)
