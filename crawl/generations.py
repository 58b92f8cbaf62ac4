"""Plans of fetching that stand for good: one generation for each time that lists were added.

`_plan/fetch/<shard>.parquet` is planned for `00017`, `g2-00017` or, of a repeat, `w1-00017`. The mark
`g<k>.json`, written last, says which files a generation has and what is in them. A generation of which a
picture was asked for keeps its plan and its raw shards; whatever is wanted besides is the next one's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ShardError
from ..settings_fetch import Expect
from ..shards.commit import keep, write_json, write_table
from ..shards.files import readable
from ..shards.job import tally_path
from ..shards.schema import PAIRS
from ..shards.selection import uids_to_array
from .listed import EXPECTED, SIGNALS, plan_columns

# _plan/fetch/<shard>.parquet: one row per pair, ordered by (url_hash, uid), no uid twice
COLUMNS = ["uid", "url_hash", "url", "caption", "tar_path", "tar_offset", "tar_size"]
PLAN = pa.schema([*(PAIRS.field(name) for name in COLUMNS), (SIGNALS, pa.string()), (EXPECTED, pa.string())])
AT_HAND = COLUMNS[4:]  # where a picture lies that a list brought along
LISTED = [*AT_HAND, SIGNALS, EXPECTED]  # what is known of a row beside its name
UNKNOWN = -1  # the group of shards of which nobody can tell whether they share hosts: they are asked in turn
GENERATION = re.compile(r"g([1-9][0-9]*)-[0-9]+")


def plan_folder(out: Path) -> Path:
    return out / "_plan" / "fetch"


def plan_path(out: Path, shard: str) -> Path:
    return plan_folder(out) / f"{shard}.parquet"


def reuse_folder(out: Path) -> Path:
    """Plans, as those of raw shards, of pairs whose URLs were asked for already."""
    return out / "_plan" / "reuse"


def wave_of(shard: str) -> int:
    """0 for `00017` and `g1-00017`, 2 for `w2-00017`."""
    return int(shard[1:].partition("-")[0]) if shard.startswith("w") else 0


def generation_of(shard: str) -> int:
    """0 for `00017`, 2 for `g2-00017`; repeats are of no generation and give 0 as well."""
    found = GENERATION.fullmatch(shard)
    return int(found[1]) if found else 0


def wave_mark(out: Path, wave: int) -> Path:
    return plan_folder(out) / f"w{wave}.json"


def _mark(out: Path, generation: int) -> Path:
    return plan_folder(out) / f"g{generation}.json"


def _read_mark(path: Path) -> dict[str, Any] | None:
    """What a mark says; None where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= {"pairs", "sum", "files"} else None


def planned_shards(out: Path) -> list[str]:
    """Names of the planned raw shards by wave, generation, number; what is half planned is left out."""
    names = [path.stem for path in plan_folder(out).glob("*.parquet")]
    whole = [name for name in names if _is_planned(out, name)]
    return sorted(whole, key=lambda name: (wave_of(name), generation_of(name), len(name), name))


def _is_planned(out: Path, name: str) -> bool:
    if wave := wave_of(name):
        return wave_mark(out, wave).exists()
    generation = generation_of(name)
    return generation == 0 or _mark(out, generation).exists()


def reused_shards(out: Path) -> list[str]:
    """Names of the planned raw shards without a tar of their own."""
    return sorted(path.stem for path in reuse_folder(out).glob("*.parquet"))


@dataclass(slots=True)
class PlanSum:
    """What is in a plan, whatever its order: how many distinct uids, and the sum of their halves mod 2^64."""

    pairs: int = 0
    halves: np.ndarray = field(default_factory=lambda: np.zeros(2, np.uint64))
    _last: bytes = b""

    def add(self, table: pa.Table | pa.RecordBatch) -> None:
        """Rows ordered by (url_hash, uid) or by uid: neighbours with one uid count once."""
        uids = uids_to_array(table["uid"])
        if not len(uids):
            return
        distinct = np.ones(len(uids), bool)
        distinct[0], distinct[1:] = uids[0].tobytes() != self._last, uids[1:] != uids[:-1]
        self._last = uids[-1].tobytes()
        self.pairs += int(distinct.sum())
        self.halves = self.halves + uids[distinct].view("<u8").reshape(-1, 2).sum(axis=0, dtype=np.uint64)

    def as_json(self) -> dict[str, Any]:
        return {"pairs": self.pairs, "sum": self.halves.tobytes().hex()}


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation to be planned: its number, and the plan files of those before it."""

    number: int
    older: tuple[Path, ...]

    def shard(self, number: int) -> str:
        """The name of its raw shard of that number."""
        return f"g{self.number}-{number:05d}" if self.number else f"{number:05d}"


class Generations:
    """The generations of an output folder."""

    def __init__(self, out: Path, expect: Expect | None = None) -> None:
        """expect: what of the lists' further columns is in the plans."""
        self.out, self.expect = out, expect or Expect()

    def _marks(self) -> dict[int, dict[str, Any]]:
        """By number what the marks say, up to the first that is missing."""
        found: dict[int, dict[str, Any]] = {}
        while (said := _read_mark(_mark(self.out, len(found)))) is not None:
            found[len(found)] = said
        return found

    def restore(self) -> None:
        """Make marks and plan files anew that are damaged or gone, from what was fetched by them.

        Where nothing was, a plan is forgotten, and its pairs are planned with the newest generation.
        """
        number = 0
        while self._remarked(number):
            said = _read_mark(_mark(self.out, number))
            assert said is not None
            files = {name: digest for name, digest in said["files"].items() if self._restored(name, digest)}
            if files != said["files"]:
                write_json(said | {"files": files}, _mark(self.out, number))
            keep(_mark(self.out, number))
            number += 1

    def _remarked(self, number: int) -> bool:
        """Whether the generation has a mark; it gets one anew where it was fetched."""
        if _read_mark(_mark(self.out, number)) is not None:
            return True
        names = sorted(
            path.stem for path in plan_folder(self.out).glob("*.parquet") if not wave_of(path.stem)
        )
        names = [name for name in names if generation_of(name) == number]
        if not self._is_begun(names):
            return False
        total = PlanSum()
        for name in names:
            total.add(pq.read_table(readable(plan_path(self.out, name)), columns=["uid"]))
        self.close(Generation(number, ()), dict.fromkeys(names, UNKNOWN), total, {})
        return True

    def _restored(self, name: str, digest: str) -> bool:
        path, raw = plan_path(self.out, name), self.out / "raw" / f"{name}.parquet"
        try:
            if keep(path).xxh3 == digest:
                return True
        except OSError:
            pass
        try:
            rows = pq.read_table(readable(raw), columns=COLUMNS[:4])
        except (OSError, pa.ArrowException):
            path.unlink(missing_ok=True)
            return False
        write_table(_listed(self.out, rows, self.expect), path)
        if keep(path).xxh3 == digest:
            return True
        path.unlink()
        return False

    def begin(self, sum_of: Callable[[Sequence[Path]], PlanSum]) -> Generation:
        """Which generation is to be planned now: the newest again where it is not fetched or not changed.

        sum_of: what is wanted and not in the plan files given.
        """
        marks = self._marks()
        files = {
            number: [plan_path(self.out, name) for name in said["files"]] for number, said in marks.items()
        }
        newest = len(marks) - 1
        if newest >= 0:
            older = tuple(path for number in range(newest) for path in files[number])
            same = sum_of(older).as_json() == {key: marks[newest][key] for key in ("pairs", "sum")}
            if same or not self._is_begun(marks[newest]["files"]):
                return self._opened(Generation(newest, older), forget=not same)
        every = tuple(path for paths in files.values() for path in paths)
        return self._opened(Generation(newest + 1, every), forget=True)

    def _is_begun(self, names: Iterable[str]) -> bool:
        return any(
            (self.out / "raw" / f"{name}.parquet").exists() or tally_path(self.out, "fetch", name).exists()
            for name in names
        )

    def _opened(self, new: Generation, *, forget: bool) -> Generation:
        """Remove the files of a plan that is made otherwise, and of repeats of it."""
        if forget:
            _mark(self.out, new.number).unlink(missing_ok=True)
            stale = [*plan_folder(self.out).glob("g*-*.parquet")] if new.number else []
            stale += [] if new.number else [*plan_folder(self.out).glob("*.*")]
            for path in stale:
                if not new.number or generation_of(path.stem) >= new.number:
                    path.unlink()
        return new

    def close(
        self,
        new: Generation,
        names: Mapping[str, int | None],
        total: PlanSum,
        groups: Mapping[int, Sequence[str]],
    ) -> None:
        """Write the mark of a generation whose plan files are written.

        names: of its shards, with the group of giants that each is of. groups: the giant hosts of each.
        """
        files = {name: keep(plan_path(self.out, name)).xxh3 for name in names}
        write_json(
            total.as_json() | {"files": files} | giants_json(names, groups), _mark(self.out, new.number)
        )


def giants_json(names: Mapping[str, int | None], groups: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    """What a mark says of giants: the groups of shards that have any, and the hosts of each group."""
    return {
        "groups": {name: group for name, group in names.items() if group is not None},
        "giants": {str(group): list(hosts) for group, hosts in groups.items()},
    }


def read_giants(out: Path, wave: int, generation: int) -> tuple[dict[str, int], dict[int, list[str]]]:
    """What the mark of a wave, or of a generation, says of giants: as `giants_json` was given it."""
    said = _read_mark(wave_mark(out, wave) if wave else _mark(out, generation)) or {}
    giants = {int(group): hosts for group, hosts in said.get("giants", {}).items()}
    return said.get("groups", {}), giants


def _listed(out: Path, rows: pa.Table, expect: Expect) -> pa.Table:
    """PLAN: the rows of a raw shard, with what their list said as the first row of each uid has it."""
    wanted, found = uids_to_array(rows["uid"]), []
    for part in sorted((out / "pairs").glob("*.parquet")):
        pairs = pq.read_table(readable(part), columns=["uid", *AT_HAND, "given"])
        found.append(
            plan_columns(pairs.filter(pa.array(np.isin(uids_to_array(pairs["uid"]), wanted))), expect)
        )
    pairs = pa.concat_tables(found)
    _, first = np.unique(uids_to_array(pairs["uid"]).view("S16"), return_index=True)
    by_uid = pairs.take(first)
    at = np.searchsorted(uids_to_array(by_uid["uid"]).view("S16"), wanted.view("S16"))
    if len(by_uid) and not np.array_equal(uids_to_array(by_uid["uid"])[at.clip(max=len(by_uid) - 1)], wanted):
        raise ShardError(out / "pairs", None, "a pair that was fetched is in no list any more")
    columns = [*(rows[name] for name in COLUMNS[:4]), *(by_uid[name].take(at) for name in LISTED)]
    return pa.table([column.combine_chunks() for column in columns], schema=PLAN)
