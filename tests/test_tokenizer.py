"""The caption tokenizer: any language, any length, the same file every time."""

import json
import pickle
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pairmill.errors import DataError
from pairmill.pretrain.clip_tokens import ClipEncode, clip_encode
from pairmill.pretrain.tokenizer import (
    BEGIN,
    END,
    PAD,
    SPECIAL,
    Encode,
    NamedEncode,
    make_tokenizer,
    open_tokenizer,
    pad_tokens,
)
from pairmill.recipe import Towers

TOWERS = Towers(vocab_size=400, context_length=12)
CAPTIONS = [f"a {c} dog and {n} red cats" for c in ("brown", "black", "white") for n in range(30)]
CAPTIONS += ["一只棕色的狗在草地上", "一只黑色的狗", "ein grüner Hund"] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 400 tokens, trained on 150 short captions in three languages."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(CAPTIONS, TOWERS, folder)
    return folder


def encode(folder: Path, caption: str) -> list[int]:
    tokens, lengths = open_tokenizer(TOWERS, folder / "tokenizer.json")([caption])
    assert len(tokens) == lengths[0]
    return tokens.tolist()


def test_the_same_captions_give_the_same_file(folder: Path, tmp_path: Path) -> None:
    make_tokenizer(iter(CAPTIONS), TOWERS, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_the_vocabulary_has_the_size_asked_for(folder: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) <= 400
    assert [vocabulary[token] for token in SPECIAL] == [PAD, BEGIN, END]


def test_many_scripts_do_not_outgrow_the_vocabulary(tmp_path: Path) -> None:
    captions = ["".join(map(chr, range(start, start + 20))) for start in range(0x4E00, 0x5E00, 20)]
    assert make_tokenizer(captions, TOWERS, tmp_path).get_vocab_size() <= 400


def test_a_caption_begins_and_ends(folder: Path) -> None:
    tokens = encode(folder, "a brown dog")
    assert (tokens[0], tokens[-1]) == (BEGIN, END)
    assert len(tokens) == 5


def test_an_empty_caption_is_its_two_marks(folder: Path) -> None:
    assert encode(folder, "") == [BEGIN, END]


def test_a_long_caption_is_cut_and_still_ends(folder: Path) -> None:
    tokens = encode(folder, "dog " * 50)
    assert len(tokens) == 12
    assert tokens[-1] == END


def test_case_and_width_do_not_matter(folder: Path) -> None:
    assert encode(folder, "A Brown ＤＯＧ") == encode(folder, "a brown dog")


def test_order_does_matter(folder: Path) -> None:
    assert encode(folder, "dog brown") != encode(folder, "brown dog")


def test_chinese_characters_are_never_merged_with_each_other(folder: Path) -> None:
    both, one, other = (encode(folder, text)[1:-1] for text in ("黑狗", "黑", "狗"))
    assert both == one + other


def test_a_special_token_in_a_caption_is_only_text(folder: Path) -> None:
    tokens = encode(folder, "<end> <pad> dog")
    assert tokens.count(END) == 1
    assert PAD not in tokens


@given(st.lists(st.text(max_size=30), max_size=5))
def test_any_text_has_tokens_in_range(folder: Path, captions: list[str]) -> None:
    captions = [caption.encode("utf-8", "replace").decode() for caption in captions]
    tokens, lengths = open_tokenizer(TOWERS, folder / "tokenizer.json")(captions)
    assert len(lengths) == len(captions)
    assert lengths.sum() == len(tokens)
    assert ((tokens > PAD) & (tokens < 400)).all()
    assert (lengths <= 12).all()


def test_rows_are_padded_to_the_longest_up_to_eight() -> None:
    tokens = np.arange(1, 8, dtype=np.int32)
    starts, lengths = np.array([0, 3, 5]), np.array([3, 2, 2], np.int32)
    padded = pad_tokens(tokens, starts, lengths, 77)
    assert padded.tolist() == [[1, 2, 3, 0, 0, 0, 0, 0], [4, 5, 0, 0, 0, 0, 0, 0], [6, 7, 0, 0, 0, 0, 0, 0]]
    assert pad_tokens(tokens, starts, lengths, 5).shape == (3, 5)


def test_a_named_model_has_its_own_tokenizer(tmp_path: Path) -> None:
    tokens, lengths = open_tokenizer(Towers(name="ViT-B-32"), tmp_path / "none")(["a dog", "a"])
    assert lengths.tolist() == [4, 3]
    assert tokens[[0, 3]].tolist() == [49406, 49407]


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train the tokenizer first"):
        open_tokenizer(TOWERS, tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"half')
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        open_tokenizer(TOWERS, tmp_path / "tokenizer.json")


ODD = [
    "",
    "  a \t b ",
    "it's 'S don't",
    "&amp;lt; &nbsp;x",
    "<start_of_text> !<end_of_text>",
    "a" * 400,
    "x " * 200,
]
ODD += ["\x1b[31m red", "ﬁne “q” Ã©tÃ©", "１２３ 红色的狗 собака", "İstanbul ǅ K ſ", "😀👍🏽"]


@given(st.lists(st.text(max_size=40) | st.sampled_from(ODD), max_size=8))
@example(ODD)
@settings(deadline=None)
def test_captions_are_encoded_as_open_clips_own_tokenizer_does(captions: list[str]) -> None:
    ours, theirs = clip_encoders()
    for found in (ours, pickle.loads(pickle.dumps(ours))):
        assert all(
            np.array_equal(one, other) for one, other in zip(found(captions), theirs(captions), strict=True)
        )


@lru_cache(1)
def clip_encoders() -> tuple[Encode, Encode]:
    ours = open_tokenizer(Towers(name="ViT-B-32"), Path("none"))
    assert isinstance(ours, ClipEncode)
    return ours, NamedEncode("ViT-B-32")


def test_a_tokenizer_of_another_kind_is_open_clips_own() -> None:
    assert clip_encode(object()) is None
