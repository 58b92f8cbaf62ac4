"""The published recipes run on real photos as they promise; a named checkpoint scores as open_clip does."""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pairmill.commands import start
from pairmill.pipeline import run
from pairmill.pretrain.pictures import decode_square
from pairmill.pretrain.towers import build_towers
from pairmill.pretrain.unit_rows import embed_pictures
from pairmill.recipe import Towers, load_recipe
from pairmill.shards.tar import read_at

DATA = os.environ.get("PAIRMILL_DATA")
real = pytest.mark.skipif(DATA is None, reason="PAIRMILL_DATA names no folder of real sets (flickr8k/)")
HAN = re.compile("[\u4e00-\u9fff]")
MODEL = "ViT-S-32-alt"
SHARED = ("the same words under twelve pictures", "十二张照片下的同一句话")
QUICK = {"bootstrap.training.samples_seen": 1_000, "fetch.retries": 0, "run.engine": "here"}


@dataclass(frozen=True)
class Served:
    """A list, and the map for `run.resolve` to the server of its pictures."""

    list: Path
    resolve: dict[str, str]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """60 photos with 10 captions each, and rows that the published rules name: 2 captions shared by the first
    12 photos, captions and URLs of a kind that goes. Served on loopback while the module runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
        from flickr8k_web import Server, make_web  # pyright: ignore[reportMissingImports]

        web = make_web(Path(str(DATA)), tmp_path_factory.mktemp("web"), pictures=60)
        table = pq.read_table(web.list)
        photos = sorted({url for url in table["URL"].to_pylist() if "/photo/" in url})
        rows = [(url, caption) for url in photos[:12] for caption in SHARED]
        rows += [
            (photos[20], caption)
            for caption in ("照片_0001.jpg", "狗", "dog", "black dog", "the man", "1234 5678 90")
        ]
        rows += [
            (photos[20] + "?x=.svg", "a drawing of a dog"),
            (photos[20][:-4] + ".gif", "a dog that moves"),
        ]
        rows += [(f"http://{'long-' * 12}host.test/a.jpg", "a picture at a host with a long name")]
        more = pa.table({"URL": [url for url, _ in rows], "TEXT": [caption for _, caption in rows]})
        pq.write_table(pa.concat_tables([table, more.cast(table.schema)]), web.list)
        with Server(web) as resolve:
            yield Served(web.list, resolve)


def run_recipe(name: str, served: Served, out: Path, sets: Mapping[str, Any]) -> int:
    """Exit code of a run of the recipe on the served list, with `sets` by dotted key."""
    given = {"ingest.input": [str(served.list)], "run.resolve": served.resolve, **QUICK, **sets}
    return run(load_recipe(name, given), out).exit_code


def reasons_of(out: Path, n_rows: int) -> dict[str, int]:
    """Distinct pairs by reason; every row of the list is accounted for, copies of a pair as such."""
    folder = out / "selection"
    reasons = pq.read_table(folder / "dataset.reasons.parquet", columns=["reason"])["reason"]
    counts = dict(Counter(reasons.to_pylist()))
    n_kept = pq.read_metadata(folder / "dataset.parquet").num_rows
    funnel = json.loads((out / "report" / "funnel.json").read_text())
    uids = pq.read_table(next((out / "pairs").glob("*.parquet")), columns=["uid"])["uid"]
    assert len(uids) == n_rows
    assert sum(counts.values()) + n_kept == len(uids.unique())
    assert funnel["rows"] == n_rows
    assert not funnel["problems"]
    return counts


def kept_captions(out: Path) -> list[str]:
    return [
        caption
        for path in (out / "shards").glob("*.parquet")
        for caption in pq.read_table(path)["caption"].to_pylist()
    ]


@real
@pytest.mark.slow
def test_align_keeps_english_of_3_to_20_words_and_counts_what_is_frequent(
    served: Served, tmp_path: Path
) -> None:
    limits: dict[str, Any] = {
        "language.rules.values.vocabulary": 2_500
    }  # of the 2,838 tokens of so small a list
    limits |= {"decide.rules.values.max_captions_per_image": 11}
    limits["language.rules.values.min_lang_prob"] = 0.4  # two words alone are no surer English
    assert run_recipe("align", served, tmp_path / "out", limits) == 0
    reasons = reasons_of(tmp_path / "out", pq.read_metadata(served.list).num_rows)
    expected = {"language_other", "rare_token", "caption_short", "caption_long", "image_common", "not_found"}
    assert expected <= set(reasons)
    assert reasons["caption_common"] == 12
    captions = kept_captions(tmp_path / "out")
    assert captions
    assert all(3 <= len(caption.split()) <= 20 and not HAN.search(caption) for caption in captions)


@real
@pytest.mark.slow
def test_wukong_keeps_chinese_alone(served: Served, tmp_path: Path) -> None:
    sets = {"language.rules.values.sensitive_words": ["草地"], "decide.max_noise": 1.0}
    assert run_recipe("wukong", served, tmp_path / "out", sets) == 0
    reasons = reasons_of(tmp_path / "out", pq.read_metadata(served.list).num_rows)
    assert {"no_chinese", "filename", "sensitive", "not_found"} <= set(reasons)
    assert reasons["caption_common"] == 12
    captions = kept_captions(tmp_path / "out")
    assert captions
    assert all(HAN.search(caption) and len(caption) <= 32 and "草地" not in caption for caption in captions)


@real
@pytest.mark.slow
def test_laion_keeps_any_language_or_none(served: Served, tmp_path: Path) -> None:
    assert run_recipe("laion", served, tmp_path / "out", {"decide.max_noise": 1.0}) == 0
    reasons = reasons_of(tmp_path / "out", pq.read_metadata(served.list).num_rows)
    assert {"caption_short", "url_format", "host_long", "too_small", "not_found"} <= set(reasons)
    captions = kept_captions(tmp_path / "out")
    assert "1234 5678 90" in captions
    assert {bool(HAN.search(caption)) for caption in captions} == {True, False}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same seeded weights of MODEL as torch.save and as safetensors write them."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(3)
    state = open_clip.create_model(MODEL).state_dict()
    folder = tmp_path_factory.mktemp("weights")
    torch.save(state, folder / "weights.pt")
    save_file(state, folder / "weights.safetensors")
    return {"pt": folder / "weights.pt", "safetensors": folder / "weights.safetensors"}


def open_clip_cosines(weights: Path, pairs: list[tuple[bytes, str]]) -> np.ndarray:
    """(N,) by open_clip alone: its model, its preprocessing, its tokenizer."""
    import open_clip

    made: Any = open_clip.create_model_and_transforms(MODEL, str(weights))
    model, _, preprocess = made
    pictures = torch.stack([preprocess(Image.open(io.BytesIO(data))) for data, _ in pairs])
    with torch.no_grad():
        image = model.eval().encode_image(pictures, normalize=True)
        text = model.encode_text(
            open_clip.get_tokenizer(MODEL)([caption for _, caption in pairs]), normalize=True
        )
    return (image * text).sum(1).numpy()


def scored(out: Path) -> list[dict[str, Any]]:
    """Rows of raw shards that were scored, with their cosine and language."""
    found = []
    for path in sorted((out / "scores" / "embedding").glob("*.parquet")):
        cosine = {row["uid"]: row["cosine_v1"] for row in pq.read_table(path).to_pylist()}
        with open(out / "raw" / f"{path.stem}.tar", "rb") as tar:
            for row in pq.read_table(out / "raw" / path.name).to_pylist():
                if row["uid"] in cosine:
                    data = read_at(tar, row["offset"], row["size"])
                    found.append({**row, "cosine": cosine[row["uid"]], "data": data})
    return found


@real
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_named_checkpoint_scores_as_open_clip_does_and_its_cosine_decides(
    served: Served, weights: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    out, bars = tmp_path / "out", {"en": 0.0, "other": 0.005}
    towers = "bootstrap.training.towers"
    sets = {f"{towers}.name": MODEL, f"{towers}.checkpoint": str(weights[kind]), "decide.max_noise": None}
    sets["decide.rules.sets"] = ["laion_image", "near_copies", "laion_score"]
    sets["decide.rules.values"] = {f"min_cosine_{language}": bar for language, bar in bars.items()}
    assert run_recipe("laion", served, out, sets) == 0
    for fold in range(2):
        files = [path.name for path in (out / "model" / "bootstrap" / f"fold{fold}").iterdir()]
        assert files == ["config.json"]
    rows = scored(out)
    expected = open_clip_cosines(weights[kind], [(row["data"], row["caption"]) for row in rows[::10]])
    np.testing.assert_allclose([row["cosine"] for row in rows[::10]], expected, atol=1e-3)
    tables = [
        pq.read_table(out / "scores" / "language" / path.name) for path in (out / "pairs").glob("*.parquet")
    ]
    language = {row["uid"]: row["lang_v1"] for table in tables for row in table.to_pylist()}
    reasons = pq.read_table(out / "selection" / "dataset.reasons.parquet").to_pylist()
    reason = {row["uid"]: row["reason"] for row in reasons}
    below = {
        row["uid"]: row["cosine"] < bars["en" if language[row["uid"]] == "en" else "other"] for row in rows
    }
    judged = {uid: low for uid, low in below.items() if reason.get(uid) in (None, "cosine")}
    assert set(judged.values()) == {True, False}
    assert all((reason.get(uid) == "cosine") == low for uid, low in judged.items())


@pytest.mark.slow
def test_pictures_are_resized_as_the_checkpoint_was_trained(weights: dict[str, Path]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (375, 500, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    towers = build_towers(Towers(name=MODEL, checkpoint=str(weights["safetensors"]))).eval()
    block = np.zeros((2, 224, 224, 3), np.uint8)
    assert decode_square(buffer.getvalue(), block[0], towers.prepare)
    assert decode_square(buffer.getvalue(), block[1])
    ours = embed_pictures(towers, block)
    import open_clip

    made: Any = open_clip.create_model_and_transforms(MODEL, str(weights["pt"]))
    model, _, preprocess = made
    with torch.no_grad():
        theirs = model.eval().encode_image(preprocess(Image.open(buffer))[None], normalize=True)[0].numpy()
    np.testing.assert_allclose(ours[0], theirs, atol=1e-5)
    assert np.abs(ours[1] - theirs).max() > 1e-4


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({"name": "ViT-B-23"}, "did you mean ViT-B-32"),
        ({"name": MODEL, "checkpoint": "none.pt"}, "is no such file; expected"),
        ({"name": MODEL, "checkpoint": "."}, "is a folder; expected"),
        ({"checkpoint": "some.pt"}, "needs the name of its model"),
        ({"image_size": 64, "text": {"width": 30, "layers": 2}}, "open_clip cannot make"),
    ],
)
def test_a_model_that_cannot_be_is_refused_before_anything_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sets: dict[str, Any], said: str
) -> None:
    pq.write_table(
        pa.table({"url": ["http://x.test/1.jpg"], "caption": ["a dog"]}), tmp_path / "list.parquet"
    )
    flags = [f"bootstrap.training.towers.{key}={json.dumps(value)}" for key, value in sets.items()]
    flags = [part for item in flags for part in ("--set", item)]
    where = ["--input", str(tmp_path / "list.parquet"), "--out", str(tmp_path / "out"), "--engine", "here"]
    assert start(["run", "laion", *where, *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "out").exists()
