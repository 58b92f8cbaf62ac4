"""CoCa: contrast and caption at once, from one forward pass."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..heads.caption import CaptionHead
from ..objectives.interactions import Global
from ..objectives.system import HeadOf, System, Term
from .clip import SIDES


def make(
    caption_weight: Annotated[float, Field(ge=0, description="of the captioner's loss")] = 2.0,
    layers: Annotated[int, Field(gt=0, description="of the decoder that sees the picture")] = 2,
    queries: Annotated[int, Field(gt=0, description="tokens that the picture is pooled to for it")] = 32,
    temperature: Annotated[float, Field(gt=0, description="at the start; learned")] = 0.07,
) -> System:
    """CoCa. The rows that are compared are the towers' own; the paper has a pooler and a class token."""
    captioner = HeadOf(CaptionHead, caption_weight, {"layers": layers, "queries": queries})
    return System(
        name="coca",
        paper="Yu et al., CoCa: Contrastive Captioners are Image-Text Foundation Models, 2022",
        about="CLIP's loss, and a decoder that writes the caption",
        sides=SIDES,
        terms=(Term("image", "text", Global()),),
        heads={"caption": captioner} if caption_weight else {},
        temperature=temperature,
        needs=("a causal text tower (text.layers of 1 or more)",),
    )


SYSTEM = make()
