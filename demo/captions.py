"""What people would write under a scene, in English, Chinese or German: never the same words twice.

A plan says what is worth mentioning; each language puts it into words of its own grammar.
"""

from __future__ import annotations

import random

from . import chinese, english, german
from .plan import make_plan
from .scenes import Scene

WRITERS = {"en": english.write, "zh": chinese.write, "de": german.write}
LANGUAGES = tuple(WRITERS)


def caption(scene: Scene, language: str, take: int = 0) -> str:
    """A caption for the scene; another `take` is another writer's."""
    dice = random.Random(f"{scene.seed} {scene.number} {language} {take}")
    return WRITERS[language](make_plan(scene, dice))
