"""An image and a text tower from open_clip, with what it takes to feed them.

A model folder holds `config.json` and `model.safetensors` (open_clip's names of parameters), and
`tokenizer.json` where the tokenizer was trained here. Nothing is unpickled.
"""

from __future__ import annotations

import difflib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, DataError
from ..recipe import Towers
from ..shards.commit import write_json
from ..shards.files import local_copy
from .checkpoint import save_tensors
from .pictures import Prepare
from .render import glyphs
from .small import OneTower, SmallClip
from .tokenizer import END, PAD, Encode, open_tokenizer
from .two_towers import TwoTowers

MESSAGE = 160  # characters of another library's message: it may list every weight


def build_towers(settings: Towers, *, temperature: float = 0.07, seed: int = 0) -> TwoTowers:
    """New towers, or pretrained ones where a checkpoint is named.

    Raises ConfigError for a name that open_clip does not know, sizes that do not fit together, or
    weights that cannot be read or are another model's.
    """
    torch.manual_seed(seed)
    check_names(settings)
    try:
        clip: Any = _built(settings)
    except Exception as error:  # whatever open_clip, torch and safetensors raise on what they cannot use
        what = "" if settings.checkpoint is None else f" with the weights {settings.checkpoint}"
        said = " ".join(str(error).split()).partition(". ")[0][:MESSAGE]
        raise ConfigError(
            f"towers: open_clip cannot make {settings.name or 'them'}{what}: {type(error).__name__}: {said}"
        ) from error
    if settings.checkpoint is None:
        with torch.no_grad():
            clip.logit_scale.fill_(math.log(1 / temperature))
    size = clip.visual.image_size
    size = size if isinstance(size, int) else size[0]
    context = getattr(clip, "context_length", None) or clip.text.context_length
    towers = TwoTowers(clip, settings, image_size=size, context_length=context)
    towers.prepare = None if settings.checkpoint is None else _own_resizing(clip)
    return towers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def check_towers(settings: Towers, *, patch_dropout: float = 0.0) -> None:
    """Find what cannot be built or loaded, before any work starts; a checkpoint is read whole for that.

    Raises ConfigError as `build_towers` and `TwoTowers.drop_patches` do.
    """
    if settings.name is None or settings.checkpoint is not None or patch_dropout:
        build_towers(settings).drop_patches(patch_dropout)
    else:
        check_names(settings)


def check_names(settings: Towers) -> None:
    """Raises ConfigError for a model's name or a checkpoint that is not there."""
    name, checkpoint = settings.name, settings.checkpoint
    if name is None:
        if checkpoint is not None:
            raise ConfigError(f"towers.checkpoint {checkpoint}: needs the name of its model, as towers.name")
        return
    if ":" in name:  # hf-hub:, local-dir: and such, which open_clip looks up itself
        return
    import open_clip

    known = open_clip.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "open_clip.list_models() gives the names"
        raise ConfigError(f"towers.name: open_clip has no model {name!r}; {hint}")
    if checkpoint is None or open_clip.get_pretrained_cfg(name, checkpoint) or Path(checkpoint).is_file():
        return
    found = "is a folder" if Path(checkpoint).is_dir() else "is no such file"
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
    raise ConfigError(
        f"towers.checkpoint {checkpoint}: {found}; expected a file of {name}'s weights (.safetensors, or a"
        f" state_dict that torch.save wrote) or one of open_clip's tags for it ({tags})"
    )


def _built(settings: Towers) -> Any:
    if settings.text.get("render"):
        glyphs(settings.text.get("font"))
        plain = {"layers": 0, "width": 8} if "channels" in settings.vision else {"layers": 1, "width": 64}
        whole = settings.model_copy(update={"text": plain})
        return OneTower(_built(whole).visual)
    return _named(settings) if settings.name is not None else _small(settings)


def _named(settings: Towers) -> Any:
    """open_clip reads a file with safetensors, or with torch's loader of weights alone: nothing is run."""
    import open_clip

    return open_clip.create_model(
        str(settings.name),
        settings.checkpoint,
        require_pretrained=settings.checkpoint is not None,
        weights_only=True,
    )


def _own_resizing(clip: Any) -> Prepare:
    """The way from a picture to a square that the model was trained with, up to uint8 pixels.

    Thresholds on a published model's cosine hold for its own bicubic alone.
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose

    steps = image_transform_v2(PreprocessCfg(**clip.visual.preprocess_cfg), is_train=False).transforms
    return Compose(steps[:-2])  # without to-tensor and normalising, which TwoTowers does on the device


def _small(settings: Towers) -> Any:
    from open_clip.model import CLIP

    vision = dict(settings.vision)
    if "channels" not in vision and settings.text.get("layers") == 0:
        raise ValueError(
            "text.layers of 0 goes together with vision.channels; open_clip's vision needs text.layers of 1"
            f" or more; found vision {settings.vision}, text {settings.text}"
        )
    text = {"pool_type": "eos", **settings.text}
    text |= {"context_length": settings.context_length, "vocab_size": settings.vocab_size}
    text |= {"pad_id": PAD, "eos_id": END}
    if "channels" in vision:
        return SmallClip(
            settings.embed_dim,
            vision,
            text,
            image_size=settings.image_size,
            context_length=settings.context_length,
            vocab_size=settings.vocab_size,
        )
    if isinstance(vision.get("layers"), list):
        vision["layers"] = tuple(vision["layers"])
    return CLIP(settings.embed_dim, vision | {"image_size": settings.image_size}, text)  # type: ignore[arg-type]


def save_towers(
    towers: TwoTowers, folder: Path, *, system: Any = None, objective: nn.Module | None = None
) -> None:
    """Commit `model.safetensors` under open_clip's names, what the system adds, then `config.json`."""
    save_tensors(towers.clip.state_dict(), folder / "model.safetensors")
    added = {} if objective is None else objective.state_dict()
    if added:
        save_tensors(added, folder / "objective.safetensors")
    save_config(towers.settings, folder, system)


def save_config(settings: Towers, folder: Path, system: Any = None) -> None:
    """Commit `config.json`: what `load_towers` needs to make the towers again, and the system's name."""
    said = {"towers": settings.model_dump(mode="json")}
    write_json(said if system is None else said | {"system": system}, folder / "config.json")


def load_towers(folder: Path, device: torch.device | None = None) -> TwoTowers:
    """The model of a folder, ready to embed. Raises DataError where the folder holds none."""
    from safetensors.torch import load_file

    settings = read_config(folder)
    weights = folder / "model.safetensors"
    if not weights.exists():  # only a named checkpoint is recorded without weights
        return build_towers(settings).to(device or pick_device()).eval()
    towers = build_towers(settings.model_copy(update={"checkpoint": None}))
    try:
        with local_copy(weights) as copy:
            towers.clip.load_state_dict(load_file(copy))
    except Exception as error:
        raise DataError(f"{weights}: not the weights of config.json beside it: {error}") from error
    return towers.to(device or pick_device()).eval()


def take_picture_tower(towers: TwoTowers, folder: Path) -> None:
    """Give `towers` the picture tower of a folder's model. Raises DataError where it is of another kind."""
    other = load_towers(folder, towers.device)
    try:
        towers.clip.visual.load_state_dict(other.clip.visual.state_dict())
    except RuntimeError as error:
        said = " ".join(str(error).split())[:MESSAGE]
        raise DataError(f"{folder}: its picture tower is another than the settings' ({said})") from error


def read_config(folder: Path) -> Towers:
    """The towers' settings in a model folder."""
    path = folder / "config.json"
    try:
        return Towers.model_validate(json.loads(path.read_text(encoding="utf-8"))["towers"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: no model there: config.json cannot be read ({error})") from error


def read_system(folder: Path) -> Any:
    """What the model in a folder was trained by: a name, or one with parameters; None where none is said."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("system")


def open_encoder(folder: Path, settings: Towers | None = None) -> Encode:
    """The tokenizer that belongs to the model of a folder."""
    return open_tokenizer(settings or read_config(folder), folder / "tokenizer.json")


def pick_device() -> torch.device:
    """CUDA where there is a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What to multiply in besides float32, or None. "auto" is bfloat16 on CUDA and on CPUs with AMX.

    AVX-512's bfloat16 alone is slower than float32 (measured: 76 against 143 GFLOP/s on one core).
    """
    if precision == "float32":
        return None
    if precision == "bfloat16":
        return torch.bfloat16
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else None
