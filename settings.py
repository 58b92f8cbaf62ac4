"""The settings of every stage: one frozen model each, which is its YAML, its flags, its help and its docs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from .rule_files import Rule, Rules
from .setting_types import MEMORY_MB, ROWS_PER_PARTITION, Dataset, Gpus, Settings, Share

PAIRS = {"name": "clip", "targets": "same", "smoothing": 0.1}

__all__ = ["MEMORY_MB", "ROWS_PER_PARTITION", "Dataset", "Rule", "Rules", "Settings"]


class Ingest(Settings):
    """Lists in, pairs out."""

    input: tuple[str, ...] = Field(default=(), description="paths, globs or fsspec URLs of lists, or folders")
    against: tuple[str, ...] = Field(
        default=(), description="finished runs: pairs whose picture is in their shards are left out"
    )
    url_column: str | None = Field(default=None, description="the URL column, where its name is unusual")
    caption_column: str | None = Field(default=None, description="the caption column, likewise")
    header: bool | None = Field(default=None, description="a first row of names? judged when not given")
    encoding: str | None = Field(default=None, description="of text, such as cp1251; judged when not given")
    max_unreadable: Share = Field(default=0.8, description="with more unreadable rows a list is refused")
    carry: tuple[str, ...] | None = Field(default=None, description="further columns; all when not given")
    archive_base: str = Field(
        default="https://data.commoncrawl.org/", description="where listed archives lie"
    )
    crawl_files: Literal["wat", "warc"] = Field(default="wat", description="files of a crawl given by name")
    rows_per_part: int = Field(default=100_000, gt=0, description="rows in one Parquet part")
    mb_per_part: int = Field(default=64, gt=0, description="MB of text in one Parquet part")
    max_url_bytes: int = Field(default=2_048, gt=0, description="longest canonical URL")
    max_caption_bytes: int = Field(default=65_536, gt=0, description="longest caption, UTF-8 bytes")
    ports: tuple[int, ...] = Field(default=(), description="allowed besides 80 and 443; (0,) allows any")

    @field_validator("against", mode="before")
    @classmethod
    def _one_is_enough(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class Dedup(Settings):
    """Exact copies, counted."""

    threads: int | None = Field(default=None, gt=0, description="DuckDB threads; all cores when not given")


class Language(Settings):
    """Languages of captions, and the rules that need no picture."""

    model: Path | None = Field(
        default=None, description="lid.176.bin or .ftz; the bundled lid.176.ftz when not given"
    )
    among: tuple[str, ...] | None = Field(
        default=None, description="the only languages that the list can hold (ISO 639-1); any when not given"
    )
    rules: Rules = Rules(sets=("copies",))


class Fetch(Settings):
    """Pictures from the web into raw shards."""

    urls_per_shard: int = Field(default=10_000, gt=0, description="distinct URLs asked for in one raw shard")
    concurrency: int = Field(default=128, gt=0, description="requests in flight in one task")
    per_host: int = Field(default=4, gt=0, description="requests in flight to one host in one task")
    deadline_s: float = Field(default=20.0, gt=0, description="for one URL, its redirects and body, per try")
    max_bytes: int = Field(default=20_000_000, gt=0, description="longest body accepted")
    max_redirects: int = Field(default=5, ge=0)
    retries: int = Field(default=2, ge=0, description="further tries after a passing failure")
    backoff_s: float = Field(default=1.0, ge=0, description="pause before the first retry; doubled each time")
    max_pause_s: float = Field(default=60.0, ge=0, description="longest pause that a Retry-After gets")
    patience_s: float = Field(default=70.0, ge=0, description="then a host that only says 429 is left alone")
    user_agent: str = Field(
        default="pairmill/0.1 (image-text dataset builder; operator not named)",
        description="sent with every request: say who you are and where to write to",
    )
    opt_outs: tuple[str, ...] = Field(
        default=("noai", "noimageai", "noindex", "noimageindex", "noml"),
        description="X-Robots-Tag directives that are obeyed",
    )
    allow_hosts: tuple[str, ...] = Field(
        default=(), description="host:port pairs that may be reached though their address is not public"
    )
    max_pixels: int = Field(default=64_000_000, gt=0, description="width x height, read from the header")
    max_decoded_mb: int = Field(default=640, gt=0, description="memory to decode a picture, by its format")
    max_aspect: float = Field(default=20.0, ge=1, description="longer over shorter side, before decoding")
    resize: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "keep_ratio"
    image_size: int = Field(default=256, gt=0, description="pixels: what `resize` brings a side to")
    only_if_bigger: bool = Field(default=True, description="never enlarge a picture")
    encode: Literal["jpg", "png", "webp"] = "jpg"
    quality: int = Field(default=90, ge=1, le=100, description="JPEG and WebP quality")
    cpus: float = Field(default=1.0, gt=0, description="cores that one task asks for")

    @field_validator("resize", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: object) -> object:
        return "no" if value is False else value  # YAML reads `resize: no` as false


class Near(Settings):
    """Near-copies of pictures."""

    max_distance: int = Field(default=31, ge=0, le=255, description="PDQ bits that may differ in copies")
    plain_distance: int = Field(default=18, ge=0, le=255, description="the same, of pictures on white ground")
    captions: Literal["adopt", "drop"] = Field(
        default="adopt", description="of near-copies: adopt gives new ones to the picture that stays"
    )
    colour: bool = Field(default=True, description="whether near-copies must have the same colours, or none")
    min_quality: int = Field(default=50, ge=0, le=100, description="PDQ quality below it is no evidence")
    cosine: Share | None = Field(default=None, description="embedding cosine of near-copies (ALIGN: 0.975)")
    keep: str = Field(
        default="original_width * original_height DESC, original_bytes DESC, uid",
        description="SQL ORDER BY: the first of a group stays",
    )
    threads: int = Field(default=2, gt=0)


class Towers(Settings):
    """An image and a text tower: a named open_clip model, or sizes for small ones."""

    name: str | None = Field(default=None, description="open_clip model name, such as ViT-B-32")
    checkpoint: str | None = Field(default=None, description="open_clip pretrained tag, or a weights file")
    image_size: int = Field(default=64, gt=0, description="pixels, square; ignored with a name")
    embed_dim: int = Field(default=128, gt=0)
    vision: dict[str, Any] = Field(
        default_factory=lambda: {"channels": [32, 64, 128, 192]},
        description="channels of strided convolutions; or open_clip's vision_cfg, without image_size",
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


class ScorerTraining(Training):
    """The training of a scorer: on pairs of which many are mismatched."""

    system: str | dict[str, Any] = Field(
        default={**PAIRS, "doubt": 0.25}, description="as in other training; noise is expected here"
    )


class Bootstrap(Settings):
    """The scorer that is trained on the crawl itself, cross-fitted; or a named checkpoint instead."""

    folds: int = Field(default=2, ge=2)
    rules: Rules = Rules(sets=("fetched", "near_copies", "rare"))
    training: ScorerTraining = ScorerTraining()


class Embed(Settings):
    """Embeddings and the score of every fetched pair."""

    batch_size: int = Field(default=256, gt=0)
    in_sample: bool = Field(
        default=False, description="also score by one model that saw the pair (for the report)"
    )
    cpus: float = Field(default=1.0, gt=0)
    gpus: Gpus = 0.0


class Noise(Settings):
    """The calibrated noise score."""

    per_language: bool = True
    min_pairs: int = Field(
        default=300, gt=10, description="fewer pairs of one language are calibrated together"
    )
    negatives: int = Field(
        default=256, gt=8, description="other captions (and pictures) each pair is held against"
    )
    seed: int = 0


class Decide(Settings):
    """The final decision: one reason for each dropped uid, the rest is the selection."""

    name: str = Field(default="dataset", pattern=r"^[a-z0-9_-]+$", description="selection/<name>.parquet")
    rules: Rules = Rules(sets=("fetched", "near_copies"))
    max_noise: Share | None = Field(
        default=None, description="largest share of mismatched pairs among those kept"
    )
    baseline: bool = Field(default=False, description="also write selection/everything: all that was fetched")


class Write(Settings):
    """The dataset: globally shuffled shards."""

    samples_per_shard: int = Field(default=10_000, gt=0)
    seed: int = 0
    title: str = Field(default="", description="for the data card")
    licence: str = Field(default="unknown", description="for the data card: pairmill cannot know it")


class Train(Settings):
    """The model that is trained on the result."""

    enabled: bool = True
    system: str | dict[str, Any] | None = Field(default=None, description="short for training.system")
    source: Literal["shards", "raw"] = Field(
        default="shards", description="the written dataset, or raw shards by selection"
    )
    data: tuple[Dataset, ...] = Field(
        default=(), description="datasets that are mixed: [{folder: other, weight: 2}, {weight: 1}]"
    )
    compare_everything: bool = Field(
        default=False, description="train a second model on selection/everything"
    )
    training: Training = Training()


class Evaluate(Settings):
    """What the trained models can do, on sets of their own."""

    retrieval: str | None = Field(
        default=None, description="folder of tars with pictures and captions, held out"
    )
    classification: str | None = Field(
        default=None, description="folder of tars with pictures, .cls, and classes.json"
    )


class Report(Settings):
    """The page."""

    pictures_per_reason: int = Field(default=12, ge=0)
    title: str = ""


class Run(Settings):
    """Where and how it runs. Nothing here changes a byte of the result."""

    engine: Literal["ray", "here"] = "ray"
    address: str | None = Field(
        default=None, description="of a Ray cluster; a local one is started when not given"
    )
    cpus: int | None = Field(default=None, gt=0, description="cores of the local Ray; all when not given")
    memory_mb: int = Field(
        default=MEMORY_MB, ge=200, description="DuckDB's, in one task; the rest is spilled"
    )
    rows_per_partition: int = Field(
        default=ROWS_PER_PARTITION, gt=0, description="rows in one partition of a stage; small lists have one"
    )
    max_failed: float = Field(
        default=0.5, ge=0, le=1, description="share of failed tasks at which a stage stops"
    )
    resolve: dict[str, str] = Field(
        default_factory=dict,
        description="host:port to the address:port that stands in for it, private or not (curl --connect-to)",
    )
