"""What settings are made of: the frozen group, rules, and the types of values that several groups share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass


def _one_at_most(gpus: float) -> float:
    """Raises ValueError for GPUs that would be reserved and lie idle."""
    if gpus > 1:
        raise ValueError(
            "one process uses one GPU: expected 1 at most; others would be reserved and lie idle"
        )
    return gpus


MEMORY_MB = 2_000  # of DuckDB in one task
ROWS_PER_PARTITION = 4_000_000
Scalar = str | int | float | bool
Share = Annotated[float, Field(ge=0, le=1)]
Gpus = Annotated[float, Field(ge=0), AfterValidator(_one_at_most)]


class Settings(BaseModel):
    """A frozen group of settings; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Rule:
    """Drop a pair, for `reason`, where `where` is true. NULL is not true: "not scored" needs its own rule."""

    reason: str
    where: str  # DuckDB SQL over columns; values come in as $names, never formatted in


class Rules(Settings):
    """Which rules decide, in order: the first that is true names the reason."""

    sets: tuple[str, ...] = Field(default=(), description="named rule sets of filter/rulesets.py, in order")
    values: dict[str, Scalar | list[Scalar] | None] = Field(
        default_factory=dict, description="values for the rules' $names, over the set's own"
    )
    extra: tuple[Rule, ...] = Field(default=(), description="further rules, after the sets")


class Watch(Settings):
    """What is seen of a training run on its way. Nothing here changes a byte of the model."""

    log_every_s: float = Field(default=10.0, ge=0, description="seconds between two lines of the log")
    evaluate_every: int | None = Field(
        default=None, gt=0, description="steps between two evaluations on the sets of `evaluate`"
    )
    tensorboard: bool = Field(default=False, description="also for TensorBoard (needs that package)")
    profile_steps: int = Field(default=0, ge=0, description="steps that torch's profiler records, after 10")
