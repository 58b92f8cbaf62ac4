"""Where each kind of file lies in an output folder, what is in it, what it lies beside, and who writes it.

Stages that write through `commit` still spell these names themselves. A kind's files are named by a part
(`0003-00017`), a shard (`00017`), a selection or a task; `docs/design.md` has the stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from . import schema
from .store import Store


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of file: `<folder>/<name><suffix>`."""

    folder: str
    suffix: str
    stage: str  # that writes it
    what: str  # for people
    schema: pa.Schema | None = None  # of a Parquet file
    beside: Kind | None = None  # the kind whose file of the same name has the same rows, in the same order

    def file(self, name: str) -> str:
        """The store's name of the file called `name`."""
        return f"{self.folder}/{name}{self.suffix}"

    def names(self, store: Store) -> list[str]:
        """What there is of this kind, sorted. A name holds no dot: `a.reasons` is no selection."""
        return [name for name in store.names(self.folder, self.suffix) if "." not in name]

    def files(self, store: Store) -> list[str]:
        """The store's names of all of this kind, sorted."""
        return [self.file(name) for name in self.names(store)]


PARQUET = ".parquet"

PAIRS = Kind("pairs", PARQUET, "ingest", "a row per usable row of a list", schema.PAIRS)
REJECTED = Kind("pairs/rejected", PARQUET, "ingest", "rows that cannot be a pair", schema.REJECTED)
COPIES = Kind("scores/copies", PARQUET, "dedup", "exact copies, counted", schema.COPIES, PAIRS)
LANGUAGE = Kind("scores/language", PARQUET, "language", "the caption's language", schema.LANGUAGE, PAIRS)
FREQUENCY = Kind("scores/frequency", PARQUET, "frequency", "the rarest token", schema.FREQUENCY, PAIRS)
SCREEN = Kind("selection/screen", PARQUET, "screen", "why a pair is not fetched", schema.SCREEN, PAIRS)
FETCH_PLAN = Kind("_plan/fetch", PARQUET, "plan-fetch", "what one raw shard asks for")
RAW_TAR = Kind("raw", ".tar", "fetch", "pictures, each once")
RAW = Kind("raw", PARQUET, "fetch", "a row per pair that was asked for", schema.RAW)
REUSE_PLAN = Kind("_plan/reuse", PARQUET, "plan-fetch", "pairs whose URL was asked for before")
UNWANTED = Kind(
    "selection/unwanted", PARQUET, "plan-fetch", "asked for, and dropped by now", schema.SELECTION
)
FETCH_LOG = Kind("_log/fetch", PARQUET, "fetch", "how each request went; no data")
NEAR = Kind("scores/near", PARQUET, "near", "near-copies by bytes and PDQ", schema.NEAR)
NEAR_EMBEDDING = Kind(
    "scores/near-embedding", PARQUET, "near-embedding", "near-copies by cosine as well", schema.NEAR
)
EMBEDDING = Kind("scores/embedding", PARQUET, "embed", "a row per scored pair", schema.EMBEDDING)
IMAGE_ROWS = Kind("scores/embedding", ".image.npy", "embed", "embeddings of pictures", None, EMBEDDING)
TEXT_ROWS = Kind("scores/embedding", ".text.npy", "embed", "embeddings of captions", None, EMBEDDING)
NOISE = Kind("scores/noise", PARQUET, "noise", "how likely a mismatch is", schema.NOISE, EMBEDDING)
SELECTION = Kind("selection", PARQUET, "decide", "the uids kept", schema.SELECTION)
SELECTION_NPY = Kind("selection", ".npy", "decide", "the same as DataComp's u8,u8")
REASONS = Kind("selection", ".reasons.parquet", "decide", "why each other uid is out", schema.REASONS)
WRITE_PLAN = Kind("_plan/write", PARQUET, "plan-write", "what one shard holds")
SHARD_TAR = Kind("shards", ".tar", "write", "samples as WebDataset has them")
SIDECAR = Kind("shards", PARQUET, "write", "a row per sample of the tar", schema.SIDECAR)
SHARD_STATS = Kind("shards", "_stats.json", "write", "counts as img2dataset has them")

KINDS: tuple[Kind, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Kind))

CALIBRATION = "scores/noise/calibration.json"
MANIFEST = "shards/manifest.json"
DATA_CARD = "shards/README.md"
RECIPE = "recipe.yaml"
EVALUATION = "model/eval.json"
REPORT = "report/index.html"
FUNNEL = "report/funnel.json"
DONE, LIVE, PLANS, LOGS, EXCHANGE = "_done", "_live", "_plan", "_log", "_exchange"
DATA = ("pairs", "raw", "scores", "selection", "shards", "model")  # folders whose bytes the input decides


def by_stage(stage: str) -> Iterator[Kind]:
    """The kinds that a stage writes."""
    return (kind for kind in KINDS if kind.stage == stage)
