"""FILIP and Wukong: a picture and a caption are compared token by token, each token by its best fellow."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated

from pydantic import Field
from torch import nn

from ..objectives.interactions import TokenWise
from ..objectives.system import Side, System, Term, Widths
from ..objectives.targets import Smooth
from ..objectives.token_modules import TokenProjection, TokenReducer
from .clip import SIDES


def make(
    reduce: Annotated[
        int,
        Field(ge=0, description="tokens that a picture is reduced to (Wukong: 12); 0: all patches"),
    ] = 0,
    locked: Annotated[bool, Field(description="the picture tower is not trained (Wukong)")] = False,
    image_from: Annotated[
        str | None, Field(description="model folder whose picture tower is taken over at the start")
    ] = None,
    smoothing: Annotated[float, Field(ge=0, le=1, description="share of a row spread over the batch")] = 0.1,
    dim: Annotated[int, Field(gt=0, description="numbers in a token")] = 256,
    tile: Annotated[int, Field(gt=0, description="queries compared at once: less memory")] = 32,
) -> System:
    """FILIP; with `reduce` and `locked` it is Wukong's best model."""
    sides = {
        **SIDES,
        "patches": Side("image", "image", of="image", then="patches"),
        "words": Side("text", "text", of="text", then="words"),
    }
    return System(
        name="filip",
        paper="Yao et al., FILIP, 2021; Gu et al., Wukong, 2022 (token reduction)",
        about="late interaction: the mean over tokens of the best cosine with a token of the other side",
        sides=sides,
        terms=(Term("patches", "words", TokenWise(tile), target=Smooth(smoothing)),),
        modules=partial(modules, reduce=reduce, dim=dim),
        lock=("image",) if locked else (),
        image_from=image_from,
        needs=("a text tower that knows order (text.layers of 1 or more)",),
    )


def modules(widths: Widths, *, reduce: int, dim: int) -> Mapping[str, nn.Module]:
    """What makes tokens of both towers' states."""
    patches = TokenReducer(widths.image, dim, reduce) if reduce else TokenProjection(widths.image, dim)
    return {"patches": patches, "words": TokenProjection(widths.text, dim)}


SYSTEM = make()
