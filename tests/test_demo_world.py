"""The demo's small web: the same from a seed, its pictures told apart, its faults what they say."""

from __future__ import annotations

import asyncio
import http.client
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pairmill.crawl.client import Client
from pairmill.crawl.decode import decode_image
from pairmill.crawl.pdq import pdq_hash
from pairmill.demo import chinese, english, german, paint
from pairmill.demo.captions import LANGUAGES, caption
from pairmill.demo.faults import FAULTS
from pairmill.demo.paint import Paint
from pairmill.demo.scenes import COLOURS, GROUNDS, SHAPES, draw, make_scene
from pairmill.demo.server import serving
from pairmill.demo.web import SWAPPED, Web, make_web
from pairmill.errors import ConfigError, RowError
from pairmill.filter.language import LanguageIdentifier
from pairmill.recipe import Fetch, load_recipe
from pairmill.shards.tar import members

SEED = 7


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Web:
    """A web of 60 clean-looking pairs, two rows or more of every fault, all copies."""
    return make_web(tmp_path_factory.mktemp("web"), pictures=60, seed=SEED)


@pytest.fixture(scope="module")
def resolve(web: Web) -> Iterator[dict[str, str]]:
    """The web's server, and where it listens."""
    with serving(web.folder) as places:
        yield places


def pdq_of(data: bytes) -> np.ndarray:
    hashed, _ = pdq_hash(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    return np.unpackbits(np.frombuffer(hashed, np.uint8))


def test_a_seed_gives_the_same_web_byte_for_byte(tmp_path: Path) -> None:
    one, two = (make_web(tmp_path / name, pictures=40, seed=3).folder for name in ("one", "two"))
    files = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert len(files) == 9
    assert [path for path in files if (one / path).read_bytes() != (two / path).read_bytes()] == []


def test_a_web_of_too_few_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="40 or more"):
        make_web(tmp_path, pictures=39)


def test_processes_paint_what_one_process_paints(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = [Paint(number, edit="cropped" if number % 2 else None) for number in range(70)]
    alone = list(paint.paint_all(SEED, orders))
    monkeypatch.setattr(paint, "FEW", 10)
    assert list(paint.paint_all(SEED, orders)) == alone


def test_the_truth_has_a_row_for_each_row_of_the_lists(web: Web) -> None:
    truth = web.truth.to_pylist()
    listed = pq.read_table(web.lists / "part-00000.parquet").to_pylist()
    said = [(row["url"], row["caption"]) for row in truth if row["list"] == "part-00000.parquet"]
    assert [(row["URL"], row["TEXT"]) for row in listed] == said
    assert {row["list"] for row in truth} == {path.name for path in web.lists.iterdir()}
    assert {row["kind"] for row in truth} >= set(FAULTS)


def test_swapped_captions_are_of_another_picture_and_of_the_same_language(web: Web) -> None:
    clean = [row for row in web.truth.to_pylist() if row["kind"] == "clean"]
    own = [caption(make_scene(SEED, row["picture"]), row["language"]) for row in clean]
    assert [row["caption"] != text for row, text in zip(clean, own, strict=True)] == [
        row["swapped"] for row in clean
    ]
    assert abs(sum(row["swapped"] for row in clean) / len(clean) - SWAPPED) < 0.03
    assert sorted(row["caption"] for row in clean) == sorted(own)


def test_different_scenes_are_far_apart_and_copies_are_near() -> None:
    originals = [paint.paint(SEED, Paint(number)) for number in range(60)]
    hashes = np.stack([pdq_of(data) for data in originals])
    distance = (hashes[:, None] != hashes).sum(2) + 256 * np.eye(60, dtype=int)
    assert distance.min() > 60
    near = [
        int((pdq_of(paint.paint(SEED, Paint(n, edit=edit, edit_seed=n))) != hashes[n]).sum())
        for edit in ("re", "resized", "cropped")
        for n in range(20)
    ]
    assert np.mean(np.array(near) <= 31) >= 0.95


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_are_in_their_language_and_rarely_the_same(language: str) -> None:
    captions = [caption(make_scene(SEED, number), language) for number in range(300)]
    found = LanguageIdentifier()(pa.array(captions)).column("lang_v1").to_pylist()
    assert found.count(language) >= 0.97 * 300
    assert len(set(captions)) >= 0.98 * 300


def test_every_language_has_words_for_everything() -> None:
    for words in (english, german, chinese):
        assert set(words.NOUNS) == set(SHAPES)
        assert set(words.GROUNDS) == set(GROUNDS)
    assert set(german.COLOURS) == set(chinese.COLOURS) == set(COLOURS)


def test_a_thing_is_never_of_a_colour_that_its_ground_hides() -> None:
    for number in range(200):
        scene = make_scene(SEED, number)
        assert {group.colour for group in scene.groups}.isdisjoint(GROUNDS[scene.ground].hides)
        assert draw(scene).size == (scene.width, scene.height)


def test_german_adjectives_agree() -> None:
    said = " ".join(caption(make_scene(SEED, number), "de") for number in range(1_500))
    for right, wrong in (
        ("ein roter Kreis", "ein rote Kreis"),
        ("einen roten Kreis", "einen roter Kreis"),
        ("einem roten Quadrat", "einem rotem Quadrat"),
        ("eine rote Scheibe", "eine roten Scheibe"),
        ("einer roten Scheibe", "einer rote Scheibe"),
        ("zwei rote Kreise", "zwei roten Kreise "),
        ("zwei roten Kreisen", "zwei rote Kreisen"),
    ):
        assert right.lower() in said.lower(), right
        assert wrong.lower() not in said.lower(), wrong


def test_held_out_sets_hold_samples_of_three_languages(web: Web) -> None:
    names = [member.suffix for member in members(web.folder / "holdout" / "00000.tar")]
    assert names == ["jpg", "txt", "json"] * (len(names) // 3)
    assert [member.suffix for member in members(web.folder / "classes" / "00000.tar")][:2] == ["jpg", "cls"]


def test_every_fault_ends_under_its_reason(web: Web, resolve: dict[str, str]) -> None:
    settings = Fetch(deadline_s=1.5, max_bytes=1_000_000, per_host=32)
    rows = [row for row in web.truth.to_pylist() if row["kind"] in FAULTS]

    async def outcome(client: Client, url: str) -> str:
        answer = await client.get(url)
        if answer.outcome == "server_error":  # 503 the first time
            answer = await client.get(url)
        if answer.outcome != "ok":
            return answer.outcome
        try:
            decode_image(answer.body, settings)
        except RowError as error:
            return error.reason
        return "ok"

    async def outcomes() -> list[str]:
        async with Client(settings, resolve) as client:
            return await asyncio.gather(*(outcome(client, row["url"]) for row in rows))

    found = asyncio.run(outcomes())
    wrong = [
        (row["kind"], said) for row, said in zip(rows, found, strict=True) if said != (row["reason"] or "ok")
    ]
    assert wrong == []


def test_the_server_knows_its_pages_by_host_and_path(web: Web, resolve: dict[str, str]) -> None:
    url = next(row["url"] for row in web.truth.to_pylist() if row["kind"] == "clean")
    host, path = url.removeprefix("http://").split("/", 1)
    address, port = resolve[f"{host}:80"].split(":")
    answers = []
    for name in (host, "else.demo.test"):
        connection = http.client.HTTPConnection(address, int(port), timeout=5)
        connection.request("GET", f"/{path}", headers={"Host": name})
        answers.append(connection.getresponse().status)
        connection.close()
    assert answers == [200, 404]


def test_the_server_ends_with_its_parent(web: Web) -> None:
    command = [sys.executable, "-m", "pairmill.demo.server", str(web.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert len(process.stdout.readline().split()) == 2
        process.stdin.close()  # what the kernel does when the parent is killed
        assert process.wait(timeout=10) == 0


def test_a_setting_of_the_scorer_does_not_leak_into_the_model_that_shares_its_yaml() -> None:
    plain = load_recipe("demo")
    changed = load_recipe("demo", {"bootstrap.training.towers.embed_dim": 48, "run.engine": "here"})
    assert changed.bootstrap.training.towers.embed_dim == 48
    assert changed.train == plain.train
