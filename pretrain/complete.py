"""Captions that a trained system makes: by its captioner for mismatched pairs, or of neighbours' words.

Both are columns by uid, which `training.captions` trains on in place of the pairs' own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ..shards.commit import write_table
from ..shards.schema import COMPLETED, MISMATCH, PSEUDO
from .captions import MINED_FROM, STOP_WORDS, split_words
from .heads.caption import CaptionHead
from .objectives.memory import Table
from .picture_cache import shard_pixels
from .samples import Source, short_uids
from .tokenizer import Encode
from .trainer import Trainer

AT_ONCE = 256  # pictures in one pass
BASE = 100_000  # pictures that neighbours are looked for among


def write_columns(trainer: Trainer, source: Source, encode: Encode, scores: Path) -> None:
    """Commit the columns that the system makes of its pairs, if it makes any."""
    system = trainer.system
    if trainer.table is not None:
        write_mismatch(source, trainer.table, scores)
        if system.complete is not None:
            write_completed(trainer, source, encode, scores, system.complete)
    if system.pseudo:
        write_pseudo(trainer, source, scores, system.pseudo)


def _commit(parts: list[pa.Table], schema: pa.Schema, path: Path) -> None:
    whole = pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in parts)])
    order = np.argsort(np.array(whole["uid"].to_pylist(), "S16"), kind="stable")
    write_table(whole.take(pa.array(order)), path)


def write_mismatch(source: Source, table: Table, scores: Path) -> None:
    """Commit `mismatch/mismatch.parquet`: how likely each pair is mismatched, as the table has it."""
    parts = []
    for shard in range(len(source.tables)):
        uids = source.table(shard).select(["uid"])
        parts.append(uids.append_column("mismatch_prob_v1", pa.array(table.values_of(short_uids(uids)))))
    _commit(parts, MISMATCH, scores / "mismatch" / "mismatch.parquet")


def write_completed(trainer: Trainer, source: Source, encode: Encode, scores: Path, least: float) -> None:
    """Commit `completed/completed.parquet`: a caption anew for each pair as likely mismatched as `least`."""
    assert trainer.table is not None  # asked by write_columns
    speller = Speller(source.captions(), encode)
    parts = []
    for shard in range(len(source.tables)):
        rows = source.table(shard)
        chosen = np.flatnonzero(trainer.table.values_of(short_uids(rows)) >= least)
        if not len(chosen):
            continue
        rows = rows.take(pa.array(chosen))
        said: list[str | None] = [None] * len(rows)
        for places, pixels in shard_pixels(source, shard, rows, trainer.towers, AT_ONCE):
            for place, tokens in zip(places, caption(trainer, pixels, speller), strict=True):
                said[place] = speller.text(tokens) or None
        made = pa.array(said, pa.string())
        parts.append(rows.select(["uid"]).append_column("completed_caption_v1", made).filter(made.is_valid()))
    _commit(parts, COMPLETED, scores / "completed" / "completed.parquet")


@torch.no_grad()
def caption(trainer: Trainer, pixels: np.ndarray, speller: Speller) -> list[list[int]]:
    """The likeliest token after each token, from begin to end, for (N, S, S, 3) uint8 pictures."""
    towers, head = trainer.towers, captioner(trainer)
    towers.eval()
    head.eval()
    picture = towers.picture_tokens(torch.from_numpy(pixels).to(towers.device), hidden=True)
    text = torch.zeros(len(pixels), towers.context_length, dtype=torch.int64, device=towers.device)
    text[:, 0] = speller.begin
    ended = torch.zeros(len(pixels), dtype=torch.bool, device=towers.device)
    for place in range(1, towers.context_length):
        states = towers.text_tokens(text[:, :place], hidden=True).hidden[-1][:, :place]
        found = head.logits(picture.hidden[-1], states, picture.pooled)[:, -1]
        following = found.argmax(1).masked_fill(ended, 0)
        text[:, place] = following
        ended |= following == speller.end
        if bool(ended.all()):
            break
    return [[token for token in row if token not in (0, speller.begin, speller.end)] for row in text.tolist()]


def captioner(trainer: Trainer) -> CaptionHead:
    """The system's own."""
    return next(head for head in trainer.objective.heads.values() if isinstance(head, CaptionHead))


class Speller:
    """Tokens back to words: the longest run of tokens that are a word of the corpus, again and again."""

    def __init__(self, captions: Iterator[str], encode: Encode) -> None:
        words = sorted({word for said in islice(captions, MINED_FROM) for word in split_words(said)})
        tokens, lengths = encode(["", *words])
        ends = np.cumsum(lengths)
        self.begin, self.end = int(tokens[0]), int(tokens[ends[0] - 1])
        spelt = (
            (word, tokens[stop - n + 1 : stop - 1])
            for word, stop, n in zip(words, ends[1:], lengths[1:], strict=True)
        )
        self.known = {tuple(row.tolist()): word for word, row in spelt}
        self.longest = max(map(len, self.known), default=1)

    def text(self, tokens: Sequence[int]) -> str:
        """The words, parted by spaces; tokens that begin no word are left out."""
        found, at = [], 0
        while at < len(tokens):
            runs = range(min(self.longest, len(tokens) - at), 0, -1)
            length = next((n for n in runs if tuple(tokens[at : at + n]) in self.known), 0)
            if length:
                found.append(self.known[tuple(tokens[at : at + length])])
            at += max(1, length)
        return " ".join(found)


def write_pseudo(trainer: Trainer, source: Source, scores: Path, neighbours: int) -> None:
    """Commit `pseudo/pseudo.parquet`: for each pair the words of its picture's nearest neighbours."""
    uids, rows, said = [], [], []
    trainer.towers.eval()
    for shard in range(len(source.tables)):
        table = source.table(shard)
        embedded = np.full((len(table), trainer.towers.dimension), np.nan, np.float32)
        for places, pixels in shard_pixels(source, shard, table, trainer.towers, AT_ONCE):
            with torch.no_grad():
                given = torch.from_numpy(pixels).to(trainer.towers.device)
                embedded[places] = trainer.towers.encode_pictures(given).float().cpu().numpy()
        good = np.isfinite(embedded[:, 0])
        uids.append(table.select(["uid"]).filter(pa.array(good)))
        rows.append(embedded[good])
        said += table["caption"].filter(pa.array(good)).to_pylist()
    bags = pseudo_bags(np.concatenate(rows), [split_words(one) for one in said], neighbours)
    whole = pa.concat_tables(uids).append_column("pseudo_words_v1", pa.array(bags, pa.string()))
    _commit([whole], PSEUDO, scores / "pseudo" / "pseudo.parquet")


def pseudo_bags(rows: np.ndarray, words: Sequence[Sequence[str]], neighbours: int) -> list[str | None]:
    """For each picture the words that two at least of its nearest others' captions bear, most frequent first.

    rows: (N, D) unit rows; the first BASE of them are looked among. None where no word is shared.
    """
    base, found = rows[:BASE], []
    bags = [set(one) - STOP_WORDS for one in words]
    for start in range(0, len(rows), 1024):
        near = rows[start : start + 1024] @ base.T
        own = np.arange(start, min(start + len(near), len(base)))
        near[own - start, own] = -np.inf
        count = min(neighbours, near.shape[1] - 1)
        best = np.argpartition(-near, count - 1, axis=1)[:, :count]
        for row in best:
            counts = Counter(word for other in row.tolist() for word in bags[other] if word.isalpha())
            shared = sorted(
                (word for word, n in counts.items() if n > 1), key=lambda word: (-counts[word], word)
            )
            found.append(" ".join(shared) or None)
    return found
