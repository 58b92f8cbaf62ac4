"""Models to open_clip and back: the same rows, and clear words for what is no such thing."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pairmill.errors import ConfigError, DataError
from pairmill.pretrain.augment import normalised
from pairmill.pretrain.compare import load_comparison
from pairmill.pretrain.objectives.objective import Objective
from pairmill.pretrain.objectives.registry import find_system
from pairmill.pretrain.open_clip_folder import export_model, import_model
from pairmill.pretrain.tokenizer import make_tokenizer
from pairmill.pretrain.towers import build_towers, load_towers, open_encoder, save_towers
from pairmill.recipe import Towers

OWN = Towers(
    image_size=32,
    embed_dim=16,
    vision={"layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    text={"width": 32, "heads": 2, "layers": 1},
    context_length=16,
    vocab_size=301,
)


@pytest.fixture(params=["clip", "filip", "named"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model folder: towers of our settings, by a system without and by one with own weights; RN50."""
    folder = tmp_path / "model"
    if request.param == "named":
        save_towers(build_towers(Towers(name="RN50")), folder, system="clip")
        return folder
    towers, system = build_towers(OWN), find_system(request.param)
    make_tokenizer(["a red picture", "a blue one"], OWN, folder)
    objective = Objective(system, towers, seed=3)
    save_towers(towers, folder, system=request.param, objective=objective)
    return folder


def rows(model: Any, size: int, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, size, size, 3), generator=dice, dtype=torch.uint8)
    text = torch.zeros(2, context, dtype=torch.int64)
    text[:, :4] = torch.tensor([[1, 40, 50, 2], [1, 60, 2, 0]])
    mean, std = (torch.tensor(getattr(model.visual, f"image_{name}")) for name in ("mean", "std"))
    with torch.no_grad():
        return model.encode_image(normalised(pixels, mean, std)), model.encode_text(text)


def test_an_exported_model_gives_the_same_rows_in_open_clip_and_returns(model: Path, tmp_path: Path) -> None:
    import open_clip

    said = export_model(model, tmp_path / "out")
    ours = load_towers(model, torch.device("cpu"))
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    size, context = ours.image_size, ours.context_length
    ours.clip.visual.image_mean, ours.clip.visual.image_std = ours.mean.tolist(), ours.std.tolist()
    for mine, other in zip(rows(ours.clip, size, context), rows(theirs, size, context), strict=True):
        torch.testing.assert_close(other, mine, atol=1e-6, rtol=0)
    assert (
        "system.safetensors" not in said["files"]
        or json.loads((tmp_path / "out/pairmill.json").read_text())["system"] == "filip"
    )
    import_model(tmp_path / "out", tmp_path / "back")
    for path in sorted(model.iterdir()):
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_a_system_with_weights_of_its_own_compares_as_before(tmp_path: Path) -> None:
    system, towers = find_system("filip"), build_towers(OWN)
    make_tokenizer(["a red picture", "a blue one"], OWN, tmp_path / "model")
    objective = Objective(system, towers, seed=5)
    save_towers(towers, tmp_path / "model", system="filip", objective=objective)
    export_model(tmp_path / "model", tmp_path / "out")
    import_model(tmp_path / "out", tmp_path / "back")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    found = []
    for folder in (tmp_path / "model", tmp_path / "back"):
        comparison = load_comparison(folder)
        captions = comparison.captions(["red", "a blue one"], open_encoder(folder), 8)
        found.append((comparison.pictures(pixels), captions))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_weights_of_a_named_model_come_from_a_file(tmp_path: Path) -> None:
    save_towers(build_towers(Towers(name="RN50"), seed=4), tmp_path / "model", system="clip")
    weights = tmp_path / "model/model.safetensors"
    import_model(weights, tmp_path / "back", "RN50")
    assert (tmp_path / "back/model.safetensors").read_bytes() == weights.read_bytes()
    with pytest.raises(DataError, match="not the weights of ViT-B-32: Error"):
        import_model(weights, tmp_path / "other", "ViT-B-32")
    with pytest.raises(ConfigError, match="did you mean"):
        import_model(weights, tmp_path / "other", "RN5")
    with pytest.raises(ConfigError, match="say which open_clip model's weights"):
        import_model(weights, tmp_path / "other")
    with pytest.raises(ConfigError, match="there is a model in it"):
        import_model(weights, tmp_path / "back", "RN50")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.safetensors"
    if kind == "torch":
        torch.save({"a": torch.zeros(2)}, path)
    else:
        path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ConfigError, match="a pickle, which could run anything"):
        import_model(path, tmp_path / "model", "RN50")


def test_what_is_no_model_of_open_clip_is_refused(tmp_path: Path) -> None:
    small = Towers(vocab_size=301)
    save_towers(build_towers(small), tmp_path / "small", system="clip")
    with pytest.raises(ConfigError, match="pairmill's small tower"):
        export_model(tmp_path / "small", tmp_path / "out")
    with pytest.raises(DataError, match="no model there"):
        export_model(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_folder_is_named(tmp_path: Path) -> None:
    make_tokenizer(["a red picture"], OWN, tmp_path / "model")
    save_towers(build_towers(OWN), tmp_path / "model", system="clip")
    export_model(tmp_path / "model", tmp_path / "out")
    with pytest.raises(ConfigError, match="there is a model in it"):
        export_model(tmp_path / "model", tmp_path / "out")
    for missing, said in (
        ("tokenizer.json", "has no tokenizer.json"),
        ("open_clip_model.safetensors", "no such file"),
    ):
        broken = tmp_path / missing
        shutil.copytree(tmp_path / "out", broken)
        (broken / missing).unlink()
        with pytest.raises(ConfigError, match=said):
            import_model(broken, tmp_path / "back")
    (tmp_path / "out/pairmill.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        import_model(tmp_path / "out", tmp_path / "back")
    (tmp_path / "out/pairmill.json").unlink()
    with pytest.raises(ConfigError, match="none that open_clip has a name for"):
        import_model(tmp_path / "out", tmp_path / "back")
