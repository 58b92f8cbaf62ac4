"""Samples where they lie: tars and their Parquet sidecars, read shard by shard into plain arrays.

Two kinds of folder give samples: the written dataset (`shards/`), and raw shards with a selection.
What is kept of a pair is some 100 bytes: where its picture's bytes are, its tokens, and who equals whom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from ..errors import DataError, ShardError, may_pass
from ..shards.files import readable
from ..shards.selection import is_selected, read_selection, uids_to_array
from .folds import Groups, find_groups, read_groups

Keep = Callable[[pa.Table], np.ndarray]  # table of RAW columns `uid` and `url_hash` to (N,) bool


@dataclass(frozen=True, slots=True)
class Pairs:
    """Samples as arrays of one length N, their captions as text."""

    uid: np.ndarray  # int64: the first 8 bytes of the pair's uid
    tar: np.ndarray  # int32: the shard's number in its source
    offset: np.ndarray  # int64: of the picture's bytes in the tar
    size: np.ndarray  # int64
    picture: np.ndarray  # int64: equal numbers, equal pictures or near-copies
    caption: np.ndarray  # int64: equal numbers, equal captions
    label: np.ndarray  # int64: equal numbers, one class; the caption's where no column says it
    text: pa.Array  # large_string

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples as arrays of one length N, as `Pairs` has them; tokens lie flat."""

    uid: np.ndarray
    tar: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    picture: np.ndarray
    caption: np.ndarray
    label: np.ndarray
    start: np.ndarray  # int64: of the caption in `tokens`
    length: np.ndarray  # int32: tokens of the caption
    tokens: np.ndarray  # int32, (sum of lengths,)

    def __len__(self) -> int:
        return len(self.offset)


class Source:
    """The shards of a folder that hold samples, in the order of their names."""

    weights: Mapping[Path, float] | None = None  # of the folders that its tables are in, where they are mixed
    label: str | None = None  # column of the tables that says which pairs are of one class

    def __init__(
        self,
        tables: Sequence[Path],
        keep: Keep | None = None,
        *,
        raw: bool = False,
        near: Groups | None = None,
    ) -> None:
        """near: of raw shards, the pairs whose pictures have near-copies: each such group is one picture."""
        self.tables = tuple(tables)
        self._said: dict[str, str] = {}
        self._keep, self._raw, self._near = keep, raw, near

    def say(self, path: Path) -> None:
        """Take captions from a Parquet of `uid` and one column of text in place of the pairs' own.

        Held in memory: 100 bytes for each. Raises DataError where it is no such file.
        """
        try:
            table = pq.read_table(readable(path))
            (text,) = (name for name in table.column_names if name != "uid")
            uids = [uid.hex() for uid in table["uid"].to_pylist()]
            self._said = dict(zip(uids, table[text].to_pylist(), strict=True))
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise DataError(
                f"training.captions {path}: expected a Parquet file of uid and a column of text: {error}"
            ) from error

    def _spoken(self, table: pa.Table) -> pa.Table:
        if not self._said:
            return table
        uids = (uid.hex() for uid in table["uid"].to_pylist())
        said = [
            self._said.get(uid) or own for uid, own in zip(uids, table["caption"].to_pylist(), strict=True)
        ]
        return table.set_column(table.column_names.index("caption"), "caption", pa.array(said, pa.string()))

    @cached_property
    def counts(self) -> np.ndarray:
        """(shards,) int64: how many samples each shard gives."""
        if not self._raw:
            return np.array([pq.read_metadata(readable(path)).num_rows for path in self.tables], np.int64)
        return np.array([int(self._mask(path).sum()) for path in self.tables], np.int64)

    @property
    def total(self) -> int:
        """How many samples there are."""
        return int(self.counts.sum())

    def summary(self) -> str:
        """A digest of how many samples each table gives, and of which the first one has."""
        found = xxhash.xxh3_128(self.counts.tobytes())
        for path in self.tables:
            found.update(path.name.encode())
        found.update(short_uids(self.table(0)).tobytes())
        return found.hexdigest()

    def tar(self, shard: int) -> Path:
        """Where the pictures of a shard lie."""
        return self.tables[shard].with_suffix(".tar")

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {path.stem: number for number, path in enumerate(self.tables)}

    def tars(self, table: pa.Table, shard: int) -> np.ndarray:
        """(N,) int32: the number of the shard whose tar holds each picture: of raw shards perhaps another."""
        tars = np.full(len(table), shard, np.int32)
        if self._raw and table["tar"].null_count < len(table):
            elsewhere = np.flatnonzero(table["tar"].is_valid().to_numpy())
            tars[elsewhere] = [self._numbers[tar] for tar in table["tar"].drop_null().to_pylist()]
        return tars

    def _mask(self, path: Path) -> np.ndarray:
        table = _read(path, ["uid", "url_hash", "outcome"])
        mask = np.asarray(pc.equal(table["outcome"], "ok"))
        return mask & self._keep(table) if self._keep else mask

    def _table(self, path: Path) -> pa.Table:
        other = "url_hash" if self._raw else "uid"  # stands for the picture where its bytes have no digest
        columns = {"uid", "caption", "offset", "size", "sha256", other, self.label or "caption"}
        if self.label is not None and self.label not in pq.read_schema(readable(path)).names:
            raise DataError(
                f"{path}: has no column {self.label!r}, which the system reads its labels from; there are"
                f" {', '.join(pq.read_schema(readable(path)).names)}"
            )
        columns |= {"tar"} if self._raw else set()
        table = self._spoken(_read(path, sorted(columns)))
        table = table.append_column("label", table[self.label or "caption"].cast(pa.string()))
        table = table.append_column("place", table[other])
        return table.filter(pa.array(self._mask(path))) if self._raw else table

    def captions(self) -> Iterator[str]:
        """Every caption, in the order of the shards."""
        for path in self.tables:
            yield from self._table(path)["caption"].to_pylist()

    def table(self, shard: int) -> pa.Table:
        """The rows of a shard that are samples: `uid`, `caption`, `offset`, `size` and more."""
        return self._table(self.tables[shard])

    def places(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """(n,) offsets and (n,) sizes of the samples' pictures that lie in a shard's tar."""
        mine = []
        for number in sorted({shard, *self._pointing.get(shard, ())}):
            table = self.table(number)
            mine.append(table.filter(pa.array(self.tars(table, number) == shard)))
        table = pa.concat_tables([table.select(["offset", "size"]) for table in mine])
        return table["offset"].to_numpy(), table["size"].to_numpy()

    @cached_property
    def _pointing(self) -> dict[int, set[int]]:
        """By a tar's number those of other shards with samples whose pictures lie in it."""
        found: dict[int, set[int]] = {}
        for number, path in enumerate(self.tables if self._raw else ()):
            for tar in pc.unique(_read(path, ["tar"])["tar"].drop_null()).to_pylist():
                found.setdefault(self._numbers[tar], set()).add(number)
        return found

    def uids(self) -> np.ndarray:
        """(total,) int64, of every sample."""
        return np.concatenate([short_uids(self._table(path)) for path in self.tables])

    def pairs(self, shard: int) -> Pairs:
        """The samples of one shard."""
        table = self._table(self.tables[shard])
        picture = _labels(pc.coalesce(*_binary(table, "sha256", "place")))
        if self._near is not None:
            copied, group = find_groups(table, self._near)
            picture[copied] = np.ascontiguousarray(group).view(np.int64)[::2]
        return Pairs(
            uid=short_uids(table),
            tar=self.tars(table, shard),
            offset=table["offset"].to_numpy(),
            size=table["size"].to_numpy(),
            picture=picture,
            caption=_labels(*_binary(table, "caption")),
            label=_labels(pc.coalesce(*_binary(table, "label", "uid"))),
            text=table["caption"].cast(pa.large_string()).combine_chunks(),
        )


def short_uids(table: pa.Table) -> np.ndarray:
    """(N,) int64: the first 8 bytes of each uid."""
    return uids_to_array(table["uid"]).view(np.int64).reshape(-1, 2)[:, 0].copy()


def _binary(table: pa.Table, *names: str) -> list[pa.ChunkedArray]:
    return [table[name].cast(pa.binary()) for name in names]


def _labels(values: pa.ChunkedArray) -> np.ndarray:
    hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, values.to_pylist()), np.uint64, len(values))
    return hashes.view(np.int64)


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(readable(path), columns=columns)
    except (pa.ArrowException, OSError) as error:
        if may_pass(error):
            raise
        raise ShardError(path, None, f"cannot be read as a shard's table: {error}") from error


def dataset_source(folder: Path) -> Source:
    """The samples of a written dataset. Raises DataError where there are fewer than two."""
    tables = sorted(folder.glob("*.parquet"))
    advice = "give a longer list, or leave training out with --set train.enabled=false"
    return _checked(Source(tables), folder, advice if tables else "run `pairmill write` first")


def mixed_source(weights: Mapping[Path, float]) -> Source:
    """The samples of written datasets, each with its weight. Raises DataError as `dataset_source` does."""
    tables = [table for folder in weights for table in dataset_source(folder).tables]
    source = Source(tables)
    source.weights = dict(weights)
    return source


def raw_source(
    folder: Path, keep: Keep | None, advice: str = "give a longer list, or loosen the rules"
) -> Source:
    """The fetched pairs of raw shards that `keep` takes. Raises DataError where there are fewer than two."""
    near = read_groups(folder.with_name("scores") / "near")
    source = Source(sorted(folder.glob("*.parquet")), keep, raw=True, near=near)
    return _checked(source, folder, advice)


def _checked(source: Source, folder: Path, advice: str) -> Source:
    found = source.total
    if found < 2:
        raise DataError(
            f"{folder}: {found} pairs to learn from, expected at least 2,"
            f" for each is held against others: {advice}"
        )
    return source


class Selected:
    """Keeps the pairs whose uid is in a selection file, which is read once in a process."""

    def __init__(self, path: Path) -> None:
        """Raises DataError where it is no selection."""
        self.path = path
        self._chosen = read_selection(path)

    def __call__(self, table: pa.Table) -> np.ndarray:
        """(N,) bool."""
        return is_selected(uids_to_array(table["uid"]), self._chosen)

    def __reduce__(self) -> tuple[type[Selected], tuple[Path]]:
        return Selected, (self.path,)
