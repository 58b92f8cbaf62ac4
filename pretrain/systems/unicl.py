"""UniCL (Florence): pairs of one label are right for each other, so captions and classes are one data."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..objectives.interactions import Global
from ..objectives.system import System, Term
from ..objectives.targets import SameLabel
from .clip import SIDES


def make(
    label: Annotated[
        str | None,
        Field(description="column of the shards' tables with the class; null: the caption is it"),
    ] = None,
) -> System:
    """UniCL. Where equal labels have equal wordings, its value is InfoNCE's."""
    return System(
        name="unicl",
        paper="Yang et al., Unified Contrastive Learning in Image-Text-Label Space, 2022 (Florence, 2021)",
        about="every pair with the same label is a positive",
        sides=SIDES,
        terms=(Term("image", "text", Global(), target=SameLabel(), weight=2.0),),
        label=label,
    )


SYSTEM = make()
