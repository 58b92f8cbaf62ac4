"""The page: right numbers, harmless whatever the captions say, and there whatever is missing."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from pairmill.progress import Quiet
from pairmill.recipe import Report
from pairmill.runner import Here, Tally, Task
from pairmill.shards import schema
from pairmill.shards.commit import write_json, write_table
from pairmill.shards.job import run_stage
from pairmill.shards.ledger import write_tally
from pairmill.shards.selection import write_selection
from pairmill.shards.tar import TarWriter
from pairmill.stats import charts, models, page, report, samples
from pairmill.stats.distributions import distributions
from pairmill.stats.report import report_stage, report_tasks
from pairmill.stats.tables import Tables, opened
from pairmill.stats.text import bdi, escape, visible

N = 60
HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    '"><svg onload=alert(3)>',
    "abc \u202egnp.exe\u202c \u2066x",
    "zero\u200bwidth \ufeff",
    "\x1b[31mred\x1b[0m",
    "long " * 2_000,
    "مرحبا بالعالم",
    "一只红色的风筝",
    "Z" + "\u0301" * 500,
]
VOID = {"meta", "img", "line", "rect", "path"}
ALLOWED = {
    *VOID,
    "a",
    "b",
    "bdi",
    "body",
    "caption",
    "code",
    "dd",
    "div",
    "dl",
    "dt",
    "figcaption",
    "figure",
    "footer",
    "g",
    "h1",
    "h2",
    "h3",
    "head",
    "header",
    "html",
    "i",
    "main",
    "nav",
    "p",
    "polyline",
    "section",
    "small",
    "span",
    "style",
    "svg",
    "table",
    "tbody",
    "td",
    "text",
    "th",
    "thead",
    "title",
    "tr",
}


def caption(number: int) -> str:
    return HOSTILE[number % len(HOSTILE)] + f" {number}"


def url(number: int) -> str:
    host = "slow.example" if number % 6 == 0 else "fast.example"
    return f"https://{host}/{number}.jpg?<script>"


def uid(number: int) -> bytes:
    return schema.make_uid(url(number), caption(number))


def picture(number: int, fmt: str = "JPEG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (200, 100 + number), (number, 2 * number, 90)).save(data, fmt)
    return data.getvalue()


def put(path: Path, columns: pa.Schema, rows: list[dict[str, Any]]) -> None:
    write_table(pa.Table.from_pylist(rows, schema=columns), path)


def tally(out: Path, stage: str, counts: dict[str, int]) -> None:
    write_tally(out, Task(stage, "dataset" if stage == "decide" else "all"), Tally(counts), seconds=1.0)


def is_ok(number: int) -> bool:
    return number % 10 != 0


def p_of(number: int) -> float:
    return (number + 0.5) / 64  # exact in float32


def fate(number: int) -> str:
    if not is_ok(number):
        return "http_404"
    if number % 7 == 0:
        return "near_copy"
    return "kept" if p_of(number) < 0.6 else "noise"


def write_pictures(out: Path) -> None:
    """Pair 1's stored bytes are no picture."""
    (out / "raw").mkdir(parents=True)
    rows = []
    with TarWriter(out / "raw" / "00000.tar") as tar:
        for number in range(N):
            row = {
                "uid": uid(number),
                "url_hash": schema.text_hash(url(number)),
                "key": "k",
                "url": url(number),
            }
            row |= {"caption": caption(number), "outcome": "ok" if is_ok(number) else "http_404", "wave": 0}
            row |= {"http_status": 200 if is_ok(number) else 404}
            if is_ok(number):
                data = b"no picture" if number == 1 else picture(number)
                row |= {"offset": tar.add(f"{number}.jpg", data), "size": len(data), "format": "jpeg"}
                row |= {"original_width": 200, "original_height": 100 + number, "original_bytes": 1000}
            rows.append(row)
    put(out / "raw" / "00000.parquet", schema.RAW, rows)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pairs with hostile captions, every tenth not fetched, scores by number, decided; a model's files."""
    out = tmp_path_factory.mktemp("out")
    pairs = [
        {"uid": uid(n), "url": url(n), "caption": caption(n), "source": "list", "source_row": n}
        for n in range(N)
    ]
    put(out / "pairs" / "0000-00000.parquet", schema.PAIRS, pairs)
    spoken = [{"uid": uid(n), "lang_v1": "en" if n % 3 else None, "lang_prob_v1": 0.5} for n in range(N)]
    put(out / "scores" / "language" / "0000-00000.parquet", schema.LANGUAGE, spoken)
    write_pictures(out)
    ok = [n for n in range(N) if is_ok(n)]
    near = [
        {"uid": uid(n), "near_group_v1": uid(n), "near_rank_v1": 0, "near_size_v1": 1 + n % 3} for n in ok
    ]
    put(out / "scores" / "near" / "near.parquet", schema.NEAR, near)
    scores = [{"uid": uid(n), "fold": 0, "cosine_v1": 1 - p_of(n)} for n in ok]
    put(out / "scores" / "embedding" / "00000.parquet", schema.EMBEDDING, scores)
    noise = [{"uid": uid(n), "cosine_v1": 1 - p_of(n), "mismatch_p_v2": p_of(n)} for n in ok]
    put(out / "scores" / "noise" / "00000.parquet", schema.NOISE, noise)
    kept = sorted(uid(n) for n in range(N) if fate(n) == "kept")
    write_selection(pa.array(kept, pa.binary(16)), out / "selection" / "dataset.parquet")
    reasons = [{"uid": uid(n), "reason": fate(n)} for n in range(N) if fate(n) != "kept"]
    put(out / "selection" / "dataset.reasons.parquet", schema.REASONS, reasons)
    found = {"en": {"pairs": 54, "noise": 0.25, "auc": 0.875, "kept_by_asked": {"0.05": 30}}}
    calibration = {"languages": found, "kept_by_asked": {"0.2": 40, "0.05": 30}}
    write_json(calibration, out / "scores" / "noise" / "calibration.json")
    tally(out, "ingest", {"pair": N, "<b>bad</b>": 3})
    tally(out, "screen", {"kept": N})
    tally(out, "fetch", dict(Counter("ok" if is_ok(n) else "http_404" for n in range(N))))
    tally(out, "decide", dict(Counter(fate(n) for n in range(N))))
    (out / "recipe.yaml").write_text("decide: {max_noise: 0.05}\n")
    write_json({"curve": {"step": [5, 9], "loss": [3.0, 2.0]}}, out / "model/dataset/train.json")
    write_json({"models": {"dataset": {"retrieval": {"r1": 0.25}}}}, out / "model" / "eval.json")
    return out


def build(out: Path, **settings: Any) -> str:
    stage = report_stage(out, Report(**settings), "small")
    report = run_stage(out, stage, report_tasks(out), Here(), Quiet(), inputs=str(settings))
    assert not report.failed, report.failed
    return (out / "report" / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(out: Path) -> str:
    return build(out, title="<i>Title</i>", pictures_per_reason=3)


class Reader(HTMLParser):
    """Collects tags and attributes, and checks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def test_the_page_has_no_script_and_loads_nothing(html: str) -> None:
    found = read(html)
    assert set(found.tags) <= ALLOWED, set(found.tags) - ALLOWED
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href"):
            assert value.startswith("data:image/jpeg;base64," if tag == "img" else "#"), (
                tag,
                name,
                value[:40],
            )
    assert not re.search(r"url\(|@import|javascript:", html)


def test_hostile_text_is_shown_and_does_nothing(html: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "&lt;i&gt;Title&lt;/i&gt;" in html
    assert "&lt;b&gt;bad&lt;/b&gt;" in html
    assert "一只红色的风筝" in html
    assert not set("\x1b\u202e\u202c\u2066\u200b\ufeff") & set(html)
    assert max(map(len, re.findall(r"(?:long )+", html))) <= 600
    assert max(map(len, re.findall("\u0301+", html))) <= 8


def test_every_picture_has_a_text_and_every_table_has_headers(html: str) -> None:
    found = read(html)
    texts = [value for tag, name, value in found.attributes if (tag, name) == ("img", "alt")]
    assert len(texts) == found.tags["img"] > 0
    assert all(texts)
    scopes = [value for tag, name, value in found.attributes if (tag, name) == ("th", "scope")]
    assert len(scopes) == found.tags["th"]
    assert found.tags["caption"] == found.tags["table"]


def test_the_links_lead_to_sections_of_the_page(html: str) -> None:
    found = read(html)
    ids = [value for _, name, value in found.attributes if name == "id"]
    links = [value[1:] for tag, name, value in found.attributes if (tag, name) == ("a", "href")]
    assert len(ids) == len(set(ids))
    assert links == [key for key in ids if not key.endswith("-h")]
    assert "models" in links
    assert "0.25" in html.partition('id="models"')[2]


def test_the_page_starts_with_the_verdict(html: str) -> None:
    kept = sum(fate(n) == "kept" for n in range(N))
    assert f"{N + 3} rows in, {kept} pairs kept" in html
    assert "asked for at most 5&nbsp;% noise" in html


def test_the_noise_section_tells_what_was_estimated_and_what_it_costs(html: str) -> None:
    section = html.partition('<section id="noise"')[2].partition("</section>")[0]
    assert "estimated noise, 25.0 %" in section
    assert re.findall(r'<th scope="row">(\d+ %)</th><td class="n">(\d+)</td>', section) == [
        ("5 %", "30"),
        ("20 %", "40"),
    ]
    assert "0.875" in section


def test_the_same_folder_gives_the_same_page(out: Path, html: str) -> None:
    content = report.collect(
        out, Report(title="<i>Title</i>", pictures_per_reason=3), "small", report_tasks(out)[0]
    )
    again = page.render(content)
    before_times = html.partition('<section id="time"')[0]
    assert again.startswith(before_times)


@pytest.mark.parametrize("missing", ["everything", "after ingest", "after fetch"])
def test_a_stopped_run_has_a_smaller_page(out: Path, tmp_path: Path, missing: str) -> None:
    folders = {"everything": [], "after ingest": ["pairs"], "after fetch": ["pairs", "raw"]}[missing]
    for folder in folders:
        (tmp_path / folder).symlink_to(out / folder)
    if folders:
        tally(tmp_path, "ingest", {"kept": N})
    html = build(tmp_path)
    assert "Unfinished" in html
    assert ('id="web"' in html) == ("raw" in folders)
    assert ('id="pairs"' in html) == ("pairs" in folders)
    assert 'id="noise"' not in html
    read(html)


def test_distributions_equal_their_slow_definitions(out: Path) -> None:
    with opened(out) as tables:
        tables.select("dataset")
        found = distributions(tables)
    ok = [n for n in range(N) if is_ok(n)]
    lengths = Counter(min(len(caption(n)) // 10, 25) * 10 for n in range(N))
    kept_lengths = Counter(min(len(caption(n)) // 10, 25) * 10 for n in range(N) if fate(n) == "kept")
    assert found["caption_lengths"] == [(e, lengths[e], kept_lengths[e]) for e in sorted(lengths)]
    sides = Counter((100 + n) // 64 * 64 for n in ok)
    assert [(e, n) for e, n, _ in found["shorter_sides"]] == sorted(sides.items())
    bins = Counter(int(p_of(n) * 40) / 40 for n in ok)
    assert [(e, n) for e, n, _ in found["p_values"]] == sorted(bins.items())
    assert found["languages"] == [
        {"language": lang, "pairs": len(of), "fetched": sum(map(is_ok, of)),
         "kept": sum(fate(n) == "kept" for n in of)}
        for lang, of in (("en", [n for n in range(N) if n % 3]), ("?", [n for n in range(N) if not n % 3]))
    ]  # fmt: skip
    assert dict(found["near_groups"]) == {"1": 18, "2": 18, "3": 18, "4": 0, "5–9": 0, "10–49": 0, "50+": 0}
    slow = [n for n in range(N) if n % 6 == 0]
    assert {line["host"]: (line["pairs"], line["fetched"], line["failure"]) for line in found["hosts"]} == {
        "fast.example": (50, 46, "http_404"),
        "slow.example": (10, sum(map(is_ok, slow)), "http_404"),
    }


def test_a_retried_pair_counts_by_its_last_attempt(out: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for wave, outcome in ((0, "timeout"), (1, "ok")):
        name = f"w{wave}-00000" if wave else "00000"
        row = {"uid": uid(0), "url": url(0), "outcome": outcome, "wave": wave}
        put(tmp_path / "raw" / f"{name}.parquet", schema.RAW, [row])
    with opened(tmp_path) as tables:
        assert [line["outcome"] for line in distributions(tables)["statuses"]] == ["ok"]


def test_samples_are_the_first_of_each_reason_by_uid(out: Path) -> None:
    with opened(out) as tables:
        tables.select("dataset")
        groups = samples.by_reason(tables, 3)
    numbers = [n for n in range(N) if is_ok(n)]
    assert [group.label for group in groups] == ["kept", "noise", "near_copy"]
    for group in groups:
        of = sorted(uid(n).hex() for n in numbers if fate(n) == group.label)
        assert group.total == len(of)
        assert [sample.uid for sample in group.samples] == of[:3]


def test_score_samples_go_from_the_worst_to_the_best(out: Path) -> None:
    with opened(out) as tables:
        groups = samples.by_score(tables, 2)
    scores = [[round(sample.p or 0, 4) for sample in group.samples] for group in groups]
    ok = sorted(round(p_of(n), 4) for n in range(N) if is_ok(n))
    assert scores[0] == ok[:-3:-1]
    assert scores[4] == ok[:2]
    assert ok[len(ok) // 2 - 1] in scores[2]
    assert scores == sorted(scores, reverse=True)


def test_a_stored_picture_that_is_none_is_shown_without_preview(out: Path) -> None:
    with opened(out) as tables:
        tables.select("dataset")
        groups = samples.by_reason(tables, N)
    pictures = {sample.uid: sample.picture for group in groups for sample in group.samples}
    assert [key for key, picture in pictures.items() if picture is None] == [uid(1).hex()]


def test_previews_are_small_jpegs_without_metadata() -> None:
    source = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "secret"
    Image.new("RGB", (500, 300)).save(source, "JPEG", exif=exif)
    small = samples.shrink(source.getvalue())
    assert small is not None
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.size) == ("JPEG", (128, 77))
        assert "exif" not in image.info
    assert b"secret" not in small


def test_what_is_no_usable_picture_has_no_preview() -> None:
    whole = picture(3, "PNG")
    huge = bytearray(whole)
    huge[16:24] = (60_000).to_bytes(4, "big") * 2  # a header that promises 3,600 megapixels
    gif = picture(3, "GIF")
    assert [samples.shrink(bytes(data)) for data in (b"", whole[:60], huge, gif)] == [None] * 4


def test_pictures_are_thinned_until_the_page_is_small_enough(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PICTURE_BYTES", 12_000)
    content = report.collect(out, Report(), "small", report_tasks(out)[0])
    shown = [sample for group in [*content.by_reason, *content.by_score] for sample in group.samples]
    assert 0 < sum(len(sample.data_uri or "") for sample in shown) <= 12_000
    assert len({len(group.samples) for group in content.by_score}) == 1


def test_no_pictures_are_shown_where_none_are_asked_for(out: Path) -> None:
    assert "<figure>" not in build(out, pictures_per_reason=0)


def test_text_is_made_visible() -> None:
    assert visible("a\u202eb\x00c\nd\u200be") == "a\ufffdb\ufffdc d\ufffde"
    assert visible("x" * 300) == "x" * 200 + "…"
    assert visible("می\u200cخواهم 👩\u200d🔬") == "می\u200cخواهم 👩\u200d🔬"
    assert escape("\"'<&>") == "&quot;&#x27;&lt;&amp;&gt;"
    assert bdi("a<b") == '<bdi dir="auto">a&lt;b</bdi>'


def test_axis_ticks_are_round_numbers_within_the_axis() -> None:
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.ticks(0, 8_700) == [0, 2_000, 4_000, 6_000, 8_000]
    assert [charts.short(n) for n in (950, 1_200, 34_000, 5_600_000, 0.25)] == [
        "950",
        "1.2k",
        "34k",
        "5.6M",
        "0.25",
    ]


def test_curves_leave_out_what_is_not_finite() -> None:
    drawn = charts.curves("loss", {"a": [(0, 1.0), (1, float("nan")), (2, 0.5)]})
    assert "nan" not in drawn
    assert charts.curves("loss", {"a": [(0, float("inf"))]}) == ""
    assert len(charts.thinned([(float(n), 1.0) for n in range(10_001)])) <= 300


def test_loss_points_that_are_no_numbers_are_left_out() -> None:
    assert models.loss_points({"curve": {"step": [1, 2], "loss": [2, None]}}) == [(1.0, 2.0)]
    assert models.loss_points({"loss": 3.0}) == []


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1])
def test_text_contrasts_with_its_ground(theme: int) -> None:
    style = page.STYLE.read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    grounds = [(text, ground) for text in ("ink", "soft", "kept", "drop") for ground in ("paper", "card")]
    for text, ground in [*grounds, ("warn", "warn-soft")]:
        light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_a_view_exists_only_where_its_files_do(tmp_path: Path) -> None:
    odd = tmp_path / "it's [1] *"
    put(odd / "pairs" / "0000-00000.parquet", schema.PAIRS, [])
    with opened(odd) as tables:
        assert isinstance(tables, Tables)
        assert tables.have == {"pairs"}
        assert tables.rows("SELECT count(*) FROM pairs") == [(0,)]


def test_runs_that_go_on_and_runs_that_ended_are_drawn_in_one_picture(tmp_path: Path) -> None:
    write_json({"curve": {"step": [5, 9], "loss": [3.0, 2.0]}}, tmp_path / "model/dataset/train.json")
    log = tmp_path / "_log" / "train"
    log.mkdir(parents=True)
    lines = [{"step": step, "loss": 4.0 / step, "grad_norm": 0.5 / step, "evaluation": {}} for step in (1, 2)]
    for name in ("dataset", "strict"):
        (log / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (log / "cut.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step"')
    found = models.training_curves(tmp_path)
    assert found["loss"] == {"dataset": [(5.0, 3.0), (9.0, 2.0)], "strict": [(1, 4.0), (2, 2.0)]}
    assert found["grad_norm"] == {name: [(1, 0.5), (2, 0.25)] for name in ("dataset", "strict")}
    drawn = models.section(None, found)
    assert "Norm of the gradients" in drawn
    assert drawn.count("<polyline") == 4
    assert "Temperature" not in drawn
