"""What a run found, against what is true: every figure of the demo's last screen, and the bars for them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..shards.duck_files import reading
from ..shards.files import readable
from ..shards.schema import EMBEDDING, NOISE
from .faults import FAULTS

ASKED = (0.05, 0.10, 0.20)
NOISE_REASONS = ("noise", "not_scored")
COPY_KINDS = ("exact copy", "re-encoded copy", "resized copy", "cropped copy")
FOUND_SQL = """
WITH places AS (
    SELECT p.uid, p.source, p.source_row, s.reason AS screened, l.lang_v1
    FROM (SELECT *, file_row_number AS place, parse_filename(filename) AS part
          FROM read_parquet('{out}/pairs/*.parquet', filename=true, file_row_number=true)) p
    JOIN (SELECT *, file_row_number AS place, parse_filename(filename) AS part
          FROM read_parquet('{out}/selection/screen/*.parquet', filename=true, file_row_number=true)) s
      USING (part, place)
    JOIN (SELECT *, file_row_number AS place, parse_filename(filename) AS part
          FROM read_parquet('{out}/scores/language/*.parquet', filename=true, file_row_number=true)) l
      USING (part, place)
)
SELECT t.*, p.uid,
    coalesce(r.reason, p.screened, d.reason, CASE WHEN k.uid IS NOT NULL THEN 'kept' ELSE 'lost' END) AS fate,
    p.lang_v1, n.near_group_v1, e.cosine_v1, e.cosine_in_sample_v1, m.mismatch_p_v1, m.mismatch_q_v1
FROM truth t
LEFT JOIN read_parquet('{out}/pairs/rejected/*.parquet') r
    ON parse_filename(r.source) = t.list AND r.source_row = t.row
LEFT JOIN places p ON parse_filename(p.source) = t.list AND p.source_row = t.row
LEFT JOIN read_parquet('{out}/selection/{name}.reasons.parquet') d ON d.uid = p.uid
LEFT JOIN read_parquet('{out}/selection/{name}.parquet') k ON k.uid = p.uid
LEFT JOIN read_parquet('{out}/scores/near/*.parquet') n ON n.uid = p.uid
LEFT JOIN embedding e ON e.uid = p.uid
LEFT JOIN noise m ON m.uid = p.uid
ORDER BY t.list, t.row
"""


def compare(out: Path, web: Path, name: str = "dataset") -> dict[str, Any]:
    """All figures of a finished run in `out` over the made web in `web`; `name` is the selection.

    Shares are in [0, 1]; what could not be reckoned (no copy fetched, no model trained) is None.
    """
    rows = found_rows(out, web, name)
    return {
        "rows": len(rows),
        "lost": sum(row["fate"] == "lost" for row in rows),
        "kinds": kinds(rows),
        "mismatches": mismatches(rows),
        "pair_copies": pair_copies(rows),
        "near": near_copies(rows),
        "language": language(rows),
        "noise": noise(rows),
        "models": models(out),
    }


def found_rows(out: Path, web: Path, name: str) -> list[dict[str, Any]]:
    """A dict for each row of truth.parquet with what became of it, in the order of the lists."""
    with duckdb.connect() as connection, reading(connection, out):
        connection.execute(f"CREATE VIEW truth AS SELECT * FROM read_parquet('{_quoted(web)}/truth.parquet')")
        for score, schema in (("embedding", EMBEDDING), ("noise", NOISE)):
            files = sorted((out / "scores" / score).glob("*.parquet"))  # none where no rule asks for scores
            tables = [schema.empty_table(), *(pq.read_table(readable(path), schema=schema) for path in files)]
            connection.register(score, pa.concat_tables(tables))
        found: pa.Table = connection.sql(FOUND_SQL.format(out=_quoted(out), name=name)).to_arrow_table()
    return found.to_pylist()


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def is_right(row: dict[str, Any]) -> bool:
    """Whether a row ended as it must. A good one may be kept, taken for noise, or be a copy."""
    fate = row["fate"]
    if row["reason"] is not None:
        return fate == row["reason"]
    if row["kind"].startswith("pair again"):
        return fate in ("kept", "pair_copy", "near_copy", *NOISE_REASONS)
    allowed = ("kept", *NOISE_REASONS, "pair_copy")
    return fate in allowed or (fate == "near_copy" and row["copies"] > 1)


def _with_copies(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = list(rows)
    pictures = Counter(row["picture"] for row in rows if not row["kind"].startswith("pair again"))
    return [row | {"copies": pictures[row["picture"]]} for row in rows]


def kinds(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By kind: how many rows, how many ended as they must, the reason expected, and all fates."""
    found: dict[str, dict[str, Any]] = {}
    for row in _with_copies(rows):
        kind = found.setdefault(
            row["kind"], {"rows": 0, "right": 0, "expected": row["reason"], "fates": Counter()}
        )
        kind["rows"] += 1
        kind["right"] += is_right(row)
        kind["fates"][row["fate"]] += 1
    return {name: kind | {"fates": dict(kind["fates"])} for name, kind in sorted(found.items())}


def mismatches(rows: list[dict[str, Any]], most: int = 50) -> list[dict[str, Any]]:
    """The first rows that did not end as they must."""
    wrong = [row for row in _with_copies(rows) if not is_right(row)]
    names = ("list", "row", "kind", "url", "caption", "reason", "fate")
    return [{name: str(row[name])[:200] for name in names} for row in wrong[:most]]


def pair_copies(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows that say a pair again: of rows with one uid, all but one must be dropped as copies."""
    by_uid: dict[bytes, list[str]] = {}
    again = {(row["picture"], row["caption"].strip()) for row in rows if row["kind"].startswith("pair again")}
    for row in rows:
        if row["uid"] is not None and (row["picture"], row["caption"].strip()) in again:
            by_uid.setdefault(row["uid"], []).append(row["fate"])
    planted = sum(row["kind"].startswith("pair again") for row in rows)
    found = sum(fates.count("pair_copy") for fates in by_uid.values())
    return {"planted": planted, "found": found, "recall": found / planted if planted else None}


def near_copies(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Copies of pictures: the share found with their original, and how many of those grouped are copies."""
    fetched = [row for row in rows if row["near_group_v1"] is not None and "again" not in row["kind"]]
    original = {row["picture"]: row["near_group_v1"] for row in fetched if row["kind"] == "clean"}
    found: dict[str, Any] = {}
    for kind in COPY_KINDS:
        copies = [row for row in fetched if row["kind"] == kind and row["picture"] in original]
        hits = sum(row["near_group_v1"] == original[row["picture"]] for row in copies)
        found[kind] = {"planted": len(copies), "found": hits}
    near = [found[kind] for kind in COPY_KINDS[1:]]
    planted, hits = sum(each["planted"] for each in near), sum(each["found"] for each in near)
    exact = found["exact copy"]
    return {
        "kinds": found,
        "exact_recall": exact["found"] / exact["planted"] if exact["planted"] else None,
        "recall": hits / planted if planted else None,
        "precision": _pair_precision(fetched),
    }


def _pair_precision(fetched: list[dict[str, Any]]) -> float | None:
    """Of all pairs of pictures in one group, the share that are copies of one picture."""
    groups: dict[bytes, Counter[int]] = {}
    for row in fetched:
        groups.setdefault(row["near_group_v1"], Counter())[row["picture"]] += 1
    together = sum(size * (size - 1) for members in groups.values() for size in [members.total()])
    true = sum(n * (n - 1) for members in groups.values() for n in members.values())
    return true / together if together else None


def language(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy of the language over the captions that have one, all and each."""
    said = [row for row in rows if row["language"] is not None and row["uid"] is not None]
    found = {
        name: float(np.mean([row["lang_v1"] == name for row in said if row["language"] == name]))
        for name in sorted({row["language"] for row in said})
    }
    right = [row["lang_v1"] == row["language"] for row in said]
    return {"accuracy": float(np.mean(right)) if right else None, "languages": found}


def noise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How well swapped captions are told, and what share of them is among those kept at each share asked for.

    Over the pairs that reached the score: fetched, first of their copies, good captions.
    """
    scored = [row for row in rows if row["fate"] in ("kept", "noise") and row["mismatch_q_v1"] is not None]
    swapped = np.array([row["swapped"] for row in scored], bool)
    column = {
        name: np.array([row[name] for row in scored], float)  # NULL becomes NaN
        for name in ("cosine_v1", "cosine_in_sample_v1", "mismatch_p_v1", "mismatch_q_v1")
    }
    return {
        "pairs": len(scored),
        "swapped": float(swapped.mean()) if len(scored) else None,
        "auc": auc(-column["mismatch_p_v1"], swapped),
        "auc_cosine": auc(column["cosine_v1"], swapped),
        "auc_in_sample": auc(column["cosine_in_sample_v1"], swapped),
        "asked": [_asked(column["mismatch_q_v1"], swapped, share) for share in ASKED],
    }


def _asked(q: np.ndarray, swapped: np.ndarray, share: float) -> dict[str, Any]:
    kept = q <= np.float32(share)
    good = int((~swapped).sum())
    return {
        "asked": share,
        "true": float(swapped[kept].mean()) if kept.any() else None,
        "kept": int(kept.sum()),
        "good_kept": float((kept & ~swapped).sum() / good) if good else None,
    }


def auc(scores: np.ndarray, bad: np.ndarray) -> float | None:
    """Chance that a good pair scores above a bad one, ties counting half; None without scores or classes."""
    if np.isnan(scores).any() or not bad.any() or bad.all():
        return None
    _, index, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[index]
    n_good, n_bad = int((~bad).sum()), int(bad.sum())
    return float((rank[~bad].sum() - n_good * (n_good + 1) / 2) / (n_good * n_bad))


def models(out: Path) -> dict[str, Any]:
    """Retrieval and classification of the trained models as evaluate wrote them; empty without them."""
    try:
        return json.loads((out / "model" / "eval.json").read_text(encoding="utf-8"))["models"]
    except FileNotFoundError:
        return {}


def retrieval(model: dict[str, Any]) -> float | None:
    """R@10, the mean of both ways."""
    found = model.get("retrieval")
    if not found:
        return None
    return (found["picture_to_caption"]["R@10"] + found["caption_to_picture"]["R@10"]) / 2


def within(figures: dict[str, Any], name: str = "dataset") -> list[str]:
    """What missed its bar, in words; empty when all is well."""
    near, noise_, said = figures["near"], figures["noise"], figures["language"]["accuracy"]
    bars = (
        ("pairs said again, found", figures["pair_copies"]["recall"], 1.0),
        ("exact copies of pictures, found", near["exact_recall"], 1.0),
        ("near copies, recall", near["recall"], 0.95),
        ("near copies, precision", near["precision"], 0.95),
        ("languages, accuracy", said, 0.97),
        ("swapped captions, AUC", noise_["auc"], 0.93),
    )
    problems = [
        f"{what}: {_show(got)}, at least {bar:g}" for what, got, bar in bars if not _reaches(got, bar)
    ]
    if figures["lost"]:
        problems.append(f"rows without a fate: {figures['lost']}")
    problems += _wrong_reasons(figures["kinds"])
    problems += [
        f"noise asked for {asked['asked']:.0%}, got {_show(asked['true'])}"
        for asked in noise_["asked"]
        if not is_kept_promise(asked)
    ]
    selected, everything = (retrieval(figures["models"].get(each, {})) for each in (name, "everything"))
    if selected is not None and everything is not None and selected <= everything:
        problems.append(f"retrieval: {selected:.3f} on the selection, {everything:.3f} on everything")
    return problems


def is_strict(kind: str, found: dict[str, Any]) -> bool:
    """Whether every row of the kind must end as expected: those with a reason, and faults that are none."""
    return kind in FAULTS or found["expected"] is not None


def is_kept_promise(asked: dict[str, Any]) -> bool:
    """Whether something was kept, with no larger a share of noise than was asked for."""
    return asked["true"] is not None and asked["true"] <= asked["asked"]


def _wrong_reasons(found: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"{kind}: {each['rows'] - each['right']} of {each['rows']} under another reason"
        for kind, each in found.items()
        if is_strict(kind, each) and each["right"] < each["rows"]
    ]


def _reaches(got: float | None, bar: float) -> bool:
    return got is not None and got >= bar


def _show(got: float | None) -> str:
    return "nothing" if got is None else f"{got:.3f}"
