"""A few pictures for each reason and along the score, the same ones in every run.

One rule: pictures are chosen by uid alone, and read from the raw tars by offset.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..errors import ShardError
from ..shards.files import open_file
from ..shards.store_path import open_path
from ..shards.tar import read_at
from .tables import Tables

SIDE = 128  # pixels, the longer side
MAX_PIXELS = 64_000_000
PLACES = (
    (1.0, "the worst"),
    (0.9, "worse than 90 % of the pairs"),
    (0.5, "in the middle"),
    (0.1, "better than 90 % of the pairs"),
    (0.0, "the best"),
)
BINS = 10_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair to show; `picture` is a small JPEG, or None where the stored one cannot be read."""

    uid: str
    caption: str
    url: str
    cosine: float | None
    p: float | None
    picture: bytes | None

    @property
    def data_uri(self) -> str | None:
        """The picture as a `data:` URI."""
        if self.picture is None:
            return None
        return "data:image/jpeg;base64," + base64.b64encode(self.picture).decode("ascii")


@dataclass(frozen=True, slots=True)
class Group:
    """Samples of a drop reason, which has `total` pairs in all, or of a place on the score."""

    label: str
    total: int | None
    samples: Sequence[Sample]


def by_reason(tables: Tables, count: int) -> list[Group]:
    """The kept, then each drop reason whose pairs have pictures, most frequent first: `count` of each."""
    found: list[tuple[str, int | None, list[bytes]]] = []
    fetched = "JOIN (SELECT uid FROM raw WHERE outcome = 'ok') USING (uid)"
    for view, label in (("kept", "'kept'"), ("dropped", "reason")):
        if count and {view, "raw"} <= tables.have:
            found += tables.rows(
                f"SELECT {label} AS label, count(*) AS n, min(uid, {count:d}) FROM {view} {fetched}"
                " GROUP BY label ORDER BY n DESC, label"
            )
    return _groups(tables, found)


def by_score(tables: Tables, count: int) -> list[Group]:
    """Pairs at the ends and at the quantiles of `mismatch_p_v1`, worst first: `count` pairs at each."""
    if not count or not {"noise", "raw"} <= tables.have:
        return []
    bin_of = f"least(floor(mismatch_p_v1::DOUBLE * {BINS})::BIGINT, {BINS - 1})"
    scored = "FROM noise WHERE isfinite(mismatch_p_v1)"
    # at most BINS rows; a quantile of every value would hold them all in memory
    counts = tables.rows(f"SELECT {bin_of} AS bin, count(*) {scored} GROUP BY bin ORDER BY bin")
    total = sum(n for _, n in counts)
    found: list[tuple[str, int | None, list[bytes]]] = []
    for place, label in PLACES if total else ():
        target = _bin_at(counts, place * total)
        order = {1.0: "mismatch_p_v1 DESC", 0.0: "mismatch_p_v1"}.get(place, f"abs({bin_of} - {target})")
        uids = tables.rows(f"SELECT uid {scored} ORDER BY {order}, uid LIMIT {count:d}")
        found.append((label, None, [uid for (uid,) in uids]))
    return _groups(tables, found)


def _bin_at(counts: Sequence[tuple[int, int]], rank: float) -> int:
    below = 0
    for number, n in counts:
        below += n
        if below >= rank:
            return number
    return counts[-1][0]


def _groups(tables: Tables, found: Sequence[tuple[str, int | None, Sequence[bytes]]]) -> list[Group]:
    """The groups of (label, total, uids), with one pass over the tables for all of them."""
    known = look_up(tables, [uid for _, _, uids in found for uid in uids]) if found else {}
    return [Group(label, n, [known[uid] for uid in uids if uid in known]) for label, n, uids in found]


def look_up(tables: Tables, uids: Sequence[bytes]) -> dict[bytes, Sample]:
    """The pairs of these uids that have a picture; none that is on a blocklist."""
    score = "noise.cosine_v1, noise.mismatch_p_v1" if "noise" in tables.have else "NULL, NULL"
    join = "LEFT JOIN noise USING (uid)" if "noise" in tables.have else ""
    unblocked = "AND uid NOT IN (SELECT uid FROM leaks WHERE blocked_v1)" if "leaks" in tables.have else ""
    rows = tables.rows(
        f"""SELECT uid, caption, url, {score}, raw.filename, raw."offset", raw.size FROM raw {join}
        WHERE uid IN (SELECT unnest(?::BLOB[])) AND outcome = 'ok' {unblocked}""",
        [list(uids)],
    )
    return {row[0]: _sample(row) for row in rows}


def _sample(row: tuple[Any, ...]) -> Sample:
    uid, caption, url, cosine, p, sidecar, offset, size = row
    try:
        with open_file(open_path(sidecar).with_suffix(".tar")) as tar:
            picture = shrink(read_at(tar, offset, size))
    except (OSError, ShardError):
        picture = None
    return Sample(uid.hex(), caption, url, cosine, p, picture)


def shrink(data: bytes, side: int = SIDE) -> bytes | None:
    """`data` as a JPEG of at most `side` pixels without metadata, or None where it is no usable picture."""
    try:
        with (
            warnings.catch_warnings(),
            Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image,
        ):
            warnings.simplefilter("error")  # Pillow warns of a bomb where it should refuse
            if image.width * image.height > MAX_PIXELS:
                return None
            image.draft("RGB", (2 * side, 2 * side))  # JPEG: decodes only the coefficients needed
            image.thumbnail((side, side))
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError):
        return None
    out = io.BytesIO()
    small.save(out, "JPEG", quality=72, optimize=True)
    return out.getvalue()
