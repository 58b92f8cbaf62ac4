"""Where every row went, from the tallies alone, and whether the numbers add up.

One rule: rows seen = rejected + pair copies + dropped (each under one reason) + kept. Once a selection is
written, kept is what lies in `shards/`. Failed tasks, whose rows are in no tally, are named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shards.ledger import read_tally, records
from .gaps import Gap, gap_lines, gaps
from .tallies import PASSED, StageSum, stage_sums

COPY = "pair_copy"
NOT_FETCHED = "not_fetched"
NOT_WRITTEN = "not_written"


@dataclass(frozen=True, slots=True)
class Step:
    """One narrowing of the funnel: what was dropped here, by reason, and what was left."""

    name: str
    label: str
    reasons: Mapping[str, int]
    left: int

    @property
    def dropped(self) -> int:
        return sum(self.reasons.values())


@dataclass(frozen=True, slots=True)
class Funnel:
    """The whole way of the rows. `kept` is None while nothing is decided; no `problems`: all adds up.

    kept: the samples in `shards/` where they were written from this selection, else what it keeps.
    """

    rows: int
    steps: tuple[Step, ...]
    kept: int | None
    selection: str | None
    selections: Mapping[str, int]
    unfinished: tuple[str, ...]
    problems: tuple[str, ...]
    stages: tuple[StageSum, ...]
    written: int | None = None  # samples in `shards/`, where they are of this selection
    failed: tuple[Gap, ...] = ()  # tasks that no count holds

    @property
    def left(self) -> int:
        """Pairs kept, or still in the running."""
        if self.kept is not None:
            return self.kept
        return self.steps[-1].left if self.steps else self.rows

    def percent(self, count: int) -> float:
        """`count` as percent of the rows seen."""
        return round(100 * count / self.rows, 3) if self.rows else 0.0

    def verdict(self, max_noise: float | None = None) -> str:
        """The run in one sentence."""
        share = f"{self.percent(self.left):.3g} %"
        failed = f"; {len(self.failed):,} tasks failed" if self.failed else ""
        if self.kept is None:
            left = f"{self.left:,} pairs still in ({share}); the run is not finished"
            return f"{self.rows:,} rows in, {left}{failed}"
        asked = "" if max_noise is None else f"; asked for at most {100 * max_noise:g} % noise"
        return f"{self.rows:,} rows in, {self.kept:,} pairs kept ({share}){asked}{failed}"

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON; percents are of the rows seen."""
        return {
            "rows": self.rows,
            "steps": [self._step(step) for step in self.steps],
            "kept": None if self.kept is None else {"count": self.kept, "percent": self.percent(self.kept)},
            "selection": self.selection,
            "selections": dict(self.selections),
            "written": self.written,
            "adds_up": not self.problems,
            "failed": [gap.as_json() for gap in self.failed],
            "unfinished": list(self.unfinished),
            "problems": list(self.problems),
            "stages": [stage.as_json() for stage in self.stages],
        }

    def _step(self, step: Step) -> dict[str, Any]:
        reasons = {word: {"count": n, "percent": self.percent(n)} for word, n in step.reasons.items()}
        return {
            "name": step.name,
            "dropped": step.dropped,
            "percent": self.percent(step.dropped),
            "left": step.left,
            "reasons": reasons,
        }


def funnel(out: Path, selection: str | None = None) -> Funnel:
    """The funnel of an output folder, finished or not.

    selection: which decision to show; the recipe's, else the first by name, when not given.
    """
    sums = stage_sums(out)
    sums.setdefault("ingest", StageSum("ingest"))
    decided = {tally["task"]: Counter(tally["counts"]) for tally in records(out, "decide")}
    name = _chosen(decided, selection or stored_decide(out).get("name", "dataset"))
    first_wave, missing = _first_wave(out), gaps(out)
    steps = _steps(sums, first_wave, decided.get(name) if name else None)
    kept = None if name is None else sum(decided[name][word] for word in PASSED)
    written = _written(out, name, missing)
    if written is not None and kept is not None:
        steps, kept = (*steps, *_lost_in_writing(written, kept, steps)), written["written"]
    failed = tuple(gap for gap in missing if gap.error)
    problems = () if name is None else _problems(sums, steps, kept or 0, decided[name])
    return Funnel(
        rows=sums["ingest"].seen,
        steps=steps,
        kept=kept,
        selection=name,
        selections={key: sum(counts[word] for word in PASSED) for key, counts in decided.items()},
        unfinished=() if name is not None else _unfinished(sums, first_wave, missing),
        problems=(*gap_lines([gap for gap in missing if _matters(gap, name, kept)]), *problems),
        stages=tuple(total for total in sums.values() if total.tasks),
        written=None if written is None else written["written"],
        failed=failed,
    )


def _matters(gap: Gap, name: str | None, kept: int | None) -> bool:
    """Whether rows may be missing for it; of nothing kept there is no shard, and a run may yet go on."""
    if gap.stage == "plan-write" and kept == 0:
        return False
    return bool(gap.error) or name is not None


def _written(out: Path, name: str | None, missing: Sequence[Gap]) -> Counter[str] | None:
    """What became of the kept pairs in `shards/`, by outcome; None where they are of another selection."""
    plan = None if name is None else read_tally(out, "plan-write", name)
    if plan is None:
        return None
    counts = Counter({"written": 0, "no_picture": plan.counts.get("no_picture", 0)})
    for tally in records(out, "write"):
        counts.update(tally["counts"])
    for gap in missing:
        if gap.stage == "write":
            counts["write_failed" if gap.error else NOT_WRITTEN] += gap.rows or 0
    return counts


def _lost_in_writing(written: Counter[str], kept: int, steps: Sequence[Step]) -> tuple[Step, ...]:
    """The step between what the selection keeps and what lies in `shards/`; none where all does."""
    reasons = written - Counter({"written": written["written"]})
    reasons += Counter({NOT_WRITTEN: kept - written.total()})  # shards that no task was begun for
    if not reasons:
        return ()
    left = (steps[-1].left if steps else kept) - reasons.total()
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return (Step("write", "in no shard", dict(ranked), left),)


def stored_decide(out: Path) -> dict[str, Any]:
    """What the folder's recipe says of `decide`; empty where it says nothing."""
    import yaml

    try:
        recipe = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
        return dict(recipe.get("decide") or {})
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError):
        return {}


def _chosen(decided: Mapping[str, Counter[str]], wanted: str) -> str | None:
    names = sorted(decided, key=lambda name: (name != wanted, name == "everything", name))
    return names[0] if names else None


def _first_wave(out: Path) -> StageSum:
    """Fetching without its repeats: a repeat of a failure (task `w1-…`) is no further row.

    With the pairs of a later list whose URL had been asked for.
    """
    total = StageSum("fetch")
    for tally in (*records(out, "fetch"), *records(out, "reuse")):
        if not tally["task"].startswith("w"):
            total.counts.update(tally["counts"])
    return total


def _steps(
    sums: Mapping[str, StageSum], first_wave: StageSum, decided: Counter[str] | None
) -> tuple[Step, ...]:
    screen = sums["screen"].reasons if "screen" in sums else Counter[str]()
    copies = Counter({COPY: screen.pop(COPY, 0)})
    parts = [
        ("ingest", "not usable as a pair", sums["ingest"].reasons),
        ("copies", "the same pair again", +copies),
    ]
    if decided is None:
        parts += [("screen", "not worth fetching", screen), ("fetch", "no picture", first_wave.reasons)]
        done = [part for part in parts if part[0] in sums or (part[0] == "copies" and "screen" in sums)]
    else:
        dropped = Counter({word: n for word, n in decided.items() if word not in PASSED and n})
        early = dropped & screen
        late = dropped - early
        outcomes = {*sums["fetch"].counts, NOT_FETCHED} if "fetch" in sums else {NOT_FETCHED}
        failed = Counter({word: n for word, n in late.items() if word in outcomes})
        done = [
            *parts,
            ("screen", "not worth fetching", early),
            ("fetch", "no picture", failed),
            ("decide", "dropped by the rules", late - failed),
        ]
    left, steps = sums["ingest"].seen, []
    for name, label, reasons in done:
        left -= reasons.total()
        ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        steps.append(Step(name, label, dict(ranked), left))
    return tuple(steps)


def _unfinished(
    sums: Mapping[str, StageSum], first_wave: StageSum, missing: Sequence[Gap]
) -> tuple[str, ...]:
    notes = [
        f"{stage} has not run"
        for stage in ("ingest", "dedup", "language", "screen", "fetch")
        if not (stage in sums and sums[stage].tasks)
    ]
    notes += gap_lines([gap for gap in missing if not gap.error])
    worthy, asked = (sums["screen"].passed if "screen" in sums else 0), first_wave.seen
    if asked and asked < worthy:
        notes.append(f"fetch has asked for the pictures of {asked:,} of {worthy:,} pairs")
    passed = sum(sums[stage].passed for stage in ("fetch", "reuse") if stage in sums)
    if retried := passed - first_wave.passed:
        notes.append(f"further tries brought {retried:,} pictures, which `decide` will count")
    return (*notes, "decide has not run: nothing is kept or dropped for good")


def _problems(
    sums: Mapping[str, StageSum], steps: tuple[Step, ...], kept: int, decided: Counter[str]
) -> tuple[str, ...]:
    rows, dropped = sums["ingest"].seen, sum(step.dropped for step in steps)
    said = []
    if rows != dropped + kept:
        said.append(
            f"{rows:,} rows were seen, but {dropped:,} dropped + {kept:,} kept = {dropped + kept:,}:"
            f" {abs(rows - dropped - kept):,} {'missing' if rows > dropped + kept else 'too many'}"
        )
    if "screen" in sums:
        pairs, screened = sums["ingest"].passed, sums["screen"].seen
        if pairs != screened:
            said.append(f"ingest wrote {pairs:,} pairs, but screen saw {screened:,}")
        for word, n in (sums["screen"].reasons - decided).items():
            if word != COPY:
                said.append(f"screen dropped {n:,} more as {word} than decide counted")
    return tuple(said)


def render_funnel(funnel: Funnel, *, most: int = 6) -> Any:
    """The funnel as a rich table: a line per step, its `most` frequent reasons below it."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=None)
    for name in ("", "rows", "%", "left", ""):
        table.add_column(name, justify="right" if name else "left")

    def line(label: str, count: int, left: int | None, style: str) -> None:
        bar = "" if left is None else "█" * round(24 * left / max(funnel.rows, 1))
        rest = "" if left is None else f"{left:,}"
        table.add_row(Text(label), f"{count:,}", f"{funnel.percent(count):.1f}", rest, bar, style=style)

    line("rows in the lists", funnel.rows, funnel.rows, "bold")
    for step in funnel.steps:
        line(f"− {step.label}", step.dropped, step.left, "")
        for word, count in list(step.reasons.items())[:most]:
            line(f"    {word}", count, None, "dim")
        if len(step.reasons) > most:
            line(
                f"    {len(step.reasons) - most} more reasons",
                sum(list(step.reasons.values())[most:]),
                None,
                "dim",
            )
    line("kept" if funnel.kept is not None else "still in", funnel.left, funnel.left, "bold green")
    notes = [Text(f"unfinished: {note}", style="yellow") for note in funnel.unfinished]
    notes += [Text(f"does not add up: {problem}", style="bold red") for problem in funnel.problems]
    return Group(table, *notes)
