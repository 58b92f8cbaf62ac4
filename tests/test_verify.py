"""`verify` finds what is not as it was written."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.errors import ConfigError
from pairmill.progress import Quiet
from pairmill.recipe import Recipe, Write
from pairmill.runner import Here, Tally, Task
from pairmill.shards.commit import file_digest, write_table
from pairmill.shards.job import run_stage
from pairmill.shards.ledger import write_tally
from pairmill.shards.manifest import manifest_stage, manifest_tasks
from pairmill.shards.plan import plan_write_stage, plan_write_tasks
from pairmill.shards.schema import RAW, make_uid, text_hash
from pairmill.shards.selection import write_selection
from pairmill.shards.tar import BLOCK, END, TarWriter
from pairmill.shards.verify import MOST, verify
from pairmill.shards.write import write_stage, write_tasks

N = 12


def url(number: int) -> str:
    return f"https://example.org/{number}.jpg"


def uid(number: int) -> bytes:
    return make_uid(url(number), f"caption {number}")


def write_raw(out: Path) -> None:
    """One raw shard of N pictures (not decodable, but of JPEG's magic) and one failure, with its tally."""
    rows = []
    (out / "raw").mkdir(parents=True)
    with TarWriter(out / "raw" / "00000.tar") as tar:
        for number in sorted(range(N), key=lambda number: text_hash(url(number))):
            data = b"\xff\xd8\xff" + bytes([number]) * (300 + number)
            key = text_hash(url(number)).hex()
            row = {"uid": uid(number), "url_hash": text_hash(url(number)), "key": key, "url": url(number)}
            row |= {"caption": f"caption {number}", "outcome": "ok", "wave": 0, "width": 8, "height": 8}
            rows.append(row | {"offset": tar.add(f"{key}.jpg", data), "size": len(data)})
            tar.add(f"{key}.txt", b"caption")
    gone = {"uid": uid(N), "key": "gone", "url": url(N), "caption": "x", "outcome": "http_404", "wave": 0}
    write_table(pa.Table.from_pylist([*rows, gone], schema=RAW), out / "raw" / "00000.parquet")
    write_tally(out, Task("fetch", "00000"), Tally({"ok": N, "http_404": 1}))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A finished folder: one raw shard, a selection of 9 of its 12 pictures, a dataset of two shards."""
    write_raw(tmp_path)
    kept = pa.array(sorted(uid(number) for number in range(9)), pa.binary(16))
    write_selection(kept, tmp_path / "selection" / "dataset.parquet")
    settings = Write(samples_per_shard=5)
    recipe = Recipe(name="small", write=settings)
    for tasks, stage in (
        (lambda out: plan_write_tasks(out, "dataset"), plan_write_stage(tmp_path, settings, "dataset")),
        (write_tasks, write_stage(tmp_path)),
        (manifest_tasks, manifest_stage(tmp_path, recipe, "dataset")),
    ):
        assert not run_stage(tmp_path, stage, tasks(tmp_path), Here(), Quiet()).failed
    return tmp_path


def problem(out: Path) -> str:
    """The only problem that there is."""
    found = verify(out)
    assert found["ok"] is False
    (only,) = found["problems"]
    return only


def test_a_whole_folder_has_no_problem(out: Path) -> None:
    found = verify(out)
    assert (found["ok"], found["problems"]) == (True, [])
    checked = found["checked"]
    assert (checked["shards"], checked["samples"], checked["selections"], checked["raw_shards"]) == (
        2,
        9,
        1,
        1,
    )


def test_any_flipped_byte_in_the_dataset_is_found(out: Path) -> None:
    draw = random.Random(0)
    files = sorted((out / "shards").iterdir())
    assert len(files) == 9
    for path in files:
        whole = path.read_bytes()
        for place in {0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(12))}:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << draw.randrange(8)
            path.write_bytes(flipped)
            assert verify(out)["problems"], f"{path.name}, byte {place}"
        path.write_bytes(whole)
    assert verify(out)["ok"]


def test_a_manifest_that_names_another_file_is_found(out: Path) -> None:
    path = out / "shards" / "manifest.json"
    path.write_text(path.read_text().replace('"path": "00001.tar"', '"path": "00000.tar"'))
    assert "bytes were changed" in problem(out)
    files = {f"shards/{path.name}": file_digest(path)}  # as if it had been written so
    write_tally(out, Task("manifest", "all"), Tally({"described": 2}), files=files)
    assert "the manifest says other" in problem(out)


@pytest.mark.parametrize("folder", ["shards", "raw"])
def test_a_tar_cut_at_a_members_border_is_found(out: Path, folder: str) -> None:
    path = out / folder / "00000.tar"
    whole = path.read_bytes()
    border = whole.rindex(b"ustar\0") - 257
    path.write_bytes(whole[:border])
    assert any(str(path) in line for line in verify(out)["problems"])
    path.write_bytes(whole[:border] + END)  # and closed again, as if nothing had been
    lines = verify(out)["problems"]
    assert any(str(path) in line for line in lines) == (folder == "shards")
    border = whole[:border].rindex(b"ustar\0") - 257  # the member before is a picture, in raw
    path.write_bytes(whole[:border] + END)
    assert any(str(path) in line for line in verify(out)["problems"])


def test_bytes_after_the_end_of_a_raw_tar_are_found(out: Path) -> None:
    with open(out / "raw" / "00000.tar", "ab") as file:
        file.write(bytes(BLOCK))
    assert "something follows" in problem(out)


def test_a_missing_shard_is_named_with_what_was_expected(out: Path) -> None:
    path = out / "shards" / "00001.tar"
    size = path.stat().st_size
    path.unlink()
    assert problem(out) == f"{path}: missing, expected {size:,} bytes"


def test_a_file_that_is_not_in_the_manifest_is_named(out: Path) -> None:
    (out / "shards" / "00009.tar").write_bytes(b"")
    assert "00009.tar: not in the manifest" in problem(out)


def test_a_dataset_without_its_manifest_is_not_finished(out: Path) -> None:
    (out / "shards" / "manifest.json").unlink()
    assert "manifest.json: missing, expected" in problem(out)
    (out / "_done" / "manifest" / "all.json").unlink()
    assert "missing, expected the dataset's manifest: run `pairmill write`" in problem(out)


def test_a_shard_without_its_tally_is_not_finished(out: Path) -> None:
    (out / "_done" / "write" / "00000.json").unlink()
    assert "no tally _done/write/00000.json" in problem(out)


def test_samples_and_selection_must_be_the_same_pairs(out: Path) -> None:
    other = pa.array(sorted(uid(number) for number in range(1, 10)), pa.binary(16))
    write_selection(other, out / "selection" / "dataset.parquet")
    found = verify(out)["problems"]
    assert [line.split(": ")[1] for line in found] == [
        "1 samples are not in selection dataset, expected 0; the first is " + uid(0).hex(),
        "1 selected pairs are not in the dataset, expected 0; the first is " + uid(9).hex(),
    ]


def test_the_two_files_of_a_selection_must_agree(out: Path) -> None:
    path = out / "selection" / "dataset.npy"
    pairs = np.load(path)
    pairs["f1"][3] ^= 1
    np.save(path, pairs)
    assert "uids 0 to 8 are not those of dataset.parquet" in problem(out)
    np.save(path, pairs[:-1])
    assert "8 uids, but 9 in dataset.parquet" in problem(out)
    path.write_bytes(b"half")
    assert "cannot be compared" in problem(out)


def test_a_raw_sidecar_must_say_where_its_pictures_lie(out: Path) -> None:
    path = out / "raw" / "00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[2]["offset"] += 1
    write_table(pa.Table.from_pylist(rows, schema=RAW), path)
    assert f"picture {rows[2]['key']} is at byte" in problem(out)


def test_a_raw_sidecar_must_hold_what_its_tally_counted(out: Path) -> None:
    path = out / "raw" / "00000.parquet"
    write_table(pq.read_table(path).slice(0, N), path)
    assert "expected {'http_404': 1, 'ok': 12} by its tally" in problem(out)


def test_a_damaged_tally_is_a_problem(out: Path) -> None:
    (out / "_done" / "fetch" / "00000.json").write_text("{")
    assert problem(out).endswith("_done/fetch/00000.json: not the tally that was written: bytes were changed")


def test_an_unreadable_raw_file_is_one_line(out: Path) -> None:
    (out / "raw" / "00000.parquet").write_bytes(b"PAR1 half")
    assert "00000.tar: cannot be checked: ArrowInvalid" in problem(out)


def test_a_file_lists_its_first_problems_and_counts_the_rest(out: Path) -> None:
    path = out / "raw" / "00000.parquet"
    extra = [
        {"uid": uid(i), "key": f"k{i:03}", "outcome": "ok", "offset": 1, "size": 1} for i in range(MOST + 5)
    ]
    write_tally(out, Task("fetch", "00000"), Tally({"ok": N + len(extra), "http_404": 1}))
    table = pa.concat_tables([pq.read_table(path), pa.Table.from_pylist(extra, schema=RAW)])
    write_table(table, path)
    lines = verify(out)["problems"]
    assert len(lines) == MOST + 1
    assert lines[-1].endswith(": 5 more problems")


def test_a_folder_with_nothing_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to verify"):
        verify(tmp_path)


def counted_folder(out: Path) -> dict[str, Path]:
    """Files of finished tasks as every stage before the dataset leaves them, 5 rows each."""
    files = {
        "part": out / "pairs" / "0000-00000.parquet",
        "rejected": out / "pairs" / "rejected" / "0000.parquet",
        "copies": out / "scores" / "copies" / "0000-00000.parquet",
        "language": out / "scores" / "language" / "0000-00000.parquet",
        "screen": out / "selection" / "screen" / "0000-00000.parquet",
        "near": out / "scores" / "near" / "near.parquet",
        "embedding": out / "scores" / "embedding" / "00000.parquet",
        "noise": out / "scores" / "noise" / "00000.parquet",
        "reasons": out / "selection" / "strict.reasons.parquet",
        "selection": out / "selection" / "strict.parquet",
    }
    for path in files.values():
        write_table(pa.table({"uid": pa.array(sorted(uid(i) for i in range(5)), pa.binary(16))}), path)
    for kind in ("image", "text"):
        files[kind] = out / "scores" / "embedding" / f"00000.{kind}.npy"
        np.save(files[kind], np.zeros((5, 2), np.float16))
    write_selection(pa.array(sorted(uid(i) for i in range(5)), pa.binary(16)), files["selection"])
    facts = {"parts": 1, "rows": 5}
    for stage, task, counts in (
        ("ingest", "0000", {"pair": 5, "url_missing": 5}),
        ("dedup", "all", {"first": 5}),
        ("language", "0000-00000", {"fr": 5}),
        ("screen", "0000-00000", {"kept": 5}),
        ("near", "near", {"ok": 5}),
        ("embed", "00000", {"scored": 5, "not_fetched": 9}),
        ("noise", "all", {"ok": 5}),
        ("decide", "strict", {"kept": 5, "noise": 5}),
    ):
        write_tally(out, Task(stage, task), Tally(counts, facts))
    return files


def test_every_file_of_a_finished_task_is_missed(out: Path) -> None:
    files = counted_folder(out)
    assert verify(out)["problems"] == []
    for path in files.values():
        whole = path.read_bytes()
        path.unlink()
        assert any(line.startswith(f"{path}: ") for line in verify(out)["problems"]), path
        path.write_bytes(whole)
    assert verify(out)["ok"]


@pytest.mark.parametrize("name", ["part", "rejected", "copies", "language", "screen", "near", "embedding"])
def test_a_file_with_other_rows_than_were_counted_is_found(out: Path, name: str) -> None:
    path = counted_folder(out)[name]
    path.write_bytes(b"junk")
    assert f"{path}: not a whole Parquet file" in verify(out)["problems"]
    write_table(pa.table({"uid": [b"one"]}), path)
    assert any("1 rows, expected 5 by the tally" in line for line in verify(out)["problems"])


def test_a_selected_pair_without_a_picture_is_no_problem_where_the_plan_counted_it(out: Path) -> None:
    kept = pa.array(sorted([*(uid(number) for number in range(9)), uid(N)]), pa.binary(16))
    write_selection(kept, out / "selection" / "dataset.parquet")
    assert "selected pairs are not in the dataset" in problem(out)
    write_tally(out, Task("plan-write", "dataset"), Tally({"planned": 9, "no_picture": 1}))
    assert verify(out)["ok"]


def test_a_selection_that_is_no_parquet_is_found(out: Path) -> None:
    path = out / "selection" / "dataset.parquet"
    path.write_bytes(b"junk")
    assert any(str(path) in line and "Parquet" in line for line in verify(out)["problems"])
