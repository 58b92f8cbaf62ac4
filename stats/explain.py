"""The whole story of one pair: where it came from, what each stage found, how it ended, where it lies now.

One rule: every stage is asked, and one that has not run, or has nothing on the pair, says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RowError
from .gaps import gaps
from .setbacks import not_in_shards, setbacks
from .story import summary
from .tables import Tables, opened
from .text import visible

MOST_PAIRS = 100
MOST_ROWS = 20  # rows of the lists that are shown for one pair
UID = re.compile(r"[0-9a-fA-F]{32}")
GIVEN_MAX = 2_000  # characters that pairs/rejected keeps of a URL


@dataclass(frozen=True, slots=True)
class Story:
    """What is known of a uid or a URL: its pairs, and the rows of the lists that could not be one."""

    asked: str
    pairs: tuple[dict[str, Any], ...]
    rejected: tuple[dict[str, Any], ...]
    more: int = 0  # further pairs of this URL, which are not told

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON; bytes are hex."""
        return {
            "asked": self.asked,
            "pairs": list(self.pairs),
            "rejected": list(self.rejected),
            "more_pairs": self.more,
        }


def explain(out: Path, what: str, canonical: Callable[[str], str | None] | None = None) -> Story:
    """The story of `what`: a uid (32 hex digits), the hex key of a raw picture, or a URL as a list has it.

    canonical: makes a URL canonical; None, or a RowError, where it cannot.
    A URL that bears several captions has several pairs. Raises ConfigError where nothing is known of `what`.
    """
    what = what.strip()
    with opened(out) as tables:
        uids, more = _find(tables, what, _spellings(what, canonical))
        pairs = tuple(_pair(tables, uid) for uid in uids)
        rejected = _rejected(tables, _spellings(what, canonical))
        if not pairs and not rejected:
            raise ConfigError(_unknown(tables, what))
    return Story(what, pairs, rejected, more)


def _spellings(what: str, canonical: Callable[[str], str | None] | None) -> list[str]:
    """The URL as given and as `pairs` has it."""
    try:
        better = canonical(what) if canonical is not None else None
    except RowError:
        better = None
    return [what, better] if better and better != what else [what]


def _find(tables: Tables, what: str, urls: list[str]) -> tuple[list[bytes], int]:
    """uids of the pairs, at most MOST_PAIRS, and how many more there are."""
    if "pairs" not in tables.have:
        return [], 0
    if UID.fullmatch(what):
        where, values = "uid = $1 OR url_hash = $1", [bytes.fromhex(what)]
    else:
        where, values = "list_contains($1::VARCHAR[], url)", [urls]
    found = tables.rows(
        f"SELECT DISTINCT uid FROM pairs WHERE {where} ORDER BY uid LIMIT {MOST_PAIRS + 1}", values
    )
    if len(found) <= MOST_PAIRS:
        return [uid for (uid,) in found], 0
    count = tables.rows(f"SELECT count(DISTINCT uid) FROM pairs WHERE {where}", values)[0][0]
    return [uid for (uid,) in found[:MOST_PAIRS]], count - MOST_PAIRS


def _rejected(tables: Tables, urls: list[str]) -> tuple[dict[str, Any], ...]:
    if "rejected" not in tables.have:
        return ()
    cut = [url[:GIVEN_MAX] for url in urls]
    return tuple(
        tables.records(
            "SELECT source, source_row, reason, url, caption FROM rejected"
            f" WHERE list_contains($1::VARCHAR[], url) ORDER BY source, source_row LIMIT {MOST_ROWS}",
            [cut],
        )
    )


def _unknown(tables: Tables, what: str) -> str:
    looked = []
    for view, words in (("pairs", "pairs"), ("rejected", "rejected rows")):
        if view in tables.have:
            looked.append(f"{tables.rows(f'SELECT count(*) FROM {view}')[0][0]:,} {words}")
    kind = "uid or key" if UID.fullmatch(what) else "URL"
    where = " and ".join(looked) or "no pairs/*.parquet there: run `pairmill ingest` first"
    unread = [f"{gap.about} failed" for gap in gaps(tables.out) if gap.stage == "ingest"]
    where += f"; not read: {', '.join(unread[:5])}" if unread else ""
    hint = "" if UID.fullmatch(what) else "; give a URL as the list has it, or a uid (32 hex digits)"
    return f"{tables.out}: nothing is known of the {kind} {visible(what)!r}; looked through {where}{hint}"


def _ask(tables: Tables, view: str, columns: str, uid: bytes, rest: str = "") -> list[dict[str, Any]]:
    """Rows of `view` for the uid; none where the view does not exist."""
    if view not in tables.have:
        return []
    return tables.records(f"SELECT {columns} FROM {view} WHERE uid = $1 {rest}", [uid])


def _pair(tables: Tables, uid: bytes) -> dict[str, Any]:
    """Everything about one uid, as plain values; None where a stage has nothing on it."""

    def one(view: str, columns: str) -> dict[str, Any] | None:
        return next(iter(_ask(tables, view, columns, uid, "LIMIT 1")), None)

    rows = _ask(
        tables, "pairs", "url, caption, source, source_row, given", uid, "ORDER BY source, source_row"
    )
    screens = {row["reason"] for row in _ask(tables, "screen", "reason", uid)} - {"pair_copy"}
    pair: dict[str, Any] = {
        "uid": uid.hex(),
        "url": rows[0]["url"],
        "caption": rows[0]["caption"],
        "rows": [_row(row) for row in rows[:MOST_ROWS]],
        "row_count": len(rows),
        "copies": one("copies", "* EXCLUDE (uid, filename, pair_rank_v1)"),
        "language": one("language", "lang_v1, lang_prob_v1"),
        "screen": next(iter(screens - {None}), "passed") if "screen" in tables.have else None,
        "fetch": [_attempt(row) for row in _ask(tables, "attempts", ATTEMPT, uid, "ORDER BY wave")],
        "near": _near(tables, uid),
        "scores": one("embedding", "fold, cosine_v1, loss_v1"),
        "noise": one("noise", "* EXCLUDE (uid, cosine_v1, filename)"),
        "witnesses": _witnesses(tables, uid),
        "decisions": _decisions(tables, uid),
        "dataset": [
            {**row, "shard": Path(row["shard"]).stem}
            for row in _ask(tables, "samples", 'filename AS shard, key, "offset", size', uid)
        ],
    }
    pair["failed"] = setbacks(tables, uid)
    pair["not_in_shards"] = {} if pair["dataset"] else not_in_shards(tables, uid)
    return {**pair, "summary": summary(pair)}


ATTEMPT = """filename AS shard, wave, key, outcome, http_status, final_url, format, original_bytes,
    original_width, original_height, lower(hex(sha256)) AS sha256, width, height, "offset", size"""


def _row(row: dict[str, Any]) -> dict[str, Any]:
    given = row["given"]
    with suppress(ValueError):  # what is no JSON is shown as it stands
        given = json.loads(given) if given else None
    return {"source": row["source"], "source_row": row["source_row"], "given": given}


def _attempt(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "shard": Path(row["shard"]).stem}


def _near(tables: Tables, uid: bytes) -> dict[str, Any] | None:
    """The group of near-copies, with the pair that stands for it."""
    found = _ask(tables, "near", "near_group_v1, near_rank_v1, near_size_v1, near_adopted_v1", uid)
    if not found:
        return None
    best = found[0].pop("near_group_v1")
    said = {**found[0], "near_group_v1": best.hex()}
    if said["near_rank_v1"] > 0:
        sql = "SELECT url, caption FROM raw WHERE url_hash = $1 AND outcome = 'ok' ORDER BY uid LIMIT 1"
        said["best"] = next(iter(tables.records(sql, [best])), None) if "raw" in tables.have else None
    return said


def _witnesses(tables: Tables, uid: bytes) -> list[dict[str, Any]]:
    """The other captions of the picture and its near-copies, the best by their own score first.

    What they said together is in the pair's `agree_v1` and `others_v1`.
    """
    if not {"noise", "raw"} <= tables.have:
        return []
    near = "near_group_v1" if "near" in tables.have else "NULL::BLOB"
    group = f"coalesce({near}, url_hash)"
    pictures = "raw LEFT JOIN near USING (uid)" if "near" in tables.have else "raw"
    return tables.records(
        f"""WITH own AS (SELECT {group} AS shown, caption FROM {pictures} WHERE uid = $1 LIMIT 1)
        SELECT lower(hex(first(uid ORDER BY uid))) AS uid, raw.caption, first(url ORDER BY uid) AS url,
            min(mismatch_q_v2) AS mismatch_q_v2
        FROM {pictures} JOIN noise USING (uid), own
        WHERE {group} = own.shown AND raw.caption <> own.caption AND mismatch_p_v2 IS NOT NULL
        GROUP BY raw.caption ORDER BY mismatch_q_v2, uid LIMIT {MOST_ROWS}""",
        [uid],
    )


def _decisions(tables: Tables, uid: bytes) -> dict[str, str]:
    """The fate under each selection: `kept` or the reason."""
    folder = tables.out / "selection"
    names = sorted(path.name.removesuffix(".reasons.parquet") for path in folder.glob("*.reasons.parquet"))
    names += [path.stem for path in sorted(folder.glob("*.parquet")) if path.name.count(".") == 1]
    fates = {}
    for name in dict.fromkeys(names):
        tables.have -= {"kept", "dropped"}
        tables.select(name)
        if _ask(tables, "kept", "1", uid, "LIMIT 1"):
            fates[name] = "kept"
        elif reasons := _ask(tables, "dropped", "reason", uid, "LIMIT 1"):
            fates[name] = reasons[0]["reason"]
    return fates
