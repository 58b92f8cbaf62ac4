"""Zero-shot classification with templates, in as many languages as a set has names for its classes in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..compare import Base, Comparison
from ..heldout import BATCH, HeldOut, read_held_out
from ..tokenizer import Encode
from .intervals import bootstrapped_mean_of_classes, wilson
from .retrieval import wrong_before_right
from .sets import Prompts


def evaluate_classification(
    model: Comparison, encode: Encode, folder: Path, by_language: dict[str, Prompts]
) -> dict[str, Any]:
    """What `zero_shot` gives of the set in `folder`, for each language."""
    held = read_held_out(model, folder, need="cls")
    return zero_shot(model, encode, held, labels_of(held, folder, by_language), by_language)


def zero_shot(
    model: Comparison, encode: Encode, held: HeldOut, labels: np.ndarray, by_language: dict[str, Prompts]
) -> dict[str, Any]:
    """Top-1 and top-5 accuracy and the mean of the classes' top-1 by language, with 95 % intervals."""
    pictures = held.pictures[held.of_picture]
    found = {}
    for language, prompts in by_language.items():
        classes = class_embeddings(model, encode, prompts)
        rank = wrong_before_right(pictures, classes, np.stack([np.arange(len(labels)), labels], 1))
        present, sizes = np.unique(labels, return_counts=True)
        hits = np.array([int((rank[labels == label] == 0).sum()) for label in present])
        found[language] = {
            "pictures": len(labels),
            **held.lost,
            "classes": len(prompts["classes"]),
            "top1": round(float((rank < 1).mean()), 6),
            "top1_interval": wilson(int((rank < 1).sum()), len(rank)),
            "top5": round(float((rank < 5).mean()), 6),
            "top5_interval": wilson(int((rank < 5).sum()), len(rank)),
            "mean_per_class": round(float((hits / sizes).mean()), 6),
            "mean_per_class_interval": bootstrapped_mean_of_classes(hits, sizes),
        }
    return found


def labels_of(held: HeldOut, folder: Path, by_language: dict[str, Prompts]) -> np.ndarray:
    """(N,) the class of each sample."""
    return read_labels([sample["cls"] for sample in held.samples], folder, fewest(by_language))


def fewest(by_language: dict[str, Prompts]) -> int:
    """How many classes every language names."""
    return min(len(prompts["classes"]) for prompts in by_language.values())


def read_labels(cls: list[bytes], folder: Path, classes: int) -> np.ndarray:
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
            raise DataError(f"{folder}: class {labels[row]} in a .cls, but only {classes} are named")
    return labels


def class_embeddings(model: Comparison, encode: Encode, prompts: Prompts) -> Base:
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
