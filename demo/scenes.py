"""Made pictures that can be described: a few coloured shapes on a textured ground, all from one seed.

The ground is different in every scene (blobs of several sizes under the texture), so that two
scenes with the same description are still two pictures for a perceptual hash.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Ground:
    """What things lie on: two colours, their pattern, and the colours that would not be seen on it."""

    light: Colour
    dark: Colour
    pattern: str
    hides: tuple[str, ...] = ()


COLOURS: dict[str, Colour] = {
    "red": (215, 35, 40),
    "blue": (35, 75, 205),
    "green": (40, 150, 60),
    "yellow": (245, 215, 40),
    "white": (246, 246, 244),
    "black": (24, 24, 28),
    "orange": (245, 130, 25),
    "purple": (125, 45, 165),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon")
GROUNDS: dict[str, Ground] = {
    "grass": Ground((96, 165, 72), (48, 112, 44), "ripples", ("green",)),
    "water": Ground((96, 172, 226), (48, 118, 196), "ripples", ("blue",)),
    "sand": Ground((232, 208, 160), (208, 180, 128), "plain", ("yellow", "white")),
    "snow": Ground((250, 251, 253), (218, 226, 238), "plain", ("white",)),
    "night": Ground((250, 246, 200), (18, 20, 46), "stars", ("black",)),
    "bricks": Ground((208, 196, 186), (158, 68, 48), "bricks", ("red", "orange")),
    "wood": Ground((170, 122, 74), (116, 74, 38), "planks", ("orange",)),
    "chessboard": Ground((232, 232, 230), (40, 40, 42), "checks", ("black", "white")),
    "curtain": Ground((128, 44, 92), (74, 14, 52), "folds", ("purple", "red")),
    "stone": Ground((164, 164, 166), (108, 108, 112), "plain"),
    "wallpaper": Ground((255, 240, 245), (246, 178, 200), "dots", ("white",)),
    "tiles": Ground((236, 250, 249), (78, 194, 188), "grid", ("white",)),
}
ROOM = {1: (0.24, 0.34), 2: (0.18, 0.25), 3: (0.15, 0.19), 4: (0.13, 0.17)}  # radius, by number of things


@dataclass(frozen=True, slots=True)
class Group:
    """One or more things of the same shape and colour."""

    shape: str
    colour: str
    size: str  # small, middle or large
    places: tuple[tuple[float, float], ...]  # centres, shares of the width and the height
    radius: float  # share of the shorter side

    @property
    def count(self) -> int:
        return len(self.places)


@dataclass(frozen=True, slots=True)
class Scene:
    """All there is to say about one picture."""

    seed: int
    number: int
    width: int
    height: int
    ground: str
    groups: tuple[Group, ...]


def _zipf(n: int) -> np.ndarray:
    weights = 1 / np.arange(1, n + 1) ** 0.6
    return weights / weights.sum()


def _pick(dice: np.random.Generator, words: Any, without: tuple[str, ...] = ()) -> str:
    """One of `words`, the first ones more often (Zipf), none of `without`."""
    words = list(words)
    while True:
        word = words[dice.choice(len(words), p=_zipf(len(words)))]
        if word not in without:
            return word


def make_scene(seed: int, number: int, single: tuple[str, str] | None = None) -> Scene:
    """Scene `number` of the world `seed`; with `single` (shape, colour) it holds just that one thing."""
    dice = np.random.default_rng([seed, number])
    width, height = (int(side) for side in dice.integers(112, 177, 2))
    counts = [1] if single else _counts(dice)
    fitting = [name for name, ground in GROUNDS.items() if not single or single[1] not in ground.hides]
    ground = fitting[dice.integers(len(fitting))]
    places, radius = _places(dice, sum(counts), min(width, height) / np.array([width, height]))
    groups: list[Group] = []
    for count in counts:
        used = (*GROUNDS[ground].hides, *(group.colour for group in groups))
        shape, colour = single or (_pick(dice, SHAPES), _pick(dice, COLOURS, used))
        mine, places = places[:count], places[count:]
        size = radius * float(dice.uniform(0.85, 1.15))
        word = "large" if size > 0.27 else "small" if size < 0.17 else "middle"
        groups.append(Group(shape, colour, word, tuple(mine), size))
    return Scene(seed, number, width, height, ground, tuple(groups))


def _counts(dice: np.random.Generator) -> list[int]:
    """How many things each group has: one to three groups, at most four things."""
    groups = int(dice.choice([1, 2, 3], p=[0.45, 0.5, 0.05]))
    counts = [1] * groups
    for _ in range(4 - groups):
        if dice.random() < 0.22:
            counts[0] += 1
    return counts


def _places(dice: np.random.Generator, n: int, scale: np.ndarray) -> tuple[list[tuple[float, float]], float]:
    """`n` centres that keep apart, and the radius for which they do."""
    low, high = ROOM[n]
    radius = float(dice.uniform(low, high))
    places: list[np.ndarray] = []
    tries = 0
    while len(places) < n:
        edge = radius * scale * 1.2
        place = dice.uniform(edge, 1 - edge)
        if all(math.hypot(*((place - other) / scale)) > 2.2 * radius for other in places):
            places.append(place)
        tries += 1
        if tries > 200:
            radius, places, tries = radius * 0.85, [], 0
    return [(float(x), float(y)) for x, y in places], radius


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture; the same pixels every time."""
    dice = np.random.default_rng([scene.seed, scene.number, 1])
    pixels = _ground(scene, dice)
    for group in scene.groups:
        colour = np.array(COLOURS[group.colour]) + dice.normal(0, 9, 3)
        for x, y in group.places:
            light, turn = dice.uniform(-14, 14, 2), float(dice.uniform(-12, 12))
            side = round(group.radius * min(scene.width, scene.height) * 2)
            stamp = _stamp(group.shape, side, turn)
            left, top = round(x * scene.width - side / 2), round(y * scene.height - side / 2)
            patch = pixels[top : top + side, left : left + side]
            shade = np.linspace(light[0], light[1], side)[:, None, None]
            patch += stamp[:, :, None] * (colour + shade - patch)
    pixels += dice.normal(0, 1.5, pixels.shape[:2])[:, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def to_jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    """JPEG bytes."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _blobs(dice: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(height, width) of light and dark blobs of three sizes, about -1 to 1."""
    field = np.zeros((height, width), np.float32)
    for cells, weight in ((3, 0.8), (6, 0.8), (10, 0.8)):
        coarse = Image.fromarray(dice.normal(0, weight, (cells, cells)).astype(np.float32))
        field += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return field


def _pattern(name: str, dice: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(height, width) in 0..1, 1 where the ground is light. x and y in pixels."""
    turn, period = dice.uniform(-0.5, 0.5), dice.uniform(20, 36)
    along = (x * math.cos(turn) + y * math.sin(turn)) * 2 * math.pi / period + dice.uniform(0, 6)
    across = (y * math.cos(turn) - x * math.sin(turn)) * 2 * math.pi / period + dice.uniform(0, 6)
    if name == "ripples":
        return 0.5 + 0.5 * np.sin(across * 1.4 + 1.2 * np.sin(along * 0.8))
    if name == "folds":
        return 0.5 + 0.5 * np.sin(along * 1.2)
    if name == "planks":
        return 0.5 + 0.4 * np.sin(along * 0.15 + 2 * np.sin(across * 0.5)) - 0.5 * (np.sin(across) > 0.95)
    if name == "stars":
        return (np.sin(along) * np.sin(across) + 0.3 * np.sin(along * 0.37 + across * 0.61) > 0.93) * 1.0
    if name == "checks":
        return np.sin(along) * np.sin(across) > 0
    if name == "dots":
        return np.sin(along) * np.sin(across) > 0.45
    if name == "bricks":
        row = np.floor(across / math.pi)
        return (np.sin(across * 2) > 0.9) | (np.cos(along + row * math.pi) > 0.97)
    if name == "grid":
        return (np.cos(along) > 0.93) | (np.cos(across) > 0.93)
    return np.full_like(x, 0.5)


def _ground(scene: Scene, dice: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0 : scene.height, 0 : scene.width].astype(np.float32)
    ground = GROUNDS[scene.ground]
    light, dark = (np.array(colour) + dice.normal(0, 6, 3) for colour in (ground.light, ground.dark))
    pattern = _pattern(ground.pattern, dice, x, y).astype(np.float32)[:, :, None]
    blobs = _blobs(dice, scene.width, scene.height) * 22
    return dark + pattern * (light - dark) + blobs[:, :, None]


def _stamp(shape: str, side: int, degrees: float) -> np.ndarray:
    """(side, side) in 0..1: where the shape covers the ground, smooth at its edge."""
    image = _outline(shape, side * 2).rotate(degrees, Image.Resampling.BILINEAR)
    return np.asarray(image.reduce(2), np.float32) / 255


def _outline(shape: str, side: int) -> Image.Image:
    """A square mask of `side` pixels with the shape in it."""
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    s = side - 1
    if shape in ("circle", "ring", "moon"):
        pen.ellipse((0.04 * s, 0.04 * s, 0.96 * s, 0.96 * s), fill=255)
    if shape == "ring":
        pen.ellipse((0.26 * s, 0.26 * s, 0.74 * s, 0.74 * s), fill=0)
    elif shape == "moon":
        pen.ellipse((0.30 * s, -0.04 * s, 1.1 * s, 0.76 * s), fill=0)
    elif shape == "heart":
        pen.ellipse((0.04 * s, 0.08 * s, 0.54 * s, 0.58 * s), fill=255)
        pen.ellipse((0.46 * s, 0.08 * s, 0.96 * s, 0.58 * s), fill=255)
        pen.polygon([(0.08 * s, 0.46 * s), (0.92 * s, 0.46 * s), (0.5 * s, 0.98 * s)], fill=255)
    elif shape in CORNERS:
        pen.polygon([(px * s, py * s) for px, py in CORNERS[shape]], fill=255)
    return image


def _star() -> tuple[tuple[float, float], ...]:
    turns = [(math.pi * i / 5, 0.5 if i % 2 == 0 else 0.2) for i in range(10)]
    return tuple((0.5 + r * math.sin(turn), 0.5 - r * math.cos(turn)) for turn, r in turns)


CORNERS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((0.12, 0.12), (0.88, 0.12), (0.88, 0.88), (0.12, 0.88)),
    "triangle": ((0.5, 0.04), (0.98, 0.9), (0.02, 0.9)),
    "star": _star(),
    "cross": (
        *((0.34, 0.04), (0.66, 0.04), (0.66, 0.34), (0.96, 0.34), (0.96, 0.66), (0.66, 0.66)),
        *((0.66, 0.96), (0.34, 0.96), (0.34, 0.66), (0.04, 0.66), (0.04, 0.34), (0.34, 0.34)),
    ),
}
