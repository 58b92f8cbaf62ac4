"""Evaluation: recall and accuracy against a slow count, and held-out folders of other tools."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st

from pairmill.errors import ConfigError, DataError
from pairmill.pretrain.batch import Batch
from pairmill.pretrain.compare import load_comparison, similar
from pairmill.pretrain.evaluate import evaluate_model, evaluate_stage, evaluate_tasks
from pairmill.pretrain.evaluation.measure import check_evaluate
from pairmill.pretrain.evaluation.retrieval import recalls, wrong_before_right
from pairmill.pretrain.evaluation.sets import read_prompts
from pairmill.pretrain.heldout import _samples, read_needed
from pairmill.pretrain.objectives.encode import encode
from pairmill.pretrain.objectives.interactions import TokenWise
from pairmill.pretrain.objectives.objective import Objective
from pairmill.pretrain.objectives.registry import find_system
from pairmill.pretrain.tokenizer import make_tokenizer, pad_tokens
from pairmill.pretrain.towers import build_towers, save_towers
from pairmill.pretrain.trainer import check_training
from pairmill.recipe import Evaluate, ScorerTraining, Towers
from pairmill.shards.tar import TarWriter

SMALL = Towers(
    image_size=32,
    embed_dim=16,
    vision={"layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
    text={"width": 32, "heads": 2, "layers": 1},
    context_length=16,
    vocab_size=300 + 1,
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with one untrained model, `dataset`, and beside it held-out tars."""
    out = tmp_path_factory.mktemp("out")
    folder = out / "model" / "dataset"
    make_tokenizer(["a red picture", "ein rotes Bild"], SMALL, folder)
    save_towers(build_towers(SMALL), folder)
    _make_retrieval(out / "retrieval")
    _make_classes(out / "classes")
    return out


def picture(grey: int) -> bytes:
    return simplejpeg.encode_jpeg(np.full((40, 40, 3), grey, np.uint8))


def _make_retrieval(folder: Path) -> None:
    """12 samples: 6 pictures, each with an English and a German caption."""
    folder.mkdir()
    with TarWriter(folder / "00000.tar") as tar:
        for number in range(12):
            tar.add(f"{number:06d}.jpg", picture(40 * (number % 6)))
            tar.add(f"{number:06d}.txt", f"picture {number}".encode())
            lang = "en" if number < 6 else "de"
            tar.add(f"{number:06d}.json", json.dumps({"lang": lang}).encode())


def _make_classes(folder: Path) -> None:
    """8 pictures of 4 classes, with prompts in two languages."""
    folder.mkdir()
    with TarWriter(folder / "00000.tar") as tar:
        for number in range(8):
            tar.add(f"{number:06d}.jpg", picture(30 * number))
            tar.add(f"{number:06d}.cls", str(number % 4).encode())
    prompts = {"templates": ["a {} picture", "{}"], "classes": ["black", "dark", "bright", "white"]}
    (folder / "classes.json").write_text(json.dumps({"en": prompts, "zh": prompts}))


def test_every_model_is_evaluated_but_the_scorer(out: Path) -> None:
    settings = Evaluate(retrieval=str(out / "retrieval"), classification=str(out / "classes"))
    stage = evaluate_stage(out, settings)
    tally = stage.start(*stage.args)(evaluate_tasks(out)[0])
    assert tally.counts == {"evaluated": 1}
    found = json.loads((out / "model" / "eval.json").read_text())["models"]["dataset"]
    assert found["retrieval"]["pictures"] == 6
    assert found["retrieval"]["captions"] == 12
    assert sorted(found["retrieval"]["languages"]) == ["de", "en"]
    assert found["retrieval"]["languages"]["de"]["captions"] == 6
    assert found["classification"]["zh"]["classes"] == 4
    assert found["classification"]["en"]["top5"] == 1.0
    before = (out / "model" / "eval.json").read_bytes()
    stage.start(*stage.args)(evaluate_tasks(out)[0])
    assert (out / "model" / "eval.json").read_bytes() == before


def test_samples_whose_picture_cannot_be_decoded_are_counted(out: Path, tmp_path: Path) -> None:
    with TarWriter(tmp_path / "00000.tar") as tar:
        for number in range(5):
            tar.add(f"{number:06d}.jpg", picture(40 * number) if number < 3 else b"\xff\xd8\xff half")
            tar.add(f"{number:06d}.txt", f"picture {number}".encode())
    stage = evaluate_stage(out, Evaluate(retrieval=str(tmp_path)))
    tally = stage.start(*stage.args)(evaluate_tasks(out)[0])
    assert tally.counts == {"evaluated": 1, "undecodable": 2}
    assert tally.facts["dataset"]["retrieval"]["undecodable"] == 2


def test_nothing_held_out_is_nothing_found(out: Path) -> None:
    assert evaluate_model(out / "model" / "dataset", Evaluate()) == {}


def test_saved_towers_are_read_by_open_clip_itself(out: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(out / "model" / "dataset" / "model.safetensors")
    other = build_towers(SMALL, seed=5)
    other.clip.load_state_dict(weights)
    assert torch.equal(other.clip.token_embedding.weight, weights["token_embedding.weight"])


def test_a_right_answer_at_rank_k_counts_from_k_on() -> None:
    base = np.eye(12, dtype=np.float32)
    queries = np.arange(12, 0, -1, dtype=np.float32)[None, :]  # the first row scores best
    ranks = [wrong_before_right(queries, base, np.array([[0, right]]))[0] for right in (0, 1, 4, 5, 9, 10)]
    assert ranks == [0, 1, 4, 5, 9, 10]


def test_any_of_several_captions_finds_its_picture() -> None:
    pictures = np.eye(3, dtype=np.float32)
    captions = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    found = recalls(pictures, captions, np.array([[0, 0], [0, 1], [1, 2], [2, 3]]))
    assert found["picture_to_caption"]["R@1"] == pytest.approx(2 / 3, abs=1e-6)  # a tie counts against
    assert found["caption_to_picture"]["R@1"] == 0.75


def test_a_model_that_gives_one_answer_to_all_finds_nothing() -> None:
    same = np.ones((8, 4), np.float32) / 2
    found = recalls(same, same, np.stack([np.arange(8)] * 2, 1))
    assert found["picture_to_caption"]["R@5"] == found["caption_to_picture"]["R@5"] == 0


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000))
def test_ranks_equal_a_slow_count(n_queries: int, n_base: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, base = rng.normal(size=(n_queries, 3)), rng.normal(size=(n_base, 3))
    pairs = np.stack([np.arange(n_queries), rng.integers(0, n_base, n_queries)], 1)
    pairs = np.concatenate([pairs, np.stack([np.arange(n_queries), rng.integers(0, n_base, n_queries)], 1)])
    slow = []
    for query in range(n_queries):
        scores = queries[query] @ base.T
        right = {b for q, b in pairs.tolist() if q == query}
        best = max(scores[b] for b in right)
        slow.append(sum(scores[b] >= best for b in range(n_base) if b not in right))
    assert wrong_before_right(queries, base, pairs).tolist() == slow


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}x", '{"classes": ["a"]}', '{"classes": [], "templates": ["{}"]}',
     '{"classes": ["a"], "templates": ["no slot"]}', '{"en": 3}'],
)  # fmt: skip
def test_prompts_that_cannot_be_used_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=r"classes\.json"):
        read_prompts(tmp_path / "classes.json")


def test_a_class_that_has_no_name_is_refused(out: Path, tmp_path: Path) -> None:
    with TarWriter(tmp_path / "0.tar") as tar:
        tar.add("0.jpg", picture(9))
        tar.add("0.cls", b"4")
    (tmp_path / "classes.json").write_text('{"classes": ["a", "b"], "templates": ["{}"]}')
    with pytest.raises(DataError, match="only 2 are named"):
        evaluate_model(out / "model" / "dataset", Evaluate(classification=str(tmp_path)))


@pytest.mark.parametrize("cls", [b"2", b"-1", b"cat"])
def test_held_out_sets_are_tried_before_anything_is_started(out: Path, tmp_path: Path, cls: bytes) -> None:
    check_evaluate(Evaluate())
    check_evaluate(Evaluate(retrieval=str(out / "retrieval"), classification=str(out / "classes")))
    with pytest.raises(ConfigError, match=r"^evaluate: .*: no tar there with samples of a picture and \.txt"):
        check_evaluate(Evaluate(retrieval=str(tmp_path / "absent")))
    with pytest.raises(ConfigError, match=r"^evaluate: .*classes\.json: "):
        check_evaluate(Evaluate(classification=str(out / "retrieval")))
    with TarWriter(tmp_path / "0.tar") as tar:
        tar.add("0.jpg", b"never decoded here")
        tar.add("0.cls", cls)
    (tmp_path / "classes.json").write_text('{"classes": ["a", "b"], "templates": ["{}"]}')
    with pytest.raises(ConfigError, match=r"a \.cls"):
        check_evaluate(Evaluate(classification=str(tmp_path)))


def test_a_folder_without_samples_is_refused(out: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tar there"):
        evaluate_model(out / "model" / "dataset", Evaluate(retrieval=str(tmp_path)))


def test_a_model_that_compares_tokens_is_evaluated_token_by_token(tmp_path: Path) -> None:
    """FILIP teaches no pooled row: what evaluation compares is what its loss compared."""
    settings = Towers(
        image_size=32, embed_dim=8, text={"width": 32, "heads": 2, "layers": 1}, context_length=8
    )
    system = find_system({"name": "filip", "dim": 6})
    towers = build_towers(settings).eval()
    objective = Objective(system, towers)
    reference = {"name": "filip", "dim": 6}
    save_towers(towers, tmp_path, system=reference, objective=objective)
    compared = load_comparison(tmp_path)
    dice = np.random.default_rng(0)
    pixels = dice.integers(0, 256, (5, 32, 32, 3), np.uint8)
    captions = ["a b", "c", "d e f g h", "i", "j k"]

    def letters(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [[1, *(ord(letter) for letter in text), 2] for text in texts]
        return np.array([token for row in rows for token in row], np.int32), np.array(list(map(len, rows)))

    tokens, lengths = letters(captions)
    block = pad_tokens(tokens, np.cumsum(lengths) - lengths, lengths, 8).astype(np.int64)
    batch = Batch({"image": torch.from_numpy(pixels), "text": torch.from_numpy(block)})
    with torch.no_grad():
        sides = encode(objective, system, batch)
        expected = TokenWise()(sides["patches"], sides["words"]).numpy()
    pictures, texts = compared.pictures(pixels), compared.captions(captions, letters, 2)
    np.testing.assert_allclose(similar(pictures, texts), expected, atol=1e-5)
    np.testing.assert_allclose(
        similar(pictures, [texts, texts[::-1]]), (expected + expected[:, ::-1]) / 2, atol=1e-5
    )
    pairs = np.stack([np.arange(5), np.arange(5)], 1)
    assert recalls(pictures, texts, pairs)["picture_to_caption"]["R@10"] == 1.0
    with pytest.raises(ConfigError, match="choose another system for bootstrap"):
        check_training(ScorerTraining(towers=settings, system="filip"))


def test_held_out_samples_are_found_wherever_their_members_stand(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "a.tar") as tar:
        for name in ("._a.jpg", "a.jpg", "b.jpg", "a.cls", "._a.cls", "b.cls"):
            tar.add(name, name.encode())
    found = [(picture.name, list(others)) for _, picture, others in _samples(tmp_path, "cls")]
    assert found == [("a.jpg", ["cls"]), ("b.jpg", ["cls"])]
    assert read_needed(tmp_path, need="cls") == [b"a.cls", b"b.cls"]
