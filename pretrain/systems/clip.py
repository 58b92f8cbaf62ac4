"""CLIP: each picture picks its caption among those of the batch, and each caption its picture."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..objectives.interactions import Global
from ..objectives.system import Side, System, Term
from ..objectives.targets import Doubt, DoubtCaption, Smooth, one_hot, same_pair

SIDES = {"image": Side("image", "image"), "text": Side("text", "text")}


def make(
    targets: Annotated[
        Literal["one_hot", "same"],
        Field(description="same: pairs with the same picture or caption are right for each other"),
    ] = "one_hot",
    smoothing: Annotated[
        float, Field(ge=0, le=1, description="share of each row that is spread over the batch")
    ] = 0.0,
    doubt: Annotated[
        float,
        Field(ge=0, lt=1, description="share of the batch, its least similar, not learned from"),
    ] = 0.0,
    ask: Annotated[
        Literal["pair", "captions"],
        Field(description="what doubt goes by: captions asks the picture's other captions too"),
    ] = "pair",
    captions: Annotated[
        float,
        Field(ge=0, description="weight of a second term: captions of one picture find each other"),
    ] = 0.0,
    temperature: Annotated[float, Field(gt=0, description="at the start; learned")] = 0.07,
) -> System:
    """CLIP as published; with its first five parameters as the scorer of noisy crawls is trained."""
    rule = same_pair if targets == "same" else one_hot
    plain = targets == "one_hot" and smoothing == 0
    term = Term(
        "image",
        "text",
        Global(),
        target=None if plain else Smooth(smoothing, rule) if smoothing else rule,
        trust=Doubt(doubt, ask=ask) if doubt else None,
    )
    among = Term(
        "text",
        "text",
        Global(),
        target=Smooth(smoothing, same_pair) if smoothing else same_pair,
        weight=captions,
        scale="captions",
        trust=DoubtCaption(doubt),
        own=False,
        name="captions",
    )
    return System(
        name="clip",
        paper="Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021",
        about="softmax over the batch in both directions, one-hot targets, a learned temperature",
        sides=SIDES,
        terms=(term, among) if captions else (term,),
        scales={"captions": 1 / temperature} if captions else {},
        temperature=temperature,
    )


SYSTEM = make()
