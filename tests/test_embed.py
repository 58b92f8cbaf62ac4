"""Embedding a raw shard of which pictures were damaged since: each costs itself, and is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from pairmill.pretrain.bootstrap import FOLDER, fold_folder
from pairmill.pretrain.embed import embed_tasks, start_embed
from pairmill.pretrain.tokenizer import make_tokenizer
from pairmill.pretrain.towers import build_towers, save_towers
from pairmill.recipe import Bootstrap, Embed, ScorerTraining, Towers
from pairmill.shards.commit import write_table
from pairmill.shards.schema import RAW, bytes_hash, make_uid, text_hash
from pairmill.shards.tar import TarWriter

TOWERS = Towers(
    image_size=16, embed_dim=8, vision={"channels": [4, 8]}, text={"width": 8, "layers": 0}, vocab_size=301
)
SETTINGS = Bootstrap(training=ScorerTraining(towers=TOWERS))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """One raw shard of 6 pictures and one failure, and two untrained models."""
    rows = []
    (tmp_path / "raw").mkdir()
    with TarWriter(tmp_path / "raw" / "00000.tar") as tar:
        for number in range(6):
            data = simplejpeg.encode_jpeg(np.full((20, 20, 3), 40 * number, np.uint8))
            row = {"uid": make_uid(f"u{number}", "c"), "url_hash": text_hash(f"u{number}"), "outcome": "ok"}
            row |= {"caption": f"caption {number}", "size": len(data), "stored_xxh3": bytes_hash(data)}
            rows.append(row | {"offset": tar.add(f"{number}.jpg", data)})
    rows.append({"uid": make_uid("u9", "c"), "url_hash": text_hash("u9"), "outcome": "http_404"})
    write_table(pa.Table.from_pylist(rows, schema=RAW), tmp_path / "raw" / "00000.parquet")
    make_tokenizer(["caption"], TOWERS, tmp_path / FOLDER)
    for fold in range(2):
        save_towers(build_towers(TOWERS, seed=fold), fold_folder(tmp_path, fold))
    return tmp_path


def test_damaged_pictures_cost_themselves_and_are_counted(out: Path) -> None:
    rows = pq.read_table(out / "raw" / "00000.parquet").to_pylist()
    tar = out / "raw" / "00000.tar"
    whole = bytearray(tar.read_bytes())
    whole[rows[1]["offset"] + rows[1]["size"] // 2] ^= 1  # decodes all the same, as another picture
    whole[rows[3]["offset"]] = 0
    tar.write_bytes(whole[: rows[5]["offset"] + 9])
    tally = start_embed(out, Embed(), SETTINGS)(embed_tasks(out)[0])
    assert tally.counts == {"scored": 3, "undecodable": 3, "not_fetched": 1}
    scored = pq.read_table(out / "scores" / "embedding" / "00000.parquet")["uid"].to_pylist()
    assert scored == sorted(rows[number]["uid"] for number in (0, 2, 4))
