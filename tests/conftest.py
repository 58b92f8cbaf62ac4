"""What tests of several files share: one local Ray, and hypothesis without a clock or dice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from pairmill.ray_engine import OnRay

settings.register_profile("pairmill", deadline=None, derandomize=True)
settings.load_profile("pairmill")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With two processes each takes whole files, and all that starts a Ray goes to one of them."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        on_ray = item.get_closest_marker("ray") or "on_ray" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("ray" if on_ray else item.path.stem))


@pytest.fixture(scope="session")
def on_ray() -> Iterator[OnRay]:
    """One local Ray of two cores for the whole session; a failed task is tried twice."""
    os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
    engine = OnRay(cpus=2, retries=1)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def picture_server() -> Iterator[Any]:
    """`whole.Pictures` on loopback, for the whole session."""
    from fetching import serving  # pyright: ignore[reportImplicitRelativeImport]
    from whole import Pictures  # pyright: ignore[reportImplicitRelativeImport]

    with serving(Pictures()) as host:
        yield host


@pytest.fixture(scope="session")
def finished_run(picture_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lists and the run over them in `out`: 48 rows, 2 without a caption, 4 answered with 404, 42 kept in
    five shards. Copy it before you break it."""
    from whole import go, recipe, write_lists  # pyright: ignore[reportImplicitRelativeImport]

    folder = tmp_path_factory.mktemp("whole")
    write_lists(folder)
    assert go(recipe(folder, picture_server.port), folder / "out").exit_code == 0
    return folder
