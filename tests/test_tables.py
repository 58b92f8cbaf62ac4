"""Tables come out of a store as they went in, and each kind of file has one place."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from pairmill.errors import ShardError
from pairmill.shards import layout
from pairmill.shards.store import open_store
from pairmill.shards.tables import (
    count_rows,
    open_parquet,
    read_json,
    read_table,
    stream,
    tables,
    write_json,
    write_table,
)


def test_a_table_has_the_same_bytes_however_it_was_put_together(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    whole = pa.table({"a": [f"caption {i}" for i in range(5000)], "b": list(range(5000))})
    one = write_table(store, "x/whole.parquet", whole)
    two = write_table(store, "x/parts.parquet", pa.concat_tables([whole.slice(0, 7), whole.slice(7)]))
    assert (one.digest, one.size) == (two.digest, store.size("x/parts.parquet"))
    assert read_table(store, "x/whole.parquet") == whole
    assert read_table(store, "x/whole.parquet", {"b", "none"}) == whole.select(["b"])
    assert count_rows(store, "x/whole.parquet") == 5000


def test_a_file_that_is_missing_or_not_whole_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(ShardError, match=r"a\.parquet: missing: run the stage that writes it first"):
        read_table(store, "a.parquet")
    write_table(store, "a.parquet", pa.table({"a": list(range(1000))}))
    store.put("a.parquet", store.read("a.parquet")[:-20])
    for read in (read_table, count_rows, open_parquet):
        with pytest.raises(ShardError, match=r"a\.parquet: not readable as Parquet"):
            read(store, "a.parquet")
    store.put("a.json", b"{")
    with pytest.raises(ShardError, match=r"a\.json: not JSON"):
        read_json(store, "a.json")


def test_json_has_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write_json(store, "1.json", {"b": 1, "a": {"d": "ä", "c": None}})
    write_json(store, "2.json", {"a": {"c": None, "d": "ä"}, "b": 1})
    assert store.read("1.json") == store.read("2.json")
    assert read_json(store, "1.json") == {"b": 1, "a": {"d": "ä", "c": None}}


def test_many_files_are_one_stream_in_their_order(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    names = [layout.PAIRS.file(f"{i:02d}") for i in range(9)]
    for i, name in enumerate(names):
        write_table(store, name, pa.table({"n": [10 * i, 10 * i + 1], "text": [f"{i}", "x"]}))
    assert [(name, table["n"].to_pylist()) for name, table in tables(store, names, ["n"])] == [
        (name, [10 * i, 10 * i + 1]) for i, name in enumerate(names)
    ]
    schema = pa.schema([("text", pa.string()), ("n", pa.int64())])
    with duckdb.connect() as connection:
        connection.register("source", stream(store, names, ["text", "n"], schema))
        assert connection.execute("SELECT count(*), sum(n), max(text) FROM source").fetchall() == [
            (18, 729, "x")
        ]


def test_every_kind_of_file_has_a_place_of_its_own(tmp_path: Path) -> None:
    places = [kind.file("name") for kind in layout.KINDS]
    assert len(set(places)) == len(places) > 20
    store = open_store(tmp_path)
    for place in places:
        store.put(place, b"")
    assert {tuple(kind.names(store)) for kind in layout.KINDS} == {("name",)}
    assert layout.SCREEN.files(store) == ["selection/screen/name.parquet"]
    assert [kind.folder for kind in layout.by_stage("near")] == ["scores/near"]
