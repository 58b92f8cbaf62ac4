"""Models to and from folders that `open_clip.create_model("local-dir:FOLDER")` loads.

`open_clip_config.json` and `open_clip_model.safetensors` are open_clip's; `pairmill.json` is our own
config.json, `system.safetensors` what the training system added, `tokenizer.json` the trained tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..recipe import Towers
from ..shards.commit import write_bytes, write_json
from ..shards.files import local_copy, open_file
from .checkpoint import PICKLES, save_tensors
from .compare import load_objective
from .objectives.registry import find_system
from .tokenizer import END, PAD
from .towers import build_towers, check_names, load_towers, read_config, read_system, save_towers
from .two_towers import MEAN, STD, TwoTowers

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
OURS, SYSTEM, TOKENIZER = "pairmill.json", "system.safetensors", "tokenizer.json"


def export_model(folder: Path, out: Path) -> dict[str, Any]:
    """Write the model in `folder` to `out`. Returns what was written.

    Raises ConfigError for towers that open_clip does not have, DataError where there is no model.
    """
    settings = read_config(folder)
    _refuse_our_own(settings, folder)
    if (out / CONFIG).exists():
        raise ConfigError(f"{out}: there is a model in it: give a new folder")
    towers = load_towers(folder)
    system = read_system(folder)
    save_tensors(towers.clip.state_dict(), out / WEIGHTS)
    files = [WEIGHTS, OURS, CONFIG]
    for name, kept in ((SYSTEM, "objective.safetensors"), (TOKENIZER, TOKENIZER)):
        if (folder / kept).exists():
            write_bytes((folder / kept).read_bytes(), out / name)
            files.append(name)
    write_json({"towers": settings.model_dump(mode="json"), "system": system}, out / OURS)
    write_json({"model_cfg": model_cfg(settings), "preprocess_cfg": _preprocess(towers)}, out / CONFIG)
    load = f'open_clip.create_model("local-dir:{out}")'
    return {"model": str(folder), "out": str(out), "files": sorted(files), "load": load}


def _refuse_our_own(settings: Towers, folder: Path) -> None:
    if settings.text.get("render") or (settings.name is None and "channels" in settings.vision):
        found = "reads captions as pictures" if settings.text.get("render") else "is pairmill's small tower"
        raise ConfigError(
            f"{folder}: open_clip has no such model (it {found}): train towers.name, or open_clip's vision"
            " and text settings, such as vision: {layers: 6, width: 384, patch_size: 8}"
        )


def model_cfg(settings: Towers) -> dict[str, Any]:
    """What open_clip builds the towers from."""
    if settings.name is not None:
        import open_clip

        known = open_clip.get_model_config(settings.name)
        if known is None:
            raise ConfigError(f"towers.name {settings.name}: open_clip tells no config of it to write down")
        return known
    text = {"pool_type": "eos", **settings.text, "pad_id": PAD, "eos_id": END}
    text |= {"context_length": settings.context_length, "vocab_size": settings.vocab_size}
    vision = settings.vision | {"image_size": settings.image_size}
    return {"embed_dim": settings.embed_dim, "vision_cfg": vision, "text_cfg": text}


def _preprocess(towers: TwoTowers) -> dict[str, Any]:
    mean, std = (getattr(towers.clip.visual, name, None) for name in ("image_mean", "image_std"))
    shape = {"size": towers.image_size, "mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"}
    return {**shape, "mean": list(mean or MEAN), "std": list(std or STD)}


def import_model(source: Path, folder: Path, name: str | None = None) -> dict[str, Any]:
    """Make a model folder of an exported one, or of a safetensors file of the open_clip model `name`.

    Raises ConfigError for what cannot be read safely or needs a name, DataError for another model's weights.
    """
    if (folder / "config.json").exists():
        raise ConfigError(f"{folder}: there is a model in it: give another --name")
    weights = _weights_of(source)
    settings, system = _said(source, name)
    if settings.name is None and not (source / TOKENIZER).is_file():
        raise ConfigError(f"{source}: has no {TOKENIZER}, which a model without open_clip's name needs")
    towers = build_towers(settings)
    _fill(towers, weights)
    objective = None
    if (source / SYSTEM).is_file() and system is not None:
        write_bytes((source / SYSTEM).read_bytes(), folder / "objective.safetensors")
        objective = load_objective(find_system(system), towers, folder)
    if settings.name is None:
        write_bytes((source / TOKENIZER).read_bytes(), folder / TOKENIZER)
    save_towers(towers, folder, system=system, objective=objective)
    return {"source": str(source), "model": str(folder), "towers": settings.name or "its own"}


def _weights_of(source: Path) -> Path:
    """The file of weights. Raises ConfigError where there is none, or a pickle, which is never read."""
    path = source / WEIGHTS if source.is_dir() else source
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file: expected a folder that `pairmill export` wrote, with {CONFIG} and"
            f" {WEIGHTS}, or a .safetensors file"
        )
    with open_file(path) as file:
        start = file.read(2)
    if start.startswith(PICKLES):
        raise ConfigError(
            f"{path}: a pickle, which could run anything and is not read: where you trust it, load it with"
            " torch.load(weights_only=True) and save it with safetensors.torch.save_file"
        )
    return path


def _said(source: Path, name: str | None) -> tuple[Towers, Any]:
    """The towers' settings, and the system that trained them where that is known."""
    if name is not None:
        settings = Towers(name=name)
        check_names(settings)
        return settings, None
    if not source.is_dir():
        raise ConfigError(
            f"{source}: say which open_clip model's weights it holds with --towers, as in ViT-B-32"
        )
    try:
        if (source / OURS).is_file():
            said = json.loads((source / OURS).read_text(encoding="utf-8"))
            return Towers.model_validate(said["towers"]).model_copy(update={"checkpoint": None}), said[
                "system"
            ]
        wanted = json.loads((source / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{source}: {OURS} or {CONFIG} cannot be read ({error})") from error
    import open_clip

    known = next((one for one in open_clip.list_models() if open_clip.get_model_config(one) == wanted), None)
    if known is None:
        raise ConfigError(
            f"{source / CONFIG}: its model is none that open_clip has a name for: export it with pairmill, or"
            " give --towers"
        )
    return Towers(name=known), None


def _fill(towers: TwoTowers, weights: Path) -> None:
    from safetensors.torch import load_file

    try:
        with local_copy(weights) as copy:
            towers.clip.load_state_dict(load_file(copy))
    except Exception as error:  # whatever torch and safetensors raise on what they cannot use
        said = " ".join(str(error).split())[:160]
        raise DataError(
            f"{weights}: not the weights of {towers.settings.name or 'these towers'}: {said}"
        ) from error
