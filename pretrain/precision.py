"""`precision: auto` is settled by the machine that trains first, and kept in the folder from then on.

So a run that is gone on with elsewhere, or on another node, multiplies as it did before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError
from ..recipe import Training
from ..shards.commit import json_text, write_once
from .towers import autocast_dtype, pick_device

NAME = "precision.json"
NAMES = {None: "float32", torch.bfloat16: "bfloat16"}


def with_precision(training: Training, folder: Path) -> Any:
    """The settings with a precision that is no longer `auto`: the one in `folder`, else this machine's.

    Raises DataError where the file there is damaged.
    """
    if training.precision != "auto":
        return training
    ours = NAMES[autocast_dtype("auto", pick_device())]
    kept = write_once(json_text({"precision": ours}).encode(), folder / NAME)
    try:
        precision = json.loads(kept)["precision"]
    except (ValueError, KeyError, TypeError):
        precision = None
    if precision not in NAMES.values():
        raise DataError(f"{folder / NAME}: not a precision; `pairmill verify --mend` makes it anew")
    return training.model_copy(update={"precision": precision})
