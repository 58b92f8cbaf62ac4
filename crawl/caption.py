"""The normal form of a caption: what a reader sees, in one spelling, with nothing that acts on a terminal.

HTML character references are decoded, once: of `&amp;lt;` stays `&lt;`, which may be meant. Then NFC; white
space of any kind becomes single spaces; control characters, bidirectional marks and overrides, zero-width
spaces, soft hyphens, byte order marks, interlinear and tag characters go. ZWJ and ZWNJ stay where scripts and
emoji need them: singly, between two characters that are neither ASCII nor white space. Markup stays text:
whoever shows a caption escapes it.
"""

from __future__ import annotations

import re
import unicodedata
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RowError
from .entities import decode_entities
from .patch import patch

# Listed by code point, not by category, so that another Unicode version gives the same bytes.
_GONE = re.compile(
    "[\\x00-\\x08\\x0e-\\x1b\\x7f-\\x84\\x86-\\x9f\\u00ad\\u061c\\u180e\\u200b\\u200e\\u200f\\u202a-\\u202e"
    "\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb\\ufffe\\uffff\\U000e0000-\\U000e007f]"
)
_NEEDS_JOINER = "[^\\x00-\\x7f\\s\\u200c\\u200d]"
_JOINER = re.compile(f"(?<!{_NEEDS_JOINER})[\\u200c\\u200d]|[\\u200c\\u200d](?!{_NEEDS_JOINER})")

# Characters that are their own normal form in each other's company: no combining mark, no Hangul jamo, no
# semicolon, which may end a character reference.
_PLAIN = (
    "!-:<-~¡-\u00ac®-\u017fΑ-Ρ\u03a3-ώЀ-\u0481\u048a-ԯ\u05d0-\u05ea\u0621-\u063a\u0641-\u064a‐-‧€™"
    "、-〠\u3041-\u3096\u30a1-\u30ff\u4e00-\u9fff가-힣！-～\U0001f300-\U0001f64f\U0001f680-\U0001f6ff"
)
NORMAL = f"^[{_PLAIN}]+(?: [{_PLAIN}]+)*$"


def normal_caption(text: str | None, *, max_bytes: int = 65_536) -> str:
    """The caption in normal form; idempotent but for references that were escaped twice.

    max_bytes: of the normal form in UTF-8.
    Raises RowError with caption_missing (nothing left), caption_too_long or text_not_utf8 (a lone surrogate).
    """
    text = _normal_form(decode_entities(text or ""))
    if not text:
        raise RowError("caption_missing")
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise RowError("text_not_utf8") from error
    if size > max_bytes:
        raise RowError("caption_too_long")
    return text


def _normal_form(text: str) -> str:
    if text.isascii():
        return " ".join(_GONE.sub("", text).split())
    text = unicodedata.normalize("NFC", text)
    text = _JOINER.sub("", _GONE.sub("", text))
    return unicodedata.normalize("NFC", " ".join(text.split()))  # again: what was apart may now compose


def normal_captions(column: pa.Array, *, max_bytes: int = 65_536) -> tuple[pa.Array, pa.Array]:
    """`normal_caption` of (N,) strings: the captions, NULL where refused, and the reasons, NULL where not."""
    is_fine = pc.and_(
        pc.match_substring_regex(column, NORMAL),
        pc.less_equal(pc.binary_length(column), max_bytes),
    )
    return patch(column, is_fine, partial(normal_caption, max_bytes=max_bytes))
