"""What is seen of a run, and that looking changes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from test_evaluate import _make_classes, _make_retrieval
from test_trainer import FOLD, SETTINGS, TINY, Stopped, fold_folder, make_world, stop_at
from torch.utils.flop_counter import FlopCounterMode

from pairmill.errors import ConfigError
from pairmill.pretrain.batch import Batch
from pairmill.pretrain.bootstrap import start_bootstrap, start_tokenizer
from pairmill.pretrain.flops import FlopCounter
from pairmill.pretrain.objectives.registry import find_system, names
from pairmill.pretrain.towers import build_towers, load_towers
from pairmill.pretrain.train import start_train
from pairmill.pretrain.trainer import with_towers
from pairmill.recipe import Evaluate, Training
from pairmill.runner import Task, heard_by, perform
from pairmill.setting_types import Watch
from pairmill.shards.selection import read_selection

EVERYTHING = Task("train", "everything", {"source": "raw"})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with 3 raw shards and selections of all pairs, and held-out sets beside it."""
    out = make_world(tmp_path_factory.mktemp("world"))
    start_tokenizer(out, SETTINGS)(Task("tokenizer", "tokenizer"))
    _make_retrieval(out / "retrieval")
    _make_classes(out / "classes")
    return out


def part_of(world: Path, folder: Path) -> Path:
    """The same raw shards and selections, nothing trained."""
    folder.mkdir(exist_ok=True)
    for name in ("raw", "selection"):
        (folder / name).symlink_to(world / name)
    return folder


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "_log/train/everything.jsonl").read_text().splitlines()]


def test_looking_at_a_run_changes_no_byte_of_its_model(world: Path, tmp_path: Path) -> None:
    plain, watched = part_of(world, tmp_path / "plain"), part_of(world, tmp_path / "watched")
    held_out = Evaluate(retrieval=str(world / "retrieval"), classification=str(world / "classes"))
    training = TINY.model_copy(update={"ema": 0.9})
    start_train(plain, training, held_out)(EVERYTHING)
    watch = Watch(evaluate_every=5, log_every_s=0, profile_steps=2)
    said: list[str] = []
    with heard_by(lambda _, beat: said.append(beat["note"])):
        start_train(watched, training.model_copy(update={"watch": watch}), held_out)(EVERYTHING)
    for name in ("model.safetensors", "train.json"):
        first, second = ((out / "model/everything" / name).read_bytes() for out in (plain, watched))
        assert first == second
    steps = json.loads((watched / "model/everything/train.json").read_text())["steps"]
    lines = log_of(watched)
    evaluated = [line for line in lines if "evaluation" in line]
    assert [line["step"] for line in evaluated] == list(range(5, steps + 1, 5))
    assert evaluated[0]["evaluation"]["retrieval"]["pictures"] == 6
    rows = [line for line in lines if "evaluation" not in line]
    assert [line["step"] for line in rows] == list(range(1, steps + 1))
    keys = {"loss", "samples_per_s", "waiting", "temperature", "grad_norm", "lr", "gflop_per_step", "step"}
    assert set(rows[0]) == keys  # no utilisation: nobody states this processor's peak
    assert "gradient" in said[-1]
    assert "temperature" in said[-1]
    assert "MFU" not in said[-1]
    assert json.loads((watched / "_log/train/everything.trace.json").read_text())["traceEvents"]
    assert len(log_of(plain)) == 1


def test_a_run_that_goes_on_has_each_step_once_in_its_log(world: Path, tmp_path: Path) -> None:
    out = part_of(world, tmp_path / "out")
    training = TINY.model_copy(update={"watch": Watch(log_every_s=0)})
    for step in (4, 6):
        with pytest.raises(Stopped):
            start_train(out, training, hook=stop_at(step))(EVERYTHING)
    start_train(out, training)(EVERYTHING)
    steps = json.loads((out / "model/everything/train.json").read_text())["steps"]
    assert [line["step"] for line in log_of(out)] == list(range(1, steps + 1))


def test_the_mean_of_the_weights_is_saved_unless_the_last_ones_are_asked_for(
    world: Path, tmp_path: Path
) -> None:
    found = {}
    for name, update in {"none": {}, "last": {"ema": 0.9, "ema_saved": False}, "mean": {"ema": 0.9}}.items():
        out = part_of(world, tmp_path / name)
        start_train(out, TINY.model_copy(update=update))(EVERYTHING)
        found[name] = load_towers(out / "model/everything", torch.device("cpu")).clip.state_dict()
    assert all(torch.equal(value, found["last"][key]) for key, value in found["none"].items())
    assert not torch.equal(found["mean"]["visual.conv1.weight"], found["last"]["visual.conv1.weight"])


def test_a_stopped_run_with_a_mean_ends_with_the_same_bytes(world: Path, tmp_path: Path) -> None:
    training = TINY.model_copy(update={"ema": 0.9, "layer_decay": 0.7, "clip_norm": None})
    whole, out = part_of(world, tmp_path / "whole"), part_of(world, tmp_path / "out")
    start_train(whole, training)(EVERYTHING)
    with pytest.raises(Stopped):
        start_train(out, training, hook=stop_at(7))(EVERYTHING)
    start_train(out, training)(EVERYTHING)
    for name in ("model.safetensors", "train.json"):
        assert (out / "model/everything" / name).read_bytes() == (
            whole / "model/everything" / name
        ).read_bytes()


def test_a_step_that_is_no_number_names_itself_and_its_pairs(world: Path, tmp_path: Path) -> None:
    out = part_of(world, tmp_path / "out")
    training = TINY.model_copy(update={"lr": 1e30, "warmup": 0.0, "clip_norm": None})
    report = perform(start_train(out, training), EVERYTHING)
    assert report.status == "failed"
    found = json.loads((out / "_log/train/everything.nan.json").read_text())
    assert f"at step {found['step']} of" in report.error
    assert found["uids_begin_with"][0] in report.error
    assert "lower training.lr (now 1e+30)" in report.error
    kept = read_selection(world / "selection" / "everything.parquet").tolist()
    assert len(found["uids_begin_with"]) == TINY.batch_size
    assert set(found["uids_begin_with"]) <= {uid.hex()[:16] for uid in kept}


def test_without_tensorboard_its_flag_is_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = part_of(world, tmp_path / "out")
    training = TINY.model_copy(update={"watch": Watch(tensorboard=True)})
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        start_train(out, training)(EVERYTHING)


def test_tensorboard_gets_the_same_numbers(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = part_of(world, tmp_path / "out")
    training = TINY.model_copy(update={"watch": Watch(tensorboard=True, log_every_s=0)})
    start_train(out, training)(EVERYTHING)
    events = EventAccumulator(str(out / "_log/train/everything.board")).Reload()
    losses = [line["loss"] for line in log_of(out)]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize("name", ["clip", "lit"])
def test_the_operations_are_those_of_a_real_pass(name: str) -> None:
    towers = build_towers(TINY.towers)
    batch = Batch(
        {
            "uid": torch.arange(6),
            "valid": torch.ones(6, dtype=torch.bool),
            "image": torch.zeros(4, 32, 32, 3, dtype=torch.uint8),
            "text": torch.ones(6, 8, dtype=torch.int64),
        }
    )
    with FlopCounterMode(display=False) as picture:
        towers.encode_pictures(batch["image"])
    with FlopCounterMode(display=False) as text:
        towers.encode_captions(batch["text"])
    system = find_system(name)
    expected = (1 if name == "lit" else 3) * picture.get_total_flops() + 3 * text.get_total_flops()
    assert FlopCounter(towers, system).of(batch) == expected > 0


@pytest.mark.parametrize("name", names())
def test_operations_are_counted_for_every_system(name: str) -> None:
    settings = with_towers(Training(system=name, towers=TINY.towers)).towers
    towers, n = build_towers(settings), 3
    fields = {"uid": torch.arange(n), "image": torch.zeros(n, 32, 32, 3, dtype=torch.uint8)}
    fields |= {"text": torch.ones(n, 8, dtype=torch.int64), "words": torch.ones(n, 8, dtype=torch.int64)}
    system = find_system(name)
    for side in system.sides.values():
        fields.setdefault(side.field, torch.ones(n, 8, dtype=torch.int64))
    assert FlopCounter(towers, system).of(Batch(fields)) > 0


def test_folds_leave_a_log_each(world: Path) -> None:
    start_bootstrap(world, SETTINGS)(FOLD)
    assert (world / "_log" / "train" / "fold0.jsonl").exists()
    assert fold_folder(world, 0).is_dir()
