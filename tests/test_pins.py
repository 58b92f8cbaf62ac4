"""A folder belongs to one recipe, and each selection in it to its rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from pairmill.errors import ConfigError
from pairmill.pins import command_recipe, pin, pinned_to, stored_recipe, with_selection
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
    pin(recipe("dataset", 0.05, train=change), tmp_path)
    with pytest.raises(ConfigError, match=r"trained with another train\.training\.lr \(training\.lr: 0\.002"):
        pin(recipe("dataset", 0.05, train={"training": {"lr": 0.5}}), tmp_path)
    with pytest.raises(ConfigError, match=r"trained with another train\.data"):
        pin(recipe("dataset", 0.05, train={"data": [{"weight": 2.0}]}), tmp_path)
    pin(recipe("strict", 0.01, train={"training": {"lr": 0.5}}), tmp_path)  # a model of its own


def test_a_command_keeps_its_own_stages_settings_and_no_others(tmp_path: Path) -> None:
    pin(recipe("dataset", 0.05), tmp_path)
    told = {"language.among": ["en"], "near.threads": 1, "decide.max_noise": 0.5, "run.max_failed": 0}
    with pinned_to(command_recipe(tmp_path, "language", told), tmp_path, "language"):
        finish(tmp_path, "language", "0000-00000")
    kept = stored_recipe(tmp_path)
    assert kept == recipe("dataset", 0.05, language={"among": ["en"]})
    with pinned_to(command_recipe(tmp_path, "near", {"near.threads": 1}), tmp_path, "near"):
        finish(tmp_path, "near", "near")  # how many threads it had changes no byte
    assert stored_recipe(tmp_path) == kept


def test_a_command_that_finished_nothing_leaves_the_recipe_as_it_was(tmp_path: Path) -> None:
    pin(recipe("dataset", 0.05), tmp_path)
    before = (tmp_path / "recipe.yaml").read_bytes()
    told = command_recipe(tmp_path, "fetch", {"fetch.image_size": 64})
    with pytest.raises(KeyError), pinned_to(told, tmp_path, "fetch"):
        raise KeyError
    assert (tmp_path / "recipe.yaml").read_bytes() == before


@pytest.mark.parametrize("command", ["decide", "write", "train", "evaluate", "report"])
def test_another_selection_is_named_for_one_command_only(tmp_path: Path, command: str) -> None:
    pin(recipe("dataset", 0.05), tmp_path)
    finish(tmp_path, "decide", "dataset")
    told = {"decide.name": "strict", "decide.max_noise": 0.01}
    with pinned_to(command_recipe(tmp_path, "decide", told), tmp_path, "decide"):
        finish(tmp_path, "decide", "strict")
    told = {"decide.name": "strict"} | ({"train.source": "raw"} if command == "train" else {})
    made = command_recipe(tmp_path, command, told)
    assert (made.decide.name, made.decide.max_noise) == ("strict", 0.01)
    with pinned_to(made, tmp_path, command):
        finish(tmp_path, command, "strict")
    after = command_recipe(tmp_path, command, {})
    assert (after.decide.name, after.decide.max_noise, after.train.source) == ("dataset", 0.05, "shards")
    assert stored_recipe(tmp_path) == recipe("dataset", 0.05)


def test_a_model_keeps_the_settings_that_it_was_trained_with(tmp_path: Path) -> None:
    pin(recipe("dataset", 0.05), tmp_path)
    finish(tmp_path, "decide", "strict")
    told = {"decide.name": "strict", "train.source": "raw", "train.training.lr": 0.5}
    with pinned_to(command_recipe(tmp_path, "train", told), tmp_path, "train"):
        finish(tmp_path, "train", "strict")
    again = command_recipe(tmp_path, "train", {"decide.name": "strict"})
    assert (again.train.source, again.train.training.lr) == ("raw", 0.5)
    assert command_recipe(tmp_path, "train", {}).train.training.lr == 0.002


@pytest.mark.parametrize("name", ["recipe.yaml", "selection/dataset.yaml"])
@pytest.mark.parametrize("junk", [b"junk", b"\xff\xfe", b"a: [", b""])
def test_an_overwritten_recipe_is_said_to_be_one(tmp_path: Path, name: str, junk: bytes) -> None:
    pin(recipe("dataset", 0.05), tmp_path)
    finish(tmp_path, "decide", "dataset")
    (tmp_path / name).write_bytes(junk)
    with pytest.raises(ConfigError, match=name.rpartition("/")[2]):
        pin(recipe("dataset", 0.05), tmp_path)
