"""Sets to evaluate on: folders of tars, of pairmill's two kinds, or in CLIP_benchmark's WebDataset layout.

That layout: `test/*.tar` with `.cls` or `.txt` beside each picture, `train/*.tar` where a probe may learn,
`classnames.txt`, `zeroshot_classification_templates.txt` with `{c}` for the class, and `dataset_type.txt`,
`retrieval` where it is no classification. Ours besides: `classnames.<language>.txt` and its templates for
further languages, or a `classes.json`; and a `dataset_type.txt` of `matching`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ...errors import DataError

Prompts = dict[str, list[str]]  # "classes" and "templates", with {} where the class goes
Kind = Literal["classification", "retrieval", "matching"]
NAMES, TEMPLATES = "classnames", "zeroshot_classification_templates"
PLAIN_TEMPLATE = "a photo of a {}"  # where a set brings names only


@dataclass(frozen=True)
class EvaluationSet:
    """One set: its kind, and the folders that hold its tars."""

    name: str
    folder: Path
    kind: Kind
    prompts: dict[str, Prompts] = field(default_factory=dict)  # by language; of a classification

    @property
    def test(self) -> Path:
        """What is measured on."""
        return self.folder / "test"

    @property
    def train(self) -> Path | None:
        """What a probe learns on, where the set has it."""
        folder = self.folder / "train"
        return folder if any(folder.glob("*.tar")) else None


def find_sets(folders: Iterable[Path]) -> list[EvaluationSet]:
    """The sets in these folders, each one itself or a folder of such, by name.

    Raises DataError for a folder that holds none, and for two of one name.
    """
    found: dict[str, EvaluationSet] = {}
    for folder in folders:
        inner = sorted(path.parent for path in folder.glob("*/test"))
        places = [folder] if (folder / "test").exists() else inner
        if not places:
            raise DataError(
                f"{folder}: no evaluation set there, nor in its folders: expected test/*.tar, as in the"
                " WebDataset layout of CLIP_benchmark"
            )
        for place in places:
            one = read_set(place)
            if one.name in found:
                raise DataError(f"{place}: a second evaluation set {one.name!r}; {found[one.name].folder}")
            found[one.name] = one
    return [found[name] for name in sorted(found)]


def read_set(folder: Path) -> EvaluationSet:
    """The set of a folder. Raises DataError where files are missing, or its kind is none that we know."""
    said = folder / "dataset_type.txt"
    text = said.read_text(encoding="utf-8").strip() if said.exists() else "classification"
    kind: Kind | None = next((one for one in get_args(Kind) if one == text), None)
    if kind is None:
        raise DataError(f"{said}: {text!r}, expected one of {', '.join(get_args(Kind))}")
    for split in ("test", "train"):
        _check_count(folder / split)
    if not any((folder / "test").glob("*.tar")):
        raise DataError(f"{folder / 'test'}: no tar there")
    prompts = _prompts(folder) if kind == "classification" else {}
    return EvaluationSet(folder.name, folder, kind, prompts)


def _check_count(split: Path) -> None:
    path = split / "nshards.txt"
    if not path.exists():
        return
    text, tars = path.read_text(encoding="utf-8").strip(), len(list(split.glob("*.tar")))
    if text != str(tars):
        raise DataError(f"{path}: says {text[:20]!r} tars, but there are {tars}: copy the set anew")


def _prompts(folder: Path) -> dict[str, Prompts]:
    if (folder / "classes.json").exists():
        return read_prompts(folder / "classes.json")
    found = {}
    for path in sorted(folder.glob(f"{NAMES}*.txt")):
        language = path.name.removeprefix(NAMES).removesuffix(".txt").removeprefix(".")
        templates = path.with_name(path.name.replace(NAMES, TEMPLATES, 1))
        lines = _lines(templates) if templates.exists() else [PLAIN_TEMPLATE]
        lines = [line.replace("{c}", "{}") for line in lines]
        if not all("{}" in line for line in lines):
            raise DataError(f"{templates}: a template without {{c}}, where the name of the class goes")
        found[language] = {"classes": _lines(path), "templates": lines}
    if not found:
        raise DataError(f"{folder}: no {NAMES}.txt there, one class a line")
    return found


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}") from error
    if not any(lines):
        raise DataError(f"{path}: empty")
    return [line for line in lines if line]


def read_prompts(path: Path) -> dict[str, Prompts]:
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
