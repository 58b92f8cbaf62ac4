"""The recipe: what it takes, and what it says about what it does not take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pairmill.errors import ConfigError
from pairmill.recipe import Recipe, Rule, build_recipe, differences, load_recipe, shipped


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(raw: dict[Any, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build_recipe(raw, "r.yaml")
    assert caught.value.exit_code == 2
    return str(caught.value).removeprefix("r.yaml: ")


def test_a_recipe_without_a_word_is_the_default(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "")) == Recipe()
    assert load_recipe(write(tmp_path, "fetch:\n  # image_size: 3\ndecide:\n")) == Recipe()


def test_a_dumped_recipe_is_the_recipe(tmp_path: Path) -> None:
    recipe = build_recipe({"decide": {"max_noise": 0.1}, "ingest": {"input": ["a", "b"]}}, "r")
    path = write(tmp_path, yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(path) == recipe


def test_overrides_lie_on_top(tmp_path: Path) -> None:
    path = write(tmp_path, "decide: {max_noise: 0.2}\nlanguage:\n")
    over = {
        "decide.max_noise": 0.1,
        "bootstrap.training.towers.embed_dim": 7,
        "language.rules.sets": ["align"],
    }
    recipe = load_recipe(path, over)
    assert recipe.decide.max_noise == 0.1
    assert recipe.bootstrap.training.towers.embed_dim == 7
    assert recipe.language.rules.sets == ("align",)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"decide": {"max_nois": 0.1}}, "decide.max_nois: no such setting; did you mean 'max_noise'?"),
        ({"decid": {}}, "decid: no such setting; did you mean 'decide'?"),
        ({"max_noise": 0.1}, "max_noise: no such setting; did you mean 'decide.max_noise'?"),
        ({"embed_dim": 1}, "embed_dim: no such setting; did you mean 'bootstrap.training.towers.embed_dim'?"),
        ({"dedup": {"memory_mb": 9}}, "dedup.memory_mb: no such setting; did you mean 'run.memory_mb'?"),
        ({"write": {"memory_mb": 9}}, "write.memory_mb: no such setting; did you mean 'run.memory_mb'?"),
        (
            {"fetch": {"plan_memory_mb": 9}},
            "fetch.plan_memory_mb: no such setting; did you mean 'run.memory_mb'?",
        ),
        ({"dedup": {"x": 1}}, "dedup.x: no such setting; there are threads"),
        (
            {"language": {"rules": {"extra": [{"reason": "a", "where": "b", "wher": "c"}]}}},
            "language.rules.extra.0.wher: no such setting; did you mean 'where'?",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_right_one(raw: dict[str, Any], said: str) -> None:
    assert complaint(raw) == said


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            {"train": {"training": {"gpus": 2}}},
            "train.training.gpus: Value error, one process uses one GPU: expected 1 at most",
        ),
        ({"bootstrap": {"training": {"gpus": 1.5}}}, r"bootstrap.training.gpus: .*found 1.5"),
        ({"embed": {"gpus": 2}}, "embed.gpus: .* one process uses one GPU"),
        ({"decide": {"max_noise": 2}}, "decide.max_noise: Input should be less than or equal to 1 (found 2)"),
        ({"fetch": {"image_size": "big"}}, "fetch.image_size: Input should be a valid integer.*found 'big'"),
        ({"decide": []}, r"decide: Input should be a mapping \(found \[\]\)"),
        ({"ingest": {"input": 3}}, r"ingest.input: Input should be a list \(found 3\)"),
        ({"decide": {"name": "../x"}}, "decide.name: String should match pattern"),
        ({1: 2}, r"1: Keys should be strings \(found 1\)"),
        (
            {"language": {"rules": {"extra": [{"reason": "a"}]}}},
            "language.rules.extra.0.where: Field required",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(raw: dict[Any, Any], said: str) -> None:
    import re

    assert re.search(said.replace("(found 2)", r"\(found 2\)"), complaint(raw))


def test_all_that_is_wrong_is_said_at_once_and_shortly() -> None:
    said = complaint({"decide": {"max_noise": 2, "name": "A" * 1000}})
    assert "decide.max_noise" in said
    assert "decide.name" in said
    assert len(said) < 400


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "a recipe is a mapping, found list"),
        ("just text", "found str"),
        ("a: [1", "not readable as YAML"),
        ("a: !!python/object:os.system {}", "not readable as YAML"),
        ("a: b: c", "not readable as YAML"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe(write(tmp_path, text))
    assert "recipe.yaml" in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load_recipe(tmp_path / "r.yaml")


def test_a_missing_recipe_names_the_shipped_ones(tmp_path: Path) -> None:
    for name in (tmp_path / "none.yaml", tmp_path, "no-such-recipe"):
        with pytest.raises(ConfigError, match="no such recipe file, and no shipped recipe of that name"):
            load_recipe(name)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_recipes_load_by_name(name: str) -> None:
    assert load_recipe(name).name


def test_a_value_is_no_group(tmp_path: Path) -> None:
    path = write(tmp_path, "decide: {max_noise: 0.2}\n")
    with pytest.raises(
        ConfigError, match=r"--set decide\.max_noise\.x: 'max_noise' is a value, not a group of settings"
    ):
        load_recipe(path, {"decide.max_noise.x": 1})


def test_rules_may_be_written_in_yaml(tmp_path: Path) -> None:
    rule = "{reason: dull, where: n_words_v1 < $min}"
    text = f"decide: {{rules: {{sets: [fetched], values: {{min: 3}}, extra: [{rule}]}}}}"
    rules = load_recipe(write(tmp_path, text)).decide.rules
    assert rules.extra == (Rule("dull", "n_words_v1 < $min"),)
    assert (rules.sets, rules.values) == (("fetched",), {"min": 3})


def test_the_word_no_is_not_false(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "fetch: {resize: no}")).fetch.resize == "no"


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().decide.max_noise = 0.5  # type: ignore[misc]


def test_the_json_schema_describes_every_stage() -> None:
    schema = Recipe.model_json_schema()
    json.dumps(schema)
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Decide"]["properties"]["max_noise"]["description"].startswith("largest share")


def test_differences_name_the_dotted_keys() -> None:
    old = build_recipe({}, "r").model_dump(mode="json")
    new = build_recipe(
        {"decide": {"max_noise": 0.1}, "bootstrap": {"training": {"lr": 0.5}}}, "r"
    ).model_dump(mode="json")
    assert differences(old, new) == ["bootstrap.training.lr", "decide.max_noise"]
    assert differences(old, old) == []
    assert differences({"a": 1}, {"b": {"c": 1}}) == ["a", "b"]
