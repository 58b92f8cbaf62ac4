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
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ConfigError, DataError
from ..recipe import Towers
from ..shards.commit import write_json
from .augment import augmented, normalised
from .checkpoint import save_tensors
from .pictures import Prepare
from .small import SmallClip
from .tokenizer import END, PAD, Encode, open_tokenizer

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
MESSAGE = 160  # characters of another library's message: it may list every weight
MAX_SCALE = 100.0  # the temperature never falls below 0.01, as in CLIP


class TwoTowers(nn.Module):
    """Pictures and captions to unit rows of one space."""

    mean: Tensor
    std: Tensor
    prepare: Prepare | None = None  # a checkpoint's own resizing; None where it was trained here

    def __init__(self, clip: Any, settings: Towers, *, image_size: int, context_length: int) -> None:
        super().__init__()
        self.clip = clip
        self.settings, self.image_size, self.context_length = settings, image_size, context_length
        mean, std = getattr(clip.visual, "image_mean", MEAN), getattr(clip.visual, "image_std", STD)
        self.register_buffer("mean", torch.tensor(mean or MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(std or STD), persistent=False)
        # a causal tower that reads its answer at the end mark never sees what follows it, so padding
        # can be left out; any other is given the full context
        own = hasattr(clip, "text_pool_type") and clip.attn_mask is not None
        self.trims = own and clip.text_pool_type in ("eos", "argmax")
        with torch.no_grad():
            self.dimension = self.encode_captions(torch.zeros(1, context_length, dtype=torch.int64)).shape[1]

    def encode_pictures(
        self, pictures: Tensor, *, crop: float = 1.0, flip: bool = False, seed: int = 0
    ) -> Tensor:
        """(P, D) unit rows from (P, S, S, 3) uint8; cropped and mirrored at random where asked for."""
        plain = normalised(pictures, self.mean, self.std)
        return self.clip.encode_image(augmented(plain, crop=crop, flip=flip, seed=seed), normalize=True)

    def encode_captions(self, tokens: Tensor) -> Tensor:
        """(B, D) unit rows from (B, L) tokens, L up to the context's length."""
        missing = self.context_length - tokens.shape[1]
        if not self.trims or missing == 0:
            return self.clip.encode_text(functional.pad(tokens, (0, missing), value=PAD), normalize=True)
        from open_clip.transformer import text_global_pool

        clip, length = self.clip, tokens.shape[1]
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
        x = text_global_pool(x, tokens, clip.text_pool_type, eos_token_id=clip.text_eos_id)
        projected = (
            clip.text_projection(x)
            if isinstance(clip.text_projection, nn.Linear)
            else x @ clip.text_projection
        )
        return functional.normalize(projected, dim=-1)

    def compile_towers(self) -> None:
        """Compile both towers; a new number of tokens in a batch compiles anew, a few times in all."""
        self.clip.encode_image = torch.compile(self.clip.encode_image)
        self.encode_captions = torch.compile(self.encode_captions)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.clip.logit_scale.device

    @property
    def scale(self) -> Tensor:
        """One over the temperature."""
        return self.clip.logit_scale.exp()

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the scale in [1, 100]."""
        self.clip.logit_scale.clamp_(0, math.log(MAX_SCALE))


def build_towers(settings: Towers, *, temperature: float = 0.07, seed: int = 0) -> TwoTowers:
    """New towers, or pretrained ones where a checkpoint is named.

    Raises ConfigError for a name that open_clip does not know, sizes that do not fit together, or
    weights that cannot be read or are another model's.
    """
    torch.manual_seed(seed)
    check_names(settings)
    try:
        clip: Any = _named(settings) if settings.name is not None else _small(settings)
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


def check_towers(settings: Towers) -> None:
    """Find what cannot be built or loaded, before any work starts; a checkpoint is read whole for that.

    Raises ConfigError as `build_towers` does.
    """
    if settings.name is None or settings.checkpoint is not None:
        build_towers(settings)
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
    if ("channels" in vision) != (settings.text.get("layers") == 0):
        raise ValueError(
            "vision.channels and text.layers of 0 go together, as do open_clip's vision and text.layers of 1"
            f" or more; found vision {settings.vision}, text {settings.text}"
        )
    if "channels" in vision:
        return SmallClip(
            settings.embed_dim,
            vision,
            settings.text,
            image_size=settings.image_size,
            context_length=settings.context_length,
            vocab_size=settings.vocab_size,
        )
    if isinstance(vision.get("layers"), list):
        vision["layers"] = tuple(vision["layers"])
    text = {"pool_type": "eos", **settings.text}
    text |= {"context_length": settings.context_length, "vocab_size": settings.vocab_size}
    text |= {"pad_id": PAD, "eos_id": END}
    return CLIP(settings.embed_dim, vision | {"image_size": settings.image_size}, text)  # type: ignore[arg-type]


def save_towers(towers: TwoTowers, folder: Path) -> None:
    """Commit `model.safetensors`, then `config.json`."""
    save_tensors(towers.clip.state_dict(), folder / "model.safetensors")
    save_config(towers.settings, folder)


def save_config(settings: Towers, folder: Path) -> None:
    """Commit `config.json`: what `load_towers` needs to make the towers again."""
    write_json({"towers": settings.model_dump(mode="json")}, folder / "config.json")


def load_towers(folder: Path, device: torch.device | None = None) -> TwoTowers:
    """The model of a folder, ready to embed. Raises DataError where the folder holds none."""
    from safetensors.torch import load_file

    settings = read_config(folder)
    weights = folder / "model.safetensors"
    if not weights.exists():  # only a named checkpoint is recorded without weights
        return build_towers(settings).to(device or pick_device()).eval()
    towers = build_towers(settings.model_copy(update={"checkpoint": None}))
    try:
        towers.clip.load_state_dict(load_file(weights))
    except Exception as error:
        raise DataError(f"{weights}: not the weights of config.json beside it: {error}") from error
    return towers.to(device or pick_device()).eval()


def read_config(folder: Path) -> Towers:
    """The towers' settings in a model folder."""
    path = folder / "config.json"
    try:
        return Towers.model_validate(json.loads(path.read_text(encoding="utf-8"))["towers"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: no model there: config.json cannot be read ({error})") from error


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
