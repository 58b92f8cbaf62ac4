"""Small SVG charts as strings, coloured by the page's style sheet; a mark's `<title>` says its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from .text import escape

WIDTH, HEIGHT = 420, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 26  # the frame around the plot, in units of the picture


def short(value: float) -> str:
    """A count in at most four characters: 950, 1.2k, 34k, 5.6M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.0f}{unit}" if scaled >= 10 or scaled == int(scaled) else f"{scaled:.1f}{unit}"
    return f"{value:g}" if value == int(value) else f"{value:.3g}"


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from `low` to `high`, about so many."""
    span = high - low or 1.0
    step = 10 ** math.floor(math.log10(span / about))
    step *= min((1, 2, 5, 10), key=lambda times: abs(span / (step * times) - about))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _svg(name: str, body: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}" class="chart">'
        + "".join(body)
        + "</svg>"
    )


def _y_axis(high: float, scale: Callable[[float], float], low: float = 0.0) -> list[str]:
    marks = []
    for value in ticks(low, high):
        y = scale(value)
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(_text(LEFT - 6, y + 4, short(value), "end"))
    return marks


def histogram(
    name: str,
    bins: Sequence[tuple[float, int, int]],
    width: float,
    *,
    say: Callable[[float], str],
    tick: Callable[[float], str] | None = None,
    flat: float | None = None,
    cap: float | None = None,
) -> str:
    """Bars of all pairs with the kept ones in front.

    bins: (lower edge, all, kept), ascending; empty bins may be missing. width: of one bin.
    say: what a bin is called in its tooltip. tick: what an edge is called on the axis.
    flat: a dashed level line (the expected number of mismatched pairs in each bin).
    cap: bars above it are cut there and say how high they are.
    """
    low, high = bins[0][0], bins[-1][0] + width
    top = max(min(max(n for _, n, _ in bins), cap or math.inf), flat or 0, 1)
    plot_w, plot_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x_of(value: float) -> float:
        return LEFT + plot_w * (value - low) / (high - low)

    def y_of(count: float) -> float:
        return TOP + plot_h * (1 - min(count / top, 1))

    body = _y_axis(top, y_of)
    gap = min(1.5, plot_w * width / (high - low) * 0.15)
    for edge, every, kept in bins:
        x, wide = x_of(edge), x_of(edge + width) - x_of(edge) - gap
        title = f"<title>{escape(say(edge))}: {every:,} pairs, {kept:,} kept</title>"
        both = (("all", every), ("kept", kept))
        bars = "".join(_rect(kind, x, wide, y_of(n), y_of(0)) for kind, n in both if n)
        body.append(f"<g>{title}{bars}</g>")
    if torn := [(edge, n) for edge, n, _ in bins if n > top]:
        x, heights = x_of(torn[-1][0] + width), ", ".join(short(n) for _, n in torn[:4])
        body.append(_text(x + 3, TOP + 9, f"↑ {heights}"))
    if flat is not None:
        y = y_of(flat)
        body.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    body += _x_axis(low, high, x_of, tick or (lambda value: f"{value:g}"))
    return _svg(name, body)


def _rect(kind: str, x: float, width: float, top: float, bottom: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" width="{width:.1f}" y="{top:.1f}" height="{bottom - top:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words, 40)}</text>'


def _x_axis(
    low: float, high: float, x_of: Callable[[float], float], tick: Callable[[float], str]
) -> list[str]:
    base = HEIGHT - BOTTOM
    marks = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>']
    for value in ticks(low, high, 5):
        x = x_of(value)
        anchor = "end" if x > WIDTH - RIGHT - 8 else "middle"
        marks.append(_text(x, base + 17, tick(value), anchor))
    return marks


def columns(name: str, values: Sequence[tuple[str, int]], unit: str) -> str:
    """A bar for each named value."""
    top = max(max(n for _, n in values), 1)
    plot_h, base = HEIGHT - TOP - BOTTOM, HEIGHT - BOTTOM
    slot = (WIDTH - LEFT - RIGHT) / len(values)
    body = _y_axis(top, lambda count: TOP + plot_h * (1 - count / top))
    for place, (label, n) in enumerate(values):
        x, tall = LEFT + slot * place, plot_h * n / top
        bar = _rect("all", x + slot * 0.1, slot * 0.8, base - tall, base)
        body.append(f"<g><title>{escape(label)}: {n:,} {escape(unit)}</title>{bar}</g>")
        body.append(_text(x + slot / 2, base + 17, label, "middle"))
    return _svg(
        name, [*body, f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>']
    )


def curves(name: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A line for each series of (step, value); what is not finite is left out."""
    clean = {key: [p for p in points if all(map(math.isfinite, p))] for key, points in series.items()}
    every = [point for points in clean.values() for point in points]
    if not every:
        return ""
    right = max(x for x, _ in every) or 1
    low, high = min(y for _, y in every), max(y for _, y in every)
    span = (high - low) or 1.0
    plot_w, plot_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x_of(value: float) -> float:
        return LEFT + plot_w * value / right

    def y_of(value: float) -> float:
        return TOP + plot_h * (1 - (value - low) / span)

    body = _y_axis(low + span, y_of, low)
    for number, (key, points) in enumerate(clean.items()):
        line = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in thinned(points))
        body.append(
            f'<polyline class="curve c{number % 4}" points="{line}"><title>{escape(key)}</title></polyline>'
        )
    return _svg(name, [*body, *_x_axis(0, right, x_of, short)])


def thinned(points: Sequence[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """Means of neighbours, so that at most `most` points are left."""
    size = max(1, math.ceil(len(points) / most))
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def flow(rows: int, dropped: Sequence[int]) -> str:
    """The funnel as a river of `len(dropped) + 1` columns: a branch leaves at each step.

    Band and branches are as high as their share of `rows`. It is stretched to its box, so it has no labels.
    """
    wide, tall, gap = 1000.0, 150.0, 26.0
    column = wide / (len(dropped) + 1)
    deepest = max([n / rows for n in dropped if rows] or [0])
    whole = tall + gap + tall * deepest + 2
    left, parts = rows, []
    for place, lost in enumerate(dropped):
        before, after = tall * left / max(rows, 1), tall * (left - lost) / max(rows, 1)
        x = column * place
        parts.append(
            f'<rect class="kept" x="{x:.1f}" y="0" width="{column + 0.5:.1f}" height="{after:.2f}"/>'
        )
        if lost:
            start, end = tall + gap, tall + gap + max(before - after, 1.5)
            bend, turn, stop = x + column * 0.2, x + column * 0.42, x + column * 0.86
            parts.append(
                f'<path class="drop" d="M{x:.1f} {after:.2f} C{bend:.1f} {after:.2f} {bend:.1f} {start:.2f}'
                f" {turn:.1f} {start:.2f} H{stop:.1f} V{end:.2f} H{turn:.1f}"
                f' C{bend:.1f} {end:.2f} {bend:.1f} {before:.2f} {x:.1f} {before:.2f} Z"/>'
            )
        left -= lost
    parts.append(
        f'<rect class="kept" x="{column * len(dropped):.1f}" y="0" width="{column:.1f}"'
        f' height="{max(tall * left / max(rows, 1), 1.0):.2f}"/>'
    )
    return (
        f'<svg class="flow" viewBox="0 0 {wide:.0f} {whole:.1f}" preserveAspectRatio="none"'
        ' aria-hidden="true">' + "".join(parts) + "</svg>"
    )
