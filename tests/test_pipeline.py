"""A recipe run in one process: where it stops, and what it says then."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.errors import ConfigError, OutputError
from pairmill.filter import copies
from pairmill.pipeline import StoppedError, Summary, run
from pairmill.progress import Quiet
from pairmill.recipe import Ingest, Recipe, build_recipe, with_overrides
from pairmill.runner import Here


def recipe(path: Path) -> Recipe:
    return Recipe(name="small", ingest=Ingest(input=(str(path),)))


def write_list(folder: Path, urls: Sequence[str | None]) -> Path:
    path = folder / "list.parquet"
    captions = [f"caption {i}" for i in range(len(urls))]
    pq.write_table(pa.table({"url": pa.array(urls, pa.string()), "caption": captions}), path)
    return path


def write_broken(folder: Path) -> Path:
    """2,000 rows that cannot be read, below a footer that still stands."""
    path = write_list(folder, [f"http://a.com/{i}" for i in range(2_000)])
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 2_000 + whole[2_004:])
    return path


def stopped(made: Recipe, out: Path, command: str | None = None) -> StoppedError:
    with pytest.raises(StoppedError) as caught:
        run(made, out, command=command, engine=Here(retries=0), progress=Quiet())
    assert caught.value.exit_code == 1
    return caught.value


def test_a_list_without_a_usable_row_ends_with_its_funnel(tmp_path: Path) -> None:
    error = stopped(recipe(write_list(tmp_path, [None, None, "ftp://a.com/x"])), tmp_path / "out")
    assert "stage dedup: no pair is left for it" in str(error)
    funnel = error.summary.funnel
    assert funnel is not None
    assert (funnel.rows, funnel.left) == (3, 0)
    assert funnel.steps[0].reasons == {"url_missing": 2, "url_scheme": 1}
    assert "url_missing" in (tmp_path / "out" / "report" / "index.html").read_text()


def test_a_stage_whose_tasks_all_fail_ends_the_run_and_names_the_first(tmp_path: Path) -> None:
    path = write_broken(tmp_path)
    error = stopped(recipe(path), tmp_path / "out")
    assert "stage ingest: 1 of 1 tasks failed" in str(error)
    assert "First, task 0000: list.parquet, after row 0" in str(error)
    assert list(error.summary.stages["ingest"].failed) == ["0000"]
    assert "list list.parquet failed" in (tmp_path / "out" / "report" / "index.html").read_text()
    assert error.summary.funnel is not None
    assert error.summary.funnel.as_json()["failed"][0]["rows"] == 2_000


def test_a_command_that_ends_early_writes_no_page_that_was_not_asked_for(tmp_path: Path) -> None:
    path = write_broken(tmp_path)
    with pytest.raises(StoppedError):
        run(recipe(path), tmp_path / "out", command="ingest", engine=Here(retries=0), progress=Quiet())
    assert not (tmp_path / "out" / "report").exists()


def test_a_stage_before_which_nothing_ran_is_wrong_use(tmp_path: Path) -> None:
    made = recipe(write_list(tmp_path, ["http://a.com/1"]))
    with pytest.raises(ConfigError, match=r"stage dedup: nothing to do in .*: run the stage before it first"):
        run(made, tmp_path / "out", command="dedup", engine=Here(), progress=Quiet())


@pytest.mark.parametrize("command", ["bootstrap", "embed", "noise"])
def test_a_command_that_the_recipe_leaves_nothing_to_do_says_so(tmp_path: Path, command: str) -> None:
    made = recipe(tmp_path / "list.parquet")
    with pytest.raises(ConfigError, match=f"nothing for `pairmill {command}` to do; --set decide.max_noise"):
        run(made, tmp_path / "out", command=command, engine=Here(), progress=Quiet())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"near.keep": "beauty"}, "near.keep is 'beauty'"),
        ({"fetch.allow_hosts": ["127.0.0.1"]}, "fetch.allow_hosts: '127.0.0.1' is not host:port"),
        ({"run.resolve": {"a.test": "127.0.0.1:80"}}, "run.resolve: 'a.test' is not host:port"),
        ({"run.resolve": {"a.test:80": "b.test:80"}}, "run.resolve, a.test:80: .* is not address:port"),
        ({"train.enabled": True, "evaluate.retrieval": "absent"}, "evaluate: absent: no tar there"),
        ({"train.enabled": True, "evaluate.classification": "absent"}, "evaluate: absent/classes.json"),
    ],
)
def test_settings_that_cannot_work_are_found_before_anything_is_started(
    tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    raw = recipe(write_list(tmp_path, ["http://a.com/1"])).model_dump(mode="json")
    with pytest.raises(ConfigError, match=said):
        run(build_recipe(with_overrides(raw, settings), "mine"), tmp_path / "out", engine=Here())
    assert not (tmp_path / "out").exists()


def test_a_stage_of_which_later_ones_need_every_task_stops_at_one_failure(tmp_path: Path) -> None:
    """Three parts; one part's columns are damaged before the screen reads them."""
    path = write_list(tmp_path, [f"http://a.com/{i}" for i in range(5)])
    made = recipe(path).model_copy(update={"ingest": Ingest(input=(str(path),), rows_per_part=2)})
    out = tmp_path / "out"
    for command in ("ingest", "dedup"):
        run(made, out, command=command, engine=Here(), progress=Quiet())
    (out / "scores" / "copies" / "0000-00001.parquet").write_bytes(b"damaged")
    error = stopped(made, out, command="language")
    assert str(error).startswith(
        "stage screen: 1 of 3 tasks failed, and the stages after it need every one, so the run stops here;"
        " what is finished stays. First, task 0000-00001: "
    )
    assert error.summary.stages["language"].counts.total() == 5
    assert error.summary.funnel is not None


def test_a_full_disk_ends_a_run_with_its_summary_and_funnel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(write_list(tmp_path, ["http://a.com/1", None]))

    def full(*_: object, **__: object) -> None:
        raise OutputError("scores/copies: the disk is full")

    monkeypatch.setattr(copies, "write_table", full)
    error = stopped(made, tmp_path / "out")
    assert str(error) == "stage dedup, task all: scores/copies: the disk is full"
    assert list(error.summary.stages) == ["ingest", "report"]
    assert error.summary.funnel is not None
    assert error.summary.funnel.rows == 2


def test_pairs_outlive_their_lists(tmp_path: Path) -> None:
    path = write_list(tmp_path, ["http://a.com/1", "http://a.com/2"])
    run(recipe(path), tmp_path / "out", command="ingest", engine=Here(), progress=Quiet())
    path.unlink()
    summary = run(recipe(path), tmp_path / "out", command="dedup", engine=Here(), progress=Quiet())
    assert summary.stages["dedup"].counts == {"first": 2, "pair_copy": 0}
    with pytest.raises(ConfigError, match="no such list"):
        run(recipe(path), tmp_path / "out", engine=Here(), progress=Quiet())


def test_a_stopped_run_survives_the_way_to_another_process() -> None:
    again = pickle.loads(pickle.dumps(StoppedError("all failed", Summary("small", "out"))))
    assert (str(again), again.summary) == ("all failed", Summary("small", "out"))


def test_stages_are_cut_as_the_recipe_says_and_leave_nothing_on_the_way(tmp_path: Path) -> None:
    rows = "".join(f"http://a.invalid/{n % 70},caption {n % 35}\n" for n in range(300))
    (tmp_path / "list.csv").write_text("url,caption\n" + rows)
    found = []
    for per_partition in (1_000, 100):
        out = tmp_path / f"{per_partition}"
        ingest = {"input": [str(tmp_path / "list.csv")], "rows_per_part": 40}
        made = build_recipe({"ingest": ingest, "run": {"rows_per_partition": per_partition}}, "cut")
        for command in ("ingest", "dedup"):
            summary = run(made, out, command=command, engine=Here(), progress=Quiet())
        assert dict(summary.stages["dedup"].counts) == {"first": 70, "pair_copy": 230}
        assert len(list((out / "_done/dedup").iterdir())) == {1_000: 1, 100: 4}[per_partition]
        assert not (out / "_done/dedup.pairs").exists()
        assert not [path for path in (out / "_exchange").rglob("*") if path.is_file()]
        found.append([path.read_bytes() for path in sorted((out / "scores/copies").iterdir())])
    assert found[0] == found[1]


@pytest.mark.parametrize("out", ["ftp://host/set", "http://host/set", "hdfs://host/set"])
def test_a_url_that_is_no_store_is_refused_and_makes_no_folder(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="an output folder is local"):
        run(Recipe(), Path(out), engine=Here(), progress=Quiet())
    assert list(tmp_path.iterdir()) == []
