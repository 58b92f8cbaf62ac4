"""`pairmill redact`: what must not be in a dataset is taken out of it, with a proof, and stays out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .folders import Where
from .shards.store_path import reach

STAGES = ("decide", "plan-write", "write", "manifest", "report")


def redact(
    folder: Where,
    list: Path,
    *,
    reason: str = "not given",
) -> int:
    """Take pairs out of a dataset: only their shards are written again, and later runs remember.

    Parameters
    ----------
    list
        a text file: a URL, a uid (32 hex digits) or the sha256 of a picture (64) a line; `#` begins a comment
    reason
        why, kept with each line that has none of its own behind a tab
    """
    reach(folder)
    print(json.dumps(redact_list(folder, list, reason)))
    return 0


def redact_list(out: Path, list_: Path, reason: str, **how: Any) -> dict[str, Any]:
    """Remember the list, decide every selection again, write the shards that change. Returns the proof.

    The proof (also report/redaction-NNNN.json) has for each shard that changed, and for the manifest, the
    sha256 before and after, and the uids that went. how: `engine` and `progress` of `pipeline.run`.
    Raises ConfigError for a list that is none, and what `pipeline.run` raises.
    """
    from .crawl.url import canonical_url
    from .filter.redaction import read_list, remember
    from .pins import command_recipe, stored_recipe
    from .pipeline import run
    from .shards.commit import locked, write_json
    from .shards.ledger import finished_tasks, stages
    from .shards.manifest import dataset_digests

    recipe = stored_recipe(out)
    rows = read_list(list_, reason, canonical_url)
    before = dataset_digests(out)
    with locked(out):
        new = remember(out, rows)
    begun = stages(out)
    for name in finished_tasks(out, "decide"):
        if name not in (recipe.decide.name, "everything"):
            run(command_recipe(out, "decide", {"decide.name": name}), out, command="decide", **how)
    if finished_tasks(out, "decide"):
        run(recipe, out, stages=[stage for stage in STAGES if stage in begun], **how)
    after = dataset_digests(out)
    proof = {"list": list_.name, "lines": len(rows), "new": new, **_difference(before, after)}
    number = 1 + sum(1 for _ in (out / "report").glob("redaction-*.json"))
    path = out / "report" / f"redaction-{number:04d}.json"
    write_json(proof, path)
    print(f"Proof: {path}", file=sys.stderr)
    return proof


def _difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    changed = [
        {"shard": name, "before": before["shards"].get(name), "after": after["shards"].get(name)}
        for name in sorted({*before["shards"], *after["shards"]})
        if before["shards"].get(name) != after["shards"].get(name)
    ]
    gone = sorted(uid.hex() for uid in before["uids"] - after["uids"])
    return {
        "manifest_sha256": {"before": before["manifest"], "after": after["manifest"]},
        "samples": {"before": len(before["uids"]), "after": len(after["uids"])},
        "removed": gone,
        "shards_changed": changed,
        "shards_unchanged": len(after["shards"]) - sum(1 for one in changed if one["after"]),
    }
