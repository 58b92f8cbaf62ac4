"""Selection files: the uids that a set of rules keeps, as Parquet and in DataComp's `u8,u8` .npy.

DataComp splits the 32 hex digits of a uid into two unsigned 64-bit numbers and sorts the pairs;
sorted so, they are in the order of the 16 bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from .commit import committed, write_table
from .files import readable
from .schema import SELECTION

PAIR_OF_U8 = np.dtype("u8,u8")


def uids_to_array(uids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """(N,) of dtype V16 with the uids of a binary(16) column, without a Python object for each."""
    if isinstance(uids, pa.ChunkedArray):
        uids = uids.combine_chunks()
    fixed = uids.cast(pa.binary(16))
    buffer = fixed.buffers()[1]
    if buffer is None or len(fixed) == 0:
        return np.empty(0, "V16")
    whole = np.frombuffer(buffer, dtype="V16", count=len(fixed) + fixed.offset)
    return whole[fixed.offset :]


def to_u8_pairs(uids: np.ndarray) -> np.ndarray:
    """(N,) V16 to (N,) 'u8,u8', in the same order."""
    halves = uids.view(">u8").reshape(-1, 2).astype("<u8")
    out = np.empty(len(halves), PAIR_OF_U8)
    out["f0"], out["f1"] = halves[:, 0], halves[:, 1]
    return out


def from_u8_pairs(pairs: np.ndarray) -> np.ndarray:
    """(N,) 'u8,u8' to (N,) V16."""
    halves = np.stack([pairs["f0"], pairs["f1"]], axis=1).astype(">u8")
    return np.ascontiguousarray(halves).view("V16").reshape(-1)


def unwanted_file(out: Path) -> Path:
    """The uids that were asked for when there were fewer lists and are dropped by now; may be missing."""
    return out / "selection" / "unwanted" / "unwanted.parquet"


def read_unwanted(out: Path) -> np.ndarray:
    """Sorted (N,) V16 of the uids in `unwanted_file`."""
    path = unwanted_file(out)
    return read_selection(path) if path.exists() else np.empty(0, "V16")


def write_selection(uids: pa.Array | pa.ChunkedArray, path: Path) -> None:
    """Commit `path` (.parquet) and its .npy twin. `uids` are distinct and sorted."""
    array = uids_to_array(uids)
    with committed(path.with_suffix(".npy")) as temporary, open(temporary, "wb") as file:
        np.save(file, to_u8_pairs(array))
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(array), [None, pa.py_buffer(array.tobytes())]
    )
    write_table(pa.table([column], schema=SELECTION), path)


def read_selection(path: Path) -> np.ndarray:
    """Sorted (N,) V16 of the uids in a .parquet or DataComp .npy selection.

    Raises DataError where the file is neither.
    """
    if not path.exists():
        raise DataError(f"{path}: no such selection: run `pairmill decide` first")
    if path.suffix == ".npy":
        return _read_npy(path)
    try:
        return uids_to_array(pq.read_table(readable(path), columns=["uid"]).column("uid"))
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{path}: no Parquet with a column uid of 16 bytes: {error}") from error


def _read_npy(path: Path) -> np.ndarray:
    try:
        pairs = np.load(readable(path), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: no .npy file of numbers: {error}") from error
    if not isinstance(pairs, np.ndarray) or pairs.dtype != PAIR_OF_U8 or pairs.ndim != 1:
        found = f"{pairs.dtype}, {pairs.ndim}-D" if isinstance(pairs, np.ndarray) else "an archive"
        raise DataError(f"{path}: {found}, expected 1-D u8,u8 (DataComp subset file)")
    return np.sort(from_u8_pairs(pairs).view("S16")).view("V16")


def is_selected(uids: np.ndarray, selection: np.ndarray) -> np.ndarray:
    """(N,) bool: which of `uids` (V16) are in the sorted `selection` (V16). Sorts nothing."""
    if len(selection) == 0:
        return np.zeros(len(uids), bool)
    # numpy orders S16 like the 16 bytes, for it pads with NUL what it strips
    keys, table = np.ascontiguousarray(uids).view("S16"), selection.view("S16")
    place = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return table[place] == keys
