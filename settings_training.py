"""The settings of one training run: towers, optimizer, loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .setting_types import Gpus, Settings, Share, Watch

PAIRS = {"name": "clip", "targets": "same", "smoothing": 0.1}


class Towers(Settings):
    """An image and a text tower: a named open_clip model, or sizes for small ones."""

    name: str | None = Field(default=None, description="open_clip model name, such as ViT-B-32")
    checkpoint: str | None = Field(default=None, description="open_clip pretrained tag, or a weights file")
    image_size: int = Field(default=64, gt=0, description="pixels, square; ignored with a name")
    embed_dim: int = Field(default=128, gt=0)
    vision: dict[str, Any] = Field(
        default_factory=lambda: {"channels": [32, 64, 128, 192]},
        description="channels of convolutions, and pool; or open_clip's vision_cfg, without image_size",
    )
    text: dict[str, Any] = Field(
        default_factory=lambda: {"width": 128, "layers": 0},
        description="layers 0: a bag of tokens; or open_clip's text_cfg, without its two sizes below",
    )
    context_length: int = Field(default=32, gt=2, description="tokens; ignored with a name")
    vocab_size: int = Field(default=4_096, gt=300, description="of a trained tokenizer; ignored with a name")


class Training(Settings):
    """One contrastive training run."""

    towers: Towers = Towers()
    batch_size: int = Field(default=128, gt=1)
    samples_seen: int | None = Field(
        default=None, ge=0, description="pairs shown, repeats included; as fits their number when not given"
    )
    by_picture: bool = Field(
        default=False, description="all pairs of a picture in one batch, where it is computed once"
    )
    lr: float = Field(default=2e-3, gt=0)
    layer_decay: float | None = Field(default=None, gt=0, le=1, description="share of lr of the layer above")
    clip_norm: float | None = Field(default=1.0, gt=0, description="longest gradient of a step; null: any")
    ema: float | None = Field(
        default=None, ge=0, lt=1, description="decay of a running mean of the weights, such as 0.999"
    )
    ema_saved: bool = Field(default=True, description="with ema: the mean becomes the model, not the last")
    weight_decay: float = Field(default=1.0, ge=0)
    warmup: Share = Field(default=0.1, description="share of the steps over which lr rises")
    system: str | dict[str, Any] = Field(
        default=PAIRS, description="a name of `pairmill systems`; or {name: otter, plan_weight: 0.5}"
    )
    accumulate: int = Field(default=1, gt=0, description="pieces of a batch; less memory, same gradients")
    captions: str | None = Field(default=None, description="Parquet of uid and text, for the pairs' own")
    crop: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8, description="smallest share of the side a random crop keeps"
    )
    flip: bool = Field(default=False, description="mirror half of the pictures")
    patch_dropout: Share = Field(
        default=0.0, description="share of the patches left out in training; towers that are transformers"
    )
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        default="auto", description="auto: bfloat16 where the processor multiplies it natively"
    )
    compile: bool = Field(default=False, description="torch.compile the towers; pays on a GPU")
    threads: int = Field(default=1, gt=0, description="torch threads; another number changes the last bits")
    gpus: Gpus = Field(default=0.0, description="share of a GPU that a run asks the engine for, up to 1")
    loader_threads: int = Field(
        default=2, gt=0, description="decoding threads, or processes; does not change the data"
    )
    max_undecodable: Share = Field(
        default=0.1, description="share of pairs with undecodable pictures that stops a run"
    )
    decoded_cache_mb: int = Field(default=1_000, ge=0, description="decoded pictures kept between epochs")
    seed: int = 0
    checkpoint_every_s: float = Field(default=60.0, ge=0, description="seconds between them")
    checkpoints_kept: int = Field(default=2, gt=0, description="the last ones stay while the run goes on")
    watch: Watch = Watch()


class ScorerTraining(Training):
    """The training of a scorer: on pairs of which many are mismatched."""

    system: str | dict[str, Any] = Field(
        default={**PAIRS, "doubt": 0.25}, description="as in other training; noise is expected here"
    )
