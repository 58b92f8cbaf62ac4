"""The dataset: planned in SQL, written as shards that others can read."""

from __future__ import annotations

import hashlib
import json
import random
import tarfile
from collections.abc import Set
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import webdataset
import yaml

from pairmill.progress import Quiet
from pairmill.recipe import Decide, Recipe, Write
from pairmill.runner import Here, Tally, Task
from pairmill.settings import MEMORY_MB
from pairmill.shards import write
from pairmill.shards.commit import write_table
from pairmill.shards.job import inputs_digest, run_stage
from pairmill.shards.ledger import write_tally
from pairmill.shards.manifest import estimated_noise, manifest_stage, manifest_tasks, plain
from pairmill.shards.plan import PLAN, PLAN_SCHEMA, plan_write_stage, plan_write_tasks
from pairmill.shards.schema import LANGUAGE, NEAR, NOISE, RAW, SIDECAR, bytes_hash, make_uid, text_hash
from pairmill.shards.selection import write_selection
from pairmill.shards.tar import TarWriter, members
from pairmill.shards.verify import verify
from pairmill.shards.write import write_stage, write_tasks

N = 60
CAPTIONS = ["a red kite", "ein roter Drachen", "一只红色的风筝", 'a "quoted" <b>kite</b>\\', "cerf-volant 🪁"]
LANGS = ["en", "de", "zh", "en", "fr"]


def picture(index: int) -> bytes:
    """An 8 x 8 JPEG of one grey."""
    import numpy as np

    return simplejpeg.encode_jpeg(np.full((8, 8, 3), index * 4 % 256, np.uint8), quality=90)


def caption(index: int) -> str:
    return f"{CAPTIONS[index % 5]} {index}"


def url(index: int) -> str:
    return f"http://example.org/{index}.jpg"


def uid(index: int) -> bytes:
    return make_uid(url(index), caption(index))


def raw_row(index: int, offset: int, data: bytes, *, outcome: str = "ok", wave: int = 0) -> dict[str, object]:
    row: dict[str, object] = {name: None for name in RAW.names}
    hashed = text_hash(url(index))
    row |= {"uid": uid(index), "url_hash": hashed, "key": hashed.hex(), "url": url(index)}
    row |= {"caption": caption(index), "outcome": outcome, "wave": wave}
    if outcome == "ok":
        row |= {"width": 8, "height": 8, "original_width": 80, "original_height": 80}
        row |= {"offset": offset, "size": len(data), "sha256": hashlib.sha256(data).digest()}
        row |= {"stored_xxh3": bytes_hash(data)}
    return row


def write_raw(
    out: Path, name: str, indexes: list[int], *, failed: Set[int] = frozenset(), wave: int = 0
) -> None:
    rows = []
    (out / "raw").mkdir(parents=True, exist_ok=True)
    with TarWriter(out / "raw" / f"{name}.tar") as tar:
        for index in indexes:
            if index in failed:
                rows.append(raw_row(index, 0, b"", outcome="http_404", wave=wave))
            else:
                data = picture(index)
                rows.append(raw_row(index, tar.add(f"{index}.jpg", data), data, wave=wave))
    write_table(pa.Table.from_pylist(rows, schema=RAW), out / "raw" / f"{name}.parquet")
    scores = [
        {"uid": uid(i), "cosine_v1": i / N, "mismatch_p_v2": 0.5, "mismatch_q_v2": i / N / 10}
        for i in indexes
    ]
    write_table(pa.Table.from_pylist(scores, schema=NOISE), out / "scores" / "noise" / f"{name}.parquet")


def select(out: Path, indexes: list[int], name: str = "dataset") -> None:
    write_selection(
        pa.array(sorted(uid(i) for i in indexes), pa.binary(16)), out / "selection" / f"{name}.parquet"
    )


def make_out(out: Path) -> Path:
    """60 pairs in three raw shards; pair 7 failed at first and came in wave 1; a third is not selected."""
    for shard in range(3):
        write_raw(out, f"{shard:05d}", list(range(shard * 20, shard * 20 + 20)), failed={7})
    write_raw(out, "w1-00000", [7], wave=1)
    spoken = [{"uid": uid(i), "lang_v1": LANGS[i % 5], "lang_prob_v1": 0.9} for i in [*range(N), 0, 1]]
    write_table(
        pa.Table.from_pylist(spoken, schema=LANGUAGE), out / "scores" / "language" / "0000-00000.parquet"
    )
    select(out, [i for i in range(N) if i % 3])
    return out


SETTINGS = Write(samples_per_shard=15, seed=3, title="Kites | <i>all</i>", licence="CC-BY *4.0*")
RECIPE = Recipe(name="kites", write=SETTINGS, decide=Decide(max_noise=0.1))


def write_all(out: Path, settings: Write = SETTINGS, memory_mb: int = MEMORY_MB) -> dict[str, dict[str, int]]:
    """Plan, write and describe; the counts of each stage."""
    engine, progress = Here(), Quiet()
    plan = run_stage(
        out,
        plan_write_stage(out, settings, "dataset", memory_mb),
        plan_write_tasks(out, "dataset"),
        engine,
        progress,
    )
    assert not plan.failed, plan.failed
    inputs = inputs_digest(out, "plan-write")
    written = run_stage(out, write_stage(out), write_tasks(out), engine, progress, inputs=inputs)
    assert not written.failed, written.failed
    inputs = inputs_digest(out, "write")
    told = run_stage(
        out, manifest_stage(out, RECIPE, "dataset"), manifest_tasks(out), engine, progress, inputs=inputs
    )
    assert not told.failed, told.failed
    return {report.stage: dict(report.counts) for report in (plan, written, told)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole dataset of 40 pairs in shards of 15; nobody may change it."""
    out = make_out(tmp_path_factory.mktemp("written"))
    assert write_all(out) == {
        "plan-write": {"planned": 40, "no_picture": 0},
        "write": {"written": 40},
        "manifest": {"described": 3},
    }
    return out


def read_folder(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sidecars(out: Path) -> list[pa.Table]:
    return [pq.read_table(path) for path in sorted((out / "shards").glob("*.parquet"))]


def test_every_selected_pair_is_in_one_shard_once(written: Path) -> None:
    keys = [key for table in sidecars(written) for key in table["uid"].to_pylist()]
    assert sorted(keys) == sorted(uid(i) for i in range(N) if i % 3)
    assert [table.num_rows for table in sidecars(written)] == [15, 15, 10]


def test_the_order_is_that_of_md5_over_seed_and_uid(written: Path) -> None:
    keys = [key for table in sidecars(written) for key in table["uid"].to_pylist()]
    assert keys == sorted(keys, key=lambda key: hashlib.md5(f"3:{key.hex().upper()}".encode()).hexdigest())
    assert keys != sorted(keys)


def test_sidecars_have_the_schema_and_point_at_the_pictures(written: Path) -> None:
    by_uid = {uid(i): i for i in range(N)}
    for path in sorted((written / "shards").glob("*.parquet")):
        table, data = pq.read_table(path), path.with_suffix(".tar").read_bytes()
        assert table.schema == SIDECAR
        in_tar = [member.stem for member in members(path.with_suffix(".tar")) if member.suffix == "jpg"]
        assert table["key"].to_pylist() == in_tar
        for row in table.to_pylist():
            index = by_uid[row["uid"]]
            assert data[row["offset"] : row["offset"] + row["size"]] == picture(index)
            assert (row["caption"], row["lang_v1"]) == (caption(index), LANGS[index % 5])
            assert row["cosine_v1"] == pytest.approx(index / N)
            assert (row["status"], row["error_message"], row["exif"]) == ("success", None, None)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its last file open
def test_webdataset_reads_the_shards(written: Path) -> None:
    urls = [str(path) for path in sorted((written / "shards").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8"))
    by_key = {uid(i).hex(): i for i in range(N)}
    assert len(samples) == 40
    for sample in samples:
        index = by_key[sample["__key__"]]
        assert sample["txt"] == sample["json"]["caption"] == caption(index)
        assert sample["jpg"].shape == (8, 8, 3)
        assert sample["json"]["status"] == "success"
        assert sample["json"]["sha256"] == hashlib.sha256(picture(index)).hexdigest()
        assert sample["json"]["cosine_v1"] == pytest.approx(index / N, rel=1e-6)


def test_the_json_has_img2datasets_fields(written: Path) -> None:
    with tarfile.open(written / "shards" / "00000.tar") as tar:
        names = tar.getnames()
        file = tar.extractfile(names[1])
        assert file is not None
        said = json.load(file)
    theirs = {
        "caption",
        "url",
        "key",
        "status",
        "error_message",
        "width",
        "height",
        "original_width",
        "sha256",
    }
    assert [name.partition(".")[2] for name in names[:3]] == ["jpg", "json", "txt"]
    assert theirs <= said.keys()
    stats = json.loads((written / "shards" / "00000_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["status_dict"]) == (15, 15, {"success": 15})


def test_a_stopped_write_ends_with_the_same_bytes(written: Path, tmp_path: Path) -> None:
    out = make_out(tmp_path)
    write_all(out)
    (out / "_done" / "write" / "00001.json").unlink()  # killed after the tar, before the tally
    (out / "shards" / "00001.tar").write_bytes(b"half")
    (out / "shards" / "00001.parquet").unlink()
    (out / "_done" / "plan-write" / "dataset.json").unlink()
    (out / PLAN / "00002.parquet").write_bytes(b"half")
    write_all(out)
    assert read_folder(out / "shards") == read_folder(written / "shards")


def test_a_smaller_selection_leaves_nothing_of_the_larger(tmp_path: Path) -> None:
    out, fresh = make_out(tmp_path / "a"), make_out(tmp_path / "b")
    write_all(out)
    for folder in (out, fresh):
        select(folder, list(range(10)))
    (out / "_done" / "plan-write" / "dataset.json").unlink()
    write_all(out)
    write_all(fresh)
    assert read_folder(out / "shards") == read_folder(fresh / "shards")
    assert [path.name for path in (out / "shards").glob("*.tar")] == ["00000.tar"]
    assert [path.name for path in (out / "_done" / "write").iterdir()] == ["00000.json"]


def test_another_selection_takes_the_place_of_the_one_before_and_back(tmp_path: Path, written: Path) -> None:
    out = make_out(tmp_path)
    write_all(out)
    select(out, [4, 5], "strict")
    run_stage(
        out, plan_write_stage(out, SETTINGS, "strict"), plan_write_tasks(out, "strict"), Here(), Quiet()
    )
    assert [pq.read_table(path).num_rows for path in (out / PLAN).iterdir()] == [2]
    write_all(out)
    assert read_folder(out / "shards") == read_folder(written / "shards")


def test_the_newest_wave_counts_even_when_it_failed(tmp_path: Path) -> None:
    out = make_out(tmp_path)
    write_raw(out, "w2-00000", [1, 8], failed={1}, wave=2)
    assert write_all(out)["plan-write"] == {"planned": 39, "no_picture": 1}
    assert uid(1) not in {key for table in sidecars(out) for key in table["uid"].to_pylist()}
    plan = pa.concat_tables(
        pq.read_table(path, schema=PLAN_SCHEMA) for path in sorted((out / PLAN).iterdir())
    )
    where = dict(zip(plan["uid"].to_pylist(), plan["raw_shard"].to_pylist(), strict=True))
    assert (where[uid(7)], where[uid(8)], where[uid(10)]) == ("w1-00000", "w2-00000", "00000")


def test_columns_that_were_never_computed_are_null(tmp_path: Path) -> None:
    out = make_out(tmp_path)
    for path in (out / "scores").rglob("*.parquet"):
        path.unlink()
    write_all(out)
    for table in sidecars(out):
        assert [table[name].null_count for name in ("lang_v1", "cosine_v1", "mismatch_q_v2")] == [
            table.num_rows
        ] * 3
    assert "nothing was scored" in (out / "shards" / "README.md").read_text()


def test_a_selection_without_pictures_is_refused_in_words(tmp_path: Path) -> None:
    out = make_out(tmp_path)
    select(out, [N + 1])
    report = run_stage(
        out, plan_write_stage(out, SETTINGS, "dataset"), plan_write_tasks(out, "dataset"), Here(), Quiet()
    )
    assert report.failed["dataset"].startswith("selection 'dataset': 1 pairs, none with a picture")


def test_unreadable_columns_fail_without_a_traceback(tmp_path: Path) -> None:
    out = make_out(tmp_path)
    (out / "raw" / "00001.parquet").write_bytes(b"PAR1 not at all")
    report = run_stage(
        out, plan_write_stage(out, SETTINGS, "dataset"), plan_write_tasks(out, "dataset"), Here(), Quiet()
    )
    assert "raw/00001.parquet" in report.failed["dataset"]
    assert "Traceback" not in report.failed["dataset"]


def damage(path: Path, how: str, row: dict[str, Any]) -> None:
    """Break one picture of a raw tar: its magic, a bit in its middle, or the tar from there on."""
    whole = bytearray(path.read_bytes())
    middle = row["offset"] + row["size"] // 2
    if how == "magic":
        whole[row["offset"]] = 0
    elif how == "bit":
        whole[middle] ^= 4
    path.write_bytes(whole[:middle] if how == "cut" else whole)


@pytest.mark.parametrize("how", ["magic", "bit", "cut"])
def test_a_damaged_picture_costs_itself_under_a_reason(tmp_path: Path, how: str) -> None:
    out = make_out(tmp_path)
    run_stage(
        out, plan_write_stage(out, SETTINGS, "dataset"), plan_write_tasks(out, "dataset"), Here(), Quiet()
    )
    rows = pq.read_table(out / "raw" / "00001.parquet").to_pylist()
    (row,) = (row for row in rows if row["uid"] == uid(38))  # the last that is selected
    damage(out / "raw" / "00001.tar", how, row)
    report = run_stage(out, write_stage(out), write_tasks(out), Here(), Quiet())
    assert (report.failed, report.counts) == ({}, {"written": 39, "picture_damaged": 1})
    tables = [pq.read_table(path) for path in sorted((out / "shards").glob("*.parquet"))]
    written = {name for table in tables for name in table["uid"].to_pylist()}
    assert written == {uid(i) for i in range(N) if i % 3} - {uid(38)}
    run_stage(out, manifest_stage(out, RECIPE, "dataset"), manifest_tasks(out), Here(), Quiet())
    about_shards = [line for line in verify(out)["problems"] if "raw" not in line]
    assert about_shards == []


def test_a_shard_that_is_left_without_any_picture_is_empty_and_whole(tmp_path: Path) -> None:
    out = make_out(tmp_path)
    select(out, [7])
    settings = SETTINGS.model_copy(update={"samples_per_shard": 1})
    run_stage(
        out, plan_write_stage(out, settings, "dataset"), plan_write_tasks(out, "dataset"), Here(), Quiet()
    )
    (out / "raw" / "w1-00000.tar").write_bytes(bytes(4096))
    report = run_stage(out, write_stage(out), write_tasks(out), Here(), Quiet())
    assert (report.failed, report.counts) == ({}, {"picture_damaged": 1})
    assert pq.read_table(out / "shards" / "00000.parquet", schema=SIDECAR).num_rows == 0


def test_a_task_that_finds_hardly_a_picture_fails_and_names_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "FEW_DAMAGED", 5)
    out = make_out(tmp_path)
    run_stage(
        out, plan_write_stage(out, SETTINGS, "dataset"), plan_write_tasks(out, "dataset"), Here(), Quiet()
    )
    for path in (out / "raw").glob("*.tar"):
        path.write_bytes(b"")
    report = run_stage(out, write_stage(out), write_tasks(out), Here(), Quiet())
    assert len(report.failed) == 3
    assert "not the picture that was stored there" in report.failed["00000"]
    assert "and so 15 of 15 in this shard: `pairmill verify` says" in report.failed["00000"]


def test_the_manifest_names_every_file_with_its_hash(written: Path) -> None:
    manifest = json.loads((written / "shards" / "manifest.json").read_text())
    assert (manifest["samples"], manifest["selection"]) == (40, "dataset")
    assert Recipe.model_validate(manifest["recipe"]) == RECIPE
    assert [shard["name"] for shard in manifest["shards"]] == ["00000", "00001", "00002"]
    total = 0
    for shard in manifest["shards"]:
        for kind in ("tar", "parquet"):
            data = (written / "shards" / shard[kind]["path"]).read_bytes()
            assert shard[kind] == {
                "path": f"{shard['name']}.{kind}",
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            total += len(data)
    assert manifest["bytes"] == total
    assert {name: said["pairs"] for name, said in manifest["languages"].items()} == {
        lang: sum(LANGS[i % 5] == lang for i in range(N) if i % 3) for lang in ("de", "en", "fr", "zh")
    }


def test_the_data_card_escapes_what_came_from_outside(written: Path) -> None:
    card = (written / "shards" / "README.md").read_text()
    head, _, body = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(head)["configs"][0]["data_files"] == [{"split": "train", "path": "*.tar"}]
    assert body.startswith("# Kites \\| &lt;i&gt;all&lt;/i&gt;\n")
    assert "Licence: CC\\-BY \\*4.0\\*." in card
    assert "shards/{00000..00002}.tar" in card
    assert "asked for at most 10.0%, estimated at" in card
    assert "| write | written | 40 |" in card


def test_the_size_of_each_tar_is_told_as_open_clip_reads_it(written: Path) -> None:
    sizes = json.loads((written / "shards" / "sizes.json").read_text())
    in_tars = {
        path.name: sum(member.suffix == "jpg" for member in members(path))
        for path in (written / "shards").glob("*.tar")
    }
    assert sizes == in_tars
    assert sum(sizes.values()) == 40


def test_the_funnel_of_a_dataset_counts_its_own_selection_alone(tmp_path: Path) -> None:
    out = make_out(tmp_path)
    write_all(out)
    for name, counts in (("dataset", {"kept": 40, "noise": 5}), ("strict", {"kept": 7, "noise": 38})):
        write_tally(out, Task("decide", name), Tally(counts))
    (out / "_done" / "manifest" / "all.json").unlink()
    run_stage(out, manifest_stage(out, RECIPE, "dataset"), manifest_tasks(out), Here(), Quiet())
    manifest = json.loads((out / "shards" / "manifest.json").read_text())
    assert manifest["funnel"]["decide"] == {"kept": 40, "noise": 5}
    assert "| decide | kept | 40 |" in (out / "shards" / "README.md").read_text()


def test_a_changed_shard_is_not_described(written: Path, tmp_path: Path) -> None:
    out = make_out(tmp_path)
    write_all(out)
    (out / "shards" / "00002.tar").write_bytes(b"cut")
    (out / "_done" / "manifest" / "all.json").unlink()
    report = run_stage(out, manifest_stage(out, RECIPE, "dataset"), manifest_tasks(out), Here(), Quiet())
    assert "00002.tar: 3 bytes, not" in report.failed["all"]
    assert "remove _done/write/00002.json" in report.failed["all"]


def test_estimated_noise_weighs_each_languages_worst_pair() -> None:
    languages = {
        "en": {"pairs": 30, "scored": 30, "worst_q": 0.1},
        "de": {"pairs": 20, "scored": 10, "worst_q": 0.02},
        "": {"pairs": 5, "scored": 0, "worst_q": None},
    }
    assert estimated_noise(languages) == pytest.approx((30 * 0.1 + 10 * 0.02) / 40)
    assert estimated_noise({"": languages[""]}) is None


def test_plain_text_stays_plain() -> None:
    rng = random.Random(0)
    text = "".join(rng.choice("ab|*_`[]<>&#\n\t!~+-()\\") for _ in range(500))
    shown = plain(text)
    assert "\n" not in shown
    assert "<" not in shown
    assert shown.count("|") == shown.count("\\|") == text.count("|")


def test_a_plan_in_little_memory_is_the_same_plan(tmp_path: Path, written: Path) -> None:
    out = make_out(tmp_path)
    write_all(out, memory_mb=200)
    assert read_folder(out / PLAN) == read_folder(written / PLAN)


def test_the_tally_tells_the_rest_of_a_shard(written: Path) -> None:
    found = json.loads((written / "_done" / "write" / "00000.json").read_text())
    tally = Tally(found["counts"], found["facts"])
    assert tally.seen == 15
    assert sum(said["pairs"] for said in tally.facts["languages"].values()) == 15


def write_near(out: Path, group: dict[int, int], folder: str = "near") -> None:
    """scores/near: which pairs were adopted, and by the picture of which."""
    rows = [
        {
            "uid": uid(i),
            "near_group_v1": text_hash(url(best)),
            "near_rank_v1": 1,
            "near_size_v1": 2,
            "near_adopted_v1": True,
        }
        for i, best in group.items()
    ]
    write_table(pa.Table.from_pylist(rows, schema=NEAR), out / "scores" / folder / "near.parquet")


def test_an_adopted_caption_is_written_with_the_picture_that_took_it_over(tmp_path: Path) -> None:
    """The best pictures: one in the same shard, one not selected itself, one that came in a later wave."""
    out = make_out(tmp_path)
    best = {1: 2, 22: 45, 44: 7}
    write_near(out, best)
    assert write_all(out)["write"] == {"written": 40}
    found = {}
    for path in sorted((out / "shards").glob("*.parquet")):
        data = path.with_suffix(".tar").read_bytes()
        for row in pq.read_table(path).to_pylist():
            found[row["uid"]] = row | {"data": data[row["offset"] : row["offset"] + row["size"]]}
        for member in members(path.with_suffix(".tar")):
            if member.name.endswith(".json"):
                said = json.loads(data[member.offset : member.offset + member.size])
                row = found[bytes.fromhex(said["uid"])]
                assert (said["url"], said["picture_url"]) == (row["url"], row["picture_url"])
                assert said["sha256"] == row["sha256"].hex()
    assert sorted(found) == sorted(uid(i) for i in range(N) if i % 3)
    for i in (i for i in range(N) if i % 3):
        row, shown = found[uid(i)], best.get(i, i)
        assert (row["url"], row["caption"], row["lang_v1"]) == (url(i), caption(i), LANGS[i % 5])
        assert (row["picture_url"], row["data"]) == (url(shown), picture(shown))
        assert row["cosine_v1"] == pytest.approx(i / N)


def test_groups_by_embedding_are_the_valid_ones(tmp_path: Path) -> None:
    out = make_out(tmp_path)
    write_near(out, {1: 2})
    write_near(out, {4: 5}, "near-embedding")
    write_all(out)
    shown = {row["uid"]: row["picture_url"] for table in sidecars(out) for row in table.to_pylist()}
    assert [shown[uid(i)] for i in (1, 4)] == [url(1), url(5)]
