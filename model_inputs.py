"""What training and evaluation read, as digests: another one means that the work is done anew."""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from .runner import Task
from .shards.commit import json_text
from .shards.ledger import finished_tasks, inputs_digest, read_record, tally_path
from .step import Job


def model_inputs(job: Job, tasks: Sequence[Task]) -> dict[str, str]:
    """By model, a digest of its selection, and of the shards where it is trained on them.

    A model that is there stays where the same pairs would now come from elsewhere.
    """
    written = set(finished_tasks(job.out, "plan-write"))
    found = {}
    for task in tasks:
        selected = inputs_digest(job.out, "decide", only={"decide": (task.name,)}) + ":"
        from_shards = task.data["source"] == "shards" and task.name in written
        wanted = selected + (inputs_digest(job.out, "write") if from_shards else "")
        record = read_record(tally_path(job.out, "train", task.name))
        there = str(record["inputs"]) if record else ""
        stays = there.startswith(selected) and (not from_shards or there == selected)
        found[task.name] = there if stays else wanted
    return found


def evaluated_inputs(job: Job, tasks: Sequence[Task]) -> str:
    """Of the models that are there, trained and imported ones, and of the settings: other sets may be asked
    for at any time."""
    models = sorted((job.out / "model").glob("*/config.json"))
    said = xxhash.xxh3_64(json_text(job.recipe.evaluate.model_dump(mode="json")).encode())
    for path in models:
        weights = path.with_name("model.safetensors")
        size = weights.stat().st_size if weights.exists() else 0
        said.update(f"{path.parent.name} {size} ".encode() + path.read_bytes())
    return f"{inputs_digest(job.out, 'train')}:{said.hexdigest()}"
