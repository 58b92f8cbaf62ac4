"""What was asked to be taken out: read from a list, kept as hashes with the reason, remembered by `decide`.

The rule: a redacted pair that the rules would keep has the reason `redacted`, in every selection. So it is
known which place it had in the dataset, and the pairs around it keep theirs (shards/plan.py). A URL or the
sha256 of a picture takes out all pairs of that picture, whatever list brings them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ConfigError, RowError
from ..runner import Tally, Task
from ..shards.commit import recorded, write_table
from ..shards.ledger import write_tally
from ..shards.schema import REDACTED, text_hash
from .sql import quoted

FILE = Path("redaction") / "list.parquet"
HEX = re.compile(r"[0-9a-fA-F]+")
LINES = {32: "uid", 64: "sha256"}  # by hex digits


def read_list(path: Path, reason: str, canonical: Callable[[str], str | None]) -> list[dict[str, Any]]:
    """Rows of REDACTED: a line is a URL, a uid (32 hex digits) or a sha256 (64); behind a tab its own reason.

    Raises ConfigError for a line that is none of these, and where there is none at all.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: expected URLs, uids or sha256, one a line") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start}: not UTF-8: save the list as UTF-8") from error
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        asked, _, own = (part.strip() for part in line.partition("\t"))
        if asked and not asked.startswith("#"):
            rows.append(_row(f"{path}: line {number}", asked, canonical) | {"reason": own or reason})
    if not rows:
        raise ConfigError(f"{path}: nothing in it: expected URLs, uids or sha256, one a line")
    return rows


def _row(where: str, asked: str, canonical: Callable[[str], str | None]) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(("uid", "url_hash", "sha256"))
    if HEX.fullmatch(asked) and len(asked) in LINES:
        return found | {LINES[len(asked)]: bytes.fromhex(asked)}
    try:
        url = canonical(asked)
    except RowError as error:
        url, why = None, f" ({error.reason})"
    else:
        why = ""
    if not url:
        raise ConfigError(
            f"{where}: {asked[:80]!r}{why}: expected a URL, a uid (32 hex digits) or a sha256 (64)"
        )
    return found | {"url_hash": text_hash(url)}


def remember(out: Path, rows: list[dict[str, Any]]) -> int:
    """Add rows to those that are kept, each once with its first reason. Returns how many are new."""
    before = pq.read_table(out / FILE, schema=REDACTED).to_pylist() if (out / FILE).exists() else []
    held = {_key(row): row for row in reversed([*before, *rows])}
    order = sorted(held.values(), key=lambda row: tuple(value or b"" for value in _key(row)))
    with recorded() as files:
        write_table(pa.Table.from_pylist(order, schema=REDACTED), out / FILE)
    named = {path.relative_to(out).as_posix(): digest for path, digest in files.items()}
    write_tally(out, Task("redact", "list"), Tally({"remembered": len(order)}), files=named)
    return len(order) - len(before)


def _key(row: dict[str, Any]) -> tuple[bytes | None, ...]:
    return row["uid"], row["url_hash"], row["sha256"]


def redacted_sql(out: Path, near: Path) -> str | None:
    """SQL that is true for a `uid` to take out; None where nothing was asked for, or nothing is fetched.

    near: pattern of the NEAR files that are valid: a caption goes with the picture that it is written with.
    """
    raw = out / "raw" / "*.parquet"
    if not (out / FILE).exists() or not any(raw.parent.glob(raw.name)):
        return None
    asked, fetched = (f"read_parquet({quoted(str(path))})" for path in (out / FILE, raw))
    urls = (
        f"(SELECT url_hash FROM {asked} UNION SELECT url_hash FROM {fetched} WHERE sha256 IN"
        f" (SELECT sha256 FROM {asked} WHERE sha256 IS NOT NULL))"
    )
    uids = f"SELECT uid FROM {asked} UNION SELECT uid FROM {fetched} WHERE url_hash IN {urls}"
    if any(near.parent.glob(near.name)):
        groups = f"read_parquet({quoted(str(near))}) WHERE near_adopted_v1 AND near_group_v1 IN {urls}"
        uids += f" UNION SELECT uid FROM {groups}"
    return f"uid IN (SELECT uid::UUID FROM ({uids}) WHERE uid IS NOT NULL)"
