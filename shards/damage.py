"""Which files are no longer what their task wrote, by the hashes in the tallies; and how they are made anew.

A tally that is damaged itself says nothing of its files, so its task is done again as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import ledger
from .commit import FileDigest, file_digest
from .write import DAMAGED

FOLDERS = ("pairs", "raw", "scores", "selection", "model")  # of data; shards/ has its manifest
PINS = {"selection": 1, "model": 1}  # folders with settings as YAML files, and how deep these lie
LAST = "report"  # once it has a tally, a run came to its end


@dataclass(frozen=True, slots=True)
class Damage:
    """A file or a tally that is not as it was; `line` says where, what was found, and what was expected.

    stage, task: who wrote it; empty where no tally names the file.
    """

    stage: str
    task: str
    path: Path
    line: str


@dataclass(slots=True)
class Checked:
    """What a look at every file found."""

    damage: list[Damage]
    files: int = 0
    size: int = 0

    @property
    def paths(self) -> set[Path]:
        return {damage.path for damage in self.damage}


def check_files(out: Path) -> Checked:
    """Re-hash every file that a finished task wrote, and check every tally. Reads all bytes there are."""
    checked = Checked([])
    known: set[str] = set()
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) * 2)) as pool:
        for stage in ledger.stages(out):
            checked.damage += _tallies(out, stage)
            for record in ledger.records(out, stage):
                files = ledger.files_of(record)
                known |= files.keys()
                found = pool.map(lambda item, r=record: _file(out, r, *item), files.items())
                checked.damage += [damage for damage in found if damage is not None]
                checked.files += len(files)
                checked.size += sum(said.size for said in files.values())
    if not checked.damage:  # files of a task that is done again are in no tally until then
        checked.damage += _strays(out, known)
    return checked


def _tallies(out: Path, stage: str) -> Iterator[Damage]:
    """Tallies that are damaged, and, of a run that came to its end, those that are gone."""
    for task in ledger.finished_tasks(out, stage):
        if ledger.read_tally(out, stage, task) is None:
            path = ledger.tally_path(out, stage, task)
            yield Damage(stage, task, path, f"{path}: not the tally that was written: bytes were changed")
    if ledger.finished_tasks(out, LAST):
        failed = {failure.task for failure in ledger.failures(out, stage)}
        for task in sorted(ledger.planned_tasks(out, stage).keys() - failed):
            if not (path := ledger.tally_path(out, stage, task)).exists():
                yield Damage(stage, task, path, f"{path}: missing: the task is not finished")


def _file(out: Path, record: dict[str, Any], name: str, said: FileDigest) -> Damage | None:
    path = out / name
    line = difference(path, said)
    return Damage(record["stage"], record["task"], path, line) if line else None


def difference(path: Path, said: FileDigest) -> str | None:
    """How the file differs from what is said of it, in one line; None where it does not."""
    try:
        found = file_digest(path)
    except FileNotFoundError:
        return f"{path}: missing, expected {said.size:,} bytes"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror or error}"
    if found.size != said.size:
        return f"{path}: {found.size:,} bytes, expected {said.size:,}"
    if found != said:
        return f"{path}: xxh3 {found.xxh3}, expected {said.xxh3}: bytes were changed"
    return None


def _strays(out: Path, known: set[str]) -> Iterator[Damage]:
    """Files beside those of tallies that no tally names: the stages after would read them too."""
    beside = {name.rpartition("/")[0] for name in known}
    for top in FOLDERS:
        for path in sorted((out / top).rglob("*")):
            name = path.relative_to(out).as_posix()
            is_pin = path.suffix == ".yaml" and name.count("/") == PINS.get(top)
            is_data = name.rpartition("/")[0] in beside and path.is_file() and not is_pin
            if is_data and name not in known:
                yield Damage("", "", path, f"{path}: in no tally: no task of this run wrote it")


def forget(out: Path, damage: Iterable[Damage]) -> dict[str, set[str]]:
    """Remove the tallies of damaged files, so that the next run makes these anew. Hold the folder's lock.

    A damaged raw tar stays until it is replaced: its other pictures are used again. What left a
    damaged picture out, or scored without it, is done again too. Returns the tasks to be done, by stage.
    """
    todo: dict[str, set[str]] = {}
    for one in damage:
        if not one.stage:
            continue
        todo.setdefault(one.stage, set()).add(one.task)
        if one.path.suffix == ".json" and one.stage == "fetch":  # no tally says whether the sidecar is whole
            (out / "raw" / f"{one.task}.parquet").unlink(missing_ok=True)
        if one.path.suffix != ".tar" or one.stage != "fetch":
            one.path.unlink(missing_ok=True)
    if "fetch" in todo:
        without = {record["task"] for record in ledger.records(out, "write") if DAMAGED in record["counts"]}
        pointing = {*ledger.finished_tasks(out, "reuse")}  # at pictures of any raw shard
        scored = (todo["fetch"] | pointing) & set(ledger.finished_tasks(out, "embed"))
        for stage, tasks in (("write", without), ("embed", scored)):
            if tasks:
                todo.setdefault(stage, set()).update(tasks)
    for stage, tasks in todo.items():
        for task in tasks:
            ledger.tally_path(out, stage, task).unlink(missing_ok=True)
    return todo
