"""The page's section on noise: the p-values, the cosines, and what a share of noise costs in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import charts
from .text import escape
from .widgets import KEPT_KEY, bar, card, cards, share, table

P_BINS = 40


def noise_section(
    found: Mapping[str, Any], calibration: Mapping[str, Any] | None, max_noise: float | None
) -> str:
    """The section as HTML; empty where nothing was scored.

    calibration: as `scores/noise/calibration.json` has it, or None. max_noise: the share asked for.
    """
    said = calibration or {}
    pictures = cards([_p_values(found, said), _cosines(found)])
    tables = cards([_asked(said), _by_language(said)])
    if not pictures + tables:
        return ""
    asked = "" if max_noise is None else f" This run asked for at most {100 * max_noise:g}&nbsp;% of it."
    return f"<p>A pair is noise where its caption belongs to another picture.{asked}</p>{pictures}{tables}"


def estimated(calibration: Mapping[str, Any]) -> tuple[float, int]:
    """The estimated number of mismatched pairs, and of how many pairs that were scored."""
    lines = calibration.get("languages", {}).values()
    return sum(line["noise"] * line["pairs"] for line in lines), sum(line["pairs"] for line in lines)


def _p_values(found: Mapping[str, Any], calibration: Mapping[str, Any]) -> str:
    bins = found.get("p_values")
    if not bins:
        return ""
    mismatched, scored = estimated(calibration)
    level = mismatched / P_BINS if scored else None
    chart = charts.histogram(
        "Histogram of mismatch p",
        bins,
        1 / P_BINS,
        say=lambda edge: f"p {edge:.3f} to {edge + 1 / P_BINS:.3f}",
        flat=level,
        cap=8 * max(level or 0, _right_end(bins)) or None,
    )
    words = f'<span><span class="key level"></span>estimated noise, {share(mismatched, scored)}</span></p>'
    legend = KEPT_KEY.replace("</p>", words) if scored else KEPT_KEY
    note = (
        "Mismatched pairs alone would be flat at the dashed line; pairs that belong together are at the left."
    )
    return card("Mismatch p of the fetched pairs", chart, note, key=legend)


def _right_end(bins: list[tuple[float, int, int]]) -> float:
    """Pairs in a bin of the right quarter, where few good ones are."""
    return sum(n for edge, n, _ in bins if edge >= 0.75) / (P_BINS / 4)


def _cosines(found: Mapping[str, Any]) -> str:
    bins = found.get("cosines")
    if not bins:
        return ""
    chart = charts.histogram(
        "Histogram of cosines", bins, 0.02, say=lambda edge: f"cosine {edge:.2f} to {edge + 0.02:.2f}"
    )
    return card("Cosine of picture and caption", chart, "By a scorer that has not seen the pair.")


def _asked(calibration: Mapping[str, Any]) -> str:
    _, scored = estimated(calibration)
    kept = calibration.get("kept_by_asked", {})
    rows = [
        [
            f"{100 * float(asked):g} %",
            f"{n:,}",
            share(n, scored),
            bar([("kept", n / scored if scored else 0)]),
        ]
        for asked, n in sorted(kept.items(), key=lambda item: float(item[0]))
    ]
    head = ["noise asked for", "pairs below it", "of the scored", ""]
    return table("What a share of noise costs", head, rows) if rows else ""


def _by_language(calibration: Mapping[str, Any]) -> str:
    lines = sorted(calibration.get("languages", {}).items(), key=lambda item: (-item[1]["pairs"], item[0]))
    rows = [
        [
            f"<code>{escape(name)}</code>",
            f"{line['pairs']:,}",
            f"{line['auc']:.3f}",
            f"{100 * line['noise']:.1f} %",
            bar([("lost", line["noise"])]),
            f"{100 * line['least']:.2g} %" if line.get("least") else "none",
        ]
        for name, line in lines[:25]
    ]
    head = [
        "calibrated together",
        "pairs",
        "AUC of the scorer, at least",
        "noise, at most",
        "",
        "can be promised",
    ]
    found = table("Estimated noise in the crawl", head, rows) if rows else ""
    return found + _witnesses([(name, line["witnesses"]) for name, line in lines[:25] if "witnesses" in line])


def _witnesses(lines: list[tuple[str, Mapping[str, Any]]]) -> str:
    """Pairs whose pictures have other captions, and the three ways in which these say that they are wrong."""
    ways = ("captions", "pictures", "sources")
    rows = [
        [f"<code>{escape(name)}</code>", f"{line['pairs']:,}"]
        + [f"{100 * line[f'wrong_{way}']:.1f} %" for way in ways]
        for name, line in lines
    ]
    head = ["pairs with witnesses", "", *(f"wrong {way}, at most" for way in ways)]
    return table("What the other captions of a picture say", head, rows) if rows else ""
