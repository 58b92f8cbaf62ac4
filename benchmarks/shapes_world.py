"""A world of shapes for trainers: scenes of two coloured shapes, their captions, and what is true.

Everything is made from a seed, as arrays; nothing is read or written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIDE = 64
COLOURS = {
    "red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "yellow": (230, 210, 50),
    "purple": (150, 50, 190), "white": (245, 245, 245),
}  # fmt: skip
SHAPES = ("square", "circle", "triangle", "cross", "ring")
OBJECTS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
TEMPLATES = (
    "a {a} left of a {b}",
    "a {b} on the right of a {a}",
    "the picture shows a {a} and to its right a {b}",
    "a {a} beside a {b} , from left to right",
)
PAD, BEGIN, END = 0, 1, 2


@dataclass(frozen=True)
class World:
    """n pairs; `scene` numbers what is seen, so that equal numbers are equal scenes."""

    pictures: np.ndarray  # (n, SIDE, SIDE, 3) uint8
    captions: list[str]
    scene: np.ndarray  # (n,) of the picture
    said: np.ndarray  # (n,) of the caption: another one where captions were swapped


def make_world(n: int, seed: int, *, swapped: float = 0.0, distinct: bool = False) -> World:
    """Pictures with captions, a share of which are another picture's. distinct: no scene twice."""
    dice = np.random.default_rng(seed)
    kinds = len(OBJECTS)
    scene = dice.permutation(kinds * kinds)[:n] if distinct else dice.integers(0, kinds * kinds, n)
    pictures = np.stack([_paint(OBJECTS[s // kinds], OBJECTS[s % kinds], dice) for s in scene])
    said = scene.copy()
    chosen = np.flatnonzero(dice.random(n) < swapped)
    said[chosen] = said[np.roll(chosen, 1)]
    captions = []
    for s in said:
        one, other = (" ".join(OBJECTS[i]) for i in divmod(int(s), kinds))
        captions.append(TEMPLATES[dice.integers(len(TEMPLATES))].format(a=one, b=other))
    return World(pictures, captions, scene, said)


def vocabulary() -> list[str]:
    """Every word that a caption can hold."""
    words = {word for template in TEMPLATES for word in template.split() if "{" not in word}
    return sorted(words | set(COLOURS) | set(SHAPES))


def encode(captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """A token for each word, between begin and end."""
    number = {word: place + 3 for place, word in enumerate(vocabulary())}
    rows = [[BEGIN, *(number[word] for word in caption.split()), END] for caption in captions]
    tokens = np.fromiter((token for row in rows for token in row), np.int32)
    return tokens, np.array([len(row) for row in rows], np.int32)


def _paint(left: tuple[str, str], right: tuple[str, str], dice: np.random.Generator) -> np.ndarray:
    picture = np.full((SIDE, SIDE, 3), dice.integers(60, 110), np.int16)
    picture += dice.integers(-12, 13, picture.shape, np.int16)
    for number, (colour, shape) in enumerate((left, right)):
        radius = int(dice.integers(8, 13))
        x = 16 + 32 * number + int(dice.integers(-3, 4))
        y = int(dice.integers(16, SIDE - 16))
        picture[_mask(shape, x, y, radius)] = np.array(COLOURS[colour]) + dice.integers(-15, 16, 3)
    return picture.clip(0, 255).astype(np.uint8)


def _mask(shape: str, x: int, y: int, radius: int) -> np.ndarray:
    down, across = np.mgrid[0:SIDE, 0:SIDE]
    dx, dy = np.abs(across - x), np.abs(down - y)
    far = np.hypot(dx, dy)
    if shape == "square":
        return np.maximum(dx, dy) <= 0.85 * radius
    if shape == "circle":
        return far <= radius
    if shape == "ring":
        return (far <= radius) & (far >= 0.55 * radius)
    if shape == "cross":
        return (np.minimum(dx, dy) <= radius / 3) & (np.maximum(dx, dy) <= radius)
    return (dy <= radius) & (dx <= (down - y + radius) / 2)
