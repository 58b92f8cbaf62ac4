"""The section on models: what they can do, and how training went, several runs in one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import charts
from .text import escape
from .widgets import card, cards, table

Points = Sequence[tuple[float, float]]
Curves = Mapping[str, Mapping[str, Points]]  # by measure, then by model
FOLLOWED = {  # keys of the log's lines, and what their picture is called
    "loss": "Training loss by step",
    "grad_norm": "Norm of the gradients by step, before clipping",
    "temperature": "Temperature by step",
    "samples_per_s": "Samples per second by step",
    "mfu": "Model FLOP/s utilisation by step",
}
COLOURS = 4


def section(evaluation: Mapping[str, Any] | None, curves: Curves) -> str:
    """Curves of all runs, and scores on sets of their own."""
    parts = []
    for measure, series in curves.items():
        if any(series.values()):
            name = FOLLOWED[measure]
            parts.append(card(name, charts.curves(name, series), key=_legend(list(series))))
    found = {name: dict(flat_numbers(said)) for name, said in (evaluation or {}).get("models", {}).items()}
    measures = list(dict.fromkeys(measure for numbers in found.values() for measure in numbers))
    rows = [
        [escape(measure), *(numbers.get(measure, "–") for numbers in found.values())] for measure in measures
    ]
    if rows:
        heads = [f"<code>{escape(name)}</code>" for name in found]
        parts.append(table("Evaluation on held-out sets", ["measure", *heads], rows[:60]))
    return cards(parts)


def _legend(names: Sequence[str]) -> str:
    keys = "".join(
        f'<span><span class="key k{number % COLOURS}"></span>{escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return f'<p class="legend">{keys}</p>'


def training_curves(out: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """What is known of each run: the loss of finished ones from their `train.json`, all else from the log.

    A run is called by its model's folder; one that goes on, or was stopped, by the name of its log.
    """
    models = out / "model"
    found: dict[str, dict[str, list[tuple[float, float]]]] = {measure: {} for measure in FOLLOWED}
    finished = {}
    for path in sorted([*models.glob("*/train.json"), *models.glob("bootstrap/*/train.json")]):
        name = path.parent.relative_to(models).as_posix()
        finished[path.parent.name] = name
        if points := loss_points(_read(path)):
            found["loss"][name] = points
    for path in sorted((out / "_log" / "train").glob("*.jsonl")):
        lines = _log_lines(path)
        name = finished.get(path.stem, path.stem)
        for measure in FOLLOWED:
            points = [(line["step"], line[measure]) for line in lines if isinstance(line.get(measure), float)]
            if len(points) > 1 and name not in found[measure]:
                found[measure][name] = points
    return found


def loss_points(value: Mapping[str, Any] | None) -> list[tuple[float, float]]:
    """(step, loss) of the `curve` in a train.json, which has a list of each."""
    curve: Any = (value or {}).get("curve")
    if not isinstance(curve, dict):
        return []
    pairs: Any = zip(curve.get("step", ()), curve.get("loss", ()), strict=False)
    return [(float(step), float(loss)) for step, loss in pairs if isinstance(loss, int | float)]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _log_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]


def flat_numbers(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Numbers in nested mappings as (path in words, value); lists are left out."""
    if isinstance(value, Mapping):
        return [pair for key in value for pair in flat_numbers(value[key], f"{prefix} {key}".strip())]
    if isinstance(value, float):
        return [(prefix, f"{value:.4g}")]
    return [(prefix, f"{value:,}")] if isinstance(value, int) and not isinstance(value, bool) else []
