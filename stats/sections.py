"""The sections of the page below the funnel; each is an empty string where its columns are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import charts
from .funnel import Funnel
from .samples import Group, Sample
from .text import bdi, escape
from .widgets import bar, card, cards, share, size, table

OUTCOME_OK = "ok"


def tiles(funnel: Funnel, found: Mapping[str, Any]) -> str:
    """The few numbers that one looks for first."""
    kept = "kept" if funnel.kept is not None else "still in"
    said = [
        ("rows in", f"{funnel.rows:,}", ""),
        (kept, f"{funnel.left:,}", f"{funnel.percent(funnel.left):.3g} % of rows"),
    ]
    if hosts := found.get("host_count"):
        said.append(("hosts asked", f"{hosts['hosts']:,}", f"{hosts['without']:,} gave no picture"))
    if languages := found.get("languages"):
        top = languages[0]
        whole = sum(line["pairs"] for line in languages)
        said.append(
            ("most frequent language", escape(top["language"]), f"{share(top['pairs'], whole)} of pairs")
        )
    if dataset := found.get("dataset"):
        said.append(("dataset", f"{dataset['samples']:,}", f"samples, {size(dataset['bytes'])} of pictures"))
    inner = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in said
    )
    return f'<dl class="tiles">{inner}</dl>'


def languages(found: Mapping[str, Any]) -> str:
    """Each language's pairs and how many of them were kept."""
    lines = found.get("languages")
    if not lines:
        return ""
    most = max(line["pairs"] for line in lines) or 1
    rows = []
    for line in lines:
        kept, rest = line["kept"] / most, (line["pairs"] - line["kept"]) / most
        numbers = [f"{line[name]:,}" for name in ("pairs", "fetched", "kept")]
        code = f"<code>{escape(line['language'])}</code>"
        rows.append(
            [code, *numbers, share(line["kept"], line["pairs"]), bar([("kept", kept), ("all", rest)])]
        )
    note = (
        "<p>Distinct pairs by the language of the caption;"
        " <code>?</code> is where the identifier cannot say.</p>"
    )
    head = ["language", "pairs", "fetched", "kept", "kept share", ""]
    return note + cards([table("Pairs by language", head, rows)])


def pairs(found: Mapping[str, Any]) -> str:
    """What captions and pictures are like."""
    parts = []
    if bins := found.get("caption_lengths"):
        chart = charts.histogram(
            "Histogram of caption lengths",
            bins,
            10,
            say=lambda edge: f"{edge:.0f} to {edge + 9:.0f} characters",
        )
        parts.append(card("Caption length, characters", chart, "Rows of the lists; the last bin is open."))
    if bins := found.get("shorter_sides"):
        chart = charts.histogram(
            "Histogram of the pictures' shorter sides",
            bins,
            64,
            say=lambda edge: f"{edge:.0f} to {edge + 63:.0f} pixels",
        )
        parts.append(
            card("Shorter side of the original, pixels", chart, "Fetched pairs; the last bin is open.")
        )
    if bins := found.get("aspects"):
        centred = [(middle - 0.125, every, kept) for middle, every, kept in bins]
        chart = charts.histogram(
            "Histogram of shapes",
            centred,
            0.25,
            say=lambda edge: f"about {_shape(edge + 0.125)}",
            tick=_shape,
        )
        parts.append(card("Shape, width to height", chart))
    if groups := found.get("near_groups"):
        (_, alone), *several = groups
        chart = charts.columns("Sizes of groups of near-copies", several, "groups")
        note = f"Groups by their pairs; {alone:,} further pairs have no near-copy."
        parts.append(card("Groups of near-copies", chart, note, key=""))
    if lines := found.get("formats"):
        rows = [
            [
                escape(line["format"]),
                f"{line['pictures']:,}",
                size(line["original_bytes"] or 0),
                size(line["stored_bytes"] or 0),
            ]
            for line in lines
        ]
        parts.append(table("Pictures by format", ["format", "pictures", "as fetched", "as stored"], rows))
    return cards(parts)


def _shape(log2: float) -> str:
    ratio = 2.0 ** abs(log2)
    return f"{ratio:.2g}:1" if log2 >= 0 else f"1:{ratio:.2g}"


def web(found: Mapping[str, Any]) -> str:
    """Outcomes, statuses and hosts."""
    parts = []
    if lines := found.get("statuses"):
        whole = sum(line["pairs"] for line in lines)
        rows = [
            [
                f"<code>{escape(line['outcome'])}</code>",
                f"{line['status'] or '–'}",
                f"{line['pairs']:,}",
                share(line["pairs"], whole),
                bar([("kept" if line["outcome"] == OUTCOME_OK else "lost", line["pairs"] / whole)]),
            ]
            for line in lines
        ]
        parts.append(table("Outcome and HTTP status", ["outcome", "status", "pairs", "share", ""], rows))
    if lines := found.get("hosts"):
        most = lines[0]["pairs"] or 1
        rows = [
            [
                f"<code>{bdi(line['host'], 60)}</code>",
                f"{line['pairs']:,}",
                share(line["fetched"], line["pairs"]),
                f"<code>{escape(line['failure'])}</code> {line['failures']:,}" if line["failure"] else "–",
                bar([("kept", line["fetched"] / most), ("lost", (line["pairs"] - line["fetched"]) / most)]),
            ]
            for line in lines
        ]
        head = ["host", "pairs", "fetched", "most frequent failure", ""]
        parts.append(table(f"The {len(rows)} hosts asked most", head, rows))
    if lines := found.get("changed"):
        rows = [
            [
                f"<code>{bdi(line['domain'], 60)}</code>",
                *(f"{line[name]:,}" for name in ("pairs", "near", "changed")),
                share(line["changed"], line["pairs"]),
            ]
            for line in lines
        ]
        head = ["domain", "with a hash", "near", "changed", "share changed"]
        parts.append(table("Domains whose pictures have changed since the list was made", head, rows))
    return cards(parts)


def strips(groups: Sequence[Group], note: str) -> str:
    """A strip of pictures for each group."""
    parts = []
    for group in groups:
        figures = "".join(_figure(sample) for sample in group.samples)
        total = "" if group.total is None else f"{group.total:,} pairs"
        parts.append(
            f'<div class="group"><h3>{escape(group.label)} <span>{total}</span></h3>'
            f'<div class="strip" tabindex="0" role="group" aria-label="{escape(group.label)}">{figures}'
            "</div></div>"
        )
    return f"<p>{note}</p>{''.join(parts)}" if parts else ""


def _figure(sample: Sample) -> str:
    alt = escape(sample.caption, 120)
    uri = sample.data_uri
    picture = f'<img src="{uri}" alt="{alt}" loading="lazy">' if uri else "no preview"
    p = "" if sample.p is None else f" p {sample.p:.3f}"
    title = escape(f"{sample.caption} | {sample.url}", 600)
    return (
        f'<figure><div class="frame">{picture}</div><figcaption title="{title}">{bdi(sample.caption)}'
        f"<small><code>{escape(sample.uid[:12])}</code>{p}</small></figcaption></figure>"
    )


def lists(facts: Sequence[Mapping[str, Any]], most: int = 50) -> str:
    """Which columns of each list were taken for what, as `ingest` noted it; the first `most` lists."""
    rows = []
    for fact in [fact for fact in facts if "columns" in fact][:most]:
        columns = fact["columns"]
        rest = [", ".join(map(str, columns[kind])) or "–" for kind in ("carried", "left_out")]
        encoding = columns.get("encoding", "UTF-8")
        cells = [fact["source"], columns["url"], columns["caption"] or "–", *rest, encoding]
        rows.append([*(escape(str(cell), 500) for cell in cells), f"{fact['rows']:,}"])
    if not rows:
        return ""
    head = ["list", "URL", "caption", "carried", "left out", "encoding", "pairs"]
    return cards([table("Columns of the lists", head, rows, numbers=6)])


def times(funnel: Funnel) -> str:
    """What each stage cost."""
    lines = [stage.as_json() for stage in funnel.stages if stage.stage != "report"]
    if not lines:
        return ""
    most = max(line["seconds"] for line in lines) or 1
    rows = [
        [
            f"<code>{escape(line['stage'])}</code>",
            f"{line['tasks']:,}",
            f"{line['seen']:,}",
            f"{line['seconds']:,.1f}",
            "–" if line["per_s"] is None else f"{line['per_s']:,.0f}",
            bar([("all", line["seconds"] / most)]),
        ]
        for line in lines
    ]
    note = "<p>Seconds of all workers, added up; the wall clock is shorter where several work at once.</p>"
    head = ["stage", "tasks", "rows counted", "worker seconds", "rows per worker second", ""]
    return note + cards([table("Stages", head, rows)])
