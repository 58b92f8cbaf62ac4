"""_log/sites/: what each site was asked, and when; a file per raw shard. No data: it differs between runs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..shards.files import readable
from .consent import Consents

SITES = Path("_log") / "sites"
SCHEMA = pa.schema(
    [
        ("origin", pa.string()),  # scheme://host, with the port where it is unusual
        ("agent", pa.string()),  # the name under which it was asked
        ("asked_at", pa.timestamp("ms", "UTC")),
        ("robots_outcome", pa.string()),  # 'ok', or what became of asking for robots.txt
        ("robots_status", pa.int16()),
        ("crawl_delay_s", pa.float32()),
        ("has_tdmrep", pa.bool_()),
        ("has_ai_txt", pa.bool_()),
        ("unreachable_since", pa.timestamp("ms", "UTC")),  # of a robots.txt that was not to be had
    ]
)


def site_log(consents: Consents) -> pa.Table:
    """One row per site that a task asked, or of which the process knew already."""
    rows = [
        {
            "origin": site.origin,
            "agent": consents.names[0],
            "asked_at": round(site.asked_at * 1000),
            "robots_outcome": site.outcome,
            "robots_status": site.status,
            "crawl_delay_s": site.robots.delay_s if site.robots else 0.0,
            "has_tdmrep": site.tdm is not None,
            "has_ai_txt": site.ai is not None,
            "unreachable_since": None if site.since is None else round(site.since * 1000),
        }
        for site in consents.sites
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def outages(out: Path) -> dict[str, float]:
    """Since when (seconds since 1970) the robots.txt of each site is unreachable, by its latest log."""
    latest: dict[str, tuple[float, float | None]] = {}
    for path in sorted((out / SITES).glob("*.parquet")):
        table = pq.read_table(readable(path), columns=["origin", "asked_at", "unreachable_since"])
        for row in table.to_pylist():
            asked, since = row["asked_at"].timestamp(), row["unreachable_since"]
            if row["origin"] not in latest or latest[row["origin"]][0] < asked:
                latest[row["origin"]] = (asked, since and since.timestamp())
    return {origin: since for origin, (_, since) in latest.items() if since is not None}
