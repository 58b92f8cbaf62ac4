"""Retrieval both ways, and how well true captions score above those of other pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..compare import Base, Comparison, similar
from ..heldout import BATCH, HeldOut, read_held_out
from ..tokenizer import Encode
from .intervals import area, wilson

AT = (1, 5, 10)


def evaluate_retrieval(
    model: Comparison, encode: Encode, folder: Path, *, lines: bool = False
) -> dict[str, Any]:
    """R@1, R@5 and R@10 from picture to caption and back, over all captions and for each language.

    Pictures with the same bytes are one, captions with the same words are one; a query with several right
    answers is answered by any of them. Beside them `unmatched_auc`: the chance that a pair scores above one
    whose caption is another picture's. lines: a `.txt` holds a caption in each line.
    """
    held = read_held_out(model, folder, need="txt")
    of_picture, words, languages = _captions(held, lines=lines)
    distinct = sorted(set(words))
    number = {caption: at for at, caption in enumerate(distinct)}
    captions = model.captions(distinct, encode, BATCH)
    pairs = np.stack([of_picture, [number[caption] for caption in words]], 1)
    found = measured(held.pictures, captions, pairs)
    by_language = {}
    for language in sorted(set(languages) - {""}):
        rows = pairs[np.array(languages) == language]
        (pictures, left), (texts, right) = (np.unique(side, return_inverse=True) for side in rows.T)
        own = np.stack([left.reshape(-1), right.reshape(-1)], 1)
        by_language[language] = measured(held.pictures[pictures], captions[texts], own)
    return {**found, **held.lost, "languages": by_language}


def _captions(held: HeldOut, *, lines: bool) -> tuple[list[int], list[str], list[str]]:
    """Of every caption its picture, its words, its language ("" where none is said)."""
    of_picture, words, languages = [], [], []
    for picture, sample in zip(held.of_picture, held.samples, strict=True):
        text = sample["txt"].decode("utf-8", "replace").strip()
        own = [line.strip() for line in text.splitlines() if line.strip()] if lines else [text]
        of_picture += [picture] * len(own)
        words += own
        languages += [_language(sample)] * len(own)
    return of_picture, words, languages


def _language(sample: dict[str, bytes]) -> str:
    try:
        said = json.loads(sample["json"])
        return str(said.get("lang") or said.get("lang_v1") or "")
    except (KeyError, ValueError, AttributeError):
        return ""


def measured(pictures: np.ndarray, captions: np.ndarray, pairs: np.ndarray) -> dict[str, Any]:
    """Recalls, and the area over unmatched pairs where there are any."""
    found = recalls(pictures, captions, pairs)
    wrong = unmatched(pairs)
    if len(wrong):
        value, interval = area(paired(pictures, captions, pairs), paired(pictures, captions, wrong))
        found |= {"unmatched_auc": value, "unmatched_auc_interval": interval}
    return found


def recalls(pictures: np.ndarray, captions: np.ndarray, pairs: np.ndarray) -> dict[str, Any]:
    """Share of queries whose best 1, 5, 10 hold a right answer, with 95 % intervals.

    pictures: (P, D) and captions: (T, D), unit rows. pairs: (N, 2) which picture and caption belong together.
    """
    found: dict[str, Any] = {"pictures": len(pictures), "captions": len(captions)}
    to_caption = wrong_before_right(pictures, captions, pairs)
    to_picture = wrong_before_right(captions, pictures, pairs[:, ::-1])
    for name, rank in (("picture_to_caption", to_caption), ("caption_to_picture", to_picture)):
        found[name] = {}
        for k in AT:
            found[name][f"R@{k}"] = round(float((rank < k).mean()), 6)
            found[name][f"R@{k}_interval"] = wilson(int((rank < k).sum()), len(rank))
    return found


def unmatched(pairs: np.ndarray) -> np.ndarray:
    """(M, 2) of each pair's picture with the caption of the pair half a set further, where that is wrong."""
    shifted = np.stack([pairs[:, 0], np.roll(pairs[:, 1], len(pairs) // 2)], 1)
    right = {tuple(pair) for pair in pairs.tolist()}
    wrong = [pair for pair in shifted.tolist() if tuple(pair) not in right]
    return np.array(wrong, np.int64).reshape(-1, 2)


def paired(pictures: np.ndarray, captions: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(N,) the scores of pairs of rows."""
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), 64):
        some = pairs[start : start + 64]
        found[start : start + 64] = np.diagonal(similar(pictures[some[:, 0]], captions[some[:, 1]]))
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


def evaluate_matching(model: Comparison, encode: Encode, folder: Path) -> dict[str, Any]:
    """How well scores tell captions that people found to match from those they found not to.

    A sample has a picture, `.txt`, and `.match`: 1 or 0. Gives `auc`. Raises DataError for other values, or
    where all are alike.
    """
    held = read_held_out(model, folder, need="match")
    said = [sample["match"].strip() for sample in held.samples]
    if not set(said) == {b"0", b"1"} or not all("txt" in sample for sample in held.samples):
        raise DataError(f"{folder}: expected a .txt and a .match of 0 or 1 in each sample, and both of these")
    distinct = sorted({sample["txt"] for sample in held.samples})
    number = {caption: at for at, caption in enumerate(distinct)}
    captions = model.captions([text.decode("utf-8", "replace").strip() for text in distinct], encode, BATCH)
    pairs = np.stack([held.of_picture, [number[sample["txt"]] for sample in held.samples]], 1)
    scores, good = paired(held.pictures, captions, pairs), np.array([value == b"1" for value in said])
    value, interval = area(scores[good], scores[~good])
    counts = {"pairs": len(said), "matched": int(good.sum()), **held.lost}
    return {**counts, "auc": value, "auc_interval": interval}
