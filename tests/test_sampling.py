"""Sampling after the rules: caps, quotas, temperature and size, seeded by uid, each with its own reason."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from whole import go, url  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.errors import ConfigError
from pairmill.filter.sampling import check_sample, tempered
from pairmill.pins import command_recipe
from pairmill.pipeline import StoppedError
from pairmill.progress import Quiet
from pairmill.recipe import Sample
from pairmill.redact import redact_list
from pairmill.runner import Here
from pairmill.shards.ledger import failures


@pytest.fixture
def out(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run: 42 fetched pairs of one host."""
    shutil.copytree(finished_run / "out", tmp_path / "out")
    return tmp_path / "out"


def decide(out: Path, name: str, sample: dict[str, Any], *extra: dict[str, str]) -> dict[str, int]:
    told: dict[str, Any] = {"decide.name": name, "decide.baseline": False, "decide.sample": sample}
    told["decide.rules.extra"] = [*extra]
    report = go(command_recipe(out, "decide", told), out, command="decide").stages["decide"]
    return {word: n for word, n in report.counts.items() if word != "not_found"}


def kept(out: Path, name: str) -> set[bytes]:
    return set(pq.read_table(out / "selection" / f"{name}.parquet")["uid"].to_pylist())


def test_a_size_takes_the_first_in_the_order_of_md5_among_those_that_rules_keep(out: Path) -> None:
    odd = {"reason": "odd", "where": "regexp_matches(caption, '[13579]$')"}
    assert decide(out, "even", {}, odd) == {"kept": 22, "odd": 20}
    even = kept(out, "even")
    assert decide(out, "ten", {"size": 10}, odd) == {"kept": 10, "odd": 20, "size_surplus": 12}
    order = sorted(even, key=lambda uid: hashlib.md5(f"0:{uuid.UUID(bytes=uid)}".encode()).hexdigest())
    assert kept(out, "ten") == set(order[:10])
    decide(out, "twelve", {"size": 12}, odd)
    assert kept(out, "ten") < kept(out, "twelve")
    decide(out, "other", {"size": 10, "seed": 1}, odd)
    assert kept(out, "other") != kept(out, "ten")


def test_hosts_are_capped_and_quotas_hold_by_any_column(out: Path) -> None:
    assert decide(out, "host", {"max_per_host": 7}) == {"kept": 7, "host_surplus": 35}
    assert decide(out, "quota", {"quotas": {"format": {"jpeg": 5}}}) == {"kept": 5, "quota_surplus": 37}
    assert decide(out, "whole", {"quotas": {"format": {"jpeg": 42}}}) == {"kept": 42}
    assert decide(out, "tempered", {"size": 10, "temperature": 2.0}) == {"kept": 10, "language_surplus": 32}
    assert decide(out, "rest", {"quotas": {"lang_v1": {}}}) == {"kept": 42}


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            {"quotas": {"format": {"jpeg": 43}}},
            "quotas.format.jpeg: 43 pairs are asked for, and the rules keep 42",
        ),
        (
            {"quotas": {"format": {"png": 1}}},
            "quotas.format.png: 1 pairs are asked for, and the rules keep 0",
        ),
        ({"size": 43}, "decide.sample.size: 43 pairs are asked for, and the rules keep 42"),
    ],
)
def test_what_is_not_there_cannot_be_asked_for(out: Path, sample: dict[str, Any], message: str) -> None:
    with pytest.raises(StoppedError):
        decide(out, "more", sample)
    assert message in failures(out, "decide")[0].error


def test_settings_that_cannot_work_are_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="no column is called 'lang'; there are: uid"):
        check_sample(Sample(quotas={"lang": {"en": 1}}), ["uid"])
    with pytest.raises(ConfigError, match="give a size too"):
        check_sample(Sample(temperature=2.0), [])


def test_a_redacted_pair_is_drawn_like_any_other(out: Path) -> None:
    decide(out, "ten", {"size": 10})
    before = kept(out, "ten")
    uid = min(before)
    path = out.parent / "list.txt"
    path.write_text(f"{uid.hex()}\n{url(5)}\n")
    redact_list(out, path, "asked", engine=Here(retries=0), progress=Quiet())
    after = kept(out, "ten")
    assert uid not in after
    assert after <= before
    assert len(before - after) in (1, 2)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 500)), st.floats(1, 50), st.data())
def test_a_temperature_divides_all_and_never_asks_for_more_than_there_is(
    counts: dict[str, int], temperature: float, data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, sum(counts.values())))
    found = tempered(counts, temperature, size)
    assert sum(found.values()) == size
    assert all(found[name] <= counts[name] for name in found)
    order = sorted(found, key=lambda name: counts[name])
    assert all(found[a] <= found[b] + 1 for a, b in pairwise(order))


def test_a_temperature_of_one_keeps_the_proportions_and_a_large_one_makes_equal() -> None:
    assert tempered({"en": 800, "zh": 200}, 1, 100) == {"en": 80, "zh": 20}
    assert tempered({"en": 800, "zh": 200}, 2, 300) == {"en": 200, "zh": 100}
    assert tempered({"en": 800, "zh": 200, "de": 10}, 1_000, 210) == {"de": 10, "en": 100, "zh": 100}
    assert Counter(tempered({"en": 3}, 5, 3)) == Counter(en=3)
