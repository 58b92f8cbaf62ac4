"""The page: one HTML file that opens offline, runs nothing, and loads nothing.

One rule: every value from outside goes through `text.escape` or `text.bdi`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import charts, models, sections
from .funnel import Funnel
from .noise import noise_section
from .samples import Group
from .text import escape

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True, slots=True)
class Content:
    """All that the page shows; what is missing is left out of it."""

    title: str
    recipe: str
    funnel: Funnel
    max_noise: float | None = None
    distributions: Mapping[str, Any] = field(default_factory=dict)
    by_reason: Sequence[Group] = ()
    by_score: Sequence[Group] = ()
    calibration: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    curves: models.Curves = field(default_factory=dict)
    lists: Sequence[Mapping[str, Any]] = ()


def render(content: Content) -> str:
    """The page as HTML."""
    found = content.distributions
    parts = [
        ("funnel", "Where every row went", funnel_section(content.funnel)),
        ("lists", "What was taken from the lists", sections.lists(content.lists)),
        ("noise", "How much noise", noise_section(found, content.calibration, content.max_noise)),
        ("languages", "Languages", sections.languages(found)),
        ("pairs", "Captions and pictures", sections.pairs(found)),
        ("web", "What the web answered", sections.web(found)),
        ("models", "What the models learned", models.section(content.evaluation, content.curves)),
        ("dropped", "What was kept, what was dropped", sections.strips(content.by_reason, REASONS_NOTE)),
        ("score", "From the worst to the best", sections.strips(content.by_score, SCORE_NOTE)),
        ("time", "How long it took", sections.times(content.funnel)),
    ]
    shown = [part for part in parts if part[2]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in shown)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{title}</h2>{inner}</section>'
        for key, title, inner in shown
    )
    verdict = content.funnel.verdict(content.max_noise)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(content.title)} · pairmill</title>
<style>{STYLE.read_text(encoding="utf-8")}</style></head>
<body><header><p class="brand"><b>pairmill</b> · {escape(content.title)}{_recipe(content)}</p>
<h1>{escape(verdict).replace(" %", "&nbsp;%")}.</h1>{_notes(content.funnel)}
{sections.tiles(content.funnel, found)}
<nav aria-label="Sections">{links}</nav></header>
<main>{body}</main>
<footer><div>Every number is read from the tallies and columns of this folder. The story of one pair:
<code>pairmill explain DIR UID</code>. Whether the files are whole:
<code>pairmill verify DIR</code>.</div></footer></body></html>
"""


REASONS_NOTE = (
    "Pairs that were kept, and pairs dropped under each reason, as far as their pictures were fetched:"
    " the first by uid, which is a fair draw. Hover over a caption to read all of it."
)
SCORE_NOTE = (
    "Fetched pairs in the order of their mismatch p, the worst first. If the score is any good, captions"
    " fit their pictures better from strip to strip."
)


def _recipe(content: Content) -> str:
    return f" · recipe <code>{escape(content.recipe)}</code>" if content.recipe else ""


def _notes(funnel: Funnel) -> str:
    """What is not finished or does not add up, plainly and first."""
    notes = [("Does not add up", note) for note in funnel.problems] + [
        ("Unfinished", note) for note in funnel.unfinished
    ]
    return "".join(
        f'<p class="note" role="status"><b>{kind}:</b> {escape(note, 500)}</p>' for kind, note in notes
    )


def funnel_section(funnel: Funnel) -> str:
    """The funnel as a river and as a table with every reason."""
    if not funnel.steps:
        return ""
    heads = [f"<div><b>{funnel.rows:,}</b>rows seen</div>"]
    feet = []
    for place, step in enumerate(funnel.steps):
        last = place == len(funnel.steps) - 1
        word = ("kept" if funnel.kept is not None else "still in") if last else "left"
        heads.append(f"<div><b>{step.left:,}</b>{funnel.percent(step.left):.3g} % {word}</div>")
        feet.append(f"<div><b>−{step.dropped:,}</b>{escape(step.label)}</div>")
    feet.append("<div></div>")
    river = charts.flow(funnel.rows, [step.dropped for step in funnel.steps])
    return (
        "<p>Each row of the lists ends under exactly one reason, or is kept. Percents are of all rows.</p>"
        f'<div class="river" aria-hidden="true"><div class="heads">{"".join(heads)}</div>{river}'
        f'<div class="feet">{"".join(feet)}</div></div>{_funnel_table(funnel)}'
    )


def _funnel_table(funnel: Funnel) -> str:
    rows = [_funnel_row("step", "rows in the lists", funnel.rows, funnel, left=funnel.rows, lost=0)]
    for step in funnel.steps:
        label = f"{escape(step.label)} <code>{escape(step.name)}</code>"
        rows.append(_funnel_row("step", label, -step.dropped, funnel, left=step.left, lost=step.dropped))
        rows += [
            _funnel_row("reason", f"<code>{escape(word)}</code>", -n, funnel, left=step.left, lost=n)
            for word, n in step.reasons.items()
        ]
    end = "kept" if funnel.kept is not None else "still in"
    rows.append(_funnel_row("end", end, funnel.left, funnel, left=funnel.left, lost=0))
    adds = "The rows add up." if funnel.kept is not None and not funnel.problems else ""
    return (
        '<div class="card wide scroll below" tabindex="0" role="region" aria-label="Funnel table">'
        f"<table><caption>Steps and reasons. {adds}</caption>"
        '<thead><tr><th scope="col">step</th><th scope="col" class="n">rows</th>'
        '<th scope="col" class="n">%</th>'
        f'<th scope="col"><span class="key kept"></span>left <span class="key drop"></span>dropped</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _funnel_row(kind: str, label: str, count: int, funnel: Funnel, *, left: int, lost: int) -> str:
    share = funnel.percent(abs(count))
    bars = (("left", 0 if kind == "reason" else left), ("lost", lost))
    bar = "".join(f'<i class="{name}" style="width:{funnel.percent(n):.3f}%"></i>' for name, n in bars if n)
    shown = f"{count:,}".replace("-", "−")
    return (
        f'<tr class="{kind}"><th scope="row">{label}</th><td class="n">{shown}</td>'
        f'<td class="n">{share:.2f}</td><td class="barred"><span class="bar">{bar}</span></td></tr>'
    )
