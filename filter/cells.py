"""The cells of the noise score: each pair's fold and language, and what else is known by uid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from ..recipe import Noise
from .near import BY_EMBEDDING, BY_PDQ
from .sql import quoted

TOGETHER = "*"  # the group of all languages that have too few pairs for one of their own
UNKNOWN = "und"
Counts = Mapping[tuple[str, int], int]  # pairs by language and fold

KNOWN = pa.schema(
    [
        ("lang", pa.string()),
        ("near", pa.binary(16)),  # the group of near-copies that the picture is in; NULL where not known
        ("counted", pa.bool_()),  # passes every other rule: noise is a share of these, for no other is kept
    ]
)
# `asked` has a row per pair, numbered `place`; the others have what is known of pairs, by uid
JOINED = """
SELECT {language} AS lang, {near} AS near, {counted} AS counted
FROM asked LEFT JOIN (SELECT uid, {first} FROM ({known}) SEMI JOIN asked USING (uid) GROUP BY uid) USING (uid)
ORDER BY asked.place
"""
LANGUAGES = "SELECT uid, lang_v1, NULL::BLOB AS near, NULL::BOOLEAN AS counted FROM {files}"
NEAR = "SELECT uid, NULL::VARCHAR AS lang_v1, near_group_v1 AS near, NULL::BOOLEAN AS counted FROM {files}"
CANDIDATES = "SELECT uid, NULL::VARCHAR AS lang_v1, NULL::BLOB AS near, true AS counted FROM {files}"
FIRST = "min(lang_v1) AS lang_v1, min(near) AS near, bool_or(counted) AS counted"


@dataclass(frozen=True)
class Tables:
    """Where what is known by uid lies: SQL that can be read from, None where there is none."""

    language: str | None
    near: str | None
    candidates: str | None


def tables_of(out: Path, settings: Noise) -> Tables:
    """The files of an output folder, as they lie there."""
    languages = sorted((out / "scores/language").glob("*.parquet")) if by_language(out, settings) else []
    return Tables(*(_reading(files) for files in (languages, near_files(out), candidates_files(out))))


def _reading(files: Sequence[Path]) -> str | None:
    return f"read_parquet([{', '.join(quoted(str(file)) for file in files)}])" if files else None


def by_language(out: Path, settings: Noise) -> bool:
    """Whether languages are told apart."""
    return settings.per_language and any((out / "scores/language").glob("*.parquet"))


def near_files(out: Path) -> list[Path]:
    """The NEAR files that are valid, those of the later stage where there are any; sorted by uid."""
    found = (sorted((out / "scores" / stage).glob("*.parquet")) for stage in (BY_EMBEDDING, BY_PDQ))
    return next((files for files in found if files), [])


def candidates_files(out: Path) -> list[Path]:
    """The pairs that pass every other rule, sorted by uid; where it is missing, all do."""
    path = out / "selection" / "candidates.parquet"
    return [path] if path.exists() else []


def known(connection: duckdb.DuckDBPyConnection, uids: pa.ChunkedArray, tables: Tables) -> pa.Table:
    """What is known of each of `uids`, in their order, as KNOWN. Spills what does not fit its memory."""
    connection.register(
        "asked", pa.table({"uid": uids, "place": pa.array(np.arange(len(uids), dtype=np.int32))})
    )
    given = ((LANGUAGES, tables.language), (NEAR, tables.near), (CANDIDATES, tables.candidates))
    parts = [sql.format(files=files) for sql, files in given if files]
    empty = LANGUAGES.format(files="(SELECT NULL::BLOB AS uid, NULL::VARCHAR AS lang_v1)") + " WHERE false"
    sql = JOINED.format(
        language=f"coalesce(lang_v1, {quoted(UNKNOWN)})" if tables.language else quoted(TOGETHER),
        near="near",
        counted="coalesce(counted, false)" if tables.candidates else "true",
        first=FIRST,
        known=" UNION ALL ".join(parts or [empty]),
    )
    found = connection.sql(sql).to_arrow_table().cast(KNOWN)
    connection.unregister("asked")
    return found


def count(languages: pa.ChunkedArray, fold: np.ndarray) -> Counter[tuple[str, int]]:
    """Pairs by language and fold."""
    names, codes = _coded(languages)
    folds, numbers = np.unique(fold, return_inverse=True)
    n = np.bincount(codes * len(folds) + numbers, minlength=len(names) * len(folds))
    return Counter(
        {
            (name, int(one)): int(n[i * len(folds) + j])
            for i, name in enumerate(names)
            for j, one in enumerate(folds)
        }
    )


def _coded(texts: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    coded = texts.combine_chunks().dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


@dataclass(frozen=True)
class Cells:
    """The groups that are calibrated, and the cells that scores are compared in: one fold of one group."""

    groups: list[str]  # languages; '*' for those calibrated together
    cells: list[tuple[int, int]]  # (number of the group, fold)
    sizes: list[int]  # pairs of each cell
    group_of_language: dict[str, int]

    @property
    def n(self) -> int:
        return len(self.cells)

    @property
    def group_of_cell(self) -> np.ndarray:
        return np.array([group for group, _ in self.cells])

    def of(self, languages: pa.ChunkedArray, fold: np.ndarray) -> np.ndarray:
        """(N,) int32 the cell of each pair."""
        names, codes = _coded(languages)
        groups = np.array([self.group_of_language[name] for name in names], np.int64)
        folds = np.array([fold for _, fold in self.cells])
        width = int(folds.max()) + 1
        number = np.full(len(self.groups) * width, -1, np.int32)
        number[self.group_of_cell * width + folds] = np.arange(self.n)
        return number[groups[codes] * width + fold]


def find_cells(counts: Iterable[Counts], min_pairs: int) -> Cells:
    """The cells, from the counts of all sources. Languages of fewer pairs than `min_pairs` share a group."""
    total: Counter[tuple[str, int]] = Counter()
    for some in counts:
        total.update(some)
    total = +total  # no cell without a pair
    by_language: Counter[str] = Counter()
    for (language, _), n in total.items():
        by_language[language] += n
    group = {name: name if n >= min_pairs else TOGETHER for name, n in by_language.items()}
    groups = sorted(set(group.values()))
    number = {name: groups.index(group[name]) for name in group}
    sizes: Counter[tuple[int, int]] = Counter()
    for (language, fold), n in total.items():
        sizes[number[language], fold] += n
    cells = sorted(sizes)
    return Cells(groups, cells, [sizes[cell] for cell in cells], number)
