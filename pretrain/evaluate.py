"""The stage `evaluate`: every trained model on the sets that the recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..recipe import Evaluate
from ..runner import Stage, Tally, Task, Worker, beat
from ..shards.commit import write_bytes, write_json
from .bootstrap import FOLDER
from .compare import load_comparison
from .evaluation.measure import measure
from .evaluation.table import markdown
from .towers import open_encoder


def evaluate_tasks(out: Path) -> list[Task]:
    """One task for all trained models."""
    return [Task("evaluate", "evaluate")]


def evaluate_stage(out: Path, settings: Evaluate) -> Stage:
    """Write `model/eval.json`: for each model what `measure` gives; and `model/eval.md`, to be read."""
    return Stage("evaluate", start_evaluate, (out, settings), unit="models")


def start_evaluate(out: Path, settings: Evaluate) -> Worker:
    """The worker of `evaluate`. Counts the models `evaluated`, and samples left out as `undecodable`."""

    def work(task: Task) -> Tally:
        folders = model_folders(out)
        found = {}
        for number, folder in enumerate(folders):
            beat(task, number, len(folders), folder.name)
            found[folder.name] = evaluate_model(folder, settings)
        write_json({"models": found}, out / "model" / "eval.json")
        write_bytes(markdown(found).encode(), out / "model" / "eval.md")
        lost = max((undecodable(said) for said in found.values()), default=0)  # every model saw the same
        return Tally({"evaluated": len(found), **({"undecodable": lost} if lost else {})}, found)

    return work


def model_folders(out: Path) -> list[Path]:
    """Every trained or imported model, but for the scorer."""
    folders = [path.parent for path in sorted((out / "model").glob("*/config.json"))]
    return [folder for folder in folders if folder != out / FOLDER]


def undecodable(found: dict[str, Any]) -> int:
    """Samples of all sets that one model did not see; every language of a classification has the same."""
    of_retrieval = found.get("retrieval", {}).get("undecodable", 0) + found.get("matching", {}).get(
        "undecodable", 0
    )
    by_language = found.get("classification", {}).values()
    own = of_retrieval + max((said.get("undecodable", 0) for said in by_language), default=0)
    return own + sum(undecodable(inner) for inner in found.get("sets", {}).values())


def evaluate_model(folder: Path, settings: Evaluate) -> dict[str, Any]:
    """What the model in `folder` can do, as `measure` says it."""
    return measure(load_comparison(folder), open_encoder(folder), settings)
