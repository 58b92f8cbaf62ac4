"""The page of a trial: what rules would keep, which of them agree, and pictures of each reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import sections
from .page import POLICY, STYLE
from .samples import Group, look_up
from .tables import opened
from .text import escape
from .widgets import bar, cards, share, table

NOTE = "The first pairs of each reason by uid, which is a fair draw. Nothing was decided and nothing written."


def trial_page(
    out: Path, found: Mapping[str, Any], examples: Mapping[str, Sequence[bytes]], title: str
) -> str:
    """HTML of a trial. found: what `Trial.as_json` gives; examples: uids by reason, 'kept' among them."""
    with opened(out) as tables:
        uids = [uid for some in examples.values() for uid in some]
        known = look_up(tables, uids) if uids and "raw" in tables.have else {}
    totals = {"kept": found["kept"], **found["dropped"]}
    groups = [
        Group(reason, totals[reason], [known[uid] for uid in examples.get(reason, ()) if uid in known])
        for reason in totals
    ]
    parts = (
        ("What would be kept", _funnel(found)),
        ("Which rules agree", _overlap(found)),
        ("Languages", _languages(found["languages"])),
        ("What would be kept, what would be dropped", sections.strips(groups, NOTE)),
    )
    body = "".join(f"<section><h2>{name}</h2>{inner}</section>" for name, inner in parts if inner)
    verdict = f"{found['kept']:,} of {found['seen']:,} pairs would be kept"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · a trial · pairmill</title>
<style>{STYLE.read_text(encoding="utf-8")}</style></head>
<body><header><p class="brand"><b>pairmill</b> · {escape(title)}, a trial</p><h1>{verdict}.</h1></header>
<main>{body}</main></body></html>
"""


def _funnel(found: Mapping[str, Any]) -> str:
    whole = found["seen"] or 1
    lines = [("", reason, n) for reason, n in found["dropped_before"].items()]
    lines += [("these rules", reason, n) for reason, n in found["dropped"].items()]
    rows = [
        [
            f"<code>{escape(reason)}</code>",
            escape(by or "earlier stages"),
            f"{n:,}",
            share(n, whole),
            bar([("lost", n / whole)]),
        ]
        for by, reason, n in lines
    ]
    rows.append(["kept", "", f"{found['kept']:,}", share(found["kept"], whole)])
    rows[-1].append(bar([("left", found["kept"] / whole)]))
    return cards([table("Distinct pairs by fate", ["fate", "by", "pairs", "%", ""], rows, numbers=2)])


def _overlap(found: Mapping[str, Any]) -> str:
    rows = [
        [f"<code>{escape(reason)}</code>"]
        + [f"{n:,}" for n in (true, found["dropped"].get(reason, 0), found["alone"][reason])]
        for reason, true in found["true_for"].items()
    ]
    both = [
        [" and ".join(f"<code>{escape(reason)}</code>" for reason in line["reasons"]), f"{line['pairs']:,}"]
        for line in found["together"]
    ]
    return cards(
        [
            table("Reasons, each by itself", ["reason", "true for", "named first", "alone"], rows),
            table("Reasons that are true together", ["reasons", "pairs"], both),
        ]
    )


def _languages(found: Mapping[str, Mapping[str, int]]) -> str:
    rows = [
        [f"<code>{escape(name)}</code>", f"{n['pairs']:,}", f"{n['kept']:,}", share(n["kept"], n["pairs"])]
        for name, n in found.items()
    ]
    return cards([table("Pairs that reach these rules", ["language", "pairs", "kept", "kept share"], rows)])
