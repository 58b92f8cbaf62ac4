"""The trainer: stopped anywhere it ends with the same bytes, and what it learns is real."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch

from pairmill.errors import ConfigError, DataError
from pairmill.filter.columns import stage_columns
from pairmill.pretrain.bootstrap import OutsideFold, fold_folder, start_bootstrap, start_tokenizer
from pairmill.pretrain.checkpoint import found_checkpoints
from pairmill.pretrain.embed import embed_tasks, start_embed
from pairmill.pretrain.loop import samples_to_see
from pairmill.pretrain.optimizer import learning_rate, make_optimizer
from pairmill.pretrain.samples import Selected, raw_source
from pairmill.pretrain.towers import build_towers, load_towers
from pairmill.pretrain.train import start_train, train_tasks
from pairmill.pretrain.trainer import check_training
from pairmill.recipe import Bootstrap, Embed, ScorerTraining, Towers, Train, Training
from pairmill.runner import Task, perform
from pairmill.shards.commit import write_table
from pairmill.shards.schema import COMPLETED, MISMATCH, RAW, make_uid, text_hash
from pairmill.shards.selection import read_selection, write_selection
from pairmill.shards.tar import TarWriter

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}
LAYERED = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
SMALL = Towers(
    image_size=32,
    embed_dim=16,
    vision=LAYERED,
    text={"width": 32, "heads": 2, "layers": 1},
    context_length=16,
    vocab_size=400,
)
TINY = ScorerTraining(
    towers=SMALL,
    batch_size=16,
    samples_seen=200,
    lr=3e-3,
    checkpoint_every_s=0,
    decoded_cache_mb=1,
    flip=True,
    system={"name": "clip", "targets": "same", "smoothing": 0.1, "doubt": 0.2},
)
SETTINGS = Bootstrap(folds=2, training=TINY)
FOLD = Task("bootstrap", "fold0", {"fold": 0})


class Stopped(Exception):
    """What a test raises in place of a kill."""


def make_world(out: Path) -> Path:
    """3 raw shards of 20 one-coloured pictures with 2 captions each, one picture in ten not fetched, and a
    selection of all that were."""
    rng = np.random.default_rng(0)
    kept = [uid for shard in range(3) for uid in _make_shard(out, f"{shard:05d}", rng)]
    for name in ("bootstrap", "everything"):
        write_selection(pa.array(sorted(kept), pa.binary(16)), out / "selection" / f"{name}.parquet")
    return out


def _make_shard(out: Path, name: str, rng: np.random.Generator) -> list[bytes]:
    (out / "raw").mkdir(parents=True, exist_ok=True)
    rows = []
    with TarWriter(out / "raw" / f"{name}.tar") as tar:
        for number in range(20):
            url = f"http://x.example/{name}/{number}.jpg"
            word = list(COLOURS)[rng.integers(4)]
            pixels = np.full((48, 40, 3), COLOURS[word], np.uint8) ^ rng.integers(
                0, 24, (48, 40, 3), np.uint8
            )
            data = simplejpeg.encode_jpeg(pixels)
            offset = None if number % 10 == 9 else tar.add(f"{text_hash(url).hex()}.jpg", data)
            captions = (f"a {word} picture", f"nothing but {word}, number {number}")
            rows += [_row(url, caption, offset, len(data)) for caption in captions]
    rows.sort(key=lambda row: (row["key"], row["uid"]))
    write_table(pa.Table.from_pylist(rows, schema=RAW), out / "raw" / f"{name}.parquet")
    return [row["uid"] for row in rows if row["outcome"] == "ok"]


def _row(url: str, caption: str, offset: int | None, size: int) -> dict[str, Any]:
    key = text_hash(url)
    row = {"uid": make_uid(url, caption), "url_hash": key, "key": key.hex(), "url": url, "caption": caption}
    if offset is None:
        return {**row, "outcome": "http_404", "wave": 0}
    return {**row, "outcome": "ok", "wave": 0, "offset": offset, "size": size}


def stop_at(*steps: int):
    def hook(done: int) -> None:
        if done in steps:
            raise Stopped

    return hook


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with 3 raw shards, all fetched pairs selected, and a tokenizer."""
    out = make_world(tmp_path_factory.mktemp("world"))
    start_tokenizer(out, SETTINGS)(Task("tokenizer", "tokenizer"))
    return out


@pytest.fixture(scope="module")
def trained(world: Path) -> Path:
    """The same folder after both folds were trained without a stop."""
    work = start_bootstrap(world, SETTINGS)
    for fold in range(2):
        tally = work(Task("bootstrap", f"fold{fold}", {"fold": fold}))
        assert tally.counts["trained_on"] > 20
    return world


def test_a_trained_folder_holds_the_final_files_only(trained: Path) -> None:
    assert sorted(files(fold_folder(trained, 0))) == ["config.json", "model.safetensors", "train.json"]
    assert (trained / "_log" / "train" / "fold0.json").exists()


@pytest.mark.parametrize("steps", [(1,), (5, 6), (2, 11, 12)])
def test_a_stopped_run_ends_with_the_same_bytes(
    trained: Path, tmp_path: Path, steps: tuple[int, ...]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("raw", "selection", "model"):
        (out / name).symlink_to(trained / name)
    (out / "model").unlink()
    (out / "model" / "bootstrap").mkdir(parents=True)
    (out / "model" / "bootstrap" / "tokenizer.json").symlink_to(trained / "model/bootstrap/tokenizer.json")
    task = Task("bootstrap", "fold0", {"fold": 0})
    for step in steps:
        with pytest.raises(Stopped):
            start_bootstrap(out, SETTINGS, stop_at(step))(task)
        assert [path.name for path in found_checkpoints(fold_folder(out, 0))] == [
            f"checkpoint-{done:010d}.safetensors" for done in (step, step - 1) if done
        ]
    start_bootstrap(out, SETTINGS)(task)
    assert files(fold_folder(out, 0)) == files(fold_folder(trained, 0))


@pytest.fixture
def stopped(trained: Path, tmp_path: Path) -> Path:
    """The same folder stopped after step 6 of fold 0, with the checkpoints of steps 4 and 5."""
    (tmp_path / "model" / "bootstrap").mkdir(parents=True)
    for name in ("raw", "selection", "model/bootstrap/tokenizer.json"):
        (tmp_path / name).symlink_to(trained / name)
    with pytest.raises(Stopped):
        start_bootstrap(tmp_path, SETTINGS, stop_at(5))(FOLD)
    return tmp_path


def test_a_checkpoint_of_other_settings_is_refused_with_their_names(stopped: Path) -> None:
    training = TINY.model_copy(update={"seed": 7, "towers": SMALL.model_copy(update={"embed_dim": 8})})
    report = perform(start_bootstrap(stopped, SETTINGS.model_copy(update={"training": training})), FOLD)
    assert report.status == "failed"
    assert "seed 0, now 7" in report.error
    assert "towers.embed_dim 16, now 8" in report.error
    assert "\n" not in report.error


@pytest.mark.parametrize("harm", ["cut", "flipped", "pickled", "emptied"])
@pytest.mark.parametrize("both", [False, True])
def test_in_place_of_a_damaged_checkpoint_the_one_before_it_is_taken(
    trained: Path, stopped: Path, harm: str, both: bool
) -> None:
    folder = fold_folder(stopped, 0)
    newest = found_checkpoints(folder)
    for path in newest if both else newest[:1]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        pickled = pickle.dumps({"step": 4})
        found = {"cut": bytes(data[: len(data) // 2]), "flipped": data, "pickled": pickled, "emptied": b""}
        path.write_bytes(found[harm])
    start_bootstrap(stopped, SETTINGS)(FOLD)
    assert files(folder) == files(fold_folder(trained, 0))
    said = json.loads((stopped / "_log" / "train" / "fold0.json").read_text())
    assert f"{newest[0].name} is damaged" in said["resumed"]
    assert ("a pickle" in said["resumed"]) == (harm == "pickled")
    assert ("a new start" if both else "goes on after step 4") in said["resumed"]


def test_a_checkpoint_of_other_samples_is_a_new_start_and_is_said(stopped: Path) -> None:
    keep = sorted(read_selection(stopped / "selection" / "bootstrap.parquet").tolist())
    (stopped / "selection").unlink()
    write_selection(pa.array(keep[5:], pa.binary(16)), stopped / "selection" / "bootstrap.parquet")
    start_bootstrap(stopped, SETTINGS)(FOLD)
    said = json.loads((stopped / "_log" / "train" / "fold0.json").read_text())
    assert "made from other samples: a new start" in said["resumed"]


def test_pictures_that_cannot_be_decoded_are_counted_once_however_often_the_run_was_stopped(
    trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "model" / "bootstrap").mkdir(parents=True)
    (tmp_path / "selection").symlink_to(trained / "selection")
    (tmp_path / "model" / "bootstrap" / "tokenizer.json").symlink_to(
        trained / "model/bootstrap/tokenizer.json"
    )
    shutil.copytree(trained / "raw", tmp_path / "raw")
    rows = pq.read_table(tmp_path / "raw" / "00000.parquet").to_pylist()
    with open(tmp_path / "raw" / "00000.tar", "r+b") as file:
        for offset in {row["offset"] for row in rows if row["offset"] is not None}:
            file.seek(offset)
            file.write(b"no picture at all")
    allowing = TINY.model_copy(update={"max_undecodable": 0.5})
    settings = SETTINGS.model_copy(update={"training": allowing})
    with pytest.raises(Stopped):
        start_bootstrap(tmp_path, settings, stop_at(9))(FOLD)
    counts = start_bootstrap(tmp_path, settings)(FOLD).counts
    source = raw_source(tmp_path / "raw", OutsideFold(tmp_path, 2, 0))
    assert counts == {"trained_on": int(source.counts[1:].sum()), "undecodable": int(source.counts[0])}


def test_a_loss_that_is_not_a_number_stops_the_run(world: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"training": TINY.model_copy(update={"lr": 1e30, "warmup": 0.0})})
    report = perform(start_bootstrap(world, settings), Task("bootstrap", "fold1", {"fold": 1}))
    assert report.status == "failed"
    assert "lower training.lr" in report.error


def test_cross_fitted_scores_tell_true_pairs_from_swapped_ones(trained: Path) -> None:
    task = embed_tasks(trained)[0]
    work = start_embed(trained, Embed(in_sample=True), SETTINGS)
    tally = work(task)
    assert tally.seen == pq.read_metadata(trained / "raw" / "00000.parquet").num_rows
    scores = pq.read_table(trained / "scores" / "embedding" / "00000.parquet")
    image = np.load(trained / "scores" / "embedding" / "00000.image.npy").astype(np.float32)
    text = np.load(trained / "scores" / "embedding" / "00000.text.npy").astype(np.float32)
    uids = scores["uid"].to_pylist()
    assert uids == sorted(uids)
    assert image.shape == text.shape == (len(uids), 16)
    np.testing.assert_allclose((image * text).sum(1), scores["cosine_v1"].to_numpy(), atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, atol=2e-3)
    assert set(scores["fold"].to_pylist()) == {0, 1}
    assert scores["cosine_in_sample_v1"].null_count == 0
    assert scores["loss_v1"].null_count == 0
    before = (trained / "scores" / "embedding" / "00000.parquet").read_bytes()
    start_embed(trained, Embed(in_sample=True), SETTINGS)(task)
    assert (trained / "scores" / "embedding" / "00000.parquet").read_bytes() == before


def exchange_models(out: Path) -> None:
    """Give each of the two folds the other's model."""
    first, other, aside = (out / "model" / "bootstrap" / name for name in ("fold0", "fold1", "aside"))
    for source, target in ((first, aside), (other, first), (aside, other)):
        source.rename(target)


def test_the_in_sample_score_is_that_of_one_model_which_saw_the_pair(trained: Path) -> None:
    task = embed_tasks(trained)[0]
    start_embed(trained, Embed(in_sample=True), SETTINGS)(task)
    scores = pq.read_table(trained / "scores" / "embedding" / "00000.parquet")
    exchange_models(trained)
    try:  # now each pair's own model is the one that saw it
        start_embed(trained, Embed(in_sample=True), SETTINGS)(task)
        turned = pq.read_table(trained / "scores" / "embedding" / "00000.parquet")
    finally:
        exchange_models(trained)
    for name, also in (("cosine_v1", "cosine_in_sample_v1"), ("cosine_in_sample_v1", "cosine_v1")):
        np.testing.assert_allclose(turned[name].to_numpy(), scores[also].to_numpy(), atol=1e-6)
    assert abs(scores["cosine_v1"].to_numpy() - scores["cosine_in_sample_v1"].to_numpy()).max() > 0.01


def test_asking_for_in_sample_scores_changes_no_other_column(trained: Path) -> None:
    path = trained / "scores" / "embedding" / "00001.parquet"
    tables = []
    for in_sample in (True, False):
        start_embed(trained, Embed(in_sample=in_sample), SETTINGS)(embed_tasks(trained)[1])
        tables.append(pq.read_table(path))
    assert tables[1]["cosine_in_sample_v1"].null_count == len(tables[1])
    for name in ("uid", "fold"):
        assert tables[0][name] == tables[1][name]
    for name in ("cosine_v1", "loss_v1"):
        np.testing.assert_allclose(tables[0][name].to_numpy(), tables[1][name].to_numpy(), atol=1e-5)


def test_a_model_is_trained_on_the_dataset_and_on_everything(trained: Path) -> None:
    settings = Train(compare_everything=True, source="raw", training=TINY)
    tasks = train_tasks(trained, settings, "bootstrap")
    assert [task.name for task in tasks] == ["bootstrap", "everything"]
    work = start_train(trained, TINY)
    assert work(tasks[1]).counts["trained_on"] > 0
    model = load_towers(trained / "model" / "everything", torch.device("cpu"))
    assert not model.training
    assert (trained / "model" / "everything" / "tokenizer.json").exists()


def test_lit_on_pictures_embedded_once_ends_as_lit_on_pictures_does(trained: Path, tmp_path: Path) -> None:
    source = str(fold_folder(trained, 0))
    found = []
    for cached in (True, False):
        system = {"name": "lit", "image_from": source, "cached": cached}
        changes = {"system": system, "crop": 1.0, "flip": False, "samples_seen": 320, "precision": "float32"}
        training = TINY.model_copy(update=changes)
        check_training(training)
        out = tmp_path / str(cached)
        out.mkdir()
        for name in ("raw", "selection"):
            (out / name).symlink_to(trained / name)
        task = train_tasks(out, Train(source="raw", training=training), "everything")[0]
        if cached:
            with pytest.raises(Stopped):
                start_train(out, training, hook=stop_at(9))(task)
            assert (out / "model" / "everything" / "pictures").is_dir()
        start_train(out, training)(task)
        names = sorted(files(out / "model" / "everything"))
        assert names == ["config.json", "model.safetensors", "tokenizer.json", "train.json"]
        found.append(load_towers(out / "model" / "everything", torch.device("cpu")).clip.state_dict())
    before = load_towers(fold_folder(trained, 0), torch.device("cpu")).clip.state_dict()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-4, rtol=1e-4)
        assert torch.equal(value, before[name]) == name.startswith("visual."), name


def test_a_locked_tower_that_has_learned_nothing_is_refused_and_so_is_a_cached_crop() -> None:
    with pytest.raises(ConfigError, match="lit: locks the picture tower"):
        check_training(TINY, "lit")
    with pytest.raises(ConfigError, match=r"training\.crop to 1"):
        check_training(TINY, {"name": "lit", "image_from": "x", "cached": True})


@pytest.mark.parametrize("name", ["otter", "nlip", "bow", "bagformer", "clippo"])
def test_a_stopped_run_of_any_system_ends_with_the_same_bytes(
    trained: Path, tmp_path: Path, name: str
) -> None:
    """What a system remembers (a teacher, a bank, a table of noise, its own weights) is in the checkpoint."""
    changes = {"system": name, "samples_seen": 96, "batch_size": 16, "precision": "float32"}
    training = TINY.model_copy(update=changes)
    check_training(training)
    results = []
    for stops in ((), (4,)):
        out = tmp_path / str(len(stops))
        out.mkdir()
        for folder in ("raw", "selection"):
            (out / folder).symlink_to(trained / folder)
        task = train_tasks(out, Train(source="raw", training=training), "everything")[0]
        for step in stops:
            with pytest.raises(Stopped):
                start_train(out, training, hook=stop_at(step))(task)
        start_train(out, training)(task)
        results.append(files(out / "model" / "everything"))
    assert results[0] == results[1]
    assert load_towers(tmp_path / "0" / "model" / "everything").dimension == 16


def test_nlip_writes_what_it_thinks_of_each_pair_as_a_column_that_rules_can_name(
    trained: Path, tmp_path: Path
) -> None:
    training = TINY.model_copy(update={"system": "nlip", "samples_seen": 256, "precision": "float32"})
    for name in ("raw", "selection"):
        (tmp_path / name).symlink_to(trained / name)
    start_train(tmp_path, training)(Task("train", "bootstrap", {"source": "raw"}))
    found = pq.read_table(tmp_path / "scores" / "mismatch" / "mismatch.parquet")
    assert found.schema.equals(MISMATCH)
    assert found["uid"].to_pylist() == sorted(
        read_selection(trained / "selection/bootstrap.parquet").tolist()
    )
    values = found["mismatch_prob_v1"].to_numpy()
    assert ((values >= 0) & (values <= 1)).all()
    assert "mismatch_prob_v1" in stage_columns("decide").names
    assert "mismatch_prob_v1" not in stage_columns("choose").names


def test_captions_written_anew_are_a_column_that_the_next_training_reads(
    trained: Path, tmp_path: Path
) -> None:
    for name in ("raw", "selection"):
        (tmp_path / name).symlink_to(trained / name)
    system = {"name": "nlip", "two": 0.0, "complete": 0.0, "concepts": 4}
    training = TINY.model_copy(update={"system": system, "samples_seen": 256, "precision": "float32"})
    task = Task("train", "bootstrap", {"source": "raw"})
    start_train(tmp_path, training)(task)
    path = tmp_path / "scores" / "completed" / "completed.parquet"
    found = pq.read_table(path)
    assert found.schema.equals(COMPLETED)
    words = {word for said in found["completed_caption_v1"].to_pylist() for word in said.split()}
    assert words <= {"a", "picture", "nothing", "but", "number", ",", *COLOURS, *map(str, range(20))}
    source = raw_source(tmp_path / "raw", Selected(tmp_path / "selection" / "bootstrap.parquet"))
    own = list(source.captions())
    source.say(path)
    said = list(source.captions())
    assert len(said) == len(own)
    assert set(said) >= set(found["completed_caption_v1"].to_pylist())
    again = training.model_copy(update={"system": "clip", "captions": str(path)})
    start_train(tmp_path, again)(task)
    with pytest.raises(DataError, match=r"expected a Parquet file of uid and a column of text"):
        source.say(tmp_path / "raw" / "00000.parquet")


def test_pseudo_captions_are_the_words_of_the_nearest_pictures(trained: Path, tmp_path: Path) -> None:
    for name in ("raw", "selection"):
        (tmp_path / name).symlink_to(trained / name)
    system = {"name": "bow", "bank": 0, "pseudo": 5}
    training = TINY.model_copy(update={"system": system, "precision": "float32"})
    start_train(tmp_path, training)(Task("train", "bootstrap", {"source": "raw"}))
    found = pq.read_table(tmp_path / "scores" / "pseudo" / "pseudo.parquet").to_pylist()
    tables = [pq.read_table(path) for path in sorted((tmp_path / "raw").glob("*.parquet"))]
    own = {row["uid"]: row["caption"] for table in tables for row in table.to_pylist()}
    hits = total = 0
    for row in found:
        colours = set((row["pseudo_words_v1"] or "").split()) & set(COLOURS)
        total += len(colours)
        hits += sum(colour in own[row["uid"]] for colour in colours)
    assert hits / total > 0.5  # by chance: one in four


def test_gains_biases_and_temperature_are_not_decayed() -> None:
    towers = build_towers(TINY.towers)
    decayed, free = make_optimizer(towers, TINY).param_groups
    assert all(value.ndim >= 2 for value in decayed["params"])
    assert any(value is towers.clip.logit_scale for value in free["params"])
    assert free["weight_decay"] == 0


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    training = Training(lr=2.0, warmup=0.5)
    rates = [learning_rate(step, 8, training) for step in range(8)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate(8, 8, training) == pytest.approx(0)


def test_text_without_its_padding_gives_the_same_embedding() -> None:
    towers = build_towers(TINY.towers).eval()
    tokens = torch.zeros(3, towers.context_length, dtype=torch.int64)
    tokens[:, :5] = torch.tensor([1, 9, 8, 7, 2])
    with torch.no_grad():
        whole, cut = towers.encode_captions(tokens), towers.encode_captions(tokens[:, :8])
    assert towers.trims
    torch.testing.assert_close(whole, cut, atol=1e-6, rtol=1e-6)


def test_samples_seen_fit_the_number_of_pairs() -> None:
    assert samples_to_see(Training(samples_seen=0), 500) == 0
    seen = [samples_to_see(Training(), pairs) for pairs in (2, 500, 2_300, 29_500, 490_000, 5_000_000)]
    assert seen == [989, 15_652, 33_570, 120_228, 490_000, 5_000_000]


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no model there"):
        load_towers(tmp_path)


def test_training_on_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 pairs to learn from"):
        start_train(tmp_path, TINY)(Task("train", "dataset", {"source": "shards"}))


def test_data_errors_are_not_config_errors() -> None:
    assert not issubclass(DataError, ConfigError)


def test_the_trainer_needs_neither_ray_nor_duckdb_nor_faiss(tmp_path: Path) -> None:
    code = f"""
import runpy, sys
from pathlib import Path
for name in ("ray", "duckdb", "faiss"):
    sys.modules[name] = None
import pairmill.pretrain.evaluate, pairmill.pretrain.train
assert "open_clip" not in sys.modules
here = runpy.run_path({__file__!r})
out, settings, task = here["make_world"](Path({str(tmp_path)!r})), here["SETTINGS"], here["Task"]
here["start_tokenizer"](out, settings)(task("tokenizer", "tokenizer"))
work = here["start_bootstrap"](out, settings)
for fold in range(settings.folds):
    work(task("bootstrap", f"fold{{fold}}", {{"fold": fold}}))
here["start_embed"](out, here["Embed"](), settings)(here["embed_tasks"](out)[0])
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert pq.read_table(tmp_path / "scores" / "embedding" / "00000.parquet")["cosine_v1"].null_count == 0
