"""A second selection beside the first: nothing of the first is decided, written or trained again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from whole import Pictures, go, recipe  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.errors import DataError
from pairmill.pins import command_recipe, stored_recipe
from pairmill.recipe import Recipe

SIZES = {"image_size": 16, "embed_dim": 8, "vocab_size": 301}
TOWERS = {**SIZES, "vision": {"channels": [4, 8]}, "text": {"width": 8, "layers": 0}}
TRAIN: dict[str, Any] = {
    "enabled": True,
    "compare_everything": True,
    "training": {
        "towers": TOWERS,
        "samples_seen": 16,
        "batch_size": 8,
    },
}
CARDS = ("shards/manifest.json", "shards/README.md")  # they tell of all selections
STRICT = {"decide.name": "strict", "decide.rules.extra": [{"reason": "odd", "where": "caption LIKE '%1'"}]}


@pytest.fixture(scope="module")
def trained(finished_run: Path, picture_server: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with two models on top, of the dataset and of everything."""
    out = tmp_path_factory.mktemp("trained") / "out"
    shutil.copytree(finished_run / "out", out)
    go(whole(out, finished_run, picture_server), out)
    return out


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(trained, tmp_path / "out")
    return tmp_path / "out"


def whole(out: Path, lists: Path, host: Pictures) -> Recipe:
    return recipe(lists, host.port, train=TRAIN)


def command(out: Path, name: str, told: dict[str, Any] | None = None) -> Any:
    return go(command_recipe(out, name, told or {}), out, command=name)


def data(out: Path) -> dict[str, bytes]:
    paths = [path for name in ("shards", "model", "raw", "selection") for path in (out / name).rglob("*")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def test_the_same_run_after_a_second_selection_does_nothing_but_the_page(
    out: Path, finished_run: Path, picture_server: Pictures
) -> None:
    before, pinned = data(out), (out / "recipe.yaml").read_bytes()
    assert command(out, "decide", STRICT).stages["decide"].counts["odd"] == 5
    assert (out / "recipe.yaml").read_bytes() == pinned
    summary = go(whole(out, finished_run, picture_server), out)
    done = {stage: report.rows for stage, report in summary.stages.items() if report.rows}
    assert done == {"report": 1}
    assert summary.stages["train"].skipped == 2
    assert {name: data(out)[name] for name in before} == before
    assert summary.funnel is not None
    assert (summary.funnel.kept, summary.funnel.selections["strict"]) == (42, 37)


def test_a_second_model_is_trained_from_raw_beside_the_first(out: Path) -> None:
    command(out, "decide", STRICT)
    before = data(out)
    summary = command(out, "train", {"decide.name": "strict", "train.source": "raw"})
    assert summary.stages["train"].facts["strict"]["samples"] == 37
    after = data(out)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {"strict", "strict.yaml"}
    again = command(out, "train")
    assert (again.stages["train"].skipped, again.stages["train"].rows) == (2, 0)


def test_another_dataset_in_the_shards_leaves_the_models_and_goes_with_the_next_run(
    out: Path, finished_run: Path, picture_server: Pictures
) -> None:
    before = data(out)
    command(out, "decide", STRICT)
    summary = command(out, "write", {"decide.name": "strict"})
    assert (summary.funnel.selection, summary.funnel.written) == ("strict", 37)
    assert command(out, "train", {"train.source": "raw"}).stages["train"].skipped == 2
    assert command(out, "train").stages["train"].skipped == 2
    command(out, "write")
    after = data(out)
    assert [name for name in before if after[name] != before[name] and name not in CARDS] == []
    assert go(whole(out, finished_run, picture_server), out).stages["train"].skipped == 2


def test_a_model_is_not_trained_on_the_shards_of_another_selection(out: Path) -> None:
    command(out, "decide", STRICT)
    failed = command(out, "train", {"decide.name": "strict"}).stages["train"].failed["strict"]
    assert "holds selection 'dataset', not 'strict': write that first" in failed
    assert stored_recipe(out).decide.name == "dataset"


def test_what_was_never_decided_cannot_be_written_and_the_names_are_said(out: Path) -> None:
    with pytest.raises(DataError, match=r"selection 'nosuch' is not decided: there are dataset, everything"):
        command(out, "write", {"decide.name": "nosuch"})
    assert stored_recipe(out).decide.name == "dataset"
