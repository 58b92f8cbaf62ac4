"""Scenes that no crawl has seen: clean pairs for retrieval, and pictures of one thing for classification."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

from ..shards.tar import TarWriter
from . import chinese, english, german
from .captions import LANGUAGES, caption
from .paint import Paint, paint_all
from .scenes import make_scene

HOLDOUT_FROM, CLASSES_FROM = 1_000_000, 2_000_000  # scene numbers
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")
COLOURS = ("red", "blue", "green", "yellow", "black")
TEMPLATES = {
    "en": ("{} on the table", "a picture of {}", "here you can see {}"),
    "zh": ("图片里有{}", "桌子上有{}", "这是{}"),
    "de": ("Bild mit {}", "Foto mit {} auf einem Tisch", "Zeichnung mit {}"),
}


def write_holdout(folder: Path, seed: int, pictures: int) -> None:
    """`00000.tar` of .jpg, .txt and .json (with `lang`): the languages take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(HOLDOUT_FROM, HOLDOUT_FROM + pictures)
    files = paint_all(seed, [Paint(number) for number in numbers])
    with TarWriter(folder / "00000.tar") as tar:
        for i, (number, jpeg) in enumerate(zip(numbers, files, strict=True)):
            language = LANGUAGES[i % len(LANGUAGES)]
            text = caption(make_scene(seed, number), language)
            facts = {"key": f"{i:09}", "caption": text, "lang": language}
            tar.add(f"{i:09}.jpg", jpeg)
            tar.add(f"{i:09}.txt", text.encode())
            tar.add(f"{i:09}.json", json.dumps(facts, ensure_ascii=False).encode())


def write_classes(folder: Path, seed: int, pictures: int) -> None:
    """`00000.tar` of .jpg and .cls, and `classes.json`: class names and templates by language."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = list(product(SHAPES, COLOURS))
    numbers = range(CLASSES_FROM, CLASSES_FROM + pictures)
    orders = [Paint(number, single=classes[i % len(classes)]) for i, number in enumerate(numbers)]
    with TarWriter(folder / "00000.tar") as tar:
        for i, jpeg in enumerate(paint_all(seed, orders)):
            tar.add(f"{i:09}.jpg", jpeg)
            tar.add(f"{i:09}.cls", str(i % len(classes)).encode())
    names: dict[str, Any] = {
        language: {"templates": TEMPLATES[language], "classes": [name(*each) for each in classes]}
        for language, name in (("en", _in_english), ("zh", _in_chinese), ("de", _in_german))
    }
    (folder / "classes.json").write_text(json.dumps(names, ensure_ascii=False, indent=1), encoding="utf-8")


def _in_english(shape: str, colour: str) -> str:
    return f"a {colour} {english.NOUNS[shape][0][0]}"


def _in_chinese(shape: str, colour: str) -> str:
    noun, measure = chinese.NOUNS[shape][0]
    return f"一{measure}{chinese.COLOURS[colour]}色的{noun}"


def _in_german(shape: str, colour: str) -> str:
    """In the dative, for every template says `mit`."""
    noun, gender, _, _ = german.NOUNS[shape][0]
    return f"{german.ARTICLES['dative'][gender]} {german.COLOURS[colour]}en {noun}"
