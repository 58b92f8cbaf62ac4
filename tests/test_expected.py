"""Split-view poisoning: what a list's hashes say of what its URLs bring by now."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from fetching import fetch, picture, plan, serving, write_pairs  # pyright: ignore[reportImplicitRelativeImport]
from PIL import Image

from pairmill.crawl.decode import decode_image
from pairmill.crawl.expected import drop_reason, judge, read_expected
from pairmill.recipe import Fetch
from pairmill.settings_fetch import Expect
from pairmill.stats.distributions import changed
from pairmill.stats.tables import opened

SIZE = (320, 240)
KINDS = ("sha256", "md5", "sha1", "sha512")


def pdq(body: bytes) -> str:
    return decode_image(body, Fetch()).pdq.hex()


def encoded_anew(body: bytes) -> bytes:
    """The same picture at another quality."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(body)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


class Mover:
    """A server that gives picture n, another one for `swapped-n`, and n encoded anew for `anew-n`."""

    answers_all = True

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.port, self.released = 0, asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        kind, _, number = request.path[1:].partition("-")
        self.asked[kind] += 1
        if not number:
            return web.Response(status=404)
        body = picture(int(number) + 500 * (kind == "swapped"), SIZE)
        return web.Response(body=encoded_anew(body) if kind == "anew" else body)


@pytest.fixture(scope="module")
def mover() -> Iterator[Mover]:
    """A server that several tests ask."""
    with serving(Mover()) as host:
        yield host


def run(
    out: Path, mover: Mover, kinds: dict[str, int], **expect: Any
) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Fetch so many pictures of each kind, each with the hashes of the picture that its list was made of."""
    rows = []
    for kind, n in kinds.items():
        for number in range(n):
            body = picture(number, SIZE)
            given = {"sha256": hashlib.sha256(body).hexdigest(), "look": pdq(body), "width": 320}
            if kind == "short":
                given = {"sha256": given["sha256"][:40]}
            host = "bought.example.test" if kind == "swapped" else "www.photos.test"
            rows.append({"url": f"http://{host}/{kind}-{number}", "caption": "x", "given": json.dumps(given)})
    write_pairs(out, rows)
    hashes = {"sha256": "sha256", "look": "pdq"}
    settings = Fetch.model_validate({"expect": {"hashes": hashes, **expect}, "signals": (), "image_size": 64})
    resolve = {f"{host}:80": f"127.0.0.1:{mover.port}" for host in ("bought.example.test", "www.photos.test")}
    plan(out, settings)
    counts = fetch(out, settings, resolve).counts
    table = pa.concat_tables([pq.read_table(path) for path in (out / "raw").glob("*.parquet")])
    return counts, table.to_pylist()


MIXED = {"same": 30, "swapped": 6, "anew": 5, "short": 2}
VERDICTS = {"same": "match", "swapped": "changed", "anew": "near", "short": "malformed"}


@pytest.mark.parametrize(
    ("keep", "counts"),
    [
        ("near", {"ok": 35, "changed": 6, "hash_malformed": 2}),
        ("match", {"ok": 30, "changed": 6, "changed_near": 5, "hash_malformed": 2}),
        ("all", {"ok": 43}),
    ],
)
def test_swapped_pictures_are_known_and_the_recipe_says_what_is_kept(
    keep: str, counts: dict[str, int], mover: Mover, tmp_path: Path
) -> None:
    mover.asked.clear()
    found, rows = run(tmp_path, mover, MIXED, keep=keep)
    assert found == counts
    verdicts = Counter((row["url"].rpartition("/")[2].split("-")[0], row["expected_v1"]) for row in rows)
    assert verdicts == {(kind, VERDICTS[kind]): n for kind, n in MIXED.items()}
    assert mover.asked["short"] == (2 if keep == "all" else 0)
    assert all((row["offset"] is None) == (row["outcome"] != "ok") for row in rows)


def test_the_report_names_the_domains_with_changes(mover: Mover, tmp_path: Path) -> None:
    run(tmp_path, mover, MIXED)
    with opened(tmp_path) as tables:
        assert changed(tables) == [{"domain": "example.test", "pairs": 6, "near": 0, "changed": 6}]


BODY = picture(1, SIZE)
GOOD = {kind: hashlib.new(kind, BODY).hexdigest() for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hash_of_each_kind_is_checked(kind: str) -> None:
    settings = Expect()
    said = read_expected({kind: GOOD[kind].upper()}, settings)
    assert said is not None
    assert said == f"{kind}:{GOOD[kind]}"
    assert judge([said], BODY, None, settings) == "match"
    assert judge([said], BODY + b"x", None, settings) == "changed"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, None),
        ({"sha256": None}, None),
        ({"sha256": ""}, None),
        ({"sha256": "abc"}, "sha256:?"),
        ({"sha256": GOOD["md5"]}, "sha256:?"),
        ({"md5": "z" * 32}, "md5:?"),
        ({"md5": 12}, "md5:?"),
        ({"md5": " ".join(["ab"] * 16)}, "md5:?"),
        ({"md5": [1]}, "md5:?"),
        ({"sha256": GOOD["sha256"], "md5": "x", "other": 1}, f"md5:? sha256:{GOOD['sha256']}"),
    ],
)
def test_what_a_row_has_of_hashes(given: dict[str, Any], said: str | None) -> None:
    assert read_expected(given, Expect()) == said


def test_a_look_alone_is_a_match_where_no_bit_differs_and_near_within_the_distance() -> None:
    look = bytes(range(32))
    said = [f"pdq:{look.hex()}"]
    for bits, verdict in ((0, "match"), (1, "near"), (31, "near"), (32, "changed")):
        other = (int.from_bytes(look, "big") ^ (2**bits - 1)).to_bytes(32, "big")
        assert judge(said, b"", other, Expect()) == verdict
    assert judge(said, b"", None, Expect()) == "changed"
    assert judge([], b"", look, Expect()) is None


def test_of_several_rows_of_one_url_the_best_verdict_holds() -> None:
    other = "sha256:" + "0" * 64
    assert judge([other, f"sha256:{GOOD['sha256']}", "md5:?"], BODY, None, Expect()) == "match"
    assert judge([other, "md5:?"], BODY, None, Expect()) == "changed"
    assert drop_reason(None, Expect()) is None
