"""Output folders on a command line: a path or a URL; and `pairmill unlock`, which frees one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .shards.store_path import StorePath, open_path

Place = Annotated[Path, Parameter(converter=lambda _, tokens: open_path(tokens[0].value))]
Where = Annotated[Place, Parameter(help="output folder of a run: local, or s3://, gs://, az://BUCKET/PREFIX")]


def unlock(folder: Where) -> int:
    """Free an output folder in an object store that a dead run still holds; on a disk nothing is held.

    Without it the lock is void three minutes after the run died. A run that is alive stops when it notices.
    """
    if not isinstance(folder, StorePath):
        print(f"{folder}: on a disk the lock goes with the run: there is nothing to free")
        return 0
    from .shards.object_lock import free
    from .shards.store import open_store

    holder = free(open_store(folder))
    print(f"{folder}: freed from {holder}" if holder else f"{folder}: no run holds it")
    return 0
