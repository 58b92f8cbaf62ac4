"""DuckDB with bounds: memory, threads, a folder to spill to, and no file outside the output folder.

The rule: rules come from recipes, which people share, so what SQL may reach is fixed before it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import duckdb

from ..errors import DataError, OutputError
from ..settings import MEMORY_MB
from ..shards.duck_files import reading
from ..shards.files import scratch_folder

UNREADABLE = (".parquet", "Parquet", "No files found")  # what DuckDB says of files, and of no value


@contextmanager
def database(
    out: Path | None = None, name: str = "", *, memory_mb: int = MEMORY_MB, threads: int | None = 1
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory that spills into `out/_tmp/<name>`, which is removed at the end.

    out: the only folder that SQL can read; nothing at all when None.
    memory_mb: for DuckDB's buffers; the process needs some hundred MB more.
    threads: all cores when None. Results must not depend on it: every output is ordered.
    Raises DataError where even spilling does not fit the memory, or a file is broken, OutputError where the
    disk is full.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_mb}MB",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "arrow_lossless_conversion": True,  # a UUID comes back as 16 bytes, not as text
    }
    if threads is not None:
        config["threads"] = threads
    temporary: Path | None = None
    try:
        with ExitStack() as stack:
            connection = duckdb.connect(config=config)
            if out is not None:
                stack.enter_context(reading(connection, out))
                temporary = stack.enter_context(scratch_folder(out / "_tmp" / name))
                connection.execute(f"SET temp_directory = {quoted(str(temporary))}")
                connection.execute(f"SET allowed_directories = [{quoted(str(out))}]")
            stack.callback(connection.close)
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield connection
    except duckdb.OutOfMemoryException as error:
        said = str(error).partition("\n")[0]
        raise DataError(
            f"{name}: DuckDB needs more than {memory_mb} MB: raise run.memory_mb ({said})"
        ) from error
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        said = str(error).partition("\n")[0]
        if isinstance(error, duckdb.IOException) and "space" in said:
            raise OutputError(f"{temporary}: the disk is full: {said}") from error
        if not any(word in said for word in UNREADABLE):
            raise
        raise DataError(f"{name}: what it reads is broken: {said}: `pairmill verify` says where") from error


def quoted(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def value_error(error: Exception) -> str:
    """What DuckDB says of a value that an expression cannot use, in one line, and what to write instead."""
    said = str(error).strip().partition("\n")[0].removeprefix("Invalid: ")
    if said.startswith("Conversion"):
        return f"{said}; TRY_CAST(x AS INT) is NULL where x::INT fails"
    return f"{said}; TRY(x) is NULL where x fails"
