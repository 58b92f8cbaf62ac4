"""The commands on models: to open_clip's form, and from it."""

from __future__ import annotations

import json

from .errors import ConfigError
from .folders import Place, Where


def export(model: Place, out: Place) -> int:
    """Write a model for `open_clip.create_model("local-dir:OUT")`, its system's weights in a second file.

    Parameters
    ----------
    model
        folder of a model, such as my-dataset/model/dataset
    out
        a new folder
    """
    from .pretrain.open_clip_folder import export_model

    print(json.dumps(export_model(model, out)))
    return 0


def import_(
    source: Place,
    folder: Where,
    *,
    name: str,
    towers: str | None = None,
) -> int:
    """Take in a model as FOLDER/model/NAME: what `pairmill export` wrote, or a safetensors file of weights.

    Parameters
    ----------
    source
        folder that was exported, or a .safetensors file
    name
        what the model is called there
    towers
        open_clip's name of the model whose weights a file holds, such as ViT-B-32
    """
    from .pretrain.open_clip_folder import import_model

    if not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"--name {name!r}: expected letters, digits, - and _")
    print(json.dumps(import_model(source, folder / "model" / name, towers)))
    return 0
