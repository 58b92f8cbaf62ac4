"""The first tasks of `noise` where its pairs are several sources: what is known of each pair, by its uid.

`noise_phases.py` has the order of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..runner import Tally, Task
from ..shards import schema
from ..shards.exchange import gather, partition_of, reply, scatter
from ..shards.files import readable
from ..shards.selection import uids_to_array
from .cells import Tables, by_language, candidates_files, count, known, near_files
from .embedded import Source
from .noise_plan import Way
from .sql import database

LANGUAGE = pa.schema([("uid", schema.UID), ("lang_v1", pa.string())])
NEAR = pa.schema([("uid", schema.UID), ("near_group_v1", schema.UID)])


def send(way: Way, task: Task) -> Tally:
    """Rows of a source, or languages of some parts, to the partitions of their uids."""
    name, out = f"{task.data['number']:06d}", way.plan.out
    if "shards" in task.data:
        rows, folder = Source(out, task.data["shards"]).pairs(), "pairs"
    else:
        paths = [out / "scores/language" / f"{part}.parquet" for part in task.data["parts"]]
        rows = pa.concat_tables(
            pq.read_table(readable(path), columns=LANGUAGE.names).cast(LANGUAGE) for path in paths
        )
        folder = "languages"
    part = partition_of(uids_to_array(rows["uid"]), way.parts)
    scatter(way.store, way.name(folder), name, rows, part, way.parts)
    return Tally({"sent": len(rows)})


def join(way: Way, task: Task) -> Tally:
    """What is known of each pair of a partition, back to its source. Facts: pairs by language and fold."""
    plan, part = way.plan, task.data["number"]
    came = [table for _, table in gather(way.store, way.name("pairs"), part)]
    pairs = pa.concat_tables(came)
    near, candidates = near_files(plan.out), candidates_files(plan.out)
    languages = by_language(plan.out, plan.settings)
    with database(plan.out, f"{task.stage}-{part}", memory_mb=plan.memory_mb) as connection:
        if languages:
            sent = (table for _, table in gather(way.store, way.name("languages"), part))
            connection.register("languages", _reader(sent, LANGUAGE))
        connection.register("near", _reader(_range(near, NEAR, way.parts, part), NEAR))
        connection.register(
            "candidates", _reader(_range(candidates, schema.SELECTION, way.parts, part), schema.SELECTION)
        )
        tables = Tables(
            "languages" if languages else None, "near" if near else None, "candidates" if candidates else None
        )
        told = known(connection, pairs["uid"], tables)
    reply(way.store, way.name("pairs"), part, told, [len(table) for table in came])
    found = count(told["lang"], pairs["fold"].to_numpy())
    return Tally({"joined": len(pairs)}, {"pairs": [[*key, n] for key, n in sorted(found.items())]})


def _reader(tables: Iterator[pa.Table], fields: pa.Schema) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(
        fields, (batch for table in tables for batch in table.select(fields.names).cast(fields).to_batches())
    )


def _range(paths: Sequence[Path], fields: pa.Schema, parts: int, part: int) -> Iterator[pa.Table]:
    """Rows of a partition, from files sorted by uid: of each only the row groups that reach into it."""
    for path in paths:
        with pq.ParquetFile(readable(path)) as file:
            column = file.schema_arrow.get_field_index("uid")
            for number in range(file.num_row_groups):
                said = file.metadata.row_group(number).column(column).statistics
                if said is not None and said.has_min_max:
                    ends = np.frombuffer(bytes(said.min) + bytes(said.max), "V16")
                    first, last = partition_of(ends, parts)
                    if not first <= part <= last:
                        continue
                table = file.read_row_group(number, columns=fields.names)
                yield table.filter(pa.array(partition_of(uids_to_array(table["uid"]), parts) == part))
