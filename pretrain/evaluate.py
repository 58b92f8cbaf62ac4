"""What the trained models can do on held-out sets: retrieval both ways, and zero-shot classification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..recipe import Evaluate
from ..runner import Stage, Tally, Task, Worker, beat
from ..shards.commit import write_json
from ..shards.store_path import open_path
from .bootstrap import FOLDER
from .compare import Base, Comparison, similar
from .heldout import BATCH, read_held_out, read_needed
from .tokenizer import Encode
from .towers import load_towers, open_encoder

AT = (1, 5, 10)


def evaluate_tasks(out: Path) -> list[Task]:
    """One task for all trained models."""
    return [Task("evaluate", "evaluate")]


def evaluate_stage(out: Path, settings: Evaluate) -> Stage:
    """Write `model/eval.json`: for each model what `evaluate_model` gives."""
    return Stage("evaluate", start_evaluate, (out, settings), unit="models")


def check_evaluate(settings: Evaluate) -> None:
    """Raises ConfigError for a folder without what it is named for; reads all but the pictures."""
    try:
        if settings.retrieval is not None:
            read_needed(open_path(settings.retrieval), need="txt")
        if settings.classification is not None:
            folder = open_path(settings.classification)
            prompts = read_prompts(folder / "classes.json")
            _labels(read_needed(folder, need="cls"), folder, min(len(p["classes"]) for p in prompts.values()))
    except (DataError, OSError) as error:
        raise ConfigError(f"evaluate: {error}") from error


def start_evaluate(out: Path, settings: Evaluate) -> Worker:
    """The worker of `evaluate`. Counts the models `evaluated`, and samples left out as `undecodable`."""

    def work(task: Task) -> Tally:
        folders = [path.parent for path in sorted((out / "model").glob("*/config.json"))]
        folders = [folder for folder in folders if folder != out / FOLDER]
        found = {}
        for number, folder in enumerate(folders):
            beat(task, number, len(folders), folder.name)
            found[folder.name] = evaluate_model(folder, settings.retrieval, settings.classification)
        write_json({"models": found}, out / "model" / "eval.json")
        lost = max((_undecodable(said) for said in found.values()), default=0)  # every model saw the same
        return Tally({"evaluated": len(found), **({"undecodable": lost} if lost else {})}, found)

    return work


def _undecodable(found: dict[str, Any]) -> int:
    """Samples of both sets that one model did not see; every language of a classification has the same."""
    of_retrieval = found.get("retrieval", {}).get("undecodable", 0)
    by_language = found.get("classification", {}).values()
    return of_retrieval + max((said.get("undecodable", 0) for said in by_language), default=0)


def evaluate_model(
    folder: Path, retrieval: str | Path | None = None, classification: str | Path | None = None
) -> dict[str, Any]:
    """Recall and accuracy of the model in `folder`, in [0, 1].

    retrieval: folder of tars with pictures and captions. classification: folder of tars with pictures
    and `.cls` (the class's number), beside `classes.json`. Raises DataError
    where a folder holds no such thing.
    """
    model, encode = Comparison(load_towers(folder), folder), open_encoder(folder)
    found: dict[str, Any] = {}
    if retrieval is not None:
        found["retrieval"] = evaluate_retrieval(model, encode, open_path(retrieval))
    if classification is not None:
        found["classification"] = evaluate_classification(model, encode, open_path(classification))
    return found


def evaluate_retrieval(model: Comparison, encode: Encode, folder: Path) -> dict[str, Any]:
    """R@1, R@5 and R@10 from picture to caption and back, over all captions and for each language.

    Pictures with the same bytes are one, captions with the same words are one; a query with several right
    answers is answered by any of them.
    """
    held = read_held_out(model, folder, need="txt")
    words = [sample["txt"].decode("utf-8", "replace").strip() for sample in held.samples]
    distinct = sorted(set(words))
    number = {caption: at for at, caption in enumerate(distinct)}
    captions = model.captions(distinct, encode, BATCH)
    pairs = np.stack([held.of_picture, [number[caption] for caption in words]], 1)
    languages = np.array([_language(sample) for sample in held.samples])
    found = recalls(held.pictures, captions, pairs)
    by_language = {}
    for language in sorted(set(languages.tolist()) - {""}):
        rows = pairs[languages == language]
        (pictures, left), (texts, right) = (np.unique(side, return_inverse=True) for side in rows.T)
        own = np.stack([left.reshape(-1), right.reshape(-1)], 1)
        by_language[language] = recalls(held.pictures[pictures], captions[texts], own)
    return {**found, **held.lost, "languages": by_language}


def _language(sample: dict[str, bytes]) -> str:
    try:
        said = json.loads(sample["json"])
        return str(said.get("lang") or said.get("lang_v1") or "")
    except (KeyError, ValueError, AttributeError):
        return ""


def recalls(pictures: np.ndarray, captions: np.ndarray, pairs: np.ndarray) -> dict[str, Any]:
    """Share of queries whose best 1, 5, 10 hold a right answer.

    pictures: (P, D) and captions: (T, D), unit rows. pairs: (N, 2) which picture and caption belong together.
    """
    found: dict[str, Any] = {"pictures": len(pictures), "captions": len(captions)}
    to_caption = wrong_before_right(pictures, captions, pairs)
    to_picture = wrong_before_right(captions, pictures, pairs[:, ::-1])
    for name, rank in (("picture_to_caption", to_caption), ("caption_to_picture", to_picture)):
        found[name] = {f"R@{k}": round(float((rank < k).mean()), 6) for k in AT}
    return found


def wrong_before_right(queries: np.ndarray, base: Base, pairs: np.ndarray) -> np.ndarray:
    """(Q,) for each query how many wrong rows of `base` score at least as high as its best right one.

    pairs: (N, 2) which query and row belong together. A tie counts against the model, so that one which
    gives every row the same score finds nothing.
    """
    rank = np.zeros(len(queries), np.int64)
    for start in range(0, len(queries), 1024):
        scores = similar(queries[start : start + 1024], base)
        mine = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + len(scores))]
        right = np.zeros(scores.shape, bool)
        right[mine[:, 0] - start, mine[:, 1]] = True
        best = np.where(right, scores, -np.inf).max(1, keepdims=True)
        rank[start : start + len(scores)] = ((scores >= best) & ~right).sum(1)
    return rank


def evaluate_classification(model: Comparison, encode: Encode, folder: Path) -> dict[str, Any]:
    """Top-1 and top-5 accuracy, and the mean of the classes' top-1, for each language of `classes.json`."""
    held = read_held_out(model, folder, need="cls")
    by_language = read_prompts(folder / "classes.json")
    fewest = min(len(prompts["classes"]) for prompts in by_language.values())
    labels = _labels([sample["cls"] for sample in held.samples], folder, fewest)
    pictures = held.pictures[held.of_picture]
    found = {}
    for language, prompts in by_language.items():
        classes = class_embeddings(model, encode, prompts)
        rank = wrong_before_right(pictures, classes, np.stack([np.arange(len(labels)), labels], 1))
        each = [float((rank[labels == label] == 0).mean()) for label in np.unique(labels)]
        found[language] = {
            "pictures": len(labels),
            **held.lost,
            "classes": len(prompts["classes"]),
            "top1": round(float((rank < 1).mean()), 6),
            "top5": round(float((rank < 5).mean()), 6),
            "mean_per_class": round(float(np.mean(each)), 6),
        }
    return found


def _labels(cls: list[bytes], folder: Path, classes: int) -> np.ndarray:
    """(N,) the numbers in .cls members. Raises DataError for one that is none of `classes`."""
    labels = np.empty(len(cls), np.int64)
    for row, data in enumerate(cls):
        try:
            labels[row] = int(data)
        except ValueError as error:
            raise DataError(
                f"{folder}: a .cls holds {data[:20]!r}, expected the number of a class"
            ) from error
        if not 0 <= labels[row] < classes:
            raise DataError(f"{folder}: class {labels[row]} in a .cls, but classes.json names {classes}")
    return labels


def read_prompts(path: Path) -> dict[str, dict[str, list[str]]]:
    """`classes.json`: {"templates": [...], "classes": [...]}, or such an object for each language.

    A template holds `{}` where the class's name goes. Raises DataError for anything else.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        by_language = {"": said} if "classes" in said else said
        if not by_language:
            raise ValueError("no class")
        for prompts in by_language.values():
            if not prompts["classes"] or not prompts["templates"]:
                raise ValueError("empty list")
            if not all("{}" in template for template in prompts["templates"]):
                raise ValueError("a template without {}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path}: {error!r}; expected {{"templates": ["a photo of {{}}"], "classes": ["cat"]}},'
            " or one such object for each language"
        ) from error
    return by_language


def class_embeddings(model: Comparison, encode: Encode, prompts: dict[str, list[str]]) -> Base:
    """(C, D) unit rows: the mean of a class's prompts, each a unit row, normalised again.

    Where tokens are compared: (C, T, D) for each template, whose scores are averaged (as Wukong does it).
    """
    by_template = [
        model.captions([template.replace("{}", name) for name in prompts["classes"]], encode, BATCH)
        for template in prompts["templates"]
    ]
    if by_template[0].ndim > 2:
        return by_template
    mean = np.mean(by_template, 0)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)
