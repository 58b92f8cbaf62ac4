"""What every task of every stage left behind: its tally, or why it failed; and which tasks there are.

`_done/<stage>/<task>.json` is a task's tally, written last: while it stands and its checksum is right, the
task is finished. It bears the size and the xxh3-128 of every file that the task wrote.
`_failed/<stage>/<task>.json` says why a task failed, until it is tried again.
`_plan/tasks/<stage>.json` names all tasks of a stage, so that one which never ran is missed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from ..runner import Tally, Task
from .commit import FileDigest, json_text, write_json
from .files import remove_folder
from .layout import EXCHANGE
from .object_cache import read_folder

KEYS = {"counts", "facts", "inputs", "files", "checksum"}
LOG = "_log/"  # timings: another run of the same task leaves other ones
ON_ITS_WAY = f"{EXCHANGE}/"  # rows that a phase sends: nobody waited until they were on a disk


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that failed. data: what the task was about, as its stage planned it."""

    stage: str
    task: str
    error: str
    data: Mapping[str, Any]


def tally_path(out: Path, stage: str, task: str) -> Path:
    return out / "_done" / stage / f"{task}.json"


def write_tally(
    out: Path,
    task: Task,
    tally: Tally,
    *,
    inputs: str = "",
    files: Mapping[str, FileDigest] | None = None,
    seconds: float = 0.0,
) -> None:
    """Mark the task finished. files: what it wrote, by path below `out`."""
    record = {
        "stage": task.stage,
        "task": task.name,
        "seen": tally.seen,
        "counts": dict(tally.counts),
        "facts": dict(tally.facts),
        "inputs": inputs,
        "files": {name: digest.as_json() for name, digest in (files or {}).items()},
        "seconds": round(seconds, 3),
    }
    record = json.loads(json.dumps(record))  # as it will be read
    write_json(record | {"checksum": _checksum(record)}, tally_path(out, task.stage, task.name))


def _checksum(record: Mapping[str, Any]) -> str:
    said = {key: value for key, value in record.items() if key != "checksum"}
    return xxhash.xxh3_128_hexdigest(json.dumps(said, sort_keys=True).encode())


def read_record(path: Path) -> dict[str, Any] | None:
    """What a tally file says; None where it is missing or was damaged, so that the task is done again."""
    try:
        return _record(path, path.read_bytes())
    except FileNotFoundError:
        return None


def _record(path: Path, data: bytes) -> dict[str, Any] | None:
    try:
        text = data.decode()
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict) or not found.keys() >= KEYS or text != json_text(found):
        return None
    named = (found.get("stage"), found.get("task")) == (path.parent.name, path.stem)
    return found if named and found["checksum"] == _checksum(found) else None


def read_tally(out: Path, stage: str, task: str) -> Tally | None:
    """The tally of a finished task, or None."""
    found = read_record(tally_path(out, stage, task))
    return None if found is None else Tally(found["counts"], found["facts"])


def files_of(record: Mapping[str, Any], *, on_its_way: bool = False) -> dict[str, FileDigest]:
    """What a task left for good, by path below the output folder; or what it sent to the next phase."""
    return {
        name: FileDigest(said["bytes"], said["xxh3"])
        for name, said in record["files"].items()
        if name.startswith(ON_ITS_WAY) == on_its_way
    }


def finished_tasks(out: Path, stage: str) -> list[str]:
    """Names of the tasks of a stage that have a tally, sorted; whether it is whole, `read_tally` says."""
    return sorted(path.stem for path in (out / "_done" / stage).glob("*.json"))


def records(out: Path, stage: str) -> Iterator[dict[str, Any]]:
    """The tallies of a stage's finished tasks, by name of the task; a damaged one is no finished task."""
    for path, data in read_folder(out / "_done" / stage, ".json"):
        if (found := _record(path, data)) is not None:
            yield found


def stages(out: Path) -> list[str]:
    """Every stage that has a tally, a failure or a list of tasks, sorted."""
    folders = (*(out / "_done").glob("*/"), *(out / "_failed").glob("*/"))
    return sorted({folder.name for folder in folders} | {path.stem for path in _task_lists(out)})


def inputs_digest(out: Path, *stages: str, only: Mapping[str, Collection[str]] | None = None) -> str:
    """A digest of what the finished tasks of `stages` counted and wrote, and from what they did so.

    So a change travels through all stages, even where every count stays the same; and a file that was made
    anew with the same bytes disturbs nobody. only: of these stages, just the tasks named.
    """
    digest = xxhash.xxh3_64()
    for stage in stages:
        for path, data in read_folder(out / "_done" / stage, ".json"):
            task = path.stem
            if only is not None and task not in only.get(stage, (task,)):
                continue
            found = _record(path, data) or {"files": {}}
            files = {name: said for name, said in found["files"].items() if not name.startswith(LOG)}
            said = [stage, task, *(found.get(key) for key in ("counts", "facts", "inputs")), files]
            digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()


# Failures, and tasks that never ran


def write_failure(out: Path, task: Task, error: str) -> None:
    """Keep why the task failed, for whoever looks at the folder later."""
    record = {"stage": task.stage, "task": task.name, "error": error, "data": dict(task.data)}
    write_json(record, _failure_path(out, task.stage, task.name))


def forget_failures(out: Path, stage: str) -> None:
    """The stage's tasks are tried again."""
    for path in (out / "_failed" / stage).glob("*.json"):
        path.unlink(missing_ok=True)


def _failure_path(out: Path, stage: str, task: str) -> Path:
    return out / "_failed" / stage / f"{task}.json"


def failures(out: Path, stage: str) -> list[Failure]:
    """The tasks of a stage that failed and have not been finished since, by name."""
    found = []
    for path, data in read_folder(out / "_failed" / stage, ".json"):
        try:
            said = json.loads(data.decode())
            found.append(Failure(stage, path.stem, str(said["error"]), dict(said["data"])))
        except (ValueError, KeyError, TypeError):
            found.append(Failure(stage, path.stem, "failed; what it said is not readable any more", {}))
    return found


def forget_stage(out: Path, stage: str) -> None:
    """Leave nothing of a stage that has no task any more."""
    for folder in ("_done", "_failed"):
        remove_folder(out / folder / stage)
    _task_list(out, stage).unlink(missing_ok=True)


def write_tasks_list(out: Path, stage: str, tasks: Sequence[Task]) -> None:
    """Remember which tasks the stage has, and what each is about."""
    path, said = _task_list(out, stage), {task.name: dict(task.data) for task in tasks}
    if planned_tasks(out, stage) != said:
        write_json(said, path)


def planned_tasks(out: Path, stage: str) -> dict[str, dict[str, Any]]:
    """The tasks of a stage as it last began, with what each is about; none where it never began."""
    try:
        found = json.loads(_task_list(out, stage).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _task_list(out: Path, stage: str) -> Path:
    return out / "_plan" / "tasks" / f"{stage}.json"


def _task_lists(out: Path) -> list[Path]:
    return sorted((out / "_plan" / "tasks").glob("*.json"))
