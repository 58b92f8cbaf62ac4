"""A folder belongs to one recipe, and each selection in it to its rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from pairmill.errors import ConfigError
from pairmill.pins import pin, stored_recipe, with_selection
from pairmill.recipe import Recipe, build_recipe
from pairmill.runner import Tally, Task
from pairmill.shards.ledger import write_tally


def recipe(name: str, max_noise: float, **groups: object) -> Recipe:
    return build_recipe({"decide": {"name": name, "max_noise": max_noise}, **groups}, "r.yaml")


def finish(out: Path, stage: str, task: str) -> None:
    write_tally(out, Task(stage, task), Tally())


def test_going_back_to_a_selection_takes_its_own_rules_along(tmp_path: Path) -> None:
    for name, max_noise in (("dataset", 0.05), ("strict", 0.01)):
        pin(recipe(name, max_noise), tmp_path)
        finish(tmp_path, "decide", name)
    assert stored_recipe(tmp_path).decide.max_noise == 0.01
    back = with_selection(stored_recipe(tmp_path), tmp_path, "dataset")
    assert (back.decide.name, back.decide.max_noise) == ("dataset", 0.05)
    pin(back, tmp_path)
    with pytest.raises(
        ConfigError, match=r"decided with another max_noise \(max_noise: 0.05 there, 0.01 here"
    ):
        pin(recipe("dataset", 0.01), tmp_path)


def test_a_selection_that_was_never_decided_takes_the_recipes_rules(tmp_path: Path) -> None:
    assert with_selection(Recipe(), tmp_path, "new") == Recipe()


@pytest.mark.parametrize("change", [{"source": "raw"}, {"enabled": False}])
def test_a_trained_folder_trains_from_elsewhere_but_not_otherwise(
    tmp_path: Path, change: dict[str, object]
) -> None:
    pin(recipe("dataset", 0.05), tmp_path)
    finish(tmp_path, "train", "dataset")
    pin(recipe("strict", 0.01, train=change), tmp_path)
    with pytest.raises(ConfigError, match=r"train\.training\.lr"):
        pin(recipe("strict", 0.01, train={"training": {"lr": 0.5}}), tmp_path)


@pytest.mark.parametrize("name", ["recipe.yaml", "selection/dataset.yaml"])
@pytest.mark.parametrize("junk", [b"junk", b"\xff\xfe", b"a: [", b""])
def test_an_overwritten_recipe_is_said_to_be_one(tmp_path: Path, name: str, junk: bytes) -> None:
    pin(recipe("dataset", 0.05), tmp_path)
    finish(tmp_path, "decide", "dataset")
    (tmp_path / name).write_bytes(junk)
    with pytest.raises(ConfigError, match=name.rpartition("/")[2]):
        pin(recipe("dataset", 0.05), tmp_path)
