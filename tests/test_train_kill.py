"""A training that is killed without warning ends with the bytes of one that was not."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_trainer import FOLD, SETTINGS, fold_folder, make_world

from pairmill.pretrain.bootstrap import start_bootstrap, start_tokenizer
from pairmill.pretrain.checkpoint import found_checkpoints
from pairmill.runner import Task

CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_trainer import FOLD, SETTINGS
from pairmill.pretrain.bootstrap import start_bootstrap
start_bootstrap(Path({out!r}), SETTINGS)(FOLD)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fold 0 trained without a stop."""
    out = make_world(tmp_path_factory.mktemp("whole"))
    start_tokenizer(out, SETTINGS)(Task("tokenizer", "tokenizer"))
    start_bootstrap(out, SETTINGS)(FOLD)
    return out


def test_killed_at_a_random_step_the_rest_of_the_trace_is_the_same(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "model" / "bootstrap").mkdir(parents=True)
    for name in ("raw", "selection", "model/bootstrap/tokenizer.json"):
        (tmp_path / name).symlink_to(whole / name)
    code = CHILD.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    folder, least = fold_folder(tmp_path, 0), random.randrange(1, 8)
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        done = 0
        while child.poll() is None and done < least:
            time.sleep(0.002)
            done = max((int(path.stem.split("-")[1]) for path in found_checkpoints(folder)), default=0)
        child.send_signal(signal.SIGKILL)
    start_bootstrap(tmp_path, SETTINGS)(FOLD)
    for name in ("train.json", "model.safetensors"):  # train.json has the loss of every step
        assert (folder / name).read_bytes() == (fold_folder(whole, 0) / name).read_bytes()
    if child.returncode == -signal.SIGKILL:
        assert "goes on after step" in (tmp_path / "_log" / "train" / "fold0.json").read_text()
