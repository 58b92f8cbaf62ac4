"""The settings of every stage: one frozen model each, which is its YAML, its flags, its help and its docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from .rule_files import Rule, Rules
from .setting_types import MEMORY_MB, ROWS_PER_PARTITION, Dataset, Gpus, Settings, Share
from .settings_curation import Sample
from .settings_fetch import Fetch
from .settings_training import ScorerTraining, Towers, Training

__all__ = [
    "MEMORY_MB",
    "ROWS_PER_PARTITION",
    "Dataset",
    "Fetch",
    "Rule",
    "Rules",
    "ScorerTraining",
    "Settings",
    "Towers",
    "Training",
]


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


class Bootstrap(Settings):
    """The scorer that is trained on the crawl itself, cross-fitted; or a named checkpoint instead."""

    scorer: str | None = Field(
        default=None,
        description="grow: sizes as fit the pairs and the device, but for what is set here; or the folder"
        " model/bootstrap of a finished run, whose models are used as they are; `training` when not given",
    )
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
    sample: Sample = Sample()
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
    sets: tuple[str, ...] = Field(
        default=(), description="sets in the WebDataset layout of CLIP_benchmark, or folders of such"
    )
    probe: bool = Field(default=True, description="linear probe on sets that have a train/")


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
    max_failed: Share = Field(default=0.5, description="share of failed tasks at which a stage stops")
    resolve: dict[str, str] = Field(
        default_factory=dict,
        description="host:port to the address:port that stands in for it, private or not (curl --connect-to)",
    )
