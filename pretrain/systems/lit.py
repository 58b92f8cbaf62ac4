"""LiT: a picture tower that has learned elsewhere is locked, and captions learn to read it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..objectives.interactions import Global
from ..objectives.system import System, Term
from .clip import SIDES


def make(
    image_from: Annotated[
        str | None, Field(description="model folder whose picture tower is taken; null: of towers.checkpoint")
    ] = None,
    cached: Annotated[
        bool, Field(description="embed every picture once, before the first step; needs crop 1 and no flip")
    ] = False,
    temperature: Annotated[float, Field(gt=0, description="at the start; learned")] = 0.07,
) -> System:
    """LiT's "Lu": picture tower locked, text tower from scratch."""
    return System(
        name="lit",
        paper="Zhai et al., LiT: Zero-Shot Transfer with Locked-image text Tuning, 2022",
        about="CLIP's loss with a locked picture tower, whose embeddings may be reckoned once",
        sides=SIDES,
        terms=(Term("image", "text", Global()),),
        lock=("image",),
        image_from=image_from,
        cached=cached,
        temperature=temperature,
        needs=("a picture tower with weights (towers.checkpoint, or image_from)",),
    )


SYSTEM = make()
