"""Systems by name: every one is listed, explained and proved; a user's own is imported."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

from pairmill.commands import start
from pairmill.errors import ConfigError
from pairmill.pretrain import heads, systems, views
from pairmill.pretrain.objectives.registry import digest, explain, find_system, names
from pairmill.pretrain.objectives.system import Head, System
from pairmill.recipe import Training, build_recipe, load_recipe, shipped

OWN = """
from dataclasses import replace
from pairmill.pretrain.systems import clip

def same_label(asked):
    label = asked.batch["label"]; same = (label[asked.rows, None] == label).float()
    return same / same.sum(1, keepdim=True)

SYSTEM = replace(clip.SYSTEM, name="mine", terms=(replace(clip.SYSTEM.terms[0], target=same_label),))
NUMBER = 3
"""


@pytest.mark.parametrize("name", names())
def test_a_system_bears_the_name_of_its_file_and_says_what_it_is(name: str) -> None:
    module = importlib.import_module(f"{systems.__name__}.{name}")
    system = find_system(name)
    assert system is module.SYSTEM
    assert system.name == name
    assert any(str(year) in system.paper for year in range(2019, 2027))
    for term in system.terms:
        assert {term.left, term.right} <= system.sides.keys()
        assert term.scale in ("scale", *system.scales)
    assert f"train: {{system: {name}}}" in explain(name)
    assert explain(name).startswith(f"{name}: ")


@pytest.mark.parametrize("name", names())
def test_a_system_with_its_own_defaults_is_itself(name: str) -> None:
    module = importlib.import_module(f"{systems.__name__}.{name}")
    if hasattr(module, "make"):
        assert explain(name).count("parameter ") == len(module.make.__annotations__) - 1
        assert ": \n" not in explain(name)
        made, own = module.make(), module.SYSTEM
        assert (made.sides, made.scales, made.towers) == (own.sides, own.scales, own.towers)


@pytest.mark.parametrize("package", [heads, views])
def test_every_head_and_view_is_used_by_a_system(package: Any) -> None:
    """A file in these folders that no system reaches is dead, or was forgotten."""
    used = "".join(
        Path(str(importlib.import_module(f"{systems.__name__}.{name}").__file__)).read_text()
        for name in names()
    )
    for module in pkgutil.iter_modules(package.__path__):
        assert f"..{package.__name__.rsplit('.')[-1]}.{module.name} import" in used


def test_the_command_lists_every_system_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert start(["systems"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names()
    assert all(find_system(name).paper in line for name, line in zip(names(), lines, strict=True))
    assert start(["systems", "clip"]) == 0
    assert "parameter smoothing = 0.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reference", "word"),
    [
        ("clop", "no such system; did you mean clip"),
        ({"name": "clip", "smooting": 0.1}, "no such parameter 'smooting'; did you mean smoothing"),
        ({"name": "clip", "smoothing": 3}, "smoothing: .*less than or equal to 1 .found 3"),
        ({"name": "clip", "targets": "ot"}, "targets: .*'one_hot' or 'same'"),
        ({"smoothing": 3}, "expected a name"),
        ("no.such:SYSTEM", "cannot be imported"),
        ("pairmill.errors:SYSTEM", "has nothing under SYSTEM"),
    ],
)
def test_what_is_no_system_is_named_in_one_line(
    reference: Any, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=word) as found:
        find_system(reference)
    assert "\n" not in str(found.value)


def test_an_unknown_system_is_a_flag_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert start(["systems", "siglp"]) == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module `mine_of_test`, importable."""
    path = tmp_path / "mine_of_test.py"
    path.write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


def test_a_users_own_system_is_ten_lines_in_a_module(own: Path) -> None:
    system = find_system("mine_of_test:SYSTEM")
    assert isinstance(system, System)
    assert system.name == "mine"
    before = digest("mine_of_test:SYSTEM")
    own.write_text(OWN + "# changed\n")
    assert digest("mine_of_test:SYSTEM") != before
    assert digest("clip") == ""
    with pytest.raises(ConfigError, match="has int under NUMBER"):
        find_system("mine_of_test:NUMBER")
    with pytest.raises(ConfigError, match="has no parameters"):
        find_system({"name": "mine_of_test:SYSTEM", "x": 1})


def test_a_recipe_names_a_system_at_once_or_with_parameters() -> None:
    made = build_recipe({"train": {"system": {"name": "clip", "smoothing": 0.2}}}, "test")
    assert find_system(made.train.system or "").terms[0].target is not None
    assert find_system(Training().system).terms[0].target is not None


def test_a_head_says_which_sides_it_reads() -> None:
    for name in names():
        system = find_system(name)
        for head in system.heads.values():
            assert issubclass(head.make, Head) if isinstance(head.make, type) else callable(head.make)
            assert set(getattr(head.make, "needs", ())) <= system.sides.keys()


def test_every_system_has_a_shipped_recipe_that_trains_by_it() -> None:
    trained_by: dict[str, list[str]] = {}
    for name in shipped():
        reference = load_recipe(name).train.system
        if reference is not None:
            trained_by.setdefault(find_system(reference).name, []).append(name)
    assert sorted(trained_by) == names()
    for system, found in trained_by.items():
        assert system in found or system == "filip"


def test_every_system_has_its_measured_row() -> None:
    text = (Path(__file__).parent.parent / "docs" / "systems.md").read_text(encoding="utf-8")
    for name in names():
        assert re.search(rf"^\| {name} \| 0\.\d+ ± 0\.\d+ \| 0\.\d+ ± 0\.\d+ \|$", text, re.MULTILINE), name
