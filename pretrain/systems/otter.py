"""OTTER: captions fit other pictures of the batch too; a transport plan of a slow copy's says how well."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from ..objectives.interactions import Global
from ..objectives.system import System, Term
from ..objectives.targets import OptimalTransport
from .clip import SIDES

LOG_SCALE = 3.9  # both temperatures start here, in the authors' code


def make(
    plan_weight: Annotated[
        float, Field(ge=0, le=1, description="of the plan's targets; the rest is InfoNCE's")
    ] = 0.5,
    regularisation: Annotated[float, Field(gt=0, description="lambda of the transport's entropy")] = 0.15,
    iterations: Annotated[int, Field(gt=0, description="of Sinkhorn's algorithm")] = 5,
    decay: Annotated[float, Field(ge=0, lt=1, description="of the teacher's weights, in a step")] = 0.999,
) -> System:
    """OTTER with the constants of the authors' launch script."""
    plan = OptimalTransport(regularisation, iterations)
    return System(
        name="otter",
        paper="Wu et al., Data Efficient Language-supervised Recognition with Optimal Transport, 2021",
        about="soft targets by optimal transport between the batch's embeddings of a slow teacher",
        sides=SIDES,
        terms=(
            Term("image", "text", Global(), weight=1 - plan_weight),
            Term("image", "text", Global(), plan, plan_weight, scale="plan", name="plan"),
        ),
        scales={"plan": math.exp(LOG_SCALE)},
        temperature=math.exp(-LOG_SCALE),
        ema=decay,
    )


SYSTEM = make()
