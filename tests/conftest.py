"""What tests of several files share: one local Ray, and hypothesis without a clock or dice."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from pairmill.ray_engine import OnRay

settings.register_profile("pairmill", deadline=None, derandomize=True)
settings.load_profile("pairmill")


@pytest.fixture(scope="session")
def on_ray() -> Iterator[OnRay]:
    """One local Ray of two cores for the whole session; a failed task is tried twice."""
    os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
    engine = OnRay(cpus=2, retries=1)
    yield engine
    engine.close()
