"""Text columns: what can be said about a caption by looking at it, as SQL expressions over `caption`.

The rule: an expression is exact, needs no other row and no other text column, and its name ends in a
version. Only those that a rule names are computed. Captions are normalised: NFC, single spaces, none at
the ends.
"""

from __future__ import annotations

from collections.abc import Container

import pyarrow as pa

# Scripts that put no spaces between words: each of their characters counts as a word, so that "3 words"
# means "3 characters" there (two Chinese characters make a word on average; Thai vowels count too).
NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
EXTENSION = r"\.(jpe?g|jfif|png|gif|webp|bmp|tiff?|svg|heic|avif|raw|cr2|nef|dng|psd|pdf)"
# words that cameras, phones, scanners and programs put before a number
CAMERA = (
    r"(img|image|imag|dsc|dscn|dscf|_?dsc|dcp|dcs|pict|pic|photo|foto|p|sam|cimg|hpim|kif|mvi|mvc|gopr|gp|dji|pxl|"
    r"wp|imgp|mg|_mg|sdc|stp|im|scan|scan_|screenshot|screen shot|snapshot|untitled|unnamed|slide|figure|fig|"
    r"wechatimg|mmexport|fb_img|received|whatsapp image|signal|cam|capture|picture|bild|imagen|immagine)"
)
FILENAME = (
    rf"^\S*{EXTENSION}$"  # 000.jpg
    rf"|^.*[\w\-]{EXTENSION}(\?\S*)?$"  # my cat.jpg
    rf"|^{CAMERA}[ _\-]*[(#]?[\d][\d _\-().xv]*$"  # IMG_1234, DSC00012, Screenshot 2020-01-01
    r"|^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$"  # a UUID
    r"|^[0-9a-f]*\d[0-9a-f]*$"  # a number, or hexadecimal with a digit
    r"|^[a-z]{0,4}[_\-]?\d{3,}[a-z]?([_\-]\w+)*$"  # a1234567_b
    r"|^\S*_\S*_\S*\d\S*$"  # two underscores and a number, no space
)
URL = r"(https?://|www\.)\S|\b[a-z0-9\-]{2,}\.(com|net|org|info|co\.uk|de|fr|cn|ru|jp|io)\b"

WORD = rf"[{NO_SPACES}]|[^\s{NO_SPACES}]*[\p{{L}}\p{{N}}][^\s{NO_SPACES}]*"

# name -> (type, expression)
TEXT_COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "n_chars_v1": (pa.int64(), "length(caption)"),  # Unicode code points
    # words between spaces: what Python's len(caption.split()) gives for a normalised caption
    "n_spaced_v1": (
        pa.int64(),
        "CASE WHEN caption = '' THEN 0 ELSE length(caption) - length(replace(caption, ' ', '')) + 1 END",
    ),
    # words; where a script has no spaces, its characters
    "n_words_v1": (
        pa.int64(),
        f"CASE WHEN regexp_matches(caption, '[{NO_SPACES}]') THEN"
        f" len(regexp_extract_all(caption, '{WORD}'))"
        " WHEN caption = '' THEN 0"
        " ELSE length(caption) - length(replace(caption, ' ', '')) + 1 END",
    ),
    "n_han_v1": (pa.int64(), r"length(caption) - length(regexp_replace(caption, '\p{Han}+', '', 'g'))"),
    "has_letter_v1": (pa.bool_(), r"regexp_matches(caption, '\p{L}')"),
    "digit_share_v1": (
        pa.float64(),
        "(length(caption) - length(regexp_replace(caption, '[0-9]+', '', 'g')))"
        " / greatest(length(caption), 1)",
    ),
    "upper_share_v1": (  # of the letters
        pa.float64(),
        r"(length(caption) - length(regexp_replace(caption, '\p{Lu}+', '', 'g')))"
        r" / greatest(length(caption) - length(regexp_replace(caption, '\p{L}+', '', 'g')), 1)",
    ),
    "punctuation_share_v1": (
        pa.float64(),
        r"(length(caption) - length(regexp_replace(caption, '[\p{P}\p{S}]+', '', 'g')))"
        r" / greatest(length(caption), 1)",
    ),
    "filename_like_v1": (pa.bool_(), f"regexp_matches(lower(caption), '{FILENAME}')"),
    "has_url_v1": (pa.bool_(), f"regexp_matches(lower(caption), '{URL}')"),
    # lower case, without punctuation and spaces at its ends: what boilerplate is compared with
    "plain_caption_v1": (
        pa.string(),
        r"regexp_replace(regexp_replace(lower(caption), '^[\p{P}\p{S}\s]+', ''), '[\p{P}\p{S}\s]+$', '')",
    ),
}
TEXT = pa.schema([(name, kind) for name, (kind, _) in TEXT_COLUMNS.items()])


def with_text(relation: str, words: Container[str]) -> str:
    """SQL for `relation`, which has `caption`, with those text columns whose names are among `words`."""
    chosen = [f", {expression} AS {name}" for name, (_, expression) in TEXT_COLUMNS.items() if name in words]
    return f"(SELECT *{''.join(chosen)} FROM {relation})"
