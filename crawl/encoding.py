"""The text in a list's bytes: decompressed, decoded, cut into lines of bounded length.

Read are UTF-8, UTF-16 and UTF-32 with a mark, UTF-16 without one (every other byte of its ASCII is zero), and
Windows-1252 (with it Latin-1), where the first MB has more of its bytes than of UTF-8 beyond ASCII, and they
stand as Western accents and dashes do: one by one, behind ASCII. All else is UTF-8, or what the recipe names.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from ..errors import ConfigError

HEAD_BYTES = 2**20  # of the text, by which encoding and line ends are judged
BLOCK_BYTES = 2**18
MAX_CHARS = 2 * 2**20  # of one line, and of one CSV field: what is longer is no caption

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ": "xz"}
_MARKS = (
    *((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),  # after UTF-32, which begins alike
)
_HIGH = re.compile(rb"[\x80-\xff]+")
# Windows-1252: letters with accents, quotation marks, dashes, the dots, signs such as © and °
_WESTERN = (
    rb"[\x80\x85\x8c\x91-\x97\x99\x9c\xa0\xa1\xa3\xa9\xab\xae\xb0\xb7\xba\xbb\xbf\xc0-\xd6\xd8-\xf6\xf8-\xfe]"
)
_ACCENT = re.compile(rb"(?:(?<=[A-Za-z ,.'\"(])|^)" + _WESTERN + rb"(?![\x80-\xff])")


@dataclass(frozen=True, slots=True)
class TextForm:
    """How the text of a list is written."""

    kind: str  # csv, tsv, txt; jsonl (objects on lines), array (of objects), document (JSON of another shape)
    encoding: str = "utf-8-sig"
    cr_ends_lines: bool = False  # as on old Macs; elsewhere a lone carriage return is text
    delimiter: str = ","
    holds_columns: bool = False  # each JSON object holds many rows


class _Lent(io.RawIOBase):
    """A file that stays open when its readers close."""

    def __init__(self, file: BinaryIO) -> None:
        self._file: Any = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)


class _Checked(io.RawIOBase):
    """A decompressed stream all of whose faults are OSErrors. Zero bytes behind gzip data are no fault."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._stream.readinto(buffer)
        except EOFError as error:
            raise OSError("the compressed data is truncated") from error
        except (zlib.error, lzma.LZMAError) as error:
            raise OSError(f"the compressed data is broken: {error}") from error


def open_bytes(file: BinaryIO, codec: str | None) -> io.BufferedReader:
    """The decompressed bytes of a list from its beginning. First bytes that say "compressed" are believed."""
    file.seek(0)
    head = file.read(6)
    file.seek(0)
    codec = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), codec)
    raw: Any = _Lent(file)
    if codec == "gzip":
        raw = _Checked(gzip.GzipFile(fileobj=io.BufferedReader(raw, BLOCK_BYTES)))
    elif codec in ("bz2", "xz"):
        raw = _Checked(bz2.BZ2File(raw) if codec == "bz2" else lzma.LZMAFile(raw))  # noqa: SIM115
    elif codec is not None:
        raw = pa.input_stream(raw, compression=codec)
    return io.BufferedReader(raw, 2**20)


def read_head(file: BinaryIO, codec: str | None) -> bytes:
    """The first HEAD_BYTES of the decompressed text, fewer where the list is shorter."""
    return open_bytes(file, codec).read(HEAD_BYTES)


def find_form(head: bytes, kind: str, path: str, encoding: str | None) -> TextForm:
    """The form of a text that begins with `head`, its delimiter not yet judged.

    encoding: as the recipe names it, or None. Raises ConfigError for a name that Python does not know.
    """
    encoding = encoding or _encoding(head)
    try:
        text = codecs.getincrementaldecoder(encoding)(_on_error(encoding)).decode(head)
    except LookupError as error:
        raise ConfigError(
            f"ingest.encoding: no encoding is named {encoding!r}: cp1251, gb18030, ..."
        ) from error
    except UnicodeError as error:
        raise ConfigError(
            f"{path}: is not {encoding} ({error}): name its encoding with --set ingest.encoding=NAME"
        ) from error
    n_cr = text.count("\r") - text.count("\r\n")
    return TextForm(kind, encoding, cr_ends_lines=n_cr > text.count("\n"))


def _encoding(head: bytes) -> str:
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    half = len(head) // 2
    first, second = head[0 : 2 * half : 2].count(0), head[1 : 2 * half : 2].count(0)
    if max(first, second) > 0.3 * half and min(first, second) < 0.02 * half:
        return "utf-16-le" if second > first else "utf-16-be"
    return "cp1252" if _is_western(head) else "utf-8-sig"


def _is_western(head: bytes) -> bool:
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(head)
    n_bad = len(re.findall("[\udc80-\udcff]", text))
    if n_bad == 0 or n_bad < sum(map(len, re.findall("[^\x00-\x7f\udc80-\udcff]+", text))):
        return False
    n_high = sum(map(len, _HIGH.findall(head)))
    return len(_ACCENT.findall(head)) >= 0.8 * n_high


def _on_error(encoding: str) -> str:
    """Bytes outside the encoding become lone surrogates, by which the row is refused later."""
    return (
        "surrogatepass"
        if encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32"))
        else "surrogateescape"
    )


def text_pieces(file: BinaryIO, codec: str | None, form: TextForm) -> Iterator[str]:
    """The text of a list in pieces of about BLOCK_BYTES. Raises OSError, UnicodeError or ArrowException."""
    stream = open_bytes(file, codec)
    decoder: Any = codecs.getincrementaldecoder(form.encoding)(_on_error(form.encoding))
    if form.cr_ends_lines:
        decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
    while block := stream.read(BLOCK_BYTES):
        yield decoder.decode(block)
    yield decoder.decode(b"", True)


def line_blocks(pieces: Iterator[str]) -> Iterator[list[str] | None]:
    """The lines of a text, their ends included, many at a time; None stands for a line past MAX_CHARS."""
    rest, is_long = "", False
    for piece in pieces:
        end = piece.rfind("\n") + 1
        if not end:
            rest = "" if is_long else rest + piece
            is_long = is_long or len(rest) > MAX_CHARS
            continue
        whole = rest + piece[:end]
        if is_long:
            yield None
            whole = whole.partition("\n")[2]
        rest, is_long = piece[end:], False
        yield from _lines(whole)
    if is_long:
        yield None
    yield from _lines(rest)


def _lines(text: str) -> Iterator[list[str] | None]:
    lines = io.StringIO(text, newline="\n").readlines()
    if len(text) <= MAX_CHARS:
        if lines:
            yield lines
        return
    for line in lines:  # only the first can be too long: a piece is shorter
        yield None if len(line) > MAX_CHARS else [line]
