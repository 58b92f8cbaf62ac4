"""The colours of a picture in 19 bytes, which tell apart what a hash of luminance cannot: PDQ's companion.

The picture is brought to 16x16 cells by area. Kept are the means of Cb and Cr over 3x3 fields, and two flags:
*plain*, a picture on white ground, where the hash has little to go by; *grey*, one without colours.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

CELLS, FIELDS = 16, 3
SIZE = 2 * FIELDS * FIELDS + 1  # bytes: int8 Cb of 9 fields, row by row, then Cr, then the flags
PLAIN, GREY = 1, 2  # flags
WHITE, TINT = 238, 10  # a cell is ground above this luminance, its RGB range below that
COLOURLESS = 2  # RGB range of every cell of a grey picture, at most
ENOUGH = 128  # pixels of the shorter side: of a larger picture every second, third, … is looked at
EDGES = np.linspace(0, CELLS, FIELDS + 1).round().astype(int)
# (9, 256): the mean over each field
MEANS = np.zeros((FIELDS, FIELDS, CELLS, CELLS), np.float32)
for _row in range(FIELDS):
    for _column in range(FIELDS):
        _field = (slice(*EDGES[_row : _row + 2]), slice(*EDGES[_column : _column + 2]))
        MEANS[_row, _column][_field] = 1 / MEANS[_row, _column][_field].size
MEANS = MEANS.reshape(FIELDS * FIELDS, -1)
BORDER = np.ones((CELLS, CELLS), bool)
BORDER[1:-1, 1:-1] = False
TO_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)


def chroma(rgb: NDArray[Any]) -> bytes:
    """The descriptor, SIZE bytes, of (H, W, 3) uint8."""
    step = max(1, min(rgb.shape[:2]) // ENOUGH)
    some = np.ascontiguousarray(rgb[::step, ::step])
    cells = cv2.resize(some, (CELLS, CELLS), interpolation=cv2.INTER_AREA).reshape(-1, 3)
    spread = cells.max(axis=1) - cells.min(axis=1)
    luma, *colours = TO_YCC @ cells.T.astype(np.float32)
    ground = (np.rint(luma) > WHITE) & (spread < TINT)
    flags = PLAIN * int(2 * ground[BORDER.ravel()].sum() >= BORDER.sum()) + GREY * int(
        spread.max() <= COLOURLESS
    )
    fields = np.rint(MEANS @ np.stack(colours, axis=1)).clip(-127, 127).astype(np.int8)
    return fields.T.tobytes() + bytes([flags])
