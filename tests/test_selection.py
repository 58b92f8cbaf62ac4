"""Selection files: our uids in DataComp's format and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairmill.errors import DataError
from pairmill.shards.selection import (
    from_u8_pairs,
    is_selected,
    read_selection,
    to_u8_pairs,
    uids_to_array,
    write_selection,
)

# few distinct bytes, so that prefixes are shared and NULs stand at either end
UID = st.binary(min_size=16, max_size=16) | st.lists(
    st.sampled_from([0, 1, 255]), min_size=16, max_size=16
).map(bytes)


def column(uids: list[bytes]) -> pa.Array:
    return pa.array(uids, pa.binary(16))


@given(st.lists(UID, max_size=30), st.sets(UID, max_size=30))
def test_is_selected_equals_set_membership(uids: list[bytes], kept: set[bytes]) -> None:
    asked = [*uids, *sorted(kept)[:5]]
    found = is_selected(uids_to_array(column(asked)), uids_to_array(column(sorted(kept))))
    assert found.tolist() == [uid in kept for uid in asked]


@given(st.sets(UID, max_size=30))
def test_u8_pairs_are_datacomps_and_come_back(uids: set[bytes]) -> None:
    ordered = sorted(uids)
    pairs = to_u8_pairs(uids_to_array(column(ordered)))
    assert pairs.tolist() == [(int(uid.hex()[:16], 16), int(uid.hex()[16:], 16)) for uid in ordered]
    assert np.array_equal(np.sort(pairs), pairs)
    assert [bytes(uid) for uid in from_u8_pairs(pairs)] == ordered


def test_slices_and_chunks_of_a_column_are_read_rightly() -> None:
    uids = [bytes([i]) * 16 for i in range(10)]
    chunked = pa.chunked_array([column(uids[:4]), column(uids[4:]).slice(1, 3)])
    assert [bytes(uid) for uid in uids_to_array(chunked)] == uids[:4] + uids[5:8]
    assert [bytes(uid) for uid in uids_to_array(column(uids).slice(3, 2))] == uids[3:5]
    assert [bytes(uid) for uid in uids_to_array(pa.array(uids, pa.binary()))] == uids
    assert len(uids_to_array(column([]))) == 0


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_both_files_hold_the_same_uids(tmp_path: Path, n: int) -> None:
    uids = sorted(np.random.default_rng(1).bytes(16) for _ in range(n))
    path = tmp_path / "selection" / "mine.parquet"
    write_selection(column(uids), path)
    assert pq.read_table(path)["uid"].to_pylist() == uids
    for found in (read_selection(path), read_selection(path.with_suffix(".npy"))):
        assert [bytes(uid) for uid in found] == uids


def test_an_unsorted_datacomp_file_is_sorted_on_reading(tmp_path: Path) -> None:
    uids = [bytes([i]) * 16 for i in (9, 0, 200, 3)]
    np.save(tmp_path / "theirs.npy", to_u8_pairs(uids_to_array(column(uids))))
    assert [bytes(uid) for uid in read_selection(tmp_path / "theirs.npy")] == sorted(uids)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.npy", b"not numpy", "no .npy file of numbers"),
        ("a.npy", b"", "no .npy file of numbers"),
        ("a.parquet", b"PAR1", "no Parquet with a column uid"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read_selection(tmp_path / name)


def test_arrays_of_another_kind_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "floats.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"float64, 1-D, expected 1-D u8,u8"):
        read_selection(tmp_path / "floats.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"no \.npy file of numbers"):
        read_selection(tmp_path / "objects.npy")
    pq.write_table(pa.table({"uid": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(DataError, match="no Parquet with a column uid"):
        read_selection(tmp_path / "text.parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="no Parquet with a column uid"):
        read_selection(tmp_path / "other.parquet")


def test_a_missing_selection_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pairmill decide"):
        read_selection(tmp_path / "nothing.parquet")
