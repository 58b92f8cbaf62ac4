"""Two selections side by side: how many pairs one keeps and the other drops, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..settings import MEMORY_MB
from .sql import database, quoted

EXAMPLES = 5

SQL = """
SELECT a.reason AS a, b.reason AS b, count(*) AS n, min(uid, {examples}) AS uids
FROM ({a}) a FULL JOIN ({b}) b USING (uid) GROUP BY ALL ORDER BY n DESC, a, b
"""
FATES = """
SELECT uid, 'kept' AS reason FROM read_parquet({kept})
UNION ALL SELECT uid, reason FROM read_parquet({dropped})
"""


def differences(out: Path, first: str, second: str, memory_mb: int = MEMORY_MB) -> dict[str, Any]:
    """How the selections `first` and `second` of a folder differ.

    Returns the pairs that both keep, that one of them keeps, and `changes`: for each two fates that differ
    the number of pairs and some uids. A pair that one of them does not know has the fate 'unknown' there.
    Raises ConfigError for a selection that is not there.
    """
    sides = {"a": _fates(out, first), "b": _fates(out, second)}
    with database(out, "diff", memory_mb=memory_mb, threads=None) as connection:
        rows = connection.sql(SQL.format(examples=EXAMPLES, **sides)).fetchall()
    fates = [(a or "unknown", b or "unknown", n, uids) for a, b, n, uids in rows]
    return {
        "both": sum(n for a, b, n, _ in fates if a == b == "kept"),
        f"only_{first}": sum(n for a, b, n, _ in fates if a == "kept" != b),
        f"only_{second}": sum(n for a, b, n, _ in fates if a != "kept" == b),
        "changes": [
            {first: a, second: b, "pairs": n, "uids": [uid.hex() for uid in uids]}
            for a, b, n, uids in fates
            if a != b
        ],
    }


def _fates(out: Path, name: str) -> str:
    kept, dropped = (out / "selection" / f"{name}{end}" for end in (".parquet", ".reasons.parquet"))
    if not (kept.exists() and dropped.exists()):
        paths = (out / "selection").glob("*.reasons.parquet")
        there = sorted(path.name.removesuffix(".reasons.parquet") for path in paths)
        raise ConfigError(
            f"{kept}: no such selection; there are: {', '.join(there) or 'none'}: run `pairmill decide` first"
        )
    return FATES.format(kept=quoted(str(kept)), dropped=quoted(str(dropped)))
