"""Scenes to picture files, on all cores: the same bytes whatever their number."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from PIL import Image

from .scenes import draw, make_scene

CHUNK = 64
FEW = 200  # pictures for which starting processes takes longer than painting


@dataclass(frozen=True, slots=True)
class Paint:
    """An order for one picture file."""

    number: int
    form: str = "JPEG"
    quality: int = 90
    edit: str | None = None  # re, resized or cropped: how a near copy differs from its original
    edit_seed: int = 0
    single: tuple[str, str] | None = None  # shape and colour of a scene of one thing


def paint(seed: int, order: Paint) -> bytes:
    """The picture file."""
    image = draw(make_scene(seed, order.number, order.single))
    quality = order.quality
    if order.edit is not None:
        dice = random.Random(order.edit_seed)
        image, quality = _edited(image, order.edit, dice), dice.randint(45, 85)
    file = io.BytesIO()
    image.save(file, order.form, quality=quality)
    return file.getvalue()


def _edited(image: Image.Image, edit: str, dice: random.Random) -> Image.Image:
    width, height = image.size
    if edit == "resized":
        factor = dice.choice((dice.uniform(0.75, 0.95), dice.uniform(1.1, 1.6)))
        return image.resize((round(width * factor), round(height * factor)), Image.Resampling.BICUBIC)
    if edit == "cropped":  # one side or two neighbours, by about a hundredth
        cut = [0, 0, 0, 0]
        for side in dice.sample((0, 1, 2, 3), dice.randint(1, 2)):
            cut[side] = max(1, round(dice.uniform(0.005, 0.012) * (width, height)[side % 2]))
        return image.crop((cut[0], cut[1], width - cut[2], height - cut[3]))
    return image


def paint_all(seed: int, orders: Sequence[Paint]) -> Iterator[bytes]:
    """The picture files, in the given order."""
    if len(orders) < FEW:
        yield from _paint_some((seed, orders))
        return
    chunks = [(seed, orders[i : i + CHUNK]) for i in range(0, len(orders), CHUNK)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(8, len(os.sched_getaffinity(0))), context) as pool:
        for files in pool.map(_paint_some, chunks):
            yield from files


def _paint_some(work: tuple[int, Sequence[Paint]]) -> list[bytes]:
    seed, orders = work
    return [paint(seed, order) for order in orders]
