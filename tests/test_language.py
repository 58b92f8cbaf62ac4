"""Languages of captions: the model, the script, and the answers that they give together."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.errors import ConfigError
from pairmill.filter.language import (
    LanguageIdentifier,
    bundled_model,
    language_stage,
    language_tasks,
    prepare,
)
from pairmill.filter.scripts import BLOCKS, LANGUAGES, NAMES, fits, scripts_of
from pairmill.recipe import Language
from pairmill.shards.schema import LANGUAGE, PAIRS, make_uid, text_hash


@pytest.fixture(scope="module")
def identify() -> LanguageIdentifier:
    return LanguageIdentifier()


def languages(identifier: LanguageIdentifier, *captions: str | None) -> list[str | None]:
    return identifier(pa.array(captions, pa.string())).column("lang_v1").to_pylist()


SCENES = {
    "en": [
        "a red circle above a blue square",
        "two green triangles on a striped ground",
        "three small yellow stars",
        "A large white cross and a black ring",
        "Four Orange Hearts On A Grey Background",
        "PURPLE MOON NEXT TO A HOUSE",
    ],
    "de": [
        "ein roter Kreis über einem blauen Quadrat",
        "zwei grüne Dreiecke auf gestreiftem Grund",
        "drei kleine gelbe Sterne",
        "Ein großes weißes Kreuz und ein schwarzer Ring",
        "vier orange Herzen vor grauem Hintergrund",
        "EIN LILA MOND NEBEN EINEM HAUS",
    ],
    "zh": [
        "红色的圆在蓝色方块上面",
        "条纹背景上的两个绿色三角形",
        "三颗黄色小星星",
        "一个白色大十字和一个黑色圆环",
        "灰色背景上的四颗橙色爱心",
        "紫色月亮旁边有一座房子",
    ],
}


def test_captions_of_scenes_are_in_their_language(identify: LanguageIdentifier) -> None:
    for language, captions in SCENES.items():
        assert languages(identify, *captions) == [language] * len(captions)


@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("the cat sat on the mat", "en"),
        ("THE CAT SAT ON THE MAT", "en"),
        ("le chat est assis sur le tapis", "fr"),
        ("El gato está sentado en la alfombra", "es"),
        ("кошка сидит на ковре", "ru"),
        ("γάτα πάνω στο χαλί", "el"),
        ("ねこがすわっている", "ja"),
        ("東京駅の写真", "ja"),
        ("東京駅", "ja"),
        ("高清图片", "zh"),
        ("红色 Nike Air Max", "zh"),
        ("고양이", "ko"),
        ("แมวนั่งบนเสื่อ", "th"),
        ("قطة على السجادة", "ar"),
        ("बिल्ली चटाई पर बैठी है", "hi"),
        ("სახლი", "ka"),
    ],
)
def test_a_caption_is_in_its_language(identify: LanguageIdentifier, caption: str, language: str) -> None:
    assert languages(identify, caption) == [language]


@pytest.mark.parametrize(
    "caption", [None, "", "12345 !!!", "https://example.com/a-red-house.jpg", "ᏣᎳᎩ", "😀 🎉"]
)
def test_a_caption_without_known_letters_has_no_language(
    identify: LanguageIdentifier, caption: str | None
) -> None:
    assert identify(pa.array([caption], pa.string())).to_pylist() == [{"lang_v1": None, "lang_prob_v1": None}]


def test_probabilities_are_probabilities(identify: LanguageIdentifier) -> None:
    captions = [caption for group in SCENES.values() for caption in group] + ["ok", "xx yy", "日本", "a\nb"]
    found = identify(pa.array(captions)).column("lang_prob_v1").to_pylist()
    assert all(prob is None or 0 < prob <= 1 for prob in found)


def test_a_batch_of_any_size_gives_the_same_answers(identify: LanguageIdentifier) -> None:
    captions = [caption for group in SCENES.values() for caption in group] * 3
    whole = identify(pa.array(captions)).to_pylist()
    assert [identify(pa.array([caption])).to_pylist()[0] for caption in captions] == whole
    assert identify(pa.array([], pa.string())).num_rows == 0


def test_among_leaves_no_other_answer() -> None:
    identify = LanguageIdentifier(among=("en", "de", "zh"))
    assert languages(identify, "rote Schuhe", "le chat", "日本酒", "кошка") == ["de", "en", "zh", None]
    with pytest.raises(ConfigError, match="does not know klingon"):
        LanguageIdentifier(among=("en", "klingon"))


def test_titles_and_capitals_are_lower_cased_and_urls_left_out() -> None:
    captions = ["Red Shoes", "RED SHOES", "der Hund und die Katze", "see http://a.b/c now", "one\ntwo", None]
    expected = ["red shoes", "red shoes", "der Hund und die Katze", "see   now", "one two", ""]
    assert prepare(pa.array(captions))[0] == expected


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        language_stage(tmp_path, Language(model=tmp_path / "absent.bin"))
    other = tmp_path / "other.bin"
    other.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ConfigError, match="not a fastText model"):
        language_stage(tmp_path, Language(model=other))


def test_only_the_binding_is_imported_and_it_predicts_pairs() -> None:
    """Whichever package was installed last: `fasttext/` is never imported, `predict` gives (prob, label)."""
    code = (
        "import sys, pyarrow as pa\n"
        "from pairmill.filter.language import LanguageIdentifier, bundled_model\n"
        "assert LanguageIdentifier()(pa.array(['a red house'])).column(0).to_pylist() == ['en']\n"
        "assert 'fasttext' not in sys.modules\n"
        "import fasttext_pybind\n"
        "model = fasttext_pybind.fasttext(); model.loadModel(str(bundled_model()))\n"
        "(prob, label), = model.predict('a red house\\n', 1, 0.0, 'strict')\n"
        "assert label == '__label__en' and 0 < prob <= 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_script_tables_hold_together() -> None:
    blocks = sorted(block for name in NAMES for block in BLOCKS[name])
    assert all(first <= last for first, last in blocks)
    assert all(one[1] < two[0] for one, two in pairwise(blocks))
    assert set(LANGUAGES) == set(NAMES) - {"Latin"}
    assert fits("en", "Latin")
    assert not fits("en", "Cyrillic")
    assert fits("sr", "Latin")
    assert fits("sr", "Cyrillic")
    assert not fits("zh", "Latin")


def test_the_scripts_of_a_caption_are_all_that_it_has_letters_of_but_latin_where_it_weighs_less() -> None:
    texts = ["abc", "", "привет", "漢字かな", "漢字", "ab 漢", "1 ×÷", "wordword 中", "汉字汉字汉字汉字汉の"]
    expected = ["Latin", "", "Cyrillic", "Kana", "Han", "Han", "", "Latin Han", "Han"]
    found = scripts_of(texts).tolist()
    assert [" ".join(name for bit, name in enumerate(NAMES) if row >> bit & 1) for row in found] == expected


@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("Зимние Reebok Classic Leather черные", "ru"),
        ("Samsung Galaxy S21 Ultra Silicone Cover Case чехол для телефона", "ru"),
        ("Чёрные джинсы Levi's 501 Original Fit", "ru"),
        ("Microsoft Surface Laptop Studio מחשב נייד", "he"),
        ("Sony WH-1000XM4 Wireless Headphones سماعات رأس لاسلكية", "ar"),
        ("เคสโทรศัพท์มือถือ Samsung Galaxy S21 Ultra Silicone", "th"),
        ("Apple MacBook Pro Retina Display 笔记本电脑保护壳", "zh"),
        ("Canon EOS Rebel Digital Camera デジタルカメラのケース", "ja"),
        ("Παπούτσια Nike Air Max", "el"),
        ("КРОССОВКИ ЗИМНИЕ Reebok Classic", "ru"),
        ("the letter Ω in the Greek alphabet and what it means", "en"),
    ],
)
def test_a_caption_with_a_name_in_another_script_is_in_its_language(
    identify: LanguageIdentifier, caption: str, language: str
) -> None:
    assert languages(identify, caption) == [language]


SHORT = ["dog", "a dog", "justice", "iPhone 12", "love"]


def test_short_english_is_english_where_nothing_else_can_be() -> None:
    found = LanguageIdentifier(among=("en",))(pa.array([*SHORT, "собака", "12"]))
    assert found.column("lang_v1").to_pylist() == ["en"] * len(SHORT) + [None, None]
    assert found.column("lang_prob_v1").to_pylist() == [1.0] * len(SHORT) + [None, None]


def test_a_caption_of_unknown_words_gets_the_likeliest_language_with_a_small_probability(
    identify: LanguageIdentifier,
) -> None:
    found = identify(pa.array(SHORT))
    assert found.column("lang_v1").to_pylist() == ["en"] * len(SHORT)
    assert all(0.1 < prob < 0.2 for prob in found.column("lang_prob_v1").to_pylist())
    assert languages(LanguageIdentifier(among=("zh", "ja")), "犬") == ["zh"]


def test_every_language_of_the_model_can_be_the_answer(identify: LanguageIdentifier) -> None:
    assert languages(identify, "Nyns yw res dhis y wul.", "Pyth yw res dhis y wul?") == ["kw", "kw"]


def test_the_stage_writes_row_by_row_and_counts_languages(tmp_path: Path) -> None:
    captions = ["a red house on a hill", "12", "", "ein rotes Haus", "a red house on a hill"]
    rows = [
        {"uid": make_uid("u", caption), "url_hash": text_hash("u"), "caption": caption}
        for caption in captions
    ]
    (tmp_path / "pairs").mkdir()
    for part, some in (("0000-00000", rows), ("0000-00001", [])):
        pq.write_table(pa.Table.from_pylist(some, PAIRS), tmp_path / "pairs" / f"{part}.parquet")
    stage = language_stage(tmp_path, Language())
    worker = stage.start(*stage.args)
    tallies = [worker(task) for task in language_tasks(tmp_path)]
    assert [dict(tally.counts) for tally in tallies] == [{"de": 1, "en": 2, "unknown": 2}, {}]
    table = pq.read_table(tmp_path / "scores" / "language" / "0000-00000.parquet")
    assert table.schema.equals(LANGUAGE)
    assert table.column("uid").to_pylist() == [row["uid"] for row in rows]
    assert table.column("lang_v1").to_pylist() == ["en", None, None, "de", "en"]
    assert bundled_model().name == "lid.176.ftz"
