"""Many small files of one folder, in few requests: those of an object store are held by their tags.

Tallies are read again at every stage; of ten thousand of them at 30 ms each that would be minutes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .store_path import StorePath

AT_ONCE = 32  # requests in flight
HELD = 64 << 20  # bytes of files that are kept

_held: OrderedDict[tuple[str, str], bytes] = OrderedDict()  # by name and tag
_size = 0  # bytes of them together
_mutex = threading.Lock()


def read_folder(folder: Path, suffix: str) -> Iterator[tuple[Path, bytes]]:
    """Each file right in a folder that ends with `suffix`, with its bytes, by name."""
    if not isinstance(folder, StorePath):
        for path in sorted(folder.glob(f"*{suffix}")):
            yield path, path.read_bytes()
        return
    _, files = folder.store.level(folder.key)
    wanted = sorted((name, tag) for name, tag in files.items() if name.endswith(suffix))
    store = folder.store

    def read(item: tuple[str, str]) -> bytes | None:
        name, tag = item
        with _mutex:
            if (data := _held.get((store.place(name), tag))) is not None:
                return data
        try:
            data = store.read(name)
        except FileNotFoundError:  # removed meanwhile
            return None
        _hold((store.place(name), tag), data)
        return data

    with ThreadPoolExecutor(min(AT_ONCE, max(1, len(wanted))), "read") as threads:
        for (name, _), data in zip(wanted, threads.map(read, wanted), strict=True):
            if data is not None:
                yield StorePath(*folder.parts[:2], name), data


def _hold(key: tuple[str, str], data: bytes) -> None:
    global _size
    with _mutex:
        _size += len(data) - len(_held.pop(key, b""))
        _held[key] = data
        while _size > HELD:
            _size -= len(_held.popitem(last=False)[1])
