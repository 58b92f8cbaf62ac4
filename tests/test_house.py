"""The house keeps its shape: floors, packages, light imports, and nothing of one machine in it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("crawl", "demo", "filter", "pretrain", "shards", "stats")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted([*ROOT.glob("*.py"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))])
BASE = {
    "errors",
    "settings",
    "settings_fetch",
    "setting_types",
    "rule_files",
    "settings_curation",
    "settings_training",
    "recipe",
    "runner",
    "progress",
}
ALLOWED = {  # which of pairmill's folders (or root modules) each floor may import
    "root": BASE | {"ray_engine", "ray_start", "ray_worker", ""},
    "shards": BASE | {"shards", ""},
}
ALLOWED |= {name: ALLOWED["shards"] | {name} for name in ("crawl", "filter", "pretrain", "stats")}
FREE = {
    "mend",
    "model_inputs",
    "cli",
    "commands",
    "listings",
    "model_commands",
    "folders",
    "looking",
    "redact",
    "pipeline",
    "step",
    "train_ranks",
    "__main__",
    "steps",
    "steps_curation",
    "pins",
}  # the top floor, with demo/
HEAVY = {"numpy", "pyarrow", "torch", "duckdb", "ray", "faiss", "open_clip", "cv2", "aiohttp"}


def imports(path: Path, *, deep: bool = True) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of what a file imports; only what runs on import unless `deep`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if deep else tree.body:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module is None:  # from .. import x
                yield from ((node.level, alias.name) for alias in node.names)
            else:
                yield node.level, node.module


def within(path: Path) -> Iterator[str]:
    """First parts, after `pairmill`, of what a file imports from pairmill itself."""
    folder = path.parent.relative_to(ROOT).parts
    for level, name in imports(path):
        if level:
            full = [*folder[: len(folder) - level + 1], *name.split(".")]
        elif name.split(".")[0] == "pairmill":
            full = [*name.split(".")[1:], ""]
        else:
            continue
        yield "" if full[0].startswith("__") else full[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_floor_imports_another_that_it_must_not(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0] if path.parent != ROOT else "root"
    if floor == "demo" or (floor == "root" and path.stem in FREE):
        return
    assert set(within(path)) <= ALLOWED[floor]


def test_the_check_of_floors_sees_an_import(tmp_path: Path) -> None:
    path = ROOT / "shards" / "job.py"
    assert {"errors", "runner", "shards"} == set(within(path))


def test_pretrain_runs_without_the_crawls_libraries() -> None:
    for path in (ROOT / "pretrain").rglob("*.py"):
        assert {name.split(".")[0] for _, name in imports(path)} & {"ray", "duckdb", "faiss"} == set(), path


def test_the_list_of_packages_equals_the_folders() -> None:
    found = {path.parent for path in MODULES if path.name == "__init__.py" and path.parent != ROOT}
    found |= {path.parent for path in ROOT.glob("*/__init__.py")}
    names = {".".join(("pairmill", *path.relative_to(ROOT).parts)) for path in found}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == {"pairmill", *names}


def test_the_bare_folder_names_are_banned() -> None:
    banned = PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert {"crawl", "filter", "pretrain", "shards", "stats"} <= banned.keys()


@pytest.mark.parametrize("folder", ["", *FOLDERS, "recipes"])
def test_every_folder_has_a_readme(folder: str) -> None:
    assert (ROOT / folder / "README.md").is_file()


def test_the_root_package_is_a_docstring_and_a_version() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert [type(node) for node in tree.body] == [ast.Expr, ast.Assign]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_of_one_subject_and_size(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 300
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse("\n".join(lines)))


@pytest.mark.parametrize(
    "module", ["cli", "commands", "recipe", "runner", "ray_engine", "progress", "errors"]
)
def test_the_top_is_light_to_import(module: str) -> None:
    if not (ROOT / f"{module}.py").exists():
        pytest.skip("not there yet")
    code = f"import sys, pairmill.{module}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout.split() == []


def tracked() -> list[Path]:
    """Files under version control, or those of the folders where there is no git."""
    done = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=False)
    names = done.stdout.split("\0") if done.returncode == 0 else []
    return [ROOT / name for name in names if name] or MODULES


def test_no_tracked_file_names_a_place_on_one_machine() -> None:
    place = re.compile(rb"(?<![\w.:/])/(?:work|tmp|root|home)/[\w.]|\.\./shared")
    found = {}
    for path in tracked():
        own = path == Path(__file__).resolve() or ".ci" in path.parts
        if path.is_file() and not own and (hit := place.search(path.read_bytes())):
            found[str(path.relative_to(ROOT))] = hit.group()
    assert found == {}
