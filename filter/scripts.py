"""Which script a text is written in, counted over whole columns at once.

The rule: a language that is not written in the text's script is not the text's language.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np

ASCII_LETTER = re.compile("[A-Za-z]")
HAN_BLOCK = (0x4E00, 0x9FFF)

# script -> its blocks (first and last code point). Letters of any other script count as OTHER.
BLOCKS: dict[str, tuple[tuple[int, int], ...]] = {
    "Latin": (
        (0x41, 0x5A),
        (0x61, 0x7A),
        (0xC0, 0xD6),
        (0xD8, 0xF6),
        (0xF8, 0x24F),
        (0x1E00, 0x1EFF),
        (0xFF21, 0xFF3A),
        (0xFF41, 0xFF5A),
    ),
    "Han": (
        (0x3005, 0x3007),
        (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF),
        (0x20000, 0x323AF),
    ),
    "Kana": ((0x3041, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    "Hangul": ((0x1100, 0x11FF), (0x3131, 0x318E), (0xA960, 0xA97C), (0xAC00, 0xD7FB)),
    "Cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C88), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "Arabic": (
        (0x620, 0x65F),
        (0x66E, 0x6D3),
        (0x6D5, 0x6EF),
        (0x6FA, 0x6FF),
        (0x750, 0x77F),
        (0x8A0, 0x8FF),
        (0xFB50, 0xFDFF),
        (0xFE70, 0xFEFC),
    ),
    "Devanagari": ((0x900, 0x963), (0x971, 0x97F), (0xA8E0, 0xA8FF)),
    "Greek": ((0x370, 0x373), (0x376, 0x377), (0x37B, 0x37D), (0x386, 0x3FF), (0x1F00, 0x1FFC)),
    "Hebrew": ((0x591, 0x5F2), (0xFB1D, 0xFB4F)),
    "Thai": ((0xE01, 0xE3A), (0xE40, 0xE4E)),
    "Bengali": ((0x980, 0x9E3), (0x9F0, 0x9FE)),
    "Gurmukhi": ((0xA01, 0xA65), (0xA70, 0xA76)),
    "Gujarati": ((0xA81, 0xAE5), (0xAF9, 0xAFF)),
    "Oriya": ((0xB01, 0xB65), (0xB71, 0xB71)),
    "Tamil": ((0xB82, 0xBE5),),
    "Telugu": ((0xC00, 0xC65),),
    "Kannada": ((0xC80, 0xCE5), (0xCF1, 0xCF3)),
    "Malayalam": ((0xD00, 0xD65), (0xD7A, 0xD7F)),
    "Sinhala": ((0xD81, 0xDF3),),
    "Lao": ((0xE81, 0xECF), (0xEDC, 0xEDF)),
    "Tibetan": ((0xF00, 0xF00), (0xF40, 0xFBC)),
    "Myanmar": ((0x1000, 0x103F), (0x1050, 0x109D), (0xA9E0, 0xA9FE), (0xAA60, 0xAA7F)),
    "Georgian": ((0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2D)),
    "Ethiopic": ((0x1200, 0x135A), (0x1380, 0x138F), (0x2D80, 0x2DDE)),
    "Khmer": ((0x1780, 0x17D3),),
    "Armenian": ((0x531, 0x556), (0x561, 0x587)),
    "Thaana": ((0x780, 0x7B1),),
}

# script -> the ISO codes of lid.176 that are written in it, the most common first. Latin is every
# language that is in no other row, and those of both worlds (BOTH).
LANGUAGES: dict[str, tuple[str, ...]] = {
    "Han": ("zh", "ja"),
    "Kana": ("ja",),
    "Hangul": ("ko",),
    "Cyrillic": (
        *("ru", "uk", "bg", "sr", "mk", "be", "kk", "ky", "mn", "tg", "tt", "ba", "cv", "ce", "av", "krc"),
        *(
            "kv",
            "lez",
            "mhr",
            "mrj",
            "myv",
            "os",
            "rue",
            "sah",
            "tyv",
            "xal",
            "bxr",
            "uz",
            "az",
            "sh",
            "bs",
            "tk",
        ),
    ),
    "Arabic": (
        *(
            "ar",
            "fa",
            "ur",
            "arz",
            "ps",
            "ug",
            "sd",
            "ckb",
            "pnb",
            "azb",
            "mzn",
            "lrc",
            "ku",
            "kk",
            "ky",
            "ms",
        ),
        *("tt", "az", "uz"),
    ),
    "Devanagari": ("hi", "mr", "ne", "sa", "mai", "bh", "new", "gom", "dty", "sd"),
    "Greek": ("el",),
    "Hebrew": ("he", "yi"),
    "Thai": ("th",),
    "Bengali": ("bn", "as", "bpy"),
    "Gurmukhi": ("pa",),
    "Gujarati": ("gu",),
    "Oriya": ("or",),
    "Tamil": ("ta",),
    "Telugu": ("te",),
    "Kannada": ("kn",),
    "Malayalam": ("ml",),
    "Sinhala": ("si",),
    "Lao": ("lo",),
    "Tibetan": ("bo",),
    "Myanmar": ("my",),
    "Georgian": ("ka", "xmf"),
    "Ethiopic": ("am",),
    "Khmer": ("km",),
    "Armenian": ("hy",),
    "Thaana": ("dv",),
}
BOTH = frozenset(("sr", "uz", "az", "sh", "bs", "tk", "ku", "kk", "tt", "ky", "tg", "ms", "mn", "gom"))
NAMES = tuple(BLOCKS)
# one character of these says as much as six letters of an alphabet
WEIGHTS = np.array([6 if name in ("Han", "Kana", "Hangul") else 1 for name in NAMES])


def _table() -> np.ndarray:
    table = np.zeros(0x110000, np.uint8)
    for number, name in enumerate(NAMES, start=1):
        for first, last in BLOCKS[name]:
            table[first : last + 1] = number
    table[[0xD7, 0xF7]] = 0  # the signs for times and divided by
    return table


TABLE = _table()


def _writable(codec: str) -> np.ndarray:
    """(n,) bool over the Han block: which characters a national character set holds."""
    first, last = HAN_BLOCK
    text = (chr(point) for point in range(first, last + 1))
    return np.array([bool(char.encode(codec, "ignore")) for char in text])


@cache
def _leaning() -> np.ndarray:
    """(n,) int8 over the Han block: 1 for a character of Chinese sets only, -1 for one of Japan's only."""
    chinese, japanese = _writable("gb2312") | _writable("big5"), _writable("shift_jis")
    return chinese.astype(np.int8) - japanese.astype(np.int8)


def points_of(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The code points of all texts in a row, (P,) uint32, and which text each is of, (P,) int64."""
    joined = "\n".join(texts)
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    return points, np.cumsum(points == 0x0A)


def count_scripts(texts: Sequence[str]) -> np.ndarray:
    """(N, len(NAMES)) int64: how many letters of each script each text has; no text holds a line break.

    Needs about 20 bytes per character of the batch for the moment.
    """
    points, rows = points_of(texts)
    scripts = TABLE[points]
    seen = scripts > 0
    flat = rows[seen] * len(NAMES) + scripts[seen] - 1
    return np.bincount(flat, minlength=len(texts) * len(NAMES)).reshape(-1, len(NAMES))


def han_leaning(texts: Sequence[str]) -> np.ndarray:
    """(N,) int64: characters that Chinese sets alone hold, less those that Japan's alone holds.

    Simplified 蓝 is in no Japanese set, 駅 in no Chinese one; 東京 is in both and counts nothing.
    """
    points, rows = points_of(texts)
    first, last = HAN_BLOCK
    inside = (points >= first) & (points <= last)
    leaning = _leaning()[points[inside] - first]
    return np.bincount(rows[inside], leaning, minlength=len(texts)).astype(np.int64)


def scripts_in(counts: np.ndarray) -> np.ndarray:
    """(N,) int64: for each text a bit for every script that its language can be of; bit k is NAMES[k].

    That is each script of which it has a letter, but for Latin where the others weigh more: a Chinese caption
    with an English brand name in it is Chinese. Japanese mixes Kana and Han: with one Kana in eight such
    characters Han counts as Kana, else Kana as Han, so that a text never has both bits.
    """
    latin, han, kana = (NAMES.index(name) for name in ("Latin", "Han", "Kana"))
    present, weighed = counts > 0, counts * WEIGHTS
    both = counts[:, han] + counts[:, kana]
    japanese = counts[:, kana] * 8 >= np.maximum(both, 1)
    present[:, kana] = japanese
    present[:, han] = (both > 0) & ~japanese
    present[:, latin] &= weighed[:, latin] * 2 >= weighed.sum(axis=1)
    return present @ (1 << np.arange(len(NAMES)))


def scripts_of(texts: Sequence[str]) -> np.ndarray:
    """(N,) int64: `scripts_in` each text, 0 without letters; ASCII, most of the web, need not be counted."""
    latin = 1 << NAMES.index("Latin")
    scripts = np.array([latin if ASCII_LETTER.search(text) else 0 for text in texts], np.int64)
    others = [row for row, text in enumerate(texts) if not text.isascii()]
    scripts[others] = scripts_in(count_scripts([texts[row] for row in others]))
    return scripts


def fits(language: str, script: str) -> bool:
    """Whether `language` is written in `script`."""
    if script == "Latin":
        return language in BOTH or not any(language in codes for codes in LANGUAGES.values())
    return language in LANGUAGES[script]
