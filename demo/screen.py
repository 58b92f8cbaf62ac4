"""The last screen of the demo: what was planted, what was found, whether that is within the bars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from .truth import COPY_KINDS, is_kept_promise, is_strict, retrieval, within

WIDTH = 92


def render(figures: dict[str, Any], report: Path, seconds: float, name: str = "dataset") -> RenderableType:
    """The screen, WIDTH columns wide. figures: what `truth.compare` gives. report: the page of the run."""
    problems = within(figures, name)
    parts: list[RenderableType] = [
        Text(),
        Rule("pairmill demo: what was found, beside the truth", align="left", style="bold"),
        _reasons(figures),
        _measures(figures),
        _promises(figures["noise"]),
    ]
    if figures["models"]:
        parts.append(_models(figures["models"], name))
    parts.append(_verdict(problems, figures, report, seconds))
    return Group(*parts)


def _table(*columns: str, title: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold cyan", width=WIDTH, box=None, pad_edge=False
    )
    for number, column in enumerate(columns):
        table.add_column(
            column, justify="left" if number == 0 else "right", overflow="ellipsis", no_wrap=True
        )
    table.add_column("", width=2, justify="right")
    return table


def _mark(good: bool) -> Text:
    return Text("✓", "green") if good else Text("✗", "bold red")


def _reasons(figures: dict[str, Any]) -> Table:
    """Kinds that must end under one reason, those of the same reason on one line."""
    table = _table("planted", "rows", "must end as", "did", title="\nEvery row under its right reason")
    table.columns[0].max_width = 52
    for reason, kinds in _by_reason(figures["kinds"]):
        rows, right = (sum(each[key] for _, each in kinds) for key in ("rows", "right"))
        names = ", ".join(kind for kind, _ in kinds)
        table.add_row(names, f"{rows:,}", reason, f"{right:,}", _mark(rows == right))
    return table


def _by_reason(kinds: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    strict = [(kind, each) for kind, each in kinds.items() if is_strict(kind, each)]
    reasons = sorted({each["expected"] or "kept" for _, each in strict})
    for reason in sorted(reasons, key=lambda reason: (reason == "kept", reason)):
        yield reason, [(kind, each) for kind, each in strict if (each["expected"] or "kept") == reason]


def _measures(figures: dict[str, Any]) -> Table:
    table = _table(
        "measure", "planted", "found", "value", "bar", title="\nCopies, languages, mismatched captions"
    )
    again, near, said = figures["pair_copies"], figures["near"], figures["language"]
    noise = figures["noise"]

    def add(what: str, planted: object, found: object, value: float | None, bar: float) -> None:
        shown = "none" if value is None else f"{value:.3f}"
        table.add_row(what, str(planted), str(found), shown, f"{bar:.2f}", _mark((value or 0) >= bar))

    add("pairs said again", again["planted"], again["found"], again["recall"], 1.0)
    exact = near["kinds"]["exact copy"]
    add("exact copies of pictures", exact["planted"], exact["found"], near["exact_recall"], 1.0)
    copies = [near["kinds"][kind] for kind in COPY_KINDS[1:]]
    planted, found = (sum(each[key] for each in copies) for key in ("planted", "found"))
    add("near copies: recall", planted, found, near["recall"], 0.95)
    add("near copies: precision", "", "", near["precision"], 0.95)
    languages = "  ".join(f"{name} {value:.3f}" for name, value in said["languages"].items())
    add(f"languages: {languages}", "", "", said["accuracy"], 0.97)
    swapped = "" if noise["swapped"] is None else round(noise["swapped"] * noise["pairs"])
    add("swapped captions: AUC, cross-fitted score", swapped, "", noise["auc"], 0.93)
    for what, key in (
        ("its cosine alone", "auc_cosine"),
        ("cosine of a model that saw the pair", "auc_in_sample"),
    ):
        value = noise[key]
        table.add_row(f"  beside it: {what}", "", "", "none" if value is None else f"{value:.3f}", "", "")
    return table


def _promises(noise: dict[str, Any]) -> Table:
    title = f"\nNoise asked for ({_percent(noise['swapped'])} of {noise['pairs']:,} scored pairs are swapped)"
    table = _table("asked for at most", "true share", "pairs kept", "of the good pairs", title=title)
    for each in noise["asked"]:
        values = (
            _percent(each["asked"]),
            _percent(each["true"]),
            f"{each['kept']:,}",
            _percent(each["good_kept"]),
        )
        table.add_row(*values, _mark(is_kept_promise(each)))
    return table


def _models(models: dict[str, Any], name: str) -> Table:
    found = {model: retrieval(models[model]) for model in (name, "everything") if model in models}
    languages = sorted({lang for model in found for lang in models[model].get("classification", {})})
    columns = ("R@1", "R@10", *(f"zero-shot {language}" for language in languages))
    table = _table("trained on", *columns, title="\nTwo models, the same number of samples seen")
    best = max(found, key=lambda model: found[model] or 0)
    for model, recall in found.items():
        ways = models[model].get("retrieval") or {}
        sides = [ways[way]["R@1"] for way in ("picture_to_caption", "caption_to_picture") if way in ways]
        zero_shot = models[model].get("classification", {})
        values = [_percent(sum(sides) / 2 if sides else None), _percent(recall)]
        values += [
            _percent(zero_shot[language]["top1"] if language in zero_shot else None) for language in languages
        ]
        label = "everything that was fetched" if model == "everything" else f"the selection ({model})"
        table.add_row(label, *values, _mark(True) if model == best == name else "")
    return table


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f} %"


def _verdict(problems: list[str], figures: dict[str, Any], report: Path, seconds: float) -> Panel:
    took = f"{figures['rows']:,} rows in {seconds:,.0f} s"
    text = Text(
        f"All within the bars: {took}.\n" if not problems else f"{len(problems)} missed, {took}:\n", "bold"
    )
    for problem in problems:
        text.append(f"  ✗ {problem}\n", "red")
    text.append(f"The page: {report}\nAll figures: {report.parent / 'truth.json'}", "default")
    return Panel(text, border_style="red" if problems else "green", width=WIDTH)
