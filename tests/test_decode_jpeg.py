"""JPEGs that browsers show though the fast decoder refuses them, and those of which a part is missing."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pairmill.crawl.decode import decode_image, quiet_decoders
from pairmill.errors import RowError
from pairmill.recipe import Fetch

WHOLE = Fetch(resize="no", encode="png")
Level = Callable[[int, int], int]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_decoders(Fetch())


def scene(width: int = 320, height: int = 240) -> Image.Image:
    """Smooth random shapes."""
    coarse = np.random.default_rng(5).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def packed(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 85, **options})
    return buffer.getvalue()


def flat_blocks(factors: list[tuple[int, int]], *, side: int = 96) -> bytes:
    """A JPEG with any sampling, which no encoder at hand writes: each 8x8 block has one level.

    factors: horizontal and vertical of Y, Cb and Cr. A made table codes the size of a step in 4 bits, and
    the end of a block in 1; Y slopes, Cb is 20 and Cr -30.
    """

    def segment(kind: int, body: bytes) -> bytes:
        return bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body

    frame = b"".join(bytes([n, h << 4 | v, 0]) for n, (h, v) in enumerate(factors))
    scan = b"".join(bytes([n, 0]) for n in range(3))
    columns, rows = max(h for h, _ in factors), max(v for _, v in factors)
    bits, last = [], [0, 0, 0]
    for unit in range(-(-side // (8 * columns)) * -(-side // (8 * rows))):
        down, right = divmod(unit, -(-side // (8 * columns)))
        for n, (h, v) in enumerate(factors):
            for block in range(h * v):
                level = [3 * (right * h + block % h) + 2 * (down * v + block // h) - 30, 20, -30][n]
                step, last[n] = level - last[n], level
                size = abs(step).bit_length()
                bits.append(
                    f"{size:04b}"
                    + (f"{step if step > 0 else step + (1 << size) - 1:0{size}b}" if size else "")
                    + "0"
                )
    coded = "".join(bits)
    coded += "1" * (-len(coded) % 8)
    data = bytes(int(coded[at : at + 8], 2) for at in range(0, len(coded), 8)).replace(b"\xff", b"\xff\0")
    tables = segment(0xC4, bytes([0, 0, 0, 0, 12, *[0] * 12, *range(12)])) + segment(
        0xC4, bytes([0x10, 1, *[0] * 16])
    )
    head = segment(0xDB, bytes([0, *[8] * 64])) + segment(
        0xC0, struct.pack(">BHHB", 8, side, side, 3) + frame
    )
    return b"\xff\xd8" + head + tables + segment(0xDA, b"\3" + scan + bytes([0, 63, 0])) + data + b"\xff\xd9"


def stored(data: bytes, settings: Fetch = WHOLE) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(decode_image(data, settings).data)).convert("RGB")).astype(int)


def reason(data: bytes, settings: Fetch = WHOLE) -> str:
    with pytest.raises(RowError) as caught:
        decode_image(data, settings)
    return caught.value.reason


SAMPLINGS = [
    (h, v) for h in range(1, 5) for v in range(1, 5) if h * v <= 8
]  # JPEG allows ten blocks in a unit


@pytest.mark.parametrize("luma", SAMPLINGS)
def test_every_sampling_is_shown(luma: tuple[int, int]) -> None:
    picture = stored(flat_blocks([luma, (1, 1), (1, 1)]))
    plain = stored(flat_blocks([(1, 1), (1, 1), (1, 1)]))
    assert np.abs(picture - plain).max() <= 2
    assert picture[0, 0].tolist() != picture[-1, -1].tolist()


@pytest.mark.parametrize("factors", [[(3, 1), (1, 1), (3, 1)], [(1, 2), (1, 2), (1, 1)]])
def test_a_sampling_may_be_odd(factors: list[tuple[int, int]]) -> None:
    assert np.abs(stored(flat_blocks(factors)) - stored(flat_blocks([(1, 1)] * 3))).max() <= 2


@pytest.mark.parametrize("cut", [6, 30, 60])
def test_an_odd_sampling_hides_no_cut(cut: int) -> None:
    data = flat_blocks([(4, 2), (1, 1), (1, 1)])
    assert reason(data[: -2 - cut]) == reason(data[: -2 - cut] + b"\xff\xd9") == "image_truncated"


KINDS = {
    "baseline": packed(scene()),
    "progressive": packed(scene(), progressive=True),
    "restarts": packed(scene(), restart_marker_rows=1),
    "grey": packed(scene().convert("L")),
    "CMYK": packed(scene().convert("CMYK")),
    "profile": packed(scene(), icc_profile=b"not a profile" * 20),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rest", [b"", b"\xff", b"\0" * 3_000, b"<!-- served by a cache -->"])
def test_a_jpeg_that_lacks_only_its_end_mark_is_the_same_picture(kind: str, rest: bytes) -> None:
    data = KINDS[kind]
    assert np.array_equal(stored(data[:-2] + rest), stored(data))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rest", [b"", b"\xff\xd9", b"\0" * 3_000, b"\0" * 90_000 + b"\xff\xd9"])
@pytest.mark.parametrize("part", [0.4, 0.9, 0.995])
def test_a_jpeg_whose_scan_breaks_off_is_truncated(kind: str, rest: bytes, part: float) -> None:
    data = KINDS[kind]
    assert reason(data[: int(part * len(data))] + rest) == "image_truncated"


def test_a_progressive_jpeg_cut_between_two_scans_is_truncated() -> None:
    data = KINDS["progressive"]
    tables = [at.start() for at in re.finditer(b"\xff\xc4", data)]
    for at in tables[2:]:
        assert reason(data[:at]) == "image_truncated"


def intervals(data: bytes) -> list[int]:
    return [at.start() for at in re.finditer(rb"\xff[\xd0-\xd7]", data)]


@pytest.mark.parametrize(
    "marker", [b"\xff\xd0", b"\xff\xd7", b"\xff\xd5", b"\xff\x01", b"\xff\x3c", b"\0\0", b""]
)
@pytest.mark.parametrize("number", [3, 7])
def test_a_damaged_restart_marker_costs_what_it_costs_in_a_browser(marker: bytes, number: int) -> None:
    data = KINDS["restarts"]
    at = intervals(data)[number]
    whole, picture = stored(data), stored(data[:at] + marker + data[at + 2 :])
    assert picture.shape == whole.shape
    assert (np.abs(picture - whole).max(axis=2) > 8).mean() <= 0.25


def test_grey_that_stands_for_lost_data_is_not_stored() -> None:
    """A comment's mark in place of a restart's: decoders wait for its end, and paint the rest grey."""
    data = KINDS["restarts"]
    at = intervals(data)[3]
    assert reason(data[:at] + b"\xff\xfe" + data[at + 2 :]) == "image_truncated"


@pytest.mark.parametrize("parameters", [(0, 5, 0), (1, 63, 0), (0, 63, 0x22), (0, 0, 0)])
def test_the_parameters_of_a_plain_scan_decide_nothing(parameters: tuple[int, int, int]) -> None:
    data = KINDS["baseline"]
    at = data.index(b"\xff\xda") + 11
    assert np.array_equal(stored(data[:at] + bytes(parameters) + data[at + 3 :]), stored(data))


def test_broken_metadata_decides_nothing_on_the_general_way_either() -> None:
    data = flat_blocks([(4, 2), (1, 1), (1, 1)])
    rubbish = b"\xff\xe0\0\7JFIF\0" + b"\xff\xe1\0\x0aExif\0\0MM" + b"\xff\xed\0\x12Photoshop 3.0\0\0\0"
    assert np.array_equal(stored(data[:2] + rubbish + data[2:]), stored(data))


def test_the_general_way_has_its_own_bound_of_memory() -> None:
    data = flat_blocks([(4, 2), (1, 1), (1, 1)], side=400)
    assert decode_image(data, Fetch(max_decoded_mb=2)).original_width == 400
    assert decode_image(packed(scene(640, 400)), Fetch(max_decoded_mb=1)).width == 410
    assert reason(data, Fetch(max_decoded_mb=1)) == "too_many_pixels"
