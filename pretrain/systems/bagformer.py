"""BagFormer: the tokens of an entity make one bag, and bags are compared with patches."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated

from pydantic import Field
from torch import nn

from ..heads.matching import MatchingHead
from ..objectives.interactions import Global, TokenWise
from ..objectives.system import Captions, HeadOf, Side, System, Term, Widths
from ..objectives.token_modules import Bags, TokenProjection
from .clip import SIDES


def make(
    entities: Annotated[
        str | None,
        Field(description="file, one entity a line; null: word pairs mined from the captions"),
    ] = None,
    match_weight: Annotated[float, Field(ge=0, description="of the matching head's loss")] = 1.0,
    dim: Annotated[int, Field(gt=0, description="numbers in a token")] = 256,
    tile: Annotated[int, Field(gt=0, description="queries compared at once: less memory")] = 32,
) -> System:
    """BagFormer, with means over tokens for the paper's sums: captions differ in their number of bags."""
    sides = {
        **SIDES,
        "patches": Side("image", "image", of="image", then="patches"),
        "bags": Side("text", "text", of="text", then="bags"),
    }
    return System(
        name="bagformer",
        paper="Hou et al., BagFormer: Better Cross-Modal Retrieval via bag-wise interaction, 2022",
        about="late interaction with entities as units, beside CLIP's loss and a matching head",
        sides=sides,
        terms=(
            Term("image", "text", Global()),
            Term("patches", "bags", TokenWise(tile), scale="bags", name="bags"),
        ),
        heads={"match": HeadOf(MatchingHead, match_weight)} if match_weight else {},
        modules=partial(modules, dim=dim),
        scales={"bags": 1 / 0.07},
        captions=Captions(groups="entities", entities=entities),
        needs=("a text tower that knows order (text.layers of 1 or more)",),
    )


def modules(widths: Widths, *, dim: int) -> Mapping[str, nn.Module]:
    """What makes tokens of patches and of bags."""
    return {"patches": TokenProjection(widths.image, dim), "bags": Bags(widths.text, dim)}


SYSTEM = make()
