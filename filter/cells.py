"""The cells of the noise score: each embedded pair's fold and language, and a sample of every cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np

from ..recipe import Noise
from ..settings import MEMORY_MB
from .near import near_files
from .sql import database, quoted

TOGETHER = "*"  # the group of all languages that have too few pairs for one of their own
UNKNOWN = "und"

# cosine_v1 is NULL where the pair could not be scored: such a row is in a cell and is found broken there
ROWS = """
CREATE TABLE rows AS
SELECT parse_filename(e.filename, true) AS shard, e.file_row_number AS row, e.uid AS uid, e.fold AS fold,
  {language} AS lang
FROM read_parquet({embeddings}, filename = true, file_row_number = true) e
{join}
"""
LANGUAGES = """
LEFT JOIN (SELECT uid, first(lang_v1 ORDER BY lang_v1) AS lang_v1 FROM read_parquet({files}) GROUP BY uid) l
USING (uid)
"""
GROUPED = """
CREATE TABLE grouped AS
WITH sizes AS (SELECT lang, count(*) AS n FROM rows GROUP BY lang)
SELECT shard, row, uid, fold, CASE WHEN n >= $1 THEN lang ELSE '*' END AS grp
FROM rows JOIN sizes USING (lang)
"""
CELLS = """
CREATE TABLE cells AS
SELECT row_number() OVER (ORDER BY grp, fold) - 1 AS cell, grp, fold
FROM (SELECT DISTINCT grp, fold FROM grouped)
"""
SAMPLED = """
CREATE TABLE sampled AS
SELECT cell, shard, row, uid FROM grouped JOIN cells USING (grp, fold)
QUALIFY row_number() OVER (PARTITION BY cell ORDER BY md5(hex(uid) || $1), shard, row) <= $2
"""
# one picture, by its group of near-copies where that is known, and one caption have one number each
NUMBERED = """
SELECT s.cell AS cell, s.shard AS shard, s.row AS row,
  dense_rank() OVER (ORDER BY coalesce({near}, r.url_hash, s.uid)) AS picture,
  dense_rank() OVER (ORDER BY coalesce(r.caption, hex(s.uid))) AS caption
FROM sampled s
LEFT JOIN (SELECT uid, first(url_hash ORDER BY wave) AS url_hash, first(caption ORDER BY wave) AS caption
  FROM read_parquet({raw}) WHERE uid IN (SELECT uid FROM sampled) GROUP BY uid) r USING (uid)
{join}
ORDER BY cell, shard, row
"""


@dataclass(frozen=True)
class Sample:
    """Some pairs of one cell, by (shard, row): where they lie, and numbers of their pictures and captions."""

    shard: np.ndarray  # number of the shard
    row: np.ndarray
    picture: np.ndarray
    caption: np.ndarray


@dataclass(frozen=True)
class Cells:
    """Every embedded pair's cell, in the order of shards and rows."""

    of_row: np.ndarray  # (N,) int32
    group_of_cell: np.ndarray  # (cells,)
    groups: list[str]  # languages; '*' for those calibrated together
    samples: list[Sample]

    @property
    def n(self) -> int:
        return len(self.group_of_cell)


def find_cells(
    out: Path, shards: Sequence[str], settings: Noise, sample: int, memory_mb: int = MEMORY_MB
) -> Cells:
    """The cell of every row of scores/embedding/<shard>.parquet, and at most `sample` pairs of each cell.

    shards: all names, sorted. Languages of fewer than `min_pairs` pairs share the group '*'.
    """
    with database(out, "noise", memory_mb=memory_mb) as connection:
        _load(connection, out, settings)
        salt = f"{settings.seed}"
        connection.execute(SAMPLED, [salt, sample])
        of_row = "SELECT cell::INTEGER AS cell FROM grouped JOIN cells USING (grp, fold) ORDER BY shard, row"
        cells = connection.sql("SELECT grp FROM cells ORDER BY cell").fetchnumpy()["grp"]
        groups, group_of_cell = np.unique(cells.astype(str), return_inverse=True)
        return Cells(
            of_row=np.asarray(connection.sql(of_row).fetchnumpy()["cell"]),
            group_of_cell=group_of_cell,
            groups=groups.tolist(),
            samples=_samples(connection, out, list(shards), len(cells)),
        )


def _load(connection: duckdb.DuckDBPyConnection, out: Path, settings: Noise) -> None:
    languages = settings.per_language and any((out / "scores/language").glob("*.parquet"))
    files = quoted(str(out / "scores/language/*.parquet"))
    every = quoted(TOGETHER)
    connection.execute(
        ROWS.format(
            language=f"coalesce(l.lang_v1, {quoted(UNKNOWN)})" if languages else every,
            embeddings=quoted(str(out / "scores/embedding/*.parquet")),
            join=LANGUAGES.format(files=files) if languages else "",
        )
    )
    connection.execute(GROUPED, [settings.min_pairs])
    connection.execute(CELLS)


def _samples(
    connection: duckdb.DuckDBPyConnection, out: Path, shards: list[str], n_cells: int
) -> list[Sample]:
    near = near_files(out)
    join = (
        f"LEFT JOIN read_parquet({quoted(str(near))}) n USING (uid)"
        if any(near.parent.glob(near.name))
        else ""
    )
    raw = quoted(str(out / "raw/*.parquet"))
    sql = NUMBERED.format(near="n.near_group_v1" if join else "NULL", raw=raw, join=join)
    found = connection.sql(sql).fetchnumpy()
    number = np.searchsorted(np.array(shards), found["shard"].astype(str))
    ends = np.searchsorted(found["cell"], np.arange(n_cells + 1))
    return [
        Sample(number[a:b], found["row"][a:b], found["picture"][a:b], found["caption"][a:b])
        for a, b in pairwise(ends)
    ]
