"""SigLIP: every picture with every caption of the batch is a question of its own, answered yes or no."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..objectives.interactions import Global
from ..objectives.system import System, Term
from .clip import SIDES


def make(
    temperature: Annotated[float, Field(gt=0, description="at the start; learned")] = 0.1,
    bias: Annotated[float, Field(description="added to the scores; learned: most are no pairs")] = -10.0,
) -> System:
    """SigLIP with the paper's start of scale and bias."""
    return System(
        name="siglip",
        paper="Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023",
        about="a sigmoid for each of the batch's pairings, with a learned scale and bias",
        sides=SIDES,
        terms=(Term("image", "text", Global(), loss="sigmoid"),),
        biases={"scale": bias},
        temperature=temperature,
    )


SYSTEM = make()
