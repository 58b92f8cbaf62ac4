"""The GPU plan: every part runs without a GPU and without ray, duckdb and faiss; what fails is recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ABSENT = (  # on a bare machine
    "aiohttp",
    "cyclopts",
    "duckdb",
    "faiss",
    "fasttext",
    "obstore",
    "orjson",
    "psutil",
    "ray",
)


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize(
    ("card", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
    ],
)
def test_the_peak_is_what_the_data_sheet_of_the_card_says(card: str, teraflops: int) -> None:
    from pairmill.pretrain.peaks import peak_of

    assert peak_of(card) == teraflops * 1e12


@pytest.mark.parametrize(
    "card", ["cpu", "NVIDIA GH200 480GB", "NVIDIA L40", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"]
)
def test_no_peak_is_guessed(card: str) -> None:
    from pairmill.pretrain.peaks import peak_of

    assert peak_of(card) is None


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("print('fine')", "done", ""),
        ("raise SystemExit('out of memory')", "failed", "out of memory"),
        ("import signal; print('so far', flush=True); signal.pause()", "late", "so far"),
    ],
)
def test_a_part_ends_as_it_ends_with_its_last_words(code: str, status: str, said: str) -> None:
    from deadlines import watched  # pyright: ignore[reportMissingImports]

    command, limit = [sys.executable, "-S", "-c", code], 1.0 if status == "late" else 60.0
    found, words = watched(command, dict(os.environ), limit)
    assert (found, words.strip()) == (status, said)


def test_what_a_late_part_had_found_stays(tmp_path: Path) -> None:
    from deadlines import record  # pyright: ignore[reportMissingImports]

    path = tmp_path / "step.json"
    path.write_text('{"dense": 1}')
    assert record(path, "late", "words", seconds=3.0) == "late"
    assert json.loads(path.read_text()) == {"dense": 1, "status": "late", "said": "words", "seconds": 3.0}


def test_what_trains_is_imported_on_a_bare_machine(tmp_path: Path) -> None:
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path), str(BENCHMARKS)]))
    done = subprocess.run(
        [sys.executable, "-c", "import gpu_parts, pairmill.pretrain.feeder"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_whole_plan_runs_on_a_bare_machine_without_a_gpu(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ABSENT:
        (bare / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
    out = tmp_path / "results"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--cpu", "--out", str(out)]
    environment = dict(os.environ, PYTHONPATH=str(bare), OMP_NUM_THREADS="1")
    environment.pop("PAIRMILL_DATA", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert done.returncode == 0, {name: part.get("said") for name, part in found.items()}
    assert set(json.loads(done.stdout)) == set(found)
    assert found["trace"]["largest_relative_difference"] < 1e-4
    assert found["resume"]["model_bit_equal"]
    assert found["resume"]["train_bit_equal"]
    assert found["fed"]["mfu"] is None
    assert 0 <= found["fed"]["waiting"] <= 1
    assert (
        found["step"]["short_text_half_of_patches"]["gflop_per_sample"]
        < found["step"]["dense"]["gflop_per_sample"]
    )
    assert found["loader"]["webdataset"]["images_per_s"] > 0
