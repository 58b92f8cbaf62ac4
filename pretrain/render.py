"""Captions as pictures, for a tower that reads them with the same eyes: black glyphs on grey, row by row.

Glyphs come from a font in GNU Unifont's .hex format where one is given, else from Pillow's own small font;
a character that the font lacks is drawn as the digits of its number, so that no two characters look alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..errors import ConfigError

GREY, BLACK = 127, 0
MAX_CHARACTERS = 768  # of a caption, as in CLIPPO
NARROWEST = 4  # pixels of a glyph, its margin of one included
DIGITS = (  # 3 x 5 pixels each, row by row, as bits
    0b111101101101111, 0b010110010010111, 0b111001111100111, 0b111001111001111,
    0b101101111001001, 0b111100111001111, 0b111100111101111, 0b111001001001001,
    0b111101111101111, 0b111101111001111, 0b111101111101101, 0b110101110101110,
    0b111100100100111, 0b110101101101110, 0b111100111100111, 0b111100111100100,
)  # fmt: skip


class Glyphs:
    """The bitmap of each character, by its number: (height, width) bool, a blank column at its right."""

    def __init__(self, font: str | None = None) -> None:
        """font: path of a .hex file. Raises ConfigError where it is none."""
        self._hex = None if font is None else _read_hex(font)
        self._built_in = None if self._hex is not None else _pillow()
        self.height = 16 if self._hex is not None else 12
        self._known: dict[int, np.ndarray] = {}

    def __getitem__(self, code: int) -> np.ndarray:
        found = self._known.get(code)
        if found is None:
            found = self._known[code] = self._make(code)
        return found

    def _make(self, code: int) -> np.ndarray:
        if code == ord(" "):
            return np.zeros((self.height, NARROWEST), bool)
        if self._hex is not None:
            bits = self._hex.get(code)
        else:
            bits = self._built_in(chr(code)) if self._built_in is not None and 32 < code < 127 else None
        return _trimmed(bits if bits is not None else _digits(code), self.height)

    def render(self, codes: np.ndarray, side: int) -> np.ndarray:
        """(B, side, side, 3) uint8 of (B, L) characters' numbers, 0 for none; what needs more rows is cut."""
        pages = np.full((len(codes), side, side), GREY, np.uint8)
        for page, row in zip(pages, codes, strict=True):
            self._write(page, row[row != 0])
        return np.repeat(pages[..., None], 3, 3)

    def _write(self, page: np.ndarray, codes: np.ndarray) -> None:
        side, x, y = len(page), 0, 0
        for code in codes.tolist():
            glyph = self[code][:, :side]
            if x + glyph.shape[1] > side:
                x, y = 0, y + self.height
            if y + self.height > side:
                return
            page[y : y + self.height, x : x + glyph.shape[1]][glyph] = BLACK
            x += glyph.shape[1]


@lru_cache(4)
def glyphs(font: str | None = None) -> Glyphs:
    """The glyphs of a font, read once."""
    return Glyphs(font)


def characters(captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The characters' numbers, flat, lower-cased, at most MAX_CHARACTERS of each; and how many of each."""
    cut = [caption.lower()[:MAX_CHARACTERS] for caption in captions]
    flat = np.frombuffer("".join(cut).encode("utf-32-le", "surrogatepass"), np.int32)
    return flat.copy(), np.array([len(caption) for caption in cut], np.int32)


def _trimmed(bits: np.ndarray, height: int) -> np.ndarray:
    inked = np.flatnonzero(bits.any(0))
    bits = bits[:height, inked[0] : inked[-1] + 1] if len(inked) else bits[:height, :0]
    wide = max(NARROWEST, bits.shape[1] + 1)
    return np.pad(bits, ((0, height - len(bits)), (0, wide - bits.shape[1])))


def _digits(code: int) -> np.ndarray:
    """Two rows of hexadecimal digits."""
    shown = f"{code:04X}" if code < 0x10000 else f"{code:06X}"
    half = len(shown) // 2
    found = np.zeros((11, 4 * half), bool)
    for place, digit in enumerate(shown):
        bits = DIGITS[int(digit, 16)]
        block = np.array([bits >> (14 - i) & 1 for i in range(15)], bool).reshape(5, 3)
        top, left = 6 * (place // half), 4 * (place % half)
        found[top : top + 5, left : left + 3] = block
    return found


def _pillow() -> Callable[[str], np.ndarray]:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default_imagefont()

    def draw(character: str) -> np.ndarray:
        picture = Image.new("1", (12, 12))
        ImageDraw.Draw(picture).text((0, 0), character, fill=1, font=font)
        return np.asarray(picture)

    return draw


def _read_hex(path: str) -> dict[int, np.ndarray]:
    """16 rows of 8 or 16 pixels by character; the format is a line `0041:0000...` each."""
    found = {}
    try:
        for line in Path(path).read_text(encoding="ascii").splitlines():
            code, _, digits = line.strip().partition(":")
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8)).reshape(16, -1)
            found[int(code, 16)] = bits.astype(bool)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"font {path}: expected lines as 0041:0000... (GNU Unifont's .hex): {error}"
        ) from error
    return found
