"""Lists of one, two and three pairs, and of one picture: each ends with a dataset or says what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from fetching import picture, serving

from pairmill import pipeline
from pairmill.pipeline import StoppedError, Summary
from pairmill.progress import Quiet
from pairmill.recipe import Recipe, build_recipe
from pairmill.runner import Here

CAPTIONS = ("a red fox in the deep snow", "two dogs on a green lawn", "a small boat on a wide lake")
TINY = {"samples_seen": 64, "batch_size": 4, "towers": {"image_size": 32, "embed_dim": 16, "vocab_size": 310}}


class Host:
    """Serves picture n under /n.jpg."""

    def __init__(self) -> None:
        self.port, self.released = 0, asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=picture(int(request.match_info["name"].partition(".")[0])))


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    """Where pictures are served."""
    with serving(Host()) as host:
        yield f"127.0.0.1:{host.port}"


def recipe(folder: Path, place: str, pictures: list[int], max_noise: float | None) -> Recipe:
    """A run to the end over one list: a picture's number for each of the captions in order."""
    rows = [f"http://a.test/{n}.jpg,{caption}" for n, caption in zip(pictures, CAPTIONS, strict=False)]
    (folder / "list.csv").write_text("\n".join(["url,caption", *rows]) + "\n")
    raw = {
        "name": "small",
        "ingest": {"input": [str(folder / "list.csv")]},
        "bootstrap": {"training": TINY, "rules": {"sets": ["near_copies"]}},
        "decide": {"max_noise": max_noise},
        "train": {"enabled": False},
        "run": {"engine": "here", "resolve": {"a.test:80": place}},
    }
    return build_recipe(raw, "small")


def run(made: Recipe, out: Path) -> Summary:
    return pipeline.run(made, out, engine=Here(), progress=Quiet())


@pytest.mark.parametrize("pictures", [[1], [1, 1, 1]])
def test_without_a_noise_score_a_small_list_is_a_dataset(
    tmp_path: Path, place: str, pictures: list[int]
) -> None:
    summary = run(recipe(tmp_path, place, pictures, None), tmp_path / "out")
    assert summary.exit_code == 0
    assert summary.stages["write"].counts == {"written": len(pictures)}
    assert summary.funnel is not None
    assert summary.funnel.left == len(pictures)


@pytest.mark.parametrize(
    ("pictures", "failed"),
    [([1], "stage tokenizer: 1 of 1"), ([1, 2, 3], "stage bootstrap: 1 of 2")],
)
def test_too_few_pairs_for_a_noise_score_are_said_so_with_a_way_out(
    tmp_path: Path, place: str, pictures: list[int], failed: str
) -> None:
    with pytest.raises(StoppedError, match=f"^{failed}") as caught:
        run(recipe(tmp_path, place, pictures, 0.1), tmp_path / "out")
    said = str(caught.value)
    assert "pairs to learn from, expected at least 2" in said
    assert said.endswith("or do without it with --set decide.max_noise=null")
    assert "\n" not in said
    assert caught.value.summary.funnel is not None
    assert caught.value.summary.funnel.rows == len(pictures)
