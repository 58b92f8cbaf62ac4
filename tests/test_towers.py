"""Towers that cannot be built or loaded are named before any work starts, and no file is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pairmill.errors import ConfigError
from pairmill.pretrain.towers import check_towers
from pairmill.recipe import Towers

LAYERED = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16}


@pytest.mark.parametrize(
    ("towers", "word"),
    [
        (Towers(name="ViT-B-23"), "did you mean ViT-B-32"),
        (Towers(name="???"), "gives the names"),
        (Towers(checkpoint="laion2b"), "needs the name"),
        (
            Towers(name="RN50", checkpoint="none.pt"),
            "no such file; expected a file of RN50's weights.*openai",
        ),
        (Towers(vision=LAYERED, text={"width": 30, "heads": 4, "layers": 1}), "open_clip cannot make"),
        (Towers(vision={**LAYERED, "depth": 3}, text={"width": 32, "layers": 1}), "depth"),
        (Towers(vision=LAYERED), "goes together"),
    ],
)
def test_towers_that_cannot_be_are_named(towers: Towers, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        check_towers(towers)


def test_a_checkpoint_that_is_no_weights_of_its_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"\x80\x04junk")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with open(tmp_path / "runs.pt", "wb") as file:
        pickle.dump({"state_dict": Runs(tmp_path / "was-run")}, file)
    (tmp_path / "folder").mkdir()
    for name in ("junk.pt", "junk.safetensors", "other.pt", "runs.pt", "folder"):
        with pytest.raises(ConfigError, match=f"{tmp_path / name}") as found:
            check_towers(Towers(name="ViT-S-32-alt", checkpoint=str(tmp_path / name)))
        assert len(str(found.value)) < 600
    assert not (tmp_path / "was-run").exists()


class Runs:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)
