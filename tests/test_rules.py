"""Rules: each published number at its boundary, and what is refused before work starts."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from ruled import ROW, VALUES, reason_of, reasons, words  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.errors import ConfigError
from pairmill.filter.rules import check_rules, compile_rules, names_in, resolve
from pairmill.filter.rulesets import SETS
from pairmill.filter.sql import database
from pairmill.filter.text import TEXT, TEXT_COLUMNS, with_text
from pairmill.recipe import Rule, Rules


def test_the_usual_pair_passes_every_set_and_every_set_binds() -> None:
    for name in SETS:
        rules = Rules(sets=(name,), values=VALUES.get(name, {}))
        assert (name, reasons(rules, ROW.get(name, {}))) == (name, [None])
        check_rules(rules, "decide")


BOUNDARIES = [
    ("align_image", {"original_width": 200, "original_height": 300}, "too_small"),
    ("align_image", {"original_width": 201, "original_height": 300}, None),
    ("align_image", {"original_width": 300, "original_height": 200}, "too_small"),
    ("align_image", {"original_width": 900, "original_height": 300}, "aspect"),
    ("align_image", {"original_width": 899, "original_height": 300}, None),
    ("align_image", {"original_width": 300, "original_height": 900}, "aspect"),
    ("align_image", {"captions_per_image_v1": 1_000}, None),
    ("align_image", {"captions_per_image_v1": 1_001}, "image_common"),
    ("align_text", {"images_per_caption_v1": 10}, None),
    ("align_text", {"images_per_caption_v1": 11}, "caption_common"),
    ("align_text", {"caption": words(2)}, "caption_short"),
    ("align_text", {"caption": words(3)}, None),
    ("align_text", {"caption": words(20)}, None),
    ("align_text", {"caption": words(21)}, "caption_long"),
    ("align_text", {"rarest_token_rank_v1": 100_000_000}, None),
    ("align_text", {"rarest_token_rank_v1": 100_000_001}, "rare_token"),
    ("align_near", {"near_rank_v1": 1}, "near_copy"),
    ("wukong_text", {"caption": "ab c"}, "no_chinese"),
    ("wukong_text", {"caption": "ab 猫"}, None),
    ("wukong_text", {"caption": "猫" * 32}, None),
    ("wukong_text", {"caption": "猫" * 33}, "caption_long"),
    ("wukong_text", {"caption": "猫.jpg"}, "filename"),
    ("wukong_text", {"caption": "猫", "images_per_caption_v1": 10}, None),
    ("wukong_text", {"caption": "猫", "images_per_caption_v1": 11}, "caption_common"),
    ("wukong_image", {"original_width": 200, "original_height": 400}, "too_small"),
    ("wukong_image", {"original_width": 201, "original_height": 201}, None),
    ("wukong_image", {"original_width": 900, "original_height": 300}, None),
    ("wukong_image", {"original_width": 901, "original_height": 300}, "aspect"),
    ("datacomp_basic", {"original_width": 199, "original_height": 400}, "too_small"),
    ("datacomp_basic", {"original_width": 200, "original_height": 600}, None),
    ("datacomp_basic", {"original_width": 200, "original_height": 601}, "aspect"),
    ("datacomp_basic", {"caption": "two words"}, "caption_short"),
    ("datacomp_basic", {"caption": "a b c"}, "caption_short"),
    ("datacomp_basic", {"caption": "a b cd"}, None),
    ("datacomp_basic", {"lang_v1": "de"}, "language_other"),
    ("datacomp_basic", {"lang_v1": None}, "language_unknown"),
    ("laion_text", {"caption": "abcd"}, "caption_short"),
    ("laion_text", {"caption": "abcde"}, None),
    ("laion_text", {"url": "https://a.b/c.SVG"}, "url_format"),
    ("laion_text", {"url": "https://a.b/c.gif?x=1"}, "url_format"),
    ("laion_text", {"url": "https://a.b/gif.jpg"}, None),
    ("laion_text", {"url": f"https://{'a' * 60}/c.jpg"}, None),
    ("laion_text", {"url": f"https://{'a' * 61}/c.jpg"}, "host_long"),
    ("laion_image", {"original_bytes": 4_999}, "few_bytes"),
    ("laion_image", {"original_bytes": 5_000}, None),
    ("laion_image", {"original_width": 89_478_484, "original_height": 1}, None),
    ("laion_image", {"original_width": 89_478_485, "original_height": 1}, "too_large"),
    ("laion_image", {"original_width": 2**31 - 1, "original_height": 2**31 - 1}, "too_large"),
    ("laion_image", {"format": "gif"}, "format"),
    ("laion_score", {"cosine_v1": 0.28}, None),
    ("laion_score", {"cosine_v1": 0.2799}, "cosine"),
    ("laion_score", {"cosine_v1": 0.26, "lang_v1": "zh"}, None),
    ("laion_score", {"cosine_v1": 0.26, "lang_v1": None}, None),
    ("laion_score", {"cosine_v1": 0.2599, "lang_v1": "zh"}, "cosine"),
    ("laion_score", {"cosine_v1": None}, "not_scored"),
    ("coyo_text", {"caption": words(2)}, "caption_short"),
    ("coyo_text", {"caption": words(200)}, None),
    ("coyo_text", {"caption": " ".join(["ab"] * 256)}, None),
    ("coyo_text", {"caption": " ".join(["ab"] * 257)}, "caption_long"),
    ("coyo_text", {"caption": "a b " + "c" * 996}, None),
    ("coyo_text", {"caption": "a b " + "c" * 997}, "caption_long"),
    ("coyo_text", {"images_per_caption_v1": 11}, "caption_common"),
    ("coyo_image", {"original_bytes": 4_999}, "few_bytes"),
    ("clip_score", {"cosine_v1": 0.3}, None),
    ("clip_score", {"cosine_v1": 0.2999}, "cosine"),
    ("clip_score", {"cosine_v1": None}, "not_scored"),
    ("noise", {"mismatch_q_v1": 0.05}, None),
    ("noise", {"mismatch_q_v1": 0.0501}, "noise"),
    ("noise", {"mismatch_q_v1": None}, "not_scored"),
    ("copies", {"pair_rank_v1": 1}, "pair_copy"),
    ("copies", {"caption_rank_v1": 1_000}, None),
    ("near_copies", {"near_rank_v1": 1}, "near_copy"),
    ("rare", {"images_per_caption_v1": 11}, "caption_common"),
    ("rare", {"caption": "IMG_1234"}, "filename"),
    ("language", {"lang_v1": None, "lang_prob_v1": None}, "language_unknown"),
    ("plain_text", {"caption": "!!!"}, "no_letters"),
    ("plain_text", {"caption": "Click here!"}, "boilerplate"),
    ("plain_text", {"caption": "Image may contain: 2 people"}, "boilerplate"),
    ("plain_text", {"caption": "click here to win"}, "boilerplate"),
    ("plain_text", {"caption": "查看源网页"}, "boilerplate"),
    ("plain_text", {"caption": "Bild vergrößern"}, "boilerplate"),
    ("plain_text", {"caption": "a picture of a house"}, None),
    ("plain_text", {"caption": "house"}, "caption_short"),
    ("plain_text", {"caption": "see www.example.com for more"}, "url"),
    ("plain_text", {"caption": "ab 123 456 789"}, "digits"),
    ("plain_text", {"caption": words(257)}, "caption_long"),
]


@pytest.mark.parametrize("name", sorted({name for name, _, _ in BOUNDARIES}))
def test_a_set_holds_at_its_boundaries(name: str) -> None:
    cases = [(row, reason) for other, row, reason in BOUNDARIES if other == name]
    found = reasons(Rules(sets=(name,), values=VALUES.get(name, {})), *(row for row, _ in cases))
    assert list(zip([row for row, _ in cases], found, strict=True)) == cases


def test_optional_values_switch_rules_on() -> None:
    assert reason_of("copies", {"max_captions_per_image": 2}, caption_rank_v1=2) == "caption_surplus"
    assert reason_of("copies", {"max_captions_per_image": 2}, caption_rank_v1=1) is None
    assert reason_of("language", {"languages": ["en", "zh"]}, lang_v1="de") == "language_other"
    assert reason_of("language", {"languages": ["en", "zh"]}, lang_v1="zh") is None
    assert reason_of("language", {"min_lang_prob": 0.9}, lang_prob_v1=0.9) is None
    assert reason_of("language", {"min_lang_prob": 0.9}, lang_prob_v1=0.89) == "language_unknown"
    assert reason_of("wukong_text", {"sensitive_words": ["Spam"]}, caption="猫 SPAM 狗") == "sensitive"
    assert reason_of("wukong_text", {"sensitive_words": ["Spam"]}, caption="猫 狗") is None


def test_a_value_as_stored_is_not_more_than_as_written() -> None:
    for share in (0.01, 0.05, 0.1, 0.2, 0.3):
        assert reason_of("noise", {"max_noise": share}, mismatch_q_v1=share) is None
        assert reason_of("clip_score", {"min_cosine": share}, cosine_v1=share) is None


def test_the_first_true_rule_names_the_reason() -> None:
    rules = Rules(sets=("align_text", "align_image"), extra=(Rule("late", "true"),))
    small = {"original_width": 10}
    found = reasons(rules, {"caption": "a"} | small, small, {})
    assert found == ["caption_short", "too_small", "late"]


def test_two_sets_keep_their_own_values_and_a_given_value_holds_for_both() -> None:
    both = ("align_image", "wukong_image")  # 3 exclusive, 3 inclusive; both have $small_side and $aspect
    assert reasons(Rules(sets=both[1:]), {"original_width": 900, "original_height": 300}) == [None]
    assert reasons(Rules(sets=both), {"original_width": 900, "original_height": 300}) == ["aspect"]
    given = Rules(sets=both, values={"small_side": 10, "aspect": 20})
    assert reasons(given, {"original_width": 900, "original_height": 50}) == [None]
    mixed = Rules(sets=("plain_text", "align_text"))  # 2 and 3 words
    assert reasons(mixed, {"caption": "red fox"}, {"caption": "a red fox"}) == ["caption_short", None]
    assert {bound.values["min_words"] for bound in resolve(mixed) if "min_words" in bound.values} == {2, 3}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules(sets=("aling_text",)), "no rule set is called 'aling_text'; did you mean 'align_text'"),
        (Rules(sets=("noise",)), r"rule 'noise' needs a value: set rules.values.max_noise"),
        (Rules(sets=("copies",), values={"max_caption": 3}), "no rule has .max_caption; did you mean"),
        (Rules(extra=(Rule("wide", "original_widht > 5"),)), "rule 'wide'.*original_widht"),
        (Rules(extra=(Rule("wide", "original_width >"),)), "rule 'wide'.*yntax|rule 'wide'.*Parser"),
        (Rules(extra=(Rule("two", "true) THEN 1 END; DROP TABLE x; SELECT (1"),)), "one expression|Parser"),
        (Rules(extra=(Rule("cut", "true -- and the rest"),)), ""),
        (Rules(extra=(Rule("file", "(SELECT count(*) FROM read_text('/etc/passwd')) > 0"),)), "rule 'file'"),
        (Rules(extra=(Rule("word", "n_words_v1 < $n"),), values={"n": "many"}), "rule 'word'.*many"),
        (Rules(extra=(Rule("Too Big", "true"),)), "reason 'Too Big': expected a word"),
        (Rules(extra=(Rule("kept", "true"),)), "reason 'kept'"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_before_work_starts(rules: Rules, message: str) -> None:
    if not message:  # a comment ends with its line: the rest of the CASE is not lost
        check_rules(rules, "decide")
        assert reasons(rules, {}) == ["cut"]
        return
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        check_rules(rules, "decide")


def test_a_stage_has_only_the_columns_that_are_there_by_then() -> None:
    wide = Rules(extra=(Rule("wide", "original_width > 5"),))
    with pytest.raises(ConfigError, match=r"Columns at this stage: .*images_per_caption_v1"):
        check_rules(wide, "screen")
    check_rules(wide, "choose")
    noise = Rules(sets=("noise",), values={"max_noise": 0.1})
    with pytest.raises(ConfigError, match="mismatch_q_v1"):
        check_rules(noise, "choose")
    check_rules(noise, "decide")


def test_given_columns_are_read_from_json() -> None:
    rules = Rules(extra=(Rule("unsafe", "given->>'$.nsfw' = 'true'"),))
    check_rules(rules, "screen")
    found = reasons(rules, {"given": '{"nsfw": true}'}, {"given": '{"nsfw": false}'}, {"given": None})
    assert found == ["unsafe", None, None]


def test_values_in_strings_are_no_values() -> None:
    where = "regexp_matches(url, '(jpg|png)$end') AND Width > $b AND \"Url_Hash\" = ''''"
    assert names_in(where) == ({"b"}, {"regexp_matches", "url", "and", "width", "url_hash"})


def test_names_of_columns_may_be_quoted_and_in_capitals() -> None:
    where = 'Original_Width > 5 AND "n_words_v1" > 5 AND N_CHARS_V1 > $n'
    rules = Rules(extra=(Rule("wide", where),), values={"n": 1})
    check_rules(rules, "decide")
    assert reasons(rules, {}) == ["wide"]
    assert {"original_width", "n_words_v1", "n_chars_v1"} <= compile_rules(rules).words


def text_column(name: str, *captions: str) -> list[Any]:
    with database() as connection:
        connection.register("texts", pa.table({"caption": pa.array(captions, pa.string())}))
        return [
            value
            for (value,) in connection.execute(
                f"SELECT {name} FROM {with_text('texts', TEXT_COLUMNS)}"
            ).fetchall()
        ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("n_chars_v1", {"": 0, "abc": 3, "猫と": 2, "😀a": 2, "é": 1}),
        ("n_spaced_v1", {"": 0, "a": 1, "a b  c": 4, "红狐 雪": 2}),
        ("n_words_v1", {"": 0, "a red fox": 3, "红狐狸": 3, "Nike 红鞋, size 42": 5, "ネコ、犬": 3}),
        ("n_han_v1", {"": 0, "fox": 0, "红 fox 狸": 2, "ネコ": 0}),
        ("has_letter_v1", {"": False, "12 !": False, "é": True, "猫": True}),
        ("digit_share_v1", {"": 0.0, "ab12": 0.5, "12": 1.0}),
        ("upper_share_v1", {"": 0.0, "ABcd": 0.5, "12": 0.0}),
        ("punctuation_share_v1", {"": 0.0, "a!?b": 0.5}),
        (
            "plain_caption_v1",
            {"": "", " >> Click Here!": "click here", "«Ohne Titel»": "ohne titel", "a-b": "a-b"},
        ),
        (
            "has_url_v1",
            {"www.a.b": True, "http://x": True, "by example.com": True, "e.g. this": False, "a.b": False},
        ),
    ],
)
def test_a_text_column_is_what_it_says(name: str, expected: dict[str, Any]) -> None:
    assert dict(zip(expected, text_column(name, *expected), strict=True)) == expected


def test_all_text_columns_have_the_stated_types() -> None:
    with database() as connection:
        connection.register("texts", pa.table({"caption": ["a red fox", None]}))
        found = connection.sql(
            f"SELECT {', '.join(TEXT_COLUMNS)} FROM {with_text('texts', TEXT_COLUMNS)}"
        ).to_arrow_table()
    kinds = [pa.bool_() if "bool" in str(kind) else kind for kind in found.schema.types]
    assert (found.schema.names, kinds) == (TEXT.names, TEXT.types)


def test_a_file_name_is_told() -> None:
    names = [
        *("000.jpg", "IMG_4894", "DSC00012.JPG", "DSCN1234", "img 20200101_123456", "P1010012", "my cat.png"),
        *(
            "550e8400-e29b-41d4-a716-446655440000",
            "3f2a9c4d1e",
            "12345",
            "photo-1",
            "Untitled-3",
            "IMG_0001 (2)",
        ),
        *("Screenshot 2020-01-01", "8644566109_195e8db6db_o", "DSC_0042", "wp_20140301_001", "picture1"),
    ]
    captions = [
        *(
            "a red fox",
            "Budapest",
            "Milka Kuh",
            "Boeing 747 at an airport",
            "photo of 2 dogs",
            "figure skating 2014",
        ),
        *(
            "the making of a .gif",
            "facade",
            "added",
            "Image by John",
            "10 best photos",
            "红狐狸 2",
            "fig tree",
            "bee",
        ),
    ]
    found = text_column("filename_like_v1", *names, *captions)
    told = [caption for caption, is_name in zip([*names, *captions], found, strict=True) if is_name]
    assert told == names


def test_boilerplate_is_written_as_it_is_compared() -> None:
    boilerplate = SETS["plain_text"].values["boilerplate"]
    assert isinstance(boilerplate, list)
    assert text_column("plain_caption_v1", *map(str, boilerplate)) == boilerplate
    assert len(boilerplate) > 100
