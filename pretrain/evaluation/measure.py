"""All measures of one model: on the sets that `evaluate` names, each by its kind."""

from __future__ import annotations

from typing import Any

from ...errors import ConfigError, DataError
from ...recipe import Evaluate
from ...shards.store_path import open_path
from ..compare import Comparison
from ..heldout import read_held_out, read_needed
from ..tokenizer import Encode
from .classification import evaluate_classification, fewest, labels_of, read_labels, zero_shot
from .probe import linear_probe
from .retrieval import evaluate_matching, evaluate_retrieval
from .sets import EvaluationSet, find_sets, read_prompts


def measure(model: Comparison, encode: Encode, settings: Evaluate) -> dict[str, Any]:
    """Everything that the settings ask for, in [0, 1], each number with its `_interval`.

    Raises DataError where a folder does not hold what it is named for.
    """
    found: dict[str, Any] = {}
    if settings.retrieval is not None:
        found["retrieval"] = evaluate_retrieval(model, encode, open_path(settings.retrieval))
    if settings.classification is not None:
        folder = open_path(settings.classification)
        prompts = read_prompts(folder / "classes.json")
        found["classification"] = evaluate_classification(model, encode, folder, prompts)
    for one in find_sets([open_path(folder) for folder in settings.sets]):
        found.setdefault("sets", {})[one.name] = measure_set(model, encode, one, probe=settings.probe)
    return found


def measure_set(
    model: Comparison, encode: Encode, one: EvaluationSet, *, probe: bool = True
) -> dict[str, Any]:
    """What one set's kind asks for; a classification with a training half also has a linear probe."""
    if one.kind == "retrieval":
        return {"retrieval": evaluate_retrieval(model, encode, one.test, lines=True)}
    if one.kind == "matching":
        return {"matching": evaluate_matching(model, encode, one.test)}
    held = read_held_out(model, one.test, need="cls")
    labels = labels_of(held, one.test, one.prompts)
    found: dict[str, Any] = {"classification": zero_shot(model, encode, held, labels, one.prompts)}
    if probe and one.train is not None:
        learned = read_held_out(model, one.train, need="cls")
        rows, wanted = learned.pictures[learned.of_picture], labels_of(learned, one.train, one.prompts)
        found["linear_probe"] = linear_probe(rows, wanted, held.pictures[held.of_picture], labels)
    return found


def check_evaluate(settings: Evaluate) -> None:
    """Raises ConfigError for a folder without what it is named for; reads all but the pictures."""
    try:
        if settings.retrieval is not None:
            read_needed(open_path(settings.retrieval), need="txt")
        if settings.classification is not None:
            folder = open_path(settings.classification)
            prompts = read_prompts(folder / "classes.json")
            read_labels(read_needed(folder, need="cls"), folder, fewest(prompts))
        for one in find_sets([open_path(folder) for folder in settings.sets]):
            _check_set(one)
    except (DataError, OSError) as error:
        raise ConfigError(f"evaluate: {error}") from error


def _check_set(one: EvaluationSet) -> None:
    need = {"classification": "cls", "retrieval": "txt", "matching": "match"}[one.kind]
    for folder in (one.test, one.train):
        if folder is not None:
            found = read_needed(folder, need=need)
            if need == "cls":
                read_labels(found, folder, fewest(one.prompts))
