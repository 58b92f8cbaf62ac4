"""Flickr8k as a small web on loopback: English and Chinese captions as one list, with planted faults.

From one seed: 30 % of the captions swapped within their language, 5 % dead links, 5 % of the pictures
served a second time as a re-encoded copy under another URL. The truth is kept row by row.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pairmill.shards.tar import TarWriter, members, read_at

HOST = "photos.flickr8k.test:80"
SWAPPED, DEAD, COPIES = 0.30, 0.05, 0.05


@dataclass(frozen=True)
class Web:
    """Where the list, its truth (row by row beside it) and the held-out pairs lie."""

    list: Path
    truth: Path
    holdout: Path
    archive: Path
    copies: Path


def _captions(data: Path, names: set[str]) -> list[tuple[str, str, str]]:
    """(picture, language, caption) of the pictures in `names`."""
    found = []
    for language, file in (("en", "captions.en.tsv"), ("zh", "captions.zh-human.tsv")):
        with open(data / "flickr8k" / file, encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            found += [(row["image"], language, row["caption"]) for row in rows if row["image"] in names]
    return found


def _swap(rows: list[tuple[str, str, str]], rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Captions after swapping a share of them within each language, and which were swapped."""
    captions = [caption for _, _, caption in rows]
    swapped = np.zeros(len(rows), bool)
    for language in ("en", "zh"):
        own = np.array([at for at, row in enumerate(rows) if row[1] == language])
        chosen = rng.choice(own, round(SWAPPED * len(own)), replace=False)
        turned = np.roll(chosen, 1)
        for at, other in zip(chosen, turned, strict=True):
            if rows[at][0] != rows[other][0]:
                captions[at] = rows[other][2]
                swapped[at] = captions[at] != rows[at][2]
    return captions, swapped


def make_web(data: Path, folder: Path, *, pictures: int | None = None, seed: int = 0) -> Web:
    """Write list, truth, copies and held-out tar into `folder`. `pictures`: fewer than the 6,000."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    source = data / "flickr8k"
    train = (source / "split.train.txt").read_text().split()[:pictures]
    rows = _captions(data, set(train))
    captions, swapped = _swap(rows, rng)
    dead = set(rng.choice(train, round(DEAD * len(train)), replace=False).tolist())
    alive = [name for name in train if name not in dead]
    copied = set(rng.choice(alive, round(COPIES * len(train)), replace=False).tolist())
    listed = [
        (name, language, caption, bool(wrong), f"photo/{name}")
        for (name, language, _), caption, wrong in zip(rows, captions, swapped, strict=True)
    ]
    listed += [(name, lang, caption, False, f"copy/{name}") for name, lang, caption in rows if name in copied]
    order = rng.permutation(len(listed))
    listed = [listed[at] for at in order]
    archive = source / "images-train.tar"
    parts = (folder / name for name in ("list.parquet", "truth.parquet", "holdout"))
    web = Web(*parts, archive=archive, copies=folder / "copies.tar")
    urls = [f"http://{HOST.partition(':')[0]}/{path}" for *_, path in listed]
    pq.write_table(pa.table({"URL": urls, "TEXT": [row[2] for row in listed]}), web.list)
    truth = {
        "picture": [row[0] for row in listed],
        "lang": [row[1] for row in listed],
        "swapped": [row[3] for row in listed],
        "dead": [row[0] in dead and row[4].startswith("photo/") for row in listed],
        "copy": [row[4].startswith("copy/") for row in listed],
        "copied": [row[0] in copied for row in listed],
    }
    pq.write_table(pa.table(truth), web.truth)
    (folder / "dead.txt").write_text("\n".join(sorted(dead)))
    _write_copies(web, copied)
    _write_holdout(data, web.holdout)
    return web


def _write_copies(web: Web, copied: set[str]) -> None:
    with open(web.archive, "rb") as file, TarWriter(web.copies) as tar:
        for member in members(web.archive):
            if member.name in copied:
                picture = Image.open(io.BytesIO(read_at(file, member.offset, member.size))).convert("RGB")
                smaller = picture.resize((picture.width * 4 // 5, picture.height * 4 // 5))
                buffer = io.BytesIO()
                smaller.save(buffer, "JPEG", quality=60)
                tar.add(member.name, buffer.getvalue())


def _write_holdout(data: Path, folder: Path) -> None:
    """The 1,000 validation pictures with one caption in each language, both clean."""
    folder.mkdir(exist_ok=True)
    archive = data / "flickr8k" / "images-val.tar"
    names = {member.name: member for member in members(archive)}
    first: dict[tuple[str, str], str] = {}
    for name, language, caption in _captions(data, set(names)):
        first.setdefault((name, language), caption)
    with open(archive, "rb") as file, TarWriter(folder / "00000.tar") as tar:
        for (name, language), caption in sorted(first.items()):
            member = names[name]
            key = f"{name.removesuffix('.jpg')}_{language}"
            tar.add(f"{key}.jpg", read_at(file, member.offset, member.size))
            tar.add(f"{key}.txt", caption.encode())
            tar.add(f"{key}.json", json.dumps({"lang": language, "url": name}).encode())


class Server:
    """Serves the web from a child process on loopback until the block is left."""

    def __init__(self, web: Web) -> None:
        self._here, there = multiprocessing.get_context("spawn").Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(web, there), daemon=True
        )

    def __enter__(self) -> dict[str, str]:
        """Returns the map for `run.resolve`."""
        self._process.start()
        return {HOST: f"127.0.0.1:{self._here.recv()}"}

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _serve(web: Web, pipe: Connection) -> None:
    asyncio.run(_serve_async(web, pipe))


async def _serve_async(web: Web, pipe: Connection) -> None:
    from aiohttp import web as http

    dead = set((web.list.parent / "dead.txt").read_text().split())
    places = {f"/photo/{m.name}": (web.archive, m) for m in members(web.archive) if m.name not in dead}
    places |= {f"/copy/{m.name}": (web.copies, m) for m in members(web.copies)}
    files = {path: open(path, "rb") for path in (web.archive, web.copies)}  # noqa: SIM115

    async def answer(request: http.Request) -> http.Response:
        place = places.get(request.path)
        if place is None:
            return http.Response(status=404)
        archive, member = place
        body = read_at(files[archive], member.offset, member.size)
        return http.Response(body=body, content_type="image/jpeg")

    app = http.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = http.AppRunner(app)
    await runner.setup()
    site = http.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    pipe.send(runner.addresses[0][1])
    await asyncio.Event().wait()
