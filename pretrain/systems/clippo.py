"""CLIPPO: one tower for both, for it reads captions as pictures of text; no tokenizer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..objectives.interactions import Global
from ..objectives.system import System, Term
from .clip import SIDES


def make(
    font: Annotated[
        str | None,
        Field(description="GNU Unifont's .hex file; null: Latin, other letters as their numbers"),
    ] = None,
    temperature: Annotated[float, Field(gt=0, description="at the start; learned")] = 0.1,
) -> System:
    """CLIPPO without its pairs of neighbouring sentences."""
    return System(
        name="clippo",
        paper="Tschannen et al., CLIPPO: Image-and-Language Understanding from Pixels Only, 2023",
        about="CLIP's loss with one tower, which sees captions rendered as pictures",
        sides=SIDES,
        terms=(Term("image", "text", Global()),),
        temperature=temperature,
        towers={"text": {"render": True} | ({} if font is None else {"font": font})},
    )


SYSTEM = make()
