"""Near-copies by hash, and by hash and colours: what is joined wrongly, and which edits are found.

Real pictures from PAIRMILL_DATA: product photos and flags, where any two that are joined are different
articles or countries; ordinary photos, and edits of photos and products that are made here. Prints a JSON
line for each; fails where products are joined as before, or where the colours cost photos their copies.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import data_folder, machine  # pyright: ignore[reportImplicitRelativeImport]
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from pairmill.crawl.decode import decode_image, quiet_decoders
from pairmill.filter.colours import SameColours
from pairmill.filter.hamming import DIAGONALS, HASH, Hamming
from pairmill.recipe import Fetch, Near

FETCH, NEAR = Fetch(), Near()
COLUMNS = 16 * np.arange(16) + np.arange(16)[:, None]  # pieces of one column of frequencies each
LOST = 0.01  # share of copies of photos that the colours may cost


def packed(image: Image.Image, form: str = "JPEG", quality: int = 90) -> bytes:
    """`image` as a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, quality=quality)
    return buffer.getvalue()


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((max(8, round(image.width * factor)), max(8, round(image.height * factor))))


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Less half of `share` at each side."""
    dx, dy = round(image.width * share / 2), round(image.height * share / 2)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


def marked(image: Image.Image) -> Image.Image:
    image = image.copy()
    font = ImageFont.load_default(size=max(8, image.width // 20))
    at = (round(0.55 * image.width), round(0.9 * image.height))
    ImageDraw.Draw(image).text(at, "(c) example.com", fill=(255, 255, 255), font=font)
    return image


def warm(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image) * np.array([1.06, 1.0, 0.92])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


EDITS: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG at 30": lambda image: packed(image, quality=30),
    "JPEG at 75": lambda image: packed(image, quality=75),
    "WebP at 60": lambda image: packed(image, "WEBP", 60),
    "a third the size": lambda image: packed(scaled(image, 1 / 3)),
    "half the size": lambda image: packed(scaled(image, 0.5)),
    "twice the size": lambda image: packed(scaled(image, 2)),
    "grey": lambda image: packed(image.convert("L"), quality=60),
    "grey, half the size": lambda image: packed(scaled(image.convert("L"), 0.5), quality=75),
    "dark": lambda image: packed(ImageEnhance.Brightness(image).enhance(0.8)),
    "bright": lambda image: packed(ImageEnhance.Brightness(image).enhance(1.2)),
    "saturated": lambda image: packed(ImageEnhance.Color(image).enhance(1.3)),
    "warm": lambda image: packed(warm(image)),
    "watermark": lambda image: packed(marked(image)),
    "crop of 1 %": lambda image: packed(cropped(image, 0.01)),
    "crop of 2 %": lambda image: packed(cropped(image, 0.02)),
}


def pictures(tar: Path, most: int = 1 << 30) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the first pictures of a tar."""
    with tarfile.open(tar) as members:
        for member in members:
            file = members.extractfile(member) if member.isfile() else None
            if file is not None and most > 0:
                most -= 1
                yield member.name, file.read()


def describe(files: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 51) uint8, hash and colours as the stage `near` compares them, and (N,) which are good enough."""
    found = [decode_image(data, FETCH) for data in files]
    codes = np.frombuffer(b"".join(each.pdq + each.chroma for each in found), np.uint8).reshape(
        len(found), -1
    )
    return codes, np.array([each.pdq_quality >= NEAR.min_quality for each in found])


def joined(codes: np.ndarray, index: Hamming) -> list[tuple[int, int]]:
    """All pairs that the index calls near."""
    limits, ids = index.among(codes)
    rows = np.repeat(np.arange(len(codes)), np.diff(limits))
    return [(int(a), int(b)) for a, b in zip(rows, ids, strict=True) if a < b]


def searches() -> tuple[Hamming, Hamming]:
    """By hash alone, and as the stage does."""
    return Hamming(NEAR.max_distance), Hamming(NEAR.max_distance, SameColours(NEAR.plain_distance))


def candidates(codes: np.ndarray, pieces: np.ndarray) -> float:
    """Pairs looked at with one flip in 16 pieces, over those of uniform random hashes."""
    bits = np.unpackbits(codes[:, :HASH], axis=1)
    total = 0
    for places in pieces:
        keys = bits[:, places] @ (1 << np.arange(16))
        counts = np.bincount(keys, minlength=1 << 16)
        flips = [0, *(1 << bit for bit in range(16))]
        total += sum(int(counts @ counts[np.arange(1 << 16) ^ flip]) for flip in flips) - len(codes)
    return total / (len(codes) * (len(codes) - 1) * 16 * 17 / (1 << 16))


def different(name: str, tar: Path) -> dict[str, Any]:
    """Of pictures that are all different: the pairs joined."""
    names, files = zip(*pictures(tar), strict=True)
    codes, good = describe(list(files))
    names, files, codes = (
        [each for each, fits in zip(list_, good, strict=True) if fits] for list_ in (names, files, codes)
    )
    codes = np.stack(codes)
    by_hash, by_both = (joined(codes, index) for index in searches())
    same = [pair for pair in by_both if (codes[pair[0]] == codes[pair[1]]).all()]
    return {
        "what": f"{name}: pairs joined",
        "pictures": len(codes),
        "by_hash": len(by_hash),
        "by_hash_and_colours": len(by_both),
        "of_those_alike_in_every_bit": len(same),
        "others": [[names[a], names[b]] for a, b in by_both if (a, b) not in same],
        "candidates_by_columns": round(candidates(codes, COLUMNS), 2),
        "candidates": round(candidates(codes, DIAGONALS), 2),
    }


def edited(name: str, files: list[bytes]) -> dict[str, Any]:
    """Of edits of the pictures: the share found with their originals, by hash and by both."""
    originals, good = describe(files)
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    by_hash, by_both = searches()
    found: dict[str, list[float]] = {}
    for edit, make in EDITS.items():
        codes, fits = describe([make(image) for image in images])
        both = good & fits
        hits = []
        for index in (by_hash, by_both):
            near = [
                len(joined(np.stack(pair), index)) for pair in zip(originals[both], codes[both], strict=True)
            ]
            hits.append(round(float(np.mean(near)), 3))
        found[edit] = hits
    return {
        "what": f"edits of {name}: found by hash, by hash and colours",
        "pictures": len(files),
        "found": found,
    }


def main() -> None:
    folder = data_folder("fashion-products")
    quiet_decoders(FETCH)
    products = different("products", folder / "fashion-products/images.tar")
    lines = [products, different("flags", folder / "flags/images.tar")]
    photos = [*pictures(folder / "photos/photos.tar"), *pictures(folder / "flickr8k/images-val.tar", 340)]
    of_photos = edited("photos", [data for _, data in photos])
    lines.append(of_photos)
    shop = pictures(folder / "fashion-products/images.tar", 400)
    lines.append(edited("products", [data for _, data in shop]))
    for line in lines:
        print(json.dumps({**line, **machine()} if line is lines[-1] else line))
    lost = {edit for edit, (one, both) in of_photos["found"].items() if one - both > LOST}
    wrong = products["by_hash_and_colours"] - products["of_those_alike_in_every_bit"]
    if lost or wrong > 2:
        sys.exit(
            f"{wrong} pairs of products joined; copies of photos lost by {', '.join(sorted(lost)) or 'none'}"
        )


if __name__ == "__main__":
    main()
