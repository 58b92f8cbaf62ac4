"""The shipped sets: each new number at its boundary, counts on a made table, sets and words from files."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruled import (  # pyright: ignore[reportImplicitRelativeImport]
    GIVEN,
    ROW,
    VALUES,
    reason_of,
    reasons,
    words,
)

from pairmill import recipe as models
from pairmill.errors import ConfigError, DataError
from pairmill.filter.columns import check_given
from pairmill.filter.rules import check_rules, compile_rules, resolve
from pairmill.filter.rulesets import SETS, meanings, rules_of
from pairmill.filter.told import list_sets, tell_set
from pairmill.recipe import Rules, build_recipe, load_recipe
from pairmill.rule_files import MOST_WORDS
from pairmill.shards.schema import PAIRS


def given(**columns: Any) -> dict[str, str]:
    """The list's columns, some of them changed; None takes one away."""
    return {"given": json.dumps({k: v for k, v in {**GIVEN, **columns}.items() if v is not None})}


SIDES = ("original_width", "original_height")


def sides(width: int, height: int) -> dict[str, int]:
    return dict(zip(SIDES, (width, height), strict=True))


BOUNDARIES = [
    ("laion400m_score", {"cosine_v1": 0.3}, None),
    ("laion400m_score", {"cosine_v1": 0.2999}, "cosine"),
    ("laion400m_score", {"cosine_v1": None}, "not_scored"),
    ("laion400m_score", {"lang_v1": "de"}, "language_other"),
    ("laion_nsfw", given(NSFW="UNSURE"), "nsfw"),
    ("laion_nsfw", given(NSFW=None), "nsfw_unknown"),
    ("laion_nsfw", {"given": None}, "nsfw_unknown"),
    ("laion_safety", {**given(NSFW="UNSURE"), "caption": "two kids at play"}, "unsafe_young"),
    ("laion_safety", {**given(NSFW="UNSURE"), "caption": "two men at play"}, None),
    ("laion_safety", {"caption": "two kids at play"}, None),
    ("laion_safety", given(NSFW=None), "nsfw_unknown"),
    ("relaion_safety", {"blocked_v1": True}, "blocked"),
    ("leaks", {"blocked_v1": True}, "blocked"),
    ("leaks", {"leak_of_v1": "coco/1.jpg"}, "leak"),
    ("placeholders", {"host_copies_v1": 9}, None),
    ("placeholders", {"host_copies_v1": 10}, "placeholder"),
    ("leaks", {"leak_caption_of_v1": "coco/1.jpg"}, None),
    ("filip_text", {"lang_v1": None}, "language_unknown"),
    ("filip_text", {"lang_v1": "zh"}, "language_other"),
    ("filip_text", {"caption": "DSC_0001.JPG"}, "filename"),
    ("filip_text", {"images_per_caption_v1": 10}, None),
    ("filip_text", {"images_per_caption_v1": 11}, "caption_common"),
    ("filip_image", sides(200, 600), None),
    ("filip_image", sides(199, 200), "too_small"),
    ("filip_image", sides(200, 601), "aspect"),
    ("datacomp_caption", {"caption": "abcdef"}, "caption_short"),
    ("datacomp_caption", {"caption": "ab cd"}, "caption_short"),
    ("datacomp_caption", {"caption": "ab cde"}, None),
    ("datacomp_caption", {"lang_v1": None}, "language_unknown"),
    ("datacomp_caption", {"lang_v1": "de"}, "language_other"),
    ("datacomp_text_based", {"n_entries_v1": 0}, "no_entry"),
    ("datacomp_text_based", {"n_entries_v1": 1}, None),
    ("datacomp_image_based", given(in_imagenet_cluster=False), "off_target"),
    ("datacomp_image_based", given(in_imagenet_cluster=1), None),
    ("datacomp_image_based", given(in_imagenet_cluster=None), "target_unknown"),
    ("datacomp_laion2b", {"cosine_v1": 0.28}, None),
    ("datacomp_laion2b", {"cosine_v1": 0.2799}, "cosine"),
    ("datacomp_laion2b", {"cosine_v1": None}, "not_scored"),
    ("datacomp_nsfw", given(detoxify=0.1, clip_nsfw=0.1), None),
    ("datacomp_nsfw", given(detoxify=0.101), "nsfw"),
    ("datacomp_nsfw", given(clip_nsfw=0.101), "nsfw"),
    ("datacomp_nsfw", given(clip_nsfw="high"), "nsfw_unknown"),
    ("coyo_nsfw", given(nsfw_score_opennsfw2=0.5, nsfw_score_gantman=0.5), None),
    ("coyo_nsfw", given(nsfw_score_gantman=0.501), "nsfw"),
    ("coyo_nsfw", given(nsfw_score_gantman=None), "nsfw_unknown"),
    ("coyo_text", {"lang_v1": None}, "language_unknown"),
    ("coyo_image", {"original_bytes": 5_000}, None),
    ("coyo_image", sides(199, 300), "too_small"),
    ("coyo_image", sides(200, 601), "aspect"),
    ("cc_boilerplate", {"caption": "Stock photo of a red fox"}, "boilerplate"),
    ("cc3m_text", {"caption": "fox fox fox a b"}, None),
    ("cc3m_text", {"caption": "fox fox fox a a"}, "repeated_words"),
    ("cc3m_text", {"caption": "AAAAa"}, None),
    ("cc3m_text", {"caption": "AAAAAa"}, "capitals"),
    ("cc3m_text", {"caption": "IMG_1234"}, "filename"),
    ("cc3m_image", sides(401, 802), None),
    ("cc3m_image", sides(400, 500), "too_small"),
    ("cc3m_image", sides(401, 803), "aspect"),
    ("cc3m_image", {"format": "png"}, "format"),
    ("cc12m_text", {"caption": words(3)}, None),
    ("cc12m_text", {"caption": words(2)}, "caption_short"),
    ("cc12m_text", {"caption": words(256)}, None),
    ("cc12m_text", {"caption": words(257)}, "caption_long"),
    ("cc12m_image", sides(402, 1_005), None),
    ("cc12m_image", sides(402, 1_006), "aspect"),
    ("cc12m_image", sides(400, 500), "too_small"),
    ("redcaps", given(score=2), None),
    ("redcaps", given(score=1), "few_votes"),
    ("redcaps", given(score=None), "votes_unknown"),
    ("redcaps", given(over_18=True), "nsfw"),
    ("redcaps", given(over_18=None), "nsfw_unknown"),
    ("redcaps", {"url": "https://i.redd.it.example.com/a.jpg"}, "host_other"),
    ("wit", sides(100, 900), None),
    ("wit", sides(99, 900), "too_small"),
    ("wit", {"format": "gif"}, "format"),
    ("wit", {"caption": words(2)}, "caption_short"),
    ("wit", {"caption": words(3)}, None),
    ("webli_ocr", given(ocr="a red bus"), None),  # 2 of 6 words
    ("webli_ocr", given(ocr="a red fox"), None),  # 3 of 6
    ("webli_ocr", given(ocr="A red FOX in"), "caption_in_picture"),
    ("webli_ocr", given(ocr=None), "ocr_unknown"),
    ("lit_title", {"caption": "DSC00012 the lake"}, "filename"),
    ("lit_title", {"caption": "Picture of us"}, "filename"),
    ("lit_title", {"caption": "Image"}, "boilerplate"),
    ("lit_title", {"caption": "ab12"}, None),
    ("lit_title", {"caption": "a12"}, "digits"),
    ("yfcc15m", {"caption": "12 !"}, "no_letters"),
    ("yfcc15m", {"lang_v1": "fr"}, "language_other"),
    ("yfcc15m", {"caption": "P1010012"}, "filename"),
    ("clip_queries", {"n_entries_v1": 0, "entry_rank_v1": None}, "no_entry"),
    ("clip_queries", {"entry_rank_v1": 19_999}, None),
    ("clip_queries", {"entry_rank_v1": 20_000}, "entry_surplus"),
    ("metaclip", {"n_entries_v1": 0}, "no_entry"),
    ("metaclip", {"entry_draw_v1": 0.5, "entry_share_v1": 0.5}, "entry_draw"),
    ("metaclip", {"entry_draw_v1": 0.49, "entry_share_v1": 0.5}, None),
    ("florence", sides(199, 300), "too_small"),
    ("florence", {"near_rank_v1": 1}, "near_copy"),
    ("florence", {"entry_rank_v1": 20_000}, "entry_surplus"),
    ("flava_pmd", {"caption": words(2)}, "caption_short"),
    ("flava_pmd", {"caption": words(3)}, None),
    ("flava_pmd", {"lang_v1": None}, "language_unknown"),
    ("sbu", {"caption": "a red fox, deep snow"}, "no_preposition"),
    ("sbu", {"caption": "a fox ON snow"}, None),
    ("datacomp_image_and_clip", given(in_imagenet_cluster=False), "off_target"),
    ("datacomp_text_and_clip", {"n_entries_v1": 0}, "no_entry"),
]


@pytest.mark.parametrize("name", sorted({name for name, _, _ in BOUNDARIES}))
def test_a_set_holds_at_its_boundaries(name: str) -> None:
    cases = [(row, reason) for other, row, reason in BOUNDARIES if other == name]
    rules = Rules(sets=(name,), values=VALUES.get(name, {}))
    found = [reasons(rules, {**ROW.get(name, {}), **row})[0] for row, _ in cases]
    assert list(zip([row for row, _ in cases], found, strict=True)) == cases


def test_what_a_source_leaves_open_is_switched_on_by_its_value() -> None:
    assert reason_of("filip_text", {"sensitive_words": ["Spam"]}, caption="a SPAM fox") == "sensitive"
    assert reason_of("coyo_text", {"profane_words": ["damn"]}, caption="a damn red fox") == "sensitive"
    assert reason_of("coyo_text", {"profane_words": ["damn"]}, caption="a damned red fox") is None
    assert reason_of("leaks", {"captions": True}, leak_caption_of_v1="coco/1.jpg") == "leak_caption"
    assert reason_of("sbu", {"terms": ["fox", "snow"]}) is None
    assert reason_of("sbu", {"terms": ["fox", "tree"]}) == "few_terms"


def test_a_share_of_the_best_is_exact() -> None:
    rows = [{"uid": number.to_bytes(16, "big"), "cosine_v1": number / 100} for number in range(100)]
    best = reasons(Rules(sets=("datacomp_clip_score",)), *rows)
    assert [reason is None for reason in best] == [number >= 69 for number in range(100)]  # score at rank 30
    tied = [{**row, "cosine_v1": min(0.8, row["cosine_v1"])} for row in rows]
    assert reasons(Rules(sets=("datacomp_clip_score",)), *tied).count(None) == 31
    tied = [{**row, "cosine_v1": min(0.5, row["cosine_v1"])} for row in rows]
    assert (
        reasons(Rules(sets=("datacomp_clip_score",)), *tied).count(None) == 50
    )  # ties of the threshold stay
    tongues = [{**row, "lang_v1": "zh" if number % 5 == 0 else "en"} for number, row in enumerate(rows)]
    found = reasons(Rules(sets=("webli_score",)), *tongues)
    kept = Counter(tongues[n]["lang_v1"] for n, reason in enumerate(found) if reason is None)
    assert kept == {"en": 8, "zh": 2}
    assert reasons(Rules(sets=("webli_score",), values={"by_language": False}), *tongues).count(None) == 10
    half = [*rows[:50], *({**row, "cosine_v1": None} for row in rows[50:])]
    assert Counter(reasons(Rules(sets=("webli_score",)), *half)) == {None: 5, "cosine": 45, "not_scored": 50}


def test_of_each_picture_the_better_half_of_its_captions_stays_and_no_picture_is_lost() -> None:
    rows = [
        {"uid": bytes([picture, caption] * 8), "url_hash": bytes([picture] * 16), "cosine_v1": caption / 10}
        for picture in range(1, 6)
        for caption in range(picture)
    ]
    found = reasons(Rules(sets=("vicha",)), *rows)
    kept = Counter(row["url_hash"][0] for row, reason in zip(rows, found, strict=True) if reason is None)
    assert kept == {1: 1, 2: 1, 3: 2, 4: 2, 5: 3}
    assert set(found) == {None, "rank_in_image"}


def test_every_reason_means_one_thing_that_is_written_down_and_is_tested() -> None:
    from test_rules import BOUNDARIES as OLDER  # pyright: ignore[reportImplicitRelativeImport]

    said = {rule.reason for name in SETS for _, _, rule, _ in rules_of(name, {})}
    assert said == set(meanings())
    tested = {reason for _, _, reason in (*BOUNDARIES, *OLDER)}
    by_value = {
        "caption_surplus",
        "language_other",
        "sensitive",
        "leak_caption",
        "few_terms",
        "rank_in_image",
    }
    assert said - tested - by_value == {"punctuation"} - tested


def test_every_set_has_a_source_and_uses_each_of_its_values() -> None:
    for name in SETS:
        found = SETS[name]
        assert found.about, name
        assert found.source, name
        asked = {
            value
            for bound in resolve(Rules(sets=(name,), values=VALUES.get(name, {})))
            for value in bound.values
        }
        assert {*found.values} <= asked, name
        assert {*found.given} <= {*found.values}, name
        wheres = " ".join(rule.where for rule in found.rules)
        numbers = re.findall(r"(?<![\w.])\d+", re.sub(r"'[^']*'", "", wheres))
        assert set(numbers) <= {"0", "1"}, (name, numbers)  # values are named, never inlined


def made_table() -> list[dict[str, Any]]:
    """The usual pair, and for each of some columns the usual pair with another value there: 58 rows."""
    changes: list[dict[str, Any]] = [
        *({"caption": words(n)} for n in (1, 2, 3, 20, 21, 64, 65, 256, 257)),
        *(
            {"caption": text}
            for text in ("", "12345", "IMG_1234", "Click here", "猫" * 32, "猫" * 33, "abcd")
        ),
        *({"images_per_caption_v1": n} for n in (10, 11)),
        *({"captions_per_image_v1": n} for n in (1_000, 1_001)),
        *({"rarest_token_rank_v1": n} for n in (None, 100_000_001)),
        *({"lang_v1": lang} for lang in ("de", "zh", None)),
        *(sides(n, 640) for n in (99, 100, 199, 200, 201, 400, 401)),
        *(sides(640, n * 64) for n in (20, 25, 30, 31)),
        *({"original_bytes": n} for n in (4_999, 5_000)),
        *({"format": kind} for kind in ("png", "gif")),
        *({"near_rank_v1": n} for n in (1,)),
        *({"cosine_v1": x} for x in (None, 0.25, 0.26, 0.28, 0.3)),
        *({"n_entries_v1": n} for n in (0,)),
        *({"entry_rank_v1": n} for n in (19_999, 20_000)),
        *({"entry_draw_v1": x} for x in (0.5, 0.75)),
        *({"blocked_v1": True}, {"leak_of_v1": "coco/1.jpg"}),
        *({"url": url} for url in ("https://a.b/c.gif", "https://i.redd.it/a.jpg")),
        given(NSFW="NSFW", score=1),
        {"given": None},
    ]
    return [
        {"uid": n.to_bytes(16, "big"), "url_hash": n.to_bytes(16, "big")} | row
        for n, row in enumerate([{}, *changes])
    ]


def test_every_set_counts_what_is_expected_on_a_made_table() -> None:
    rows = made_table()
    found = {}
    for name in SETS:
        rules = Rules(sets=(name,), values=VALUES.get(name, {}))
        counts = Counter(reason or "kept" for reason in reasons(rules, *rows))
        assert sum(counts.values()) == len(rows) == 58
        found[name] = " ".join(f"{reason}={n}" for reason, n in sorted(counts.items()))
    expected = dict(
        line.split(": ", 1)
        for line in (Path(__file__).parent / "expected_counts.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    assert found == expected


# Sets and words from files


MINE = """
about: big foxes
values: {min_side: 300}
words: {foxes: foxes.txt}
rules:
  - {reason: too_small, where: "least(original_width, original_height) < $min_side"}
  - {reason: no_fox, where: "NOT list_has_any(string_split(lower(caption), ' '), $foxes)"}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """mine.yaml, with foxes.txt beside it."""
    (tmp_path / "foxes.txt").write_text("# words\nfox\n\nvixen\n")
    (tmp_path / "mine.yaml").write_text(MINE)
    return tmp_path / "mine.yaml"


def test_a_set_of_ones_own_is_a_file_and_goes_with_the_recipe(mine: Path) -> None:
    made = build_recipe({"decide": {"rules": {"sets": ["near_copies", str(mine)]}}}, "x")
    rules = made.decide.rules
    assert rules.sets == ("near_copies", "mine")
    assert rules.own["mine"].values == {"min_side": 300, "foxes": ["fox", "vixen"]}
    mine.unlink()  # the recipe has it all
    again = build_recipe(made.model_dump(mode="json"), "again")
    assert again == made
    check_rules(again.decide.rules, "decide")
    cat = {"caption": "a cat"}
    assert reasons(again.decide.rules, {}, cat, {"original_width": 299}) == [None, "no_fox", "too_small"]


def test_files_are_looked_for_beside_the_recipe_too(mine: Path) -> None:
    recipe = mine.with_name("recipe.yaml")
    recipe.write_text("decide: {rules: {sets: [mine.yaml], words: {foxes: foxes.txt}}}")
    assert load_recipe(recipe).decide.rules.own["mine"].about == "big foxes"
    assert load_recipe(recipe).decide.rules.values == {"foxes": ["fox", "vixen"]}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"mine.yaml": None}, "mine.yaml: no such file: expected a rule set in YAML"),
        ({"mine.yaml": "rules: ["}, "mine.yaml: not readable as YAML"),
        ({"mine.yaml": "- a"}, "mine.yaml: a rule set is a mapping, found list"),
        ({"mine.yaml": "about: x\nrule: []"}, "mine.yaml: rule: no such setting; did you mean 'rules'"),
        ({"mine.yaml": "rules: []"}, "mine.yaml: about: Field required"),
        ({"foxes.txt": None}, "foxes.txt: no word list there: No such file"),
        ({"foxes.txt": b"fox\nF\xe4he\n"}, "line 2, byte 5: not UTF-8 .*save the word list as UTF-8"),
        ({"foxes.txt": "# none\n"}, "foxes.txt: 0 words, expected 1 to"),
        ({"foxes.txt": "\n".join(map(str, range(MOST_WORDS + 1)))}, "foxes.txt: 100,001 words"),
    ],
)
def test_a_bad_file_is_one_line(mine: Path, files: dict[str, Any], message: str) -> None:
    for name, content in files.items():
        path = mine.with_name(name)
        path.unlink()
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        build_recipe({"decide": {"rules": {"sets": [str(mine)]}}}, "x")
    assert "\n" not in str(caught.value)


def test_sets_may_hold_others_but_not_themselves() -> None:
    own = {
        "a": {"about": "a", "sets": ["wit"], "values": {"min_side": 50}},
        "b": {"about": "b", "sets": ["c"]},
        "c": {"about": "c", "sets": ["b"]},
    }
    assert reasons(Rules.model_validate({"sets": ["a"], "own": own}), sides(50, 60), sides(49, 60)) == [
        None,
        "too_small",
    ]
    with pytest.raises(ConfigError, match="b > c > b: a set cannot hold itself"):
        compile_rules(Rules.model_validate({"sets": ["b"], "own": own}))


def test_a_column_that_no_list_carries_is_named_with_the_stage_that_would(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    rows = [{"given": '{"NSFW": "UNLIKELY", "alt": 1}'}, {"given": None}]
    pq.write_table(pa.Table.from_pylist(rows, PAIRS), tmp_path / "pairs" / "0000-00000.parquet")
    check_given(tmp_path, ["NSFW"], "set laion_nsfw")
    with pytest.raises(
        DataError, match=r"set redcaps: column 'score' is in none .*stage ingest.*there are: NSFW, alt"
    ):
        check_given(tmp_path, ["score"], "set redcaps")


def test_a_rule_that_ranks_all_rows_is_none_of_the_screen() -> None:
    rank = Rules(extra=(models.Rule("late", "row_number() OVER (ORDER BY uid) > 5"),))
    check_rules(rank, "decide")
    with pytest.raises(ConfigError, match="rule 'late' ranks rows"):
        check_rules(rank, "screen")


def test_a_column_of_a_later_stage_is_named_with_that_stage() -> None:
    with pytest.raises(ConfigError, match=r"original_width is written by stage fetch.*, after these rules"):
        check_rules(Rules(sets=("align_image",)), "screen")


def test_sets_are_listed_one_a_line_and_told_with_rules_values_and_source() -> None:
    lines = list_sets().splitlines()
    assert [line.split()[0] for line in lines] == sorted(SETS)
    told = tell_set("align_text")
    assert "images_per_caption_v1 > $max_images_per_caption" in told
    assert "$vocabulary = 100000000" in told
    assert "Jia et al. 2021" in told
    assert "NSFW" in tell_set("laion_nsfw").splitlines()[-1]
    with pytest.raises(ConfigError, match="did you mean 'align_text'"):
        tell_set("aling_text")


@pytest.mark.parametrize("name", [*models.shipped()])
def test_every_shipped_recipe_names_rules_that_can_work(name: str) -> None:
    made = load_recipe(name)
    for rules, stage in (
        (made.language.rules, "screen"),
        (made.bootstrap.rules, "choose"),
        (made.decide.rules, "decide"),
    ):
        check_rules(rules, stage)
