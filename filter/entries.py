"""Stage `entries`: which entries captions hold, and how balancing by them would draw; run where a rule asks.

An entry is held as often as distinct pairs hold it: MetaCLIP's counts; with `per_language` in each language
by itself. Two phases come before: in `match` each source finds and counts, in `ranks` (where a rule asks for
`entry_rank_v1`) one task ranks each entry's pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..errors import ConfigError
from ..recipe import Dedup, Entries, Rules
from ..runner import Stage, Tally, Task, beat
from ..settings import MEMORY_MB, ROWS_PER_PARTITION
from ..shards import exchange
from ..shards.commit import write_table
from ..shards.exchange import exchange_folder
from ..shards.schema import ENTRIES
from ..shards.selection import uids_to_array
from ..shards.store import open_store
from .balance import draws, entry_shares, pair_shares, rarest, t_of_share, tail_share
from .columns import read_part
from .matching import Matcher, entry_files, read_entries
from .rules import compile_rules
from .sources import cut, start
from .sql import database

MATCHES, COUNTS, RANKS = (exchange_folder("entries", name) for name in ("matches", "counts", "ranks"))
RANKED = """
SELECT seq, min(rank)::INT AS rank
FROM (SELECT seq, row_number() OVER (PARTITION BY entry ORDER BY draw, seq) - 1 AS rank FROM matches)
GROUP BY seq ORDER BY seq
"""


def needs_entries(*rules: Rules) -> bool:
    """Whether any rule names a column of ENTRIES."""
    columns = {*ENTRIES.names} - {"uid"}
    return any(columns & compile_rules(group).words for group in rules)


def needs_ranks(*rules: Rules) -> bool:
    """Whether any rule names `entry_rank_v1`."""
    return any("entry_rank_v1" in compile_rules(group).words for group in rules)


def check_entries(settings: Entries) -> dict[str, Path]:
    """The files of entries, by language. Raises ConfigError where none is named or there."""
    if settings.file is None:
        raise ConfigError(
            "entries.file: a rule asks for entries (queries, metadata), and none are given:"
            " name a file of them with --set entries.file=FILE"
        )
    files = entry_files(Path(settings.file))
    for path in files.values():
        if not path.is_file():
            raise ConfigError(f"entries.file: {path}: no such file: expected entries, one a line")
    return files


def entries_tasks(out: Path, rows: int = ROWS_PER_PARTITION) -> list[Task]:
    """A task for each source of up to `rows` rows; none where there are no pairs."""
    return cut(out, "entries", rows).tasks


def entries_phases(
    out: Path, settings: Entries, limits: Dedup, *, rows: int, ranks: bool, memory_mb: int = MEMORY_MB
) -> Iterator[tuple[Sequence[Task], Stage]]:
    """What runs before the stage: matching, and where it is asked for ranking."""
    made = cut(out, "entries", rows)
    match = partial(_match, settings=settings)
    yield [Task("entries.match", task.name, task.data) for task in made.tasks], _stage(out, "match", match)
    if ranks:
        parts = [part for task in made.tasks for part in task.data["parts"]]
        work = partial(_rank, seed=settings.seed, limits=limits, memory_mb=memory_mb)
        yield [Task("entries.ranks", "all", {"parts": parts})], _stage(out, "ranks", work)


def _stage(out: Path, phase: str, work: object) -> Stage:
    return Stage(f"entries.{phase}", start, (out, work))


def entries_stage(out: Path, settings: Entries) -> Stage:
    """The stage `entries`: scores/entries/<part>.parquet, row by row beside the part.

    Raises ConfigError where no entries are given.
    """
    check_entries(settings)
    return Stage("entries", start, (out, partial(_balance, settings=settings)))


@cache
def _read(path: Path) -> list[str]:
    return read_entries(path)


class _All:
    """The entries of all languages, numbered one after the other."""

    def __init__(self, settings: Entries) -> None:
        self.files, self.match = check_entries(settings), settings.match
        self.names: list[str] = []
        self.starts: dict[str, int] = {}
        for language, path in self.files.items():
            self.starts[language] = len(self.names)
            self.names += _read(path)
        self._matchers: dict[str, Matcher] = {}

    def matcher(self, language: str) -> Matcher:
        if language not in self._matchers:
            self._matchers[language] = Matcher(_read(self.files[language]), self.match)
        return self._matchers[language]

    def find(self, captions: list[str], languages: list[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """As `Matcher.find`, each caption with the entries of its language, or none where it has no file."""
        if "" in self.files:
            return self.matcher("").find(captions)
        rows, found = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        spoken = np.array([language or "" for language in languages], object)
        for language in sorted({*self.files} & {*spoken.tolist()}):
            places = np.flatnonzero(spoken == language)
            edges, entries = self.matcher(language).find([captions[place] for place in places])
            rows.append(np.repeat(places, np.diff(edges)))
            found.append(entries + self.starts[language])
        row, entry = np.concatenate(rows), np.concatenate(found)
        order = np.argsort(row, kind="stable")
        return np.searchsorted(row[order], np.arange(len(captions) + 1)), entry[order].astype(np.int32)


def _match(out: Path, task: Task, *, settings: Entries) -> Tally:
    """A source: the entries of its captions, part by part, and how often distinct pairs hold each."""
    store, known = open_store(out), _All(settings)
    groups: dict[str, np.ndarray] = {}
    n_rows = n_matches = 0
    for number, part in enumerate(task.data["parts"]):
        beat(task, number, len(task.data["parts"]), "matching")
        rows = read_part(out, part, ("caption", "lang_v1", "pair_rank_v1"))
        languages = rows.column("lang_v1").to_pylist()
        edges, entries = known.find(rows.column("caption").to_pylist(), languages)
        lists = pa.ListArray.from_arrays(pa.array(edges, pa.int32()), pa.array(entries, pa.int32()))
        exchange.keep(store, MATCHES, part, pa.table({"entries": lists}))
        first = rows.column("pair_rank_v1").to_numpy() == 0
        spoken = np.array([_group(language, settings) for language in languages], object)
        for group in sorted({*spoken[first].tolist()}):
            counted = np.repeat(first & (spoken == group), np.diff(edges))
            held = np.bincount(entries[counted], minlength=len(known.names))
            groups[group] = groups.get(group, 0) + held
        n_rows, n_matches = n_rows + len(rows), n_matches + len(entries)
    tables = [
        pa.table(
            {"group": [group] * int((held > 0).sum()), "entry": np.flatnonzero(held), "n": held[held > 0]}
        )
        for group, held in groups.items()
    ]
    schema = pa.schema([("group", pa.string()), ("entry", pa.int64()), ("n", pa.int64())])
    counts = pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in tables)])
    exchange.keep(store, COUNTS, task.name, counts)
    return Tally({"matched": n_rows}, {"matches": n_matches, "entries": len(known.names)})


def _group(language: str | None, settings: Entries) -> str:
    """What a caption is counted with: its language, or all."""
    return (language or "?") if settings.per_language else ""


def _rank(out: Path, task: Task, *, seed: int, limits: Dedup, memory_mb: int) -> Tally:
    """All pairs: of each the least rank among its entries' pairs, in the order of their draws."""
    store = open_store(out)

    def matches() -> Iterator[pa.RecordBatch]:
        seq = 0
        for part in task.data["parts"]:
            rows = read_part(out, part, ("pair_rank_v1",))
            lists = exchange.kept(store, MATCHES, part).column("entries").combine_chunks()
            first = rows.column("pair_rank_v1").to_numpy() == 0
            lengths = np.diff(lists.offsets.to_numpy()) * first
            kept = np.repeat(first, np.diff(lists.offsets.to_numpy()))
            draw = draws(uids_to_array(rows.column("uid")), seed)
            columns = [np.repeat(np.arange(seq, seq + len(rows)), lengths)]
            columns += [lists.values.to_numpy()[kept], np.repeat(draw, lengths)]
            yield pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=schema)
            seq += len(rows)

    schema = pa.schema([("seq", pa.int64()), ("entry", pa.int32()), ("draw", pa.float32())])
    with database(out, "entries-ranks", memory_mb=memory_mb, threads=limits.threads) as connection:
        connection.register("matches", pa.RecordBatchReader.from_batches(schema, matches()))
        ranked = connection.sql(RANKED).to_arrow_table()
    seq, start_ = ranked.column("seq").to_numpy(), 0
    for part in task.data["parts"]:
        size = len(exchange.kept(store, MATCHES, part))
        low, high = np.searchsorted(seq, [start_, start_ + size])
        exchange.keep(
            store,
            RANKS,
            part,
            pa.table({"row": seq[low:high] - start_, "rank": ranked.column("rank")[low:high]}),
        )
        start_ += size
    return Tally({"ranked": len(ranked)})


def _balance(out: Path, task: Task, *, settings: Entries) -> Tally:
    """Counts rows: 'drawn', 'not_drawn', 'no_entry'. Facts: the t of each group."""
    store, known = open_store(out), _All(settings)
    counts = _totals(out, len(known.names))
    ts = thresholds(counts, settings)
    names = pa.array(known.names, pa.string())
    drawn = no_entry = seen = 0
    for part in task.data["parts"]:
        rows = read_part(out, part, ("lang_v1",))
        lists = exchange.kept(store, MATCHES, part).column("entries").combine_chunks()
        edges, entries = lists.offsets.to_numpy().astype(np.int64), lists.values.to_numpy()
        spoken = np.array(
            [_group(language, settings) for language in rows.column("lang_v1").to_pylist()], object
        )
        of_match = np.repeat(spoken, np.diff(edges))
        shares, held = np.ones(len(entries)), np.zeros(len(entries), np.int64)
        for group in sorted({*of_match.tolist()}):
            mine, n = of_match == group, counts.get(group, np.zeros(len(known.names), np.int64))
            shares[mine], held[mine] = (
                entry_shares(n, ts.get(group, settings.t))[entries[mine]],
                n[entries[mine]],
            )
        share, draw = pair_shares(edges, shares), draws(uids_to_array(rows.column("uid")), settings.seed)
        ranks = _ranks(out, part, len(rows))
        least = rarest(edges, entries, held)
        columns = [rows.column("uid"), np.diff(edges).astype(np.int32), share, draw, ranks]
        columns.append(names.take(pa.array(least, mask=least < 0)))
        write_table(
            pa.table([pa.array(c) if isinstance(c, np.ndarray) else c for c in columns], schema=ENTRIES),
            out / "scores" / "entries" / f"{part}.parquet",
        )
        seen, drawn = seen + len(rows), drawn + int((draw < share).sum())
        no_entry += int((np.diff(edges) == 0).sum())
    return Tally({"drawn": drawn, "no_entry": no_entry, "not_drawn": seen - drawn - no_entry}, {"t": ts})


def thresholds(counts: dict[str, np.ndarray], settings: Entries) -> dict[str, int]:
    """The t of each group: `t`; with per_language what leaves as large a tail as `t` does for the reference.

    Raises ConfigError where no pair is in the reference language.
    """
    if not settings.per_language:
        return dict.fromkeys(counts, settings.t)
    if settings.reference not in counts:
        raise ConfigError(
            f"entries.reference: no pair is in {settings.reference!r}: name the language that t is meant for;"
            f" there are: {', '.join(sorted(counts))}"
        )
    share = tail_share(counts[settings.reference], settings.t)
    found = {group: t_of_share(held, share) for group, held in counts.items()}
    return found | {settings.reference: settings.t}


def _totals(out: Path, entries: int) -> dict[str, np.ndarray]:
    """(E,) by group: how many distinct pairs hold each entry, of all sources."""
    store, found = open_store(out), dict[str, np.ndarray]()
    for name in store.names(COUNTS, ".kept"):
        table = exchange.kept(store, COUNTS, name)
        groups = np.array(table.column("group").to_pylist(), object)
        entry, n = table.column("entry").to_numpy(), table.column("n").to_numpy()
        for group in sorted({*groups.tolist()}):
            held = found.setdefault(group, np.zeros(entries, np.int64))
            held[entry[groups == group]] += n[groups == group]
    return dict(sorted(found.items()))


def _ranks(out: Path, part: str, rows: int) -> pa.Array:
    """(N,) ranks; NULL where a row has none, or none were asked for."""
    found = np.full(rows, -1, np.int32)
    store = open_store(out)
    if part in store.names(RANKS, ".kept"):
        table = exchange.kept(store, RANKS, part)
        found[table.column("row").to_numpy()] = table.column("rank").to_numpy()
    return pa.array(found, mask=found < 0)
