"""Embeddings and a score for every fetched pair, by the model that has not seen it.

For each raw shard: `scores/embedding/<shard>.parquet` and, row by row beside it, the float16 unit rows of
pictures and of captions. Each picture is decoded once, whatever number of captions it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from ..errors import ShardError
from ..recipe import Bootstrap, Embed
from ..runner import Stage, Tally, Task, Worker, beat
from ..shards.commit import committed, write_table
from ..shards.files import open_file, readable
from ..shards.schema import EMBEDDING, bytes_hash
from ..shards.selection import is_selected, read_unwanted, uids_to_array
from ..shards.tar import read_at
from .bootstrap import FOLDER, fold_folder
from .folds import Folds
from .loss import pair_losses
from .pictures import decode_square
from .scorer import settled
from .tokenizer import Encode
from .towers import TwoTowers, load_towers, open_encoder, pick_device, read_config
from .unit_rows import embed_captions, embed_pictures

SCORES = Path("scores") / "embedding"
READ = ["uid", "url_hash", "caption", "outcome", "offset", "size", "stored_xxh3", "tar"]


def embed_tasks(out: Path) -> list[Task]:
    """One task per raw shard."""
    return [Task("embed", path.stem) for path in sorted((out / "raw").glob("*.parquet"))]


def embed_stage(out: Path, settings: Embed, bootstrap: Bootstrap) -> Stage:
    """Write `scores/embedding/` for every raw shard."""
    return Stage("embed", start_embed, (out, settings, bootstrap), settings.cpus, settings.gpus)


def start_embed(out: Path, settings: Embed, bootstrap: Bootstrap) -> Worker:
    """The worker of `embed`: loads every fold's model once."""
    torch.set_num_threads(max(1, int(settings.cpus)))
    device, bootstrap = pick_device(), settled(out / FOLDER, bootstrap)
    same = bootstrap.training.towers.checkpoint is not None  # one model for all folds
    models = [load_towers(fold_folder(out, fold), device) for fold in range(1 if same else bootstrap.folds)]
    encode = open_encoder(out / FOLDER, read_config(fold_folder(out, 0)))
    folds = Folds(out, bootstrap.folds)

    def work(task: Task) -> Tally:
        return embed_shard(task, out, settings, models=models, encode=encode, folds=folds)

    return work


def embed_shard(
    task: Task, out: Path, settings: Embed, *, models: Sequence[TwoTowers], encode: Encode, folds: Folds
) -> Tally:
    """Embed one raw shard. Counts its rows: `scored`, `undecodable` (damaged ones too), `not_fetched`
    (those that are dropped by now too)."""
    path = out / "raw" / f"{task.name}.parquet"
    every = pq.read_table(readable(path), columns=READ)
    fetched = every.filter(pc.equal(every["outcome"], "ok")).sort_by("uid")
    fetched = fetched.filter(pa.array(~is_selected(uids_to_array(fetched["uid"]), read_unwanted(out))))
    # needed[i, m]: model m embeds row i
    fold = folds(fetched)
    needed = np.ones((len(fetched), len(models)), bool)
    if len(models) > 1:
        needed = fold[:, None] == np.arange(len(models))
        if settings.in_sample:
            needed |= _seen_by(fold, len(models))[:, None] == np.arange(len(models))
    pictures, good = _embed_pictures(task, path, fetched, needed, models, settings.batch_size)
    table, fold, needed = fetched.filter(pa.array(good)), fold[good], needed[good]
    pictures = [rows[good] for rows in pictures]
    captions = _embed_captions(table["caption"].to_pylist(), needed, models, encode, settings.batch_size)
    own = np.zeros_like(fold) if len(models) == 1 else fold
    scores, image, text = _score(table, fold, own, pictures, captions, models, settings)
    _write(out / SCORES / task.name, scores, image, text)
    counts = {"scored": len(table), "undecodable": len(good) - len(table)}
    return Tally({**counts, "not_fetched": len(every) - len(fetched)})


def _embed_pictures(
    task: Task, sidecar: Path, table: pa.Table, needed: np.ndarray, models: Sequence[TwoTowers], batch: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """For each model (N, D) float32 unit rows, zeros where not needed; and which rows' pictures decode."""
    places, index = _places(table, sidecar)
    wanted = np.zeros((len(places), len(models)), bool)
    np.logical_or.at(wanted, index, needed)
    found = [np.zeros((len(places), model.dimension), np.float32) for model in models]
    good = np.zeros(len(places), bool)
    side, prepare = models[0].image_size, models[0].prepare
    with _OneTar() as tar:
        for start in range(0, len(places), batch):
            span = slice(start, start + batch)
            block = np.zeros((len(places[span]), side, side, 3), np.uint8)
            for i, (path, offset, size, stored_xxh3) in enumerate(places[span]):
                data = _read_whole(tar.file(path), offset, size, stored_xxh3)
                good[start + i] = data is not None and decode_square(data, block[i], prepare)
            for model, rows, want in zip(models, found, wanted.T, strict=True):
                if want[span].any():
                    rows[start + np.flatnonzero(want[span])] = embed_pictures(model, block[want[span]])
            beat(task, start, len(places))
    return [rows[index] for rows in found], good[index]


Place = tuple[Path, int, int, int | None]  # a picture's tar, its bytes' offset and size there, their xxh3-64


def _places(table: pa.Table, sidecar: Path) -> tuple[list[Place], np.ndarray]:
    """The distinct places of the pictures by tar and offset, and which of them each row has, (N,)."""
    tars = [sidecar.with_name(f"{tar or sidecar.stem}.tar") for tar in table["tar"].to_pylist()]
    columns = [table[name].to_pylist() for name in ("offset", "size", "stored_xxh3")]
    of_row: list[Place] = list(zip(tars, *columns, strict=True))
    places = sorted(set(of_row), key=lambda place: place[:2])
    number = {place: at for at, place in enumerate(places)}
    return places, np.fromiter((number[place] for place in of_row), np.int64, len(of_row))


class _OneTar:
    """One open tar, for reads that come tar by tar."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: BinaryIO | None = None

    def file(self, path: Path) -> BinaryIO:
        """The open tar at `path`; the one before is closed."""
        if self._file is None or path != self._path:
            self.__exit__()
            self._path, self._file = path, open_file(path, ahead=True)
        return self._file

    def __enter__(self) -> _OneTar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _read_whole(file: BinaryIO, offset: int, size: int, stored_xxh3: int | None) -> bytes | None:
    """The stored picture's bytes; None where they are not those that were stored: it costs itself alone."""
    try:
        data = read_at(file, offset, size)
    except ShardError:
        return None
    return data if stored_xxh3 in (None, bytes_hash(data)) else None


def _embed_captions(
    captions: list[str], needed: np.ndarray, models: Sequence[TwoTowers], encode: Encode, batch: int
) -> list[np.ndarray]:
    """For each model (N, D) float32 unit rows, zeros where not needed."""
    found = []
    for model, want in zip(models, needed.T, strict=True):
        rows = np.zeros((len(captions), model.dimension), np.float32)
        chosen = [caption for caption, asked in zip(captions, want, strict=True) if asked]
        rows[want] = embed_captions(model, chosen, encode, batch)
        found.append(rows)
    return found


def _score(
    table: pa.Table,
    fold: np.ndarray,
    own: np.ndarray,
    pictures: list[np.ndarray],
    captions: list[np.ndarray],
    models: Sequence[TwoTowers],
    settings: Embed,
) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """The scores, and the float16 rows of each pair's own model. own: (N,) which model that is."""
    rows = np.arange(len(table))
    cosines = np.stack([np.einsum("nd,nd->n", u, w) for u, w in zip(pictures, captions, strict=True)], 1)
    image, text = np.stack(pictures, 1)[rows, own], np.stack(captions, 1)[rows, own]
    loss = np.zeros(len(table), np.float32)
    for number, model in enumerate(models):
        mine = np.flatnonzero(own == number)
        loss[mine] = _losses(model, image[mine], text[mine], settings.batch_size)
    seen = pa.nulls(len(table), pa.float32())
    if settings.in_sample and len(models) > 1:
        seen = pa.array(cosines[rows, _seen_by(own, len(models))])
    columns = [
        table["uid"],
        pa.array(fold.astype(np.int16)),
        pa.array(cosines[rows, own]),
        seen,
        pa.array(loss),
    ]
    return pa.table(columns, schema=EMBEDDING), image.astype(np.float16), text.astype(np.float16)


def _seen_by(own: np.ndarray, n_models: int) -> np.ndarray:
    """(N,) a model that was trained on each pair's fold: one, as the pair's own, so that the two compare."""
    return (own + 1) % n_models


def _losses(model: TwoTowers, pictures: np.ndarray, captions: np.ndarray, batch: int) -> np.ndarray:
    """(N,) InfoNCE of each pair among its neighbours by uid: batches of nearly one size, at most `batch`."""
    n = len(pictures)
    losses = np.zeros(n, np.float32)
    scale = model.scale.detach().cpu()
    for part in np.array_split(np.arange(n), max(1, -(-n // batch))):
        if len(part):
            block = torch.from_numpy(pictures[part]), torch.from_numpy(captions[part])
            losses[part] = pair_losses(*block, scale).numpy()
    return losses


def _write(stem: Path, scores: pa.Table, image: np.ndarray, text: np.ndarray) -> None:
    for name, rows in (("image", image), ("text", text)):
        path = stem.with_name(f"{stem.name}.{name}.npy")
        with committed(path) as temporary, open(temporary, "wb") as file:
            np.save(file, rows)
    write_table(scores, stem.with_name(f"{stem.name}.parquet"))
