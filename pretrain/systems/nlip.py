"""NLIP: what is likely mismatched is believed less, and a captioner says it anew."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..heads.caption import CaptionHead
from ..mixture import TWO, NoiseOfLosses
from ..objectives.interactions import Global
from ..objectives.system import HeadOf, Refresh, System, Term
from ..objectives.targets import NoiseAdaptive
from .clip import SIDES


def make(
    strength: Annotated[
        float, Field(ge=0, le=1, description="lambda: share of its row that a surely false pair gives away")
    ] = 0.9,
    two: Annotated[
        float, Field(ge=0, description="Ashman's D of the losses from which on some pairs are called noise")
    ] = TWO,
    caption_weight: Annotated[float, Field(ge=0, description="of the captioner's loss")] = 1.0,
    concepts: Annotated[
        int,
        Field(ge=0, description="frequent words; a picture's likeliest are shown to the captioner"),
    ] = 256,
    complete: Annotated[
        float | None,
        Field(ge=0, le=1, description="noise from which on captions are written anew"),
    ] = None,
    temperature: Annotated[float, Field(gt=0, description="at the start; learned")] = 0.07,
) -> System:
    """NLIP. The first epoch is its warm-up: nothing is called noise before every pair was seen once."""
    captioner = HeadOf(CaptionHead, caption_weight, {"concepts": concepts})
    return System(
        name="nlip",
        paper="Huang et al., NLIP: Noise-robust Language-Image Pre-training, 2023",
        about="targets softened by each pair's probability of mismatch, from last epoch's losses",
        sides=SIDES,
        terms=(Term("image", "text", Global(), target=NoiseAdaptive(strength)),),
        heads={"caption": captioner} if caption_weight else {},
        complete=complete if caption_weight else None,
        table=Refresh("noise", "itc", NoiseOfLosses(two)),
        temperature=temperature,
        needs=("a causal text tower (text.layers of 1 or more)", "two epochs at least"),
    )


SYSTEM = make()
