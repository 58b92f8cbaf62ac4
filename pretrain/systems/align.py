"""ALIGN: noise is outweighed by scale; label smoothing, and a temperature that starts at 1."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..objectives.interactions import Global
from ..objectives.system import System, Term
from ..objectives.targets import Smooth
from .clip import SIDES


def make(
    smoothing: Annotated[float, Field(ge=0, le=1, description="share of a row spread over the batch")] = 0.1,
    temperature: Annotated[float, Field(gt=0, description="at the start; learned")] = 1.0,
) -> System:
    """ALIGN, whose loss is the sum of both directions, not their mean: hence a weight of 2."""
    return System(
        name="align",
        paper="Jia et al., Scaling Up Visual and Vision-Language Representation Learning, 2021",
        about="CLIP's loss with label smoothing, both directions summed",
        sides=SIDES,
        terms=(Term("image", "text", Global(), target=Smooth(smoothing), weight=2.0),),
        temperature=temperature,
    )


SYSTEM = make()
