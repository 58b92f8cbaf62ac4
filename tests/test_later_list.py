"""A list that is added later: what is known is not asked for again, and the dataset is that of one run."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from fetching import picture, serving  # pyright: ignore[reportImplicitRelativeImport]
from whole import go  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.errors import ConfigError
from pairmill.mend import mend
from pairmill.pipeline import Summary
from pairmill.pretrain.samples import raw_source
from pairmill.progress import Quiet
from pairmill.recipe import Recipe, build_recipe
from pairmill.runner import Here
from pairmill.shards.ledger import records, tally_path
from pairmill.shards.schema import bytes_hash
from pairmill.shards.verify import verify
from pairmill.stats.explain import explain
from pairmill.steps import STEPS

COUNTED = ("manifest.json", "README.md")
Pair = tuple[str, str]  # the last part of a URL, and a caption


class Web:
    """Gives picture n for /n and, the same bytes, for /n-copy; 503 for /broken-n until healed."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: Counter[str] = Counter()
        self.healed = False
        self.released = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self.asked[name] += 1
        if name.startswith("broken") and not self.healed:
            return web.Response(status=503)
        if name.startswith("gone"):
            return web.Response(status=404)
        return web.Response(body=picture(int(name.removeprefix("broken-").removesuffix("-copy"))))


@pytest.fixture(scope="module")
def server() -> Iterator[Web]:
    with serving(Web()) as host:
        yield host


@pytest.fixture
def site(server: Web) -> Web:
    """The server, as if nobody had asked it yet."""
    server.asked.clear()
    server.healed = False
    return server


def write_list(path: Path, pairs: Sequence[Pair]) -> None:
    lines = [f"http://a.test/{name},{caption}" for name, caption in pairs]
    path.write_text("\n".join(["url,caption", *lines]) + "\n")


# of the second list's URLs half are known: some with the same caption, some with a new one
FIRST = [(str(n), f"picture number {n}") for n in range(30)]
FIRST += [("gone-1", "a picture that is gone"), ("broken-40", "a broken link"), ("3", "a second caption")]
SECOND = [(str(n), f"picture number {n}" if n % 2 else f"another caption of {n}") for n in range(10, 25)]
SECOND += [(str(n), f"picture number {n}") for n in range(50, 62)]
SECOND += [("gone-1", "gone for others too"), ("broken-40", "broken for others too"), ("broken-41", "new")]
SECOND += [("4-copy", "what the copy says"), ("51-copy", "what another copy says")]
THIRD = [("5", "a third list's caption"), ("50", "of the second list's picture"), ("70", "new again")]
THIRD += [("10", "one more of number ten"), ("51-copy", "what another copy says")]
LISTS = {"a.csv": FIRST, "b.csv": SECOND, "c.csv": THIRD}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, pairs in LISTS.items():
        write_list(tmp_path / name, pairs)
    return tmp_path


def recipe(site: Web, folder: Path, lists: str, **groups: dict[str, Any]) -> Recipe:
    """A run without a noise score over the lists a.csv, b.csv, … of the letters in `lists`."""
    made: dict[str, dict[str, Any]] = {
        "ingest": {"input": [str(folder / f"{letter}.csv") for letter in lists], "rows_per_part": 8},
        "fetch": {"urls_per_shard": 7, "deadline_s": 5, "retries": 0},
        "decide": {"rules": {"sets": ["near_copies"]}},
        "write": {"samples_per_shard": 10},
        "train": {"enabled": False},
        "run": {"resolve": {"a.test:80": f"127.0.0.1:{site.port}"}, "engine": "here"},
    }
    for name, settings in groups.items():
        made[name] = {**made.get(name, {}), **settings}
    return build_recipe({"name": "later", **made}, "later.yaml")


def dataset(out: Path) -> dict[str, bytes]:
    """The bytes that a later list must not change: all but how raw/ and the tallies are arranged."""
    files = [path for path in sorted((out / "shards").iterdir()) if path.is_file()]
    files += [path for path in sorted((out / "selection").glob("dataset.*"))]
    files += [out / "scores" / "near" / "near.parquet"]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def sidecars(out: Path) -> list[dict[str, Any]]:
    """The rows of the dataset."""
    return pq.read_table(sorted((out / "shards").glob("*.parquet"))).to_pylist()


def whole(out: Path, summary: Summary) -> Path:
    """The folder, once it is checked that nothing is missing or contradicts itself."""
    assert summary.exit_code == 0
    assert summary.funnel is not None
    assert not summary.funnel.problems
    assert verify(out)["problems"] == []
    return out


def at_once(site: Web, folder: Path, lists: str = "ab", **groups: dict[str, Any]) -> dict[str, bytes]:
    """The dataset of one run over all lists."""
    out = folder / "once"
    return dataset(whole(out, work(recipe(site, folder, lists, **groups), out)))


@pytest.fixture(scope="module")
def one_run(server: Web, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The dataset of one run over a.csv and b.csv."""
    folder = tmp_path_factory.mktemp("once")
    for name, pairs in LISTS.items():
        write_list(folder / name, pairs)
    server.healed = False
    return at_once(server, folder)


def work(made: Recipe, out: Path, **how: Any) -> Summary:
    """All but the page, which is slow to draw."""
    return go(made, out, **{"stages": [step.stage for step in STEPS if step.stage != "report"], **how})


def samples(files: dict[str, bytes]) -> dict[str, bytes]:
    """Less what counts the requests: a repeat, or a picture that is dropped by now, is counted there."""
    return {name: data for name, data in files.items() if name.rpartition("/")[2] not in COUNTED}


def test_a_second_list_asks_for_its_new_urls_alone_and_ends_with_the_dataset_of_one_run(
    site: Web, folder: Path, one_run: dict[str, bytes]
) -> None:
    out = folder / "out"
    work(recipe(site, folder, "a"), out)
    raw = {path.name: path.read_bytes() for path in (out / "raw").iterdir()}
    site.asked.clear()
    again = work(recipe(site, folder, "ab"), out)
    new = {name for name, _ in SECOND} - {name for name, _ in FIRST}
    assert site.asked == Counter(dict.fromkeys(new, 1))
    assert len(new) < len({name for name, _ in SECOND}) < 2 * len(new) + 4
    assert (again.stages["ingest"].skipped, again.stages["fetch"].skipped) == (1, len(raw) // 2)
    later = dataset(whole(out, again))
    adopted = {row["caption"] for row in sidecars(out) if row["url"] != row["picture_url"]}
    assert len(adopted & {"what the copy says", "picture number 4"}) == 1  # across the two lists
    assert {name: (out / "raw" / name).read_bytes() for name in raw} == raw
    assert later == one_run


def test_three_generations_end_with_the_dataset_of_one_run(site: Web, folder: Path) -> None:
    out = folder / "out"
    for lists in ("a", "ab", "abc"):
        site.asked.clear()
        whole(out, work(recipe(site, folder, lists), out))
    assert site.asked == Counter({"70": 1})
    names = {path.stem.partition("-")[0] for path in (out / "raw").glob("*.tar")}
    assert {"g1", "g2"} < names
    assert dataset(out) == at_once(site, folder, "abc")


def test_a_list_with_nothing_new_asks_for_nothing_and_changes_nothing(site: Web, folder: Path) -> None:
    out = folder / "out"
    work(recipe(site, folder, "a"), out)
    before = dataset(out)
    write_list(folder / "b.csv", FIRST)
    site.asked.clear()
    whole(out, work(recipe(site, folder, "ab"), out))
    assert not site.asked
    changed = {name for name, data in dataset(out).items() if data != before.get(name)}
    assert changed <= {f"shards/{name}" for name in COUNTED}  # they count the rows of the lists


def test_a_repeat_after_a_later_list_asks_once_for_what_failed_in_any(site: Web, folder: Path) -> None:
    out = folder / "out"
    work(recipe(site, folder, "a"), out)
    work(recipe(site, folder, "a"), out, retry_failed=True)
    work(recipe(site, folder, "ab"), out)
    site.asked.clear()
    site.healed = True
    work(recipe(site, folder, "abc"), out, retry_failed=True)
    assert site.asked == Counter({"broken-40": 1, "broken-41": 1, "70": 1})
    whole(out, work(recipe(site, folder, "abc"), out, retry_failed=True))
    assert site.asked.total() == 3
    assert samples(dataset(out)) == samples(at_once(site, folder, "abc"))
    told = explain(out, "http://a.test/broken-40").as_json()["pairs"]
    assert sorted(pair["caption"] for pair in told) == ["a broken link", "broken for others too"]
    assert {pair["decisions"]["dataset"] for pair in told} == {"kept"}


@pytest.mark.parametrize(
    "after",
    ["half of fetch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("plan-fetch", "reuse"))],
)
def test_a_later_list_whose_run_was_killed_goes_on(
    site: Web, folder: Path, one_run: dict[str, bytes], after: str
) -> None:
    out, made = folder / "out", recipe(site, folder, "ab")
    work(recipe(site, folder, "a"), out)
    order = ["ingest", "dedup", "language", "screen", "plan-fetch", "fetch", "reuse", "near"]
    work(made, out, stages=order[: order.index(after.removeprefix("half of ")) + 1])
    if "half" in after:
        for path in (out / "raw").glob("g1-00001.*"):
            path.unlink()
        tally_path(out, "fetch", "g1-00001").unlink()
    whole(out, work(made, out))
    assert dataset(out) == one_run


def test_a_list_that_is_added_while_the_first_is_half_fetched_loses_nothing(
    site: Web, folder: Path, one_run: dict[str, bytes]
) -> None:
    out = folder / "out"
    work(recipe(site, folder, "a"), out)
    for name in ("00001", "00003"):
        tally_path(out, "fetch", name).unlink()
        for suffix in (".tar", ".parquet"):
            (out / "raw" / f"{name}{suffix}").unlink()
    whole(out, work(recipe(site, folder, "ab"), out))
    assert dataset(out) == one_run


@pytest.mark.slow
def test_a_list_that_is_added_before_anything_was_fetched_is_planned_with_the_first(
    site: Web, folder: Path, one_run: dict[str, bytes]
) -> None:
    out = folder / "out"
    work(recipe(site, folder, "a"), out, stages=["ingest", "dedup", "language", "screen", "plan-fetch"])
    whole(out, work(recipe(site, folder, "ab"), out))
    assert not list((out / "raw").glob("g*"))
    assert dataset(out) == one_run


@pytest.mark.slow
def test_pairs_that_the_rules_drop_once_there_are_more_lists_are_out_of_the_dataset(
    site: Web, folder: Path
) -> None:
    """Of a caption on more than two pictures all go, those fetched before too, and they lead no group."""
    write_list(folder / "a.csv", [*FIRST, ("61", "common words"), ("62", "common words")])
    write_list(folder / "b.csv", [*SECOND, ("63", "common words"), ("61-copy", "left of the copies")])
    rules = {"rules": {"extra": [{"reason": "common", "where": "images_per_caption_v1 > 2"}]}}
    out = folder / "out"
    work(recipe(site, folder, "a", language=rules), out)
    summary = work(recipe(site, folder, "ab", language=rules), out)
    assert summary.stages["plan-fetch"].facts["all"]["unwanted"] == 2
    assert summary.funnel is not None
    assert {step.name: step.reasons.get("common") for step in summary.funnel.steps}["screen"] == 3
    whole(out, summary)
    assert samples(dataset(out)) == samples(at_once(site, folder, language=rules))


@pytest.mark.parametrize("lists", ["b", "ba", ""])
def test_a_list_that_went_or_moved_is_still_refused(site: Web, folder: Path, lists: str) -> None:
    out = folder / "out"
    work(recipe(site, folder, "a"), out)
    with pytest.raises(ConfigError):
        work(recipe(site, folder, lists), out)


def test_a_list_that_grew_is_still_refused(site: Web, folder: Path) -> None:
    out = folder / "out"
    work(recipe(site, folder, "a"), out)
    write_list(folder / "a.csv", [*FIRST, ("90", "one more")])
    with pytest.raises(ConfigError, match="was made from other lists: number 0000"):
        work(recipe(site, folder, "ab"), out)


@pytest.mark.parametrize(
    "name",
    [
        "g1.json",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("00001.parquet", "g1-00000.parquet", "g0.json")),
    ],
)
def test_a_damaged_plan_of_any_generation_is_made_anew_and_nobody_is_asked(
    site: Web, folder: Path, name: str
) -> None:
    out = folder / "out"
    for lists in ("a", "ab", "abc"):
        work(recipe(site, folder, lists), out)
    before = {path: path.read_bytes() for path in out.rglob("*.parquet") if "_log" not in path.parts}
    (out / "_plan" / "fetch" / name).write_bytes(b"no more")
    assert not verify(out)["ok"]
    site.asked.clear()
    mend(out, engine=Here(retries=0), progress=Quiet())
    assert not site.asked
    assert verify(out)["problems"] == []
    assert {path: path.read_bytes() for path in before} == before


def test_a_damaged_picture_that_later_pairs_point_at_is_mended_for_them_too(site: Web, folder: Path) -> None:
    out = folder / "out"
    for lists in ("a", "ab"):
        work(recipe(site, folder, lists), out)
    before = dataset(out)
    rows = pq.read_table(out / "raw" / "known-00000.parquet").to_pylist()
    row = next(row for row in rows if row["outcome"] == "ok")
    tar = out / "raw" / f"{row['tar']}.tar"
    data = bytearray(tar.read_bytes())
    data[row["offset"] + 9] ^= 255
    tar.write_bytes(data)
    shutil.rmtree(out / "shards")
    site.asked.clear()
    mend(out, engine=Here(retries=0), progress=Quiet())
    assert site.asked == Counter({row["url"].rpartition("/")[2]: 1})
    assert dataset(out) == before


def test_verify_names_a_pointer_into_a_raw_shard_that_is_not_so(site: Web, folder: Path) -> None:
    out = folder / "out"
    for lists in ("a", "ab"):
        work(recipe(site, folder, lists), out)
    from pairmill.shards.compare import raw_differences

    path = out / "raw" / "known-00000.parquet"
    table = pq.read_table(path)
    wrong = [None if at is None else at + 512 for at in table["offset"].to_pylist()]
    at = table.schema.get_field_index("offset")
    pq.write_table(table.set_column(at, table.schema.field(at), [wrong]), path)
    lines = list(raw_differences(out, "known-00000"))
    assert len(lines) == sum(place is not None for place in wrong)
    assert "known-00000.parquet: picture" in lines[0]


def test_pairs_of_a_finished_corpus_are_left_out_under_a_reason_of_their_own(site: Web, folder: Path) -> None:
    old, out = folder / "old", folder / "out"
    work(recipe(site, folder, "a"), old)
    site.asked.clear()
    made = recipe(site, folder, "bc", ingest={"against": str(old)})
    summary = work(made, out)
    there = [row["url"] for row in sidecars(old)]
    has = {url.rpartition("/")[2] for url in there}
    pairs = set(SECOND + THIRD)
    assert site.asked.keys() == {name for name, _ in pairs} - has
    funnel = whole(out, summary) and summary.funnel
    assert funnel is not None
    reasons = {step.name: step.reasons for step in funnel.steps}["screen"]
    assert reasons == {"in_corpus": sum(name in has for name, _ in pairs)}
    told = explain(out, "http://a.test/11").as_json()["pairs"]
    assert [pair["screen"] for pair in told] == ["in_corpus"]
    assert "broken-40" in site.asked  # the corpus has no picture of it


def test_a_picture_that_was_shown_with_a_copys_caption_is_in_the_corpus_by_either_url(
    site: Web, folder: Path
) -> None:
    old, out = folder / "old", folder / "out"
    write_list(folder / "a.csv", [("4", "what the picture says"), ("4-copy", "what the copy says")])
    own = {"reason": "own", "where": "caption = 'what the picture says'"}
    rules = {"rules": {"sets": ["near_copies"], "extra": [own]}}
    work(recipe(site, folder, "a", near={"keep": "url"}, decide=rules), old)
    shown = [(row["url"], row["picture_url"]) for row in sidecars(old)]
    assert shown == [("http://a.test/4-copy", "http://a.test/4")]
    write_list(folder / "b.csv", [("4", "a new caption"), ("4-copy", "another"), ("5", "new")])
    site.asked.clear()
    work(recipe(site, folder, "b", ingest={"against": [str(old)]}), out)
    assert site.asked == Counter({"5": 1})


@pytest.mark.slow
def test_a_corpus_that_grew_leaves_more_out(site: Web, folder: Path) -> None:
    old, out = folder / "old", folder / "out"
    work(recipe(site, folder, "a"), old)
    made = recipe(site, folder, "b", ingest={"against": [str(old)]})
    work(made, out)
    before = work(made, out).stages["screen"]
    assert before.skipped == len(list((out / "pairs").glob("*.parquet")))
    work(recipe(site, folder, "ac"), old)
    site.asked.clear()
    after = work(made, out).stages["screen"].counts
    assert after["in_corpus"] == before.counts["in_corpus"] + 2  # 50 and 51-copy
    assert not site.asked


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "manifest.json is missing: expected the folder of a finished run"),
        ("out", "folder itself"),
    ],
)
def test_a_corpus_that_is_none_is_refused_before_anything_starts(
    site: Web, folder: Path, name: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        work(recipe(site, folder, "a", ingest={"against": str(folder / name)}), folder / "out")
    assert not (folder / "out").exists()


@pytest.mark.slow
def test_training_and_scores_find_every_picture_of_every_generation(site: Web, folder: Path) -> None:
    training: dict[str, Any] = {"samples_seen": 64, "batch_size": 4}
    training["towers"] = {"image_size": 32, "embed_dim": 16, "vocab_size": 310}
    scored = {
        "bootstrap": {"training": training, "rules": {"sets": ["near_copies"]}},
        "decide": {"max_noise": 1, "rules": {"sets": ["near_copies"]}},
    }
    out = folder / "out"
    work(recipe(site, folder, "a", **scored), out)
    raw = {path: path.read_bytes() for path in (out / "raw").iterdir()}
    summary = whole(out, work(recipe(site, folder, "ab", **scored), out)) and summary_of(out)
    assert {path: path.read_bytes() for path in raw} == raw
    rows = pq.read_table(sorted((out / "raw").glob("*.parquet"))).to_pylist()
    good = [row for row in rows if row["outcome"] == "ok"]
    assert summary == {"scored": len(good), "undecodable": 0, "not_fetched": len(rows) - len(good)}
    source = raw_source(out / "raw", None)
    expected = {row["uid"]: row["stored_xxh3"] for row in good}
    elsewhere = 0
    for shard in range(len(source.tables)):
        table = source.table(shard)
        at = zip(source.tars(table, shard).tolist(), table["offset"].to_pylist(), strict=True)
        for uid, (tar, offset), size in zip(
            table["uid"].to_pylist(), at, table["size"].to_pylist(), strict=True
        ):
            elsewhere += tar != shard
            data = source.tar(tar).read_bytes()[offset : offset + size]
            assert bytes_hash(data) == expected[uid]
            assert offset in source.places(tar)[0]
    assert elsewhere == sum(row["tar"] is not None for row in good) > 5


def summary_of(out: Path) -> Counter[str]:
    """What `embed` counted."""
    counts: Counter[str] = Counter()
    for record in records(out, "embed"):
        counts.update(record["counts"])
    return counts


@pytest.mark.slow
def test_lists_of_one_name_in_two_folders_can_follow_each_other(site: Web, folder: Path) -> None:
    (folder / "next").mkdir()
    write_list(folder / "next" / "a.csv", SECOND)
    out = folder / "out"
    work(recipe(site, folder, "a"), out)
    lists = [str(folder / "a.csv"), str(folder / "next" / "a.csv")]
    made = recipe(site, folder, "a", ingest={"input": lists})
    whole(out, work(made, out))
