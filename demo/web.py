"""The small web: lists of URLs with captions, the site that answers them, and the truth about every row.

`make_web` writes a folder that depends on its seed and size alone:
    lists/           the crawl's input, in three formats
    site.parquet     what the server answers at each URL; site.bin holds the bodies
    truth.parquet    TRUTH: a row for each row of the lists
    holdout/         clean pairs of other scenes, for retrieval
    classes/         scenes of one thing, for zero-shot classification
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ConfigError
from .captions import LANGUAGES, caption
from .faults import FAULTS, PRIVATE, Page
from .holdout import write_classes, write_holdout
from .lists import BAD_ROWS, write_lists
from .paint import Paint, paint_all
from .scenes import make_scene

TRUTH = pa.schema(
    [
        ("list", pa.string()),  # file name of the list
        ("row", pa.int64()),  # counted from 0 in it
        ("url", pa.string()),
        ("caption", pa.string()),
        ("language", pa.string()),  # of the caption; NULL where there is nothing to say
        ("kind", pa.string()),
        ("reason", pa.string()),  # that the row must end under; NULL: kept, unless it is a copy or noise
        ("swapped", pa.bool_()),  # the caption is another picture's
        ("picture", pa.int64()),  # number of the scene; copies of a picture share it
    ]
)
SITE = pa.schema(
    [
        ("url", pa.string()),
        ("status", pa.int16()),
        ("kind", pa.string()),  # Content-Type
        ("headers", pa.string()),  # JSON object
        ("act", pa.string()),
        ("offset", pa.int64()),  # of the body in site.bin
        ("size", pa.int64()),
    ]
)
HOSTS = ("pictures", "cdn", "shop", "blog", "media", "archive", "old", "static")
LANGUAGE_SHARES = {"en": 0.36, "zh": 0.32, "de": 0.32}
FEWEST = 40  # pictures
SWAPPED = 0.30  # of the pairs that look clean
COPIES = {"exact copy": 0.03, "re-encoded copy": 0.03, "resized copy": 0.03, "cropped copy": 0.03}
PAIR_COPIES, SPELLED_COPIES = 0.03, 0.01
FILE_NAMES = ("IMG_{n}.jpg", "DSC0{n}.JPG", "P100{n}.jpg", "photo-{n}.png", "image_{n}.jpeg", "Bild{n}.jpg")
BOILERPLATE = {
    "en": ("Click to enlarge", "No image available", "Untitled", "Image may contain: outdoor"),
    "zh": ("点击查看大图", "暂无图片", "图片", "加载中"),
    "de": ("Bild vergrößern", "Kein Bild vorhanden", "Ohne Titel", "Zum Vergrößern anklicken"),
}


@dataclass(slots=True)
class Row:
    """One row of a list, with its truth."""

    url: str
    caption: str
    language: str | None
    kind: str
    reason: str | None = None
    swapped: bool = False
    picture: int | None = None
    list: str | None = None  # the one list that can hold it; any when None


@dataclass(frozen=True, slots=True)
class Web:
    """The folder of a made web."""

    folder: Path

    @property
    def lists(self) -> Path:
        return self.folder / "lists"

    @property
    def truth(self) -> pa.Table:
        return pq.read_table(self.folder / "truth.parquet")


@dataclass(slots=True)
class _Maker:
    """Collects rows and the pictures to paint; a page is made when its picture is there."""

    seed: int
    dice: random.Random
    rows: list[Row] = field(default_factory=list)
    paints: list[Paint] = field(default_factory=list)
    pages: list[Callable[[bytes], list[Page]]] = field(default_factory=list)  # beside `paints`
    number: int = 0

    def scene(self) -> int:
        self.number += 1
        return self.number

    def url(self, number: int, host: str | None = None, suffix: str = "jpg") -> str:
        host = host or self.dice.choices(HOSTS, [1 / (i + 1) for i in range(len(HOSTS))])[0]
        year, month = self.dice.randint(2004, 2024), self.dice.randint(1, 12)
        return (
            f"http://{host}.demo.test/{year}/{month:02}/{number:05}-{self.dice.getrandbits(32):08x}.{suffix}"
        )

    def language(self) -> str:
        return self.dice.choices(list(LANGUAGE_SHARES), list(LANGUAGE_SHARES.values()))[0]

    def caption(self, number: int, language: str, take: int = 0) -> str:
        return caption(make_scene(self.seed, number), language, take)

    def serve(self, paint: Paint, pages: Callable[[bytes], list[Page]]) -> None:
        self.paints.append(paint)
        self.pages.append(pages)


def make_web(folder: Path, *, pictures: int = 4_500, seed: int = 7) -> Web:
    """Write a web of `pictures` clean-looking pairs, and about a third more rows of copies and faults.

    Raises ConfigError for fewer than FEWEST pictures.
    """
    if pictures < FEWEST:
        raise ConfigError(f"pictures is {pictures}, expected {FEWEST} or more: copies and swaps need some")
    folder.mkdir(parents=True, exist_ok=True)
    maker = _Maker(seed, random.Random(seed))
    scale = pictures / 4_500
    clean = [_add_clean(maker) for _ in range(pictures)]
    copied = _add_copies(maker, clean, pictures)
    _swap(maker.dice, clean, copied)
    _add_poor_captions(maker, scale)
    _add_faults(maker, scale)
    _add_pair_copies(maker, clean, pictures)
    maker.rows += [Row(**row) for row in BAD_ROWS]  # type: ignore[arg-type]
    maker.dice.shuffle(maker.rows)
    _write_site(folder, maker)
    _write_truth(folder, write_lists(folder / "lists", maker.rows))
    write_holdout(folder / "holdout", seed, max(60, round(500 * scale)))
    write_classes(folder / "classes", seed, max(30, round(300 * scale)))
    return Web(folder)


def _add_clean(maker: _Maker) -> Row:
    number, language = maker.scene(), maker.language()
    form = maker.dice.choices(("JPEG", "PNG", "WEBP"), (90, 5, 5))[0]
    url = maker.url(number, suffix={"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[form])
    maker.serve(
        Paint(number, form, maker.dice.randint(80, 95)),
        lambda body: [Page(url, body, kind=f"image/{form.lower()}")],
    )
    row = Row(url, maker.caption(number, language), language, "clean", picture=number)
    maker.rows.append(row)
    return row


def _add_copies(maker: _Maker, clean: list[Row], pictures: int) -> set[str]:
    """Copies of pictures under URLs and captions of their own. Returns the URLs of their originals."""
    copied: set[str] = set()
    originals = iter(zip(clean, list(maker.paints), strict=True))
    for kind, share in COPIES.items():
        for _ in range(max(2, round(share * pictures))):
            original, paint = next(originals)
            assert original.picture is not None
            copied.add(original.url)
            url, language = maker.url(original.picture), maker.language()
            if kind != "exact copy":
                edit = kind.split("-")[0].split()[0]
                paint = replace(paint, form="JPEG", edit=edit, edit_seed=maker.dice.getrandbits(30))
            maker.serve(paint, lambda body, url=url: [Page(url, body)])
            text = maker.caption(original.picture, language, take=1)
            maker.rows.append(Row(url, text, language, kind, picture=original.picture))
    return copied


def _swap(dice: random.Random, clean: list[Row], copied: set[str]) -> None:
    """Give SWAPPED of the clean rows each other's captions, within a language; copied ones keep theirs."""
    for language in LANGUAGES:
        mine = [row for row in clean if row.language == language]
        chosen = dice.sample([row for row in mine if row.url not in copied], round(SWAPPED * len(mine)))
        texts = [row.caption for row in chosen]
        for row, text in zip(chosen, texts[1:] + texts[:1], strict=True):
            row.caption, row.swapped = text, True


def _add_poor_captions(maker: _Maker, scale: float) -> None:
    """Pictures whose caption says nothing: a file name, or the same words as a hundred others."""
    poor = (("file-name caption", "filename", 90), ("boilerplate caption", "boilerplate", 180))
    for kind, reason, rows in poor:
        for _ in range(max(4, round(rows * scale))):
            number, language = maker.scene(), maker.language()
            url = maker.url(number)
            text = maker.dice.choice(BOILERPLATE[language] if kind.startswith("boiler") else FILE_NAMES)
            text = text.format(n=maker.dice.randint(1_000, 9_999))
            maker.serve(Paint(number), lambda body, url=url: [Page(url, body)])
            maker.rows.append(Row(url, text, None, kind, reason, picture=number))


def _add_faults(maker: _Maker, scale: float) -> None:
    hosts = {"timeout": "slow", "nobody listens": "closed"}
    for kind, fault in FAULTS.items():
        few = fault.rows if kind == "timeout" else round(fault.rows * scale)
        for _ in range(max(2, min(few, fault.rows * 2))):
            number, language = maker.scene(), maker.language()
            url = maker.url(number, hosts.get(kind))
            if kind == "private address":
                url = f"http://{maker.dice.choice(PRIVATE)}/{number}.jpg"
            dice = random.Random(maker.dice.getrandbits(60))
            maker.serve(
                Paint(number), lambda body, make=fault.make, url=url, dice=dice: make(url, body, dice)
            )
            text = maker.caption(number, language)
            maker.rows.append(Row(url, text, language, kind, fault.reason, picture=number))


def _add_pair_copies(maker: _Maker, clean: list[Row], pictures: int) -> None:
    """Rows that say a pair again, as it stands or with the URL and the spaces spelled in another way."""
    for row in maker.dice.sample(clean, max(2, round(PAIR_COPIES * pictures))):
        maker.rows.append(replace(row, kind="pair again"))
    for row in maker.dice.sample(clean, max(2, round(SPELLED_COPIES * pictures))):
        host, path = row.url.removeprefix("http://").split("/", 1)
        url = maker.dice.choice((f"HTTP://{host.upper()}:80/{path}", f"http://{host}/x/../{path}#top"))
        maker.rows.append(
            replace(row, url=url, caption=f"  {row.caption} ", kind="pair again, spelled otherwise")
        )


def _write_site(folder: Path, maker: _Maker) -> None:
    found: list[tuple[Page, int, int]] = []
    with open(folder / "site.bin", "wb") as file:
        for body, make in zip(paint_all(maker.seed, maker.paints), maker.pages, strict=True):
            for page in make(body):
                found.append((page, file.tell(), len(page.body)))
                file.write(page.body)
    columns = [
        [page.url for page, _, _ in found],
        [page.status for page, _, _ in found],
        [page.kind for page, _, _ in found],
        [json.dumps(page.headers) for page, _, _ in found],
        [page.act for page, _, _ in found],
        [offset for _, offset, _ in found],
        [size for _, _, size in found],
    ]
    pq.write_table(pa.table(columns, schema=SITE), folder / "site.parquet")


def _write_truth(folder: Path, dealt: Iterator[tuple[str, int, Row]]) -> None:
    rows = [
        {key: getattr(row, key, None) for key in TRUTH.names}
        | {"list": name, "row": number, "caption": row.caption.encode("utf-8", "replace").decode()}
        for name, number, row in dealt
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=TRUTH), folder / "truth.parquet")
