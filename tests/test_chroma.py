"""The colours of a picture in 19 bytes."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from pairmill.crawl.chroma import GREY, PLAIN, SIZE, chroma
from pairmill.crawl.decode import decode_image, quiet_decoders
from pairmill.filter import colours
from pairmill.filter.colours import SameColours
from pairmill.recipe import Fetch


def filled(colour: tuple[int, int, int], size: tuple[int, int] = (90, 120)) -> np.ndarray:
    return np.full((*size, 3), colour, np.uint8)


def values(descriptor: bytes) -> np.ndarray:
    """(2, 3, 3): Cb and Cr by row and column."""
    return np.frombuffer(descriptor[:-1], np.int8).reshape(2, 3, 3)


def photo(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (400, 300), interpolation=cv2.INTER_CUBIC)


def test_a_field_holds_the_colour_of_its_part() -> None:
    rgb = filled((128, 128, 128))
    rgb[:30, :40] = (255, 0, 0)
    rgb[60:, 80:] = (0, 0, 255)
    cb, cr = values(chroma(rgb)).astype(int)
    assert (cb[0, 0], cr[0, 0]) == pytest.approx((-43, 127), abs=6)
    assert (cb[2, 2], cr[2, 2]) == pytest.approx((127, -21), abs=6)
    assert (cb[2, 0], cr[2, 0], cb[1, 1], cr[0, 2]) == (0, 0, 0, 0)


def test_white_ground_and_grey_are_told_at_their_limits() -> None:
    assert chroma(filled((255, 255, 255)))[-1] == PLAIN | GREY
    assert chroma(filled((238, 238, 238)))[-1] == GREY
    assert chroma(filled((250, 248, 241)))[-1] == PLAIN
    assert chroma(filled((250, 248, 240)))[-1] == 0
    assert chroma(filled((100, 101, 102)))[-1] == GREY
    assert chroma(filled((100, 101, 103)))[-1] == 0


@pytest.mark.parametrize(("covered", "flags"), [(0, PLAIN), (8, PLAIN), (9, 0)])
def test_ground_is_plain_where_half_of_the_border_is_white(covered: int, flags: int) -> None:
    rgb = filled((255, 255, 255), (160, 160))
    rgb[30:130, 30:130] = (200, 0, 0)
    rgb[: 10 * covered] = (0, 60, 200)
    assert chroma(rgb)[-1] == flags


def test_the_numbers_are_those_that_filtering_reads() -> None:
    assert (SIZE, PLAIN, GREY) == (colours.WIDTH, colours.PLAIN, colours.GREY)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (5, 5), (3, 40), (2_000, 30)])
def test_every_size_has_colours(shape: tuple[int, int]) -> None:
    assert np.abs(values(chroma(filled((200, 40, 40), shape)))[1].astype(int) - 80).max() <= 3


def test_copies_of_photos_keep_their_colours_and_other_photos_have_others() -> None:
    alike = SameColours(18)
    rows = []
    for seed in range(8):
        rgb = photo(seed)
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, "JPEG", quality=30)
        smaller = cv2.resize(rgb, (133, 100), interpolation=cv2.INTER_AREA)
        dark = (rgb * 0.8).astype(np.uint8)
        versions = [rgb, np.asarray(Image.open(buffer)), smaller, dark]
        rows.append([np.frombuffer(chroma(each), np.uint8) for each in versions])
    for own in rows:
        assert alike(np.stack([own[0]] * 3), np.stack(own[1:]), np.zeros(3)).all()
    strangers = [alike(a[0][None], b[0][None], np.zeros(1))[0] for n, a in enumerate(rows) for b in rows[:n]]
    assert sum(strangers) == 0


def test_a_stored_picture_has_the_colours_that_are_seen() -> None:
    """Upright, and over white where nothing is drawn."""
    quiet_decoders(Fetch())
    image = Image.new("RGBA", (120, 90), (0, 0, 0, 0))
    image.paste((200, 30, 30, 255), (40, 30, 80, 60))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    descriptor = decode_image(buffer.getvalue(), Fetch()).chroma
    assert descriptor[-1] == PLAIN
    cb, cr = values(descriptor)
    assert cr[1, 1] > 60
    assert (cb[0, 0], cr[0, 0]) == (0, 0)
