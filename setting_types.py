"""What settings are made of: the frozen group, and the types of values that several groups share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

try:
    from cyclopts import Parameter

    NO_FLAG: Any = Parameter(parse=False)  # for a setting that is not for the command line
except ImportError:  # there is none on a machine that only trains
    NO_FLAG = None


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


class Dataset(Settings):
    """A written dataset, and how much of every batch comes from it."""

    folder: Path | None = Field(
        default=None, description="a run's folder, or one of shards; this run's own when not given"
    )
    weight: float = Field(default=1.0, gt=0, description="to the sum of all weights: share of a batch")


class Watch(Settings):
    """What is seen of a training run on its way. Nothing here changes a byte of the model."""

    log_every_s: float = Field(default=10.0, ge=0, description="seconds between two lines of the log")
    evaluate_every: int | None = Field(
        default=None, gt=0, description="steps between two evaluations on the sets of `evaluate`"
    )
    tensorboard: bool = Field(default=False, description="also for TensorBoard (needs that package)")
    profile_steps: int = Field(default=0, ge=0, description="steps that torch's profiler records, after 10")
