"""One pair's story in words: how it ended in one sentence, and the whole of it as a panel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .text import visible

if TYPE_CHECKING:
    from .explain import Story


def summary(pair: dict[str, Any]) -> str:
    """The end of a pair's story in one sentence."""
    decisions = pair["decisions"]
    if pair["dataset"]:
        return f"in the dataset: shard {pair['dataset'][0]['shard']}, key {pair['dataset'][0]['key']}"
    if decisions:
        return "; ".join(
            _kept_words(name, pair["not_in_shards"]) if fate == "kept" else f"dropped from {name}: {fate}"
            for name, fate in decisions.items()
            if name != "bootstrap" or len(decisions) == 1
        )
    if pair["failed"]:
        return f"stuck in a task that failed: {pair['failed'][0]['stage']} {pair['failed'][0]['task']}"
    if pair["screen"] not in (None, "passed"):
        return f"not worth fetching: {pair['screen']}"
    if pair["fetch"]:
        outcome = pair["fetch"][-1]["outcome"]
        return "fetched, not decided yet" if outcome == "ok" else f"no picture: {outcome}"
    return "not fetched yet"


def _kept_words(name: str, missing: dict[str, str]) -> str:
    return f"kept by selection {name}" + (f", but in no shard: {missing[name]}" if name in missing else "")


def render_story(story: Story) -> Any:
    """The story for rich: a panel for each pair, a line for each rejected row."""
    from rich.console import Group

    parts = [_panel(pair) for pair in story.pairs]
    parts += [_line("rejected", _rejected_words(row)) for row in story.rejected]
    if story.more:
        parts.append(_line("", f"{story.more:,} more pairs of this URL are not shown"))
    return Group(*parts)


def _rejected_words(row: dict[str, Any]) -> str:
    where = f"{row['source']}, row {row['source_row']:,}"
    return f"{row['reason']}: {where}: {row['url'] or ''} | {row['caption'] or ''}"


def _line(name: str, words: str) -> Any:
    from rich.text import Text

    return Text.assemble((f"{name:<10}", "dim"), visible(words, 400))


def _panel(pair: dict[str, Any]) -> Any:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, words in _words(pair):
        grid.add_row(name, Text(visible(words, 400)), style="bold" if name == "end" else "")
    return Panel(grid, title=pair["uid"], title_align="left")


def _words(pair: dict[str, Any]) -> list[tuple[str, str]]:
    """The story as (stage, sentence)."""
    rows = [f"{row['source']}, row {row['source_row']:,}" for row in pair["rows"]]
    extra = pair["row_count"] - len(rows)
    lines = [
        ("caption", pair["caption"]),
        ("url", pair["url"]),
        ("rows", "; ".join(rows) + (f"; {extra:,} more" if extra else "")),
        ("copies", _facts(pair["copies"], "dedup has not run")),
        ("language", _facts(pair["language"], "language has not run")),
        ("screen", pair["screen"] or "screen has not run"),
    ]
    lines += [("fetch", _attempt_words(attempt)) for attempt in pair["fetch"]] or [("fetch", "not asked for")]
    lines += [
        ("near", _near_words(pair["near"])),
        ("score", _facts({**(pair["scores"] or {}), **(pair["noise"] or {})}, "not scored")),
    ]
    lines += [("witness", _witness_words(one)) for one in pair["witnesses"]]
    lines += [("failed", f"{gap['stage']} {gap['task']}: {gap['error']}") for gap in pair["failed"]]
    lines += [(f"decide {name}"[:30], fate) for name, fate in pair["decisions"].items()]
    return [*lines, ("end", pair["summary"])]


def _facts(found: dict[str, Any] | None, missing: str) -> str:
    if not found:
        return missing
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in found.items()
    )


def _attempt_words(attempt: dict[str, Any]) -> str:
    where = f"raw shard {attempt['shard']}, wave {attempt['wave']}"
    status = f", HTTP {attempt['http_status']}" if attempt["http_status"] else ""
    if attempt["outcome"] != "ok":
        return f"{attempt['outcome']}{status}; {where}"
    return (
        f"ok{status}: {attempt['format']}, {attempt['original_width']} x {attempt['original_height']} pixels,"
        f" {attempt['original_bytes']:,} bytes; stored {attempt['width']} x {attempt['height']}"
        f" as {attempt['key']}; {where}"
    )


def _witness_words(witness: dict[str, Any]) -> str:
    return f"{witness['caption']} (q {witness['mismatch_q_v2']:.3g}, {witness['url']})"


def _near_words(near: dict[str, Any] | None) -> str:
    if near is None:
        return "not looked at"
    if near["near_size_v1"] <= 1:
        return "no near-copies"
    if "best" not in near:
        return f"the best of {near['near_size_v1']} near-copies"
    best = near["best"]["url"] if near["best"] else ""
    said = f"one of {near['near_size_v1']} near-copies; the best is {near['near_group_v1']} {best}"
    return said + (", which takes over the caption" if near["near_adopted_v1"] else "")
