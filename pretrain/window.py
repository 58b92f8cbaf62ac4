"""The samples of some shards in memory; a caption becomes tokens when a batch first needs them, and once.

Nothing here imports torch: windows live in the loader's own process.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import IO

import numpy as np
import pyarrow as pa

from .samples import Pairs, Rows
from .tokenizer import Encode

NOT_YET = -1  # the length of a caption whose tokens are not known
COLUMNS = [item.name for item in fields(Pairs) if item.name != "text"]

Known = tuple[np.ndarray, np.ndarray]  # (N,) lengths, NOT_YET where unknown, and flat tokens of the others


class TokenFile:
    """Tokens of shards whose window was left, in a file without a name that ends with this process.

    What is held in memory is a place in it for each shard.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._place: dict[int, tuple[int, int, int]] = {}
        self._lock = threading.Lock()

    def write(self, shard: int, known: Known) -> None:
        """Keep them; a shard that is there gives way to the new one only where that knows more."""
        lengths, tokens = known
        with self._lock:
            before = self._place.get(shard)
            if before is not None and before[2] >= len(tokens):
                return
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
            at = self._file.seek(0, 2)
            self._file.write(lengths.astype(np.int32).tobytes() + tokens.astype(np.int32).tobytes())
            self._place[shard] = at, len(lengths), len(tokens)

    def read(self, shard: int) -> Known | None:
        """What is known of a shard."""
        with self._lock:
            if self._file is None or shard not in self._place:
                return None
            at, captions, tokens = self._place[shard]
            self._file.seek(at)
            flat = np.frombuffer(self._file.read(4 * (captions + tokens)), np.int32)
        return flat[:captions], flat[captions:]

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()


class Window:
    """Samples of some shards, one shard after the other."""

    def __init__(self, parts: Mapping[int, Pairs], encode: Encode, known: TokenFile) -> None:
        """parts: by the shard's number."""
        self._columns = {
            name: np.concatenate([getattr(part, name) for part in parts.values()]) for name in COLUMNS
        }
        self._text = pa.chunked_array([part.text for part in parts.values()], pa.large_string())
        self._text = self._text.combine_chunks()
        self._encode, self._known = encode, known
        self._ends = dict(zip(parts, np.cumsum([len(part) for part in parts.values()]).tolist(), strict=True))
        self._length = np.full(len(self), NOT_YET, np.int32)
        self._start = np.zeros(len(self), np.int64)
        self._tokens, self._used = np.empty(0, np.int32), 0
        for shard, end in self._ends.items():
            self._recall(known.read(shard), end - len(parts[shard]), end)

    def __len__(self) -> int:
        return len(self.picture)

    @property
    def picture(self) -> np.ndarray:
        """(N,) int64, equal for equal pictures."""
        return self._columns["picture"]

    def take(self, index: np.ndarray) -> Rows:
        """The samples at `index`, with the tokens of their captions and no others."""
        unknown = np.unique(index[self._length[index] == NOT_YET])
        if len(unknown):
            tokens, length = self._encode(self._text.take(pa.array(unknown)).to_pylist())
            self._append(unknown, length, tokens)
        length = self._length[index]
        start = np.cumsum(length, dtype=np.int64) - length
        picked = {name: column[index] for name, column in self._columns.items()}
        tokens = gather(self._tokens, self._start[index], length)
        return Rows(**picked, start=start, length=length, tokens=tokens)

    def _append(self, index: np.ndarray, length: np.ndarray, tokens: np.ndarray) -> None:
        while self._used + len(tokens) > len(self._tokens):
            room = max(2 * len(self._tokens), len(tokens), 1024)
            self._tokens = np.concatenate([self._tokens[: self._used], np.empty(room, np.int32)])
        self._tokens[self._used : self._used + len(tokens)] = tokens
        self._start[index] = self._used + np.cumsum(length, dtype=np.int64) - length
        self._length[index] = length
        self._used += len(tokens)

    def _recall(self, known: Known | None, begin: int, end: int) -> None:
        if known is None or len(known[0]) != end - begin:
            return
        there = np.flatnonzero(known[0] != NOT_YET)
        self._append(begin + there, known[0][there], known[1])

    def keep_tokens(self) -> None:
        """Write what is known of the shards to the file: the window is left."""
        begin = 0
        for shard, end in self._ends.items():
            lengths = self._length[begin:end]
            there = lengths != NOT_YET
            self._known.write(
                shard, (lengths, gather(self._tokens, self._start[begin:end][there], lengths[there]))
            )
            begin = end


def gather(flat: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The stretches of `flat` that begin at `start`, one after the other."""
    ends = np.cumsum(length, dtype=np.int64)
    moved = np.repeat(start - (ends - length), length)
    return flat[np.arange(len(moved)) + moved]


def join_rows(parts: Sequence[Rows]) -> Rows:
    """One after the other."""
    begin = np.cumsum([0, *(len(part.tokens) for part in parts)])
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    start = [part.start + at for part, at in zip(parts, begin, strict=False)]
    length, tokens = ([getattr(part, name) for part in parts] for name in ("length", "tokens"))
    return Rows(
        **columns,
        start=np.concatenate(start),
        length=np.concatenate(length),
        tokens=np.concatenate(tokens),
    )
