"""Sets in CLIP_benchmark's layout, what is measured on them, and how sure that is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from pairmill.errors import ConfigError, DataError
from pairmill.pretrain.compare import Comparison
from pairmill.pretrain.evaluate import evaluate_stage, evaluate_tasks
from pairmill.pretrain.evaluation.intervals import area, bootstrapped_mean_of_classes, wilson
from pairmill.pretrain.evaluation.measure import check_evaluate, measure
from pairmill.pretrain.evaluation.probe import linear_probe
from pairmill.pretrain.evaluation.retrieval import unmatched
from pairmill.pretrain.evaluation.sets import find_sets
from pairmill.pretrain.evaluation.table import markdown
from pairmill.pretrain.tokenizer import make_tokenizer
from pairmill.pretrain.towers import build_towers, open_encoder, save_towers
from pairmill.recipe import Evaluate, Towers
from pairmill.shards.tar import TarWriter

SMALL = Towers(
    image_size=16,
    embed_dim=8,
    vision={"layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    text={"width": 16, "heads": 2, "layers": 1},
    context_length=8,
    vocab_size=301,
)
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


def picture(colour: str, number: int) -> bytes:
    pixels = np.full((20, 20, 3), COLOURS[colour], np.uint8)
    return simplejpeg.encode_jpeg(
        pixels ^ np.random.default_rng(number).integers(0, 24, (20, 20, 3), np.uint8)
    )


def write_tar(path: Path, samples: list[dict[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(path) as tar:
        for number, sample in enumerate(samples):
            for suffix, data in sample.items():
                tar.add(f"s{number:07d}.{suffix}", data)


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """colours: 3 classes, 30 + 15 pictures in two tars, English and German names; pairs: 6 pictures with two
    captions a file; judged: 6 pictures, each with its colour and with another."""
    folder = tmp_path / "sets"
    names = list(COLOURS)
    for split, many in (("train", 30), ("test", 15)):
        samples = [
            {"jpg": picture(names[n % 3], n + 100 * many), "cls": str(n % 3).encode()} for n in range(many)
        ]
        write_tar(folder / "colours" / split / "0.tar", samples[:7])
        write_tar(folder / "colours" / split / "1.tar", samples[7:])
        (folder / "colours" / split / "nshards.txt").write_text("2\n")
    (folder / "colours/classnames.txt").write_text("red\ngreen\nblue\n")
    (folder / "colours/zeroshot_classification_templates.txt").write_text("a {c} picture\nall of it {c}\n")
    (folder / "colours/classnames.de.txt").write_text("rot\ngrün\nblau\n", encoding="utf-8")
    pairs = [{"jpg": picture(names[n % 3], n), "txt": f"{names[n % 3]}\nno {n}\n".encode()} for n in range(6)]
    write_tar(folder / "pairs/test/0.tar", pairs)
    (folder / "pairs/dataset_type.txt").write_text("retrieval")
    judged = [
        {"jpg": picture(names[n % 3], n), "txt": names[(n + wrong) % 3].encode(), "match": match}
        for wrong, match in ((0, b"1"), (1, b"0"))
        for n in range(6)
    ]
    write_tar(folder / "judged/test/0.tar", judged)
    (folder / "judged/dataset_type.txt").write_text("matching\n")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a model that has learned nothing."""
    make_tokenizer(["a red picture", "ein rotes Bild"], SMALL, tmp_path / "model/dataset")
    save_towers(build_towers(SMALL), tmp_path / "model/dataset")
    return tmp_path / "model/dataset"


def test_each_set_is_measured_by_its_kind_and_all_of_it_is_in_the_table(sets: Path, model: Path) -> None:
    out = model.parent.parent
    stage = evaluate_stage(out, Evaluate(sets=(str(sets),)))
    check_evaluate(Evaluate(sets=(str(sets),)))
    tally = stage.start(*stage.args)(evaluate_tasks(out)[0])
    assert tally.counts == {"evaluated": 1}
    found = json.loads((out / "model/eval.json").read_text())["models"]["dataset"]["sets"]
    assert sorted(found) == ["colours", "judged", "pairs"]
    assert sorted(found["colours"]["classification"]) == ["", "de"]
    assert found["colours"]["classification"][""]["pictures"] == 15
    assert found["colours"]["linear_probe"]["trained_on"] == 30
    assert found["colours"]["linear_probe"]["top1"] == 1.0  # colours are in the rows of any tower
    assert found["pairs"]["retrieval"]["captions"] == 3 + 6  # three colours, six numbers
    assert found["pairs"]["retrieval"]["pictures"] == 6
    assert found["judged"]["matching"]["matched"] == 6
    table = (out / "model/eval.md").read_text()
    for row in ("sets colours linear_probe top1", "sets judged matching auc", "R@10", "unmatched_auc"):
        assert row in table


def test_sets_are_given_one_by_one_too_and_the_probe_may_be_left_out(sets: Path, model: Path) -> None:
    from pairmill.pretrain.compare import load_comparison

    settings = Evaluate(sets=(str(sets / "colours"),), probe=False)
    found = measure(load_comparison(model), open_encoder(model), settings)
    assert list(found["sets"]["colours"]) == ["classification"]


class Knows(Comparison):
    """A model that sees the colour in pictures and the word in captions, and nothing else."""

    def pictures(self, pixels: np.ndarray) -> np.ndarray:
        """One-hot rows."""
        return np.eye(3, dtype=np.float32)[pixels.reshape(len(pixels), -1, 3).mean(1).argmax(1)]

    def captions(self, captions, encode, batch) -> np.ndarray:
        """One-hot rows; equal ones where no colour is named."""
        rows = [[float(name in caption) for name in COLOURS] for caption in captions]
        rows = np.array([row if any(row) else [0.1] * 3 for row in rows], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_model_that_knows_finds_everything(sets: Path, model: Path) -> None:
    from pairmill.pretrain.towers import load_towers

    found = measure(Knows(load_towers(model)), open_encoder(model), Evaluate(sets=(str(sets),)))["sets"]
    assert found["colours"]["classification"][""]["top1"] == 1.0
    assert found["colours"]["classification"]["de"]["top1"] == 0.0  # ties count against the model
    assert found["judged"]["matching"]["auc"] == 1.0
    assert found["pairs"]["retrieval"]["picture_to_caption"]["R@1"] == 1.0
    assert found["pairs"]["retrieval"]["unmatched_auc"] > 0.5


def harm(sets: Path, name: str) -> None:
    colours = sets / "colours"
    if name == "count":
        (colours / "test/nshards.txt").write_text("3")
    elif name == "names":
        (colours / "classnames.txt").unlink()
        (colours / "classnames.de.txt").unlink()
    elif name == "template":
        (colours / "zeroshot_classification_templates.txt").write_text("a picture")
    elif name == "kind":
        (colours / "dataset_type.txt").write_text("riddles")
    elif name == "few":
        (colours / "classnames.txt").write_text("red\ngreen\n")
    elif name == "match":
        write_tar(sets / "judged/test/0.tar", [{"jpg": picture("red", 0), "txt": b"red", "cls": b"1"}])
    else:
        for path in (colours / "test").glob("*.tar"):
            path.unlink()
        (colours / "test/nshards.txt").unlink()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("count", r"says '3' tars, but there are 2"),
        ("names", "no classnames.txt there"),
        ("template", "a template without {c}"),
        ("kind", "'riddles', expected one of classification, retrieval, matching"),
        ("few", "class 2 in a .cls, but only 2 are named"),
        ("match", "no tar there with samples of a picture and .match"),
        ("tars", "no tar there"),
    ],
)
def test_a_set_that_is_not_whole_is_refused_before_anything_starts(sets: Path, name: str, said: str) -> None:
    harm(sets, name)
    with pytest.raises(ConfigError, match=said):
        check_evaluate(Evaluate(sets=(str(sets),)))


def test_a_folder_without_sets_and_two_of_a_name_are_refused(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no evaluation set there"):
        find_sets([tmp_path / "none"])
    with pytest.raises(DataError, match="a second evaluation set 'colours'"):
        find_sets([sets, sets / "colours"])


def test_wilsons_interval_is_that_of_the_text_book() -> None:
    assert wilson(8, 10) == [0.490162, 0.943318]  # Wilson 1927; R: prop.test(8, 10, correct = FALSE)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 0) == [0.0, 1.0]


@given(st.integers(1, 60), st.data())
def test_wilsons_interval_holds_the_share(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n + 1e-6
    assert hits / n - 1e-6 <= high <= 1


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12)
)
def test_the_area_is_the_slow_count(good: list[int], bad: list[int]) -> None:
    slow = np.mean([(g > b) + 0.5 * (g == b) for g in good for b in bad])
    value, (low, high) = area(np.array(good, float), np.array(bad, float))
    assert value == pytest.approx(slow, abs=1e-6)
    assert low <= value <= high


def test_the_mean_of_classes_is_as_sure_as_the_classes_are_large() -> None:
    narrow = bootstrapped_mean_of_classes(np.array([500, 700]), np.array([1000, 1000]))
    wide = bootstrapped_mean_of_classes(np.array([5, 7]), np.array([10, 10]))
    assert narrow[0] < 0.6 < narrow[1]
    assert wide[1] - wide[0] > 5 * (narrow[1] - narrow[0])


def test_a_probe_learns_what_rows_show_and_nothing_else() -> None:
    dice = np.random.default_rng(0)
    labels = np.arange(400) % 4
    rows = np.eye(4)[labels] + dice.normal(0, 0.2, (400, 4))
    found = linear_probe(rows[:200], labels[:200], rows[200:], labels[200:])
    assert found["top1"] > 0.95
    assert found["top1_interval"][0] < found["top1"] <= found["top1_interval"][1]
    noise = dice.normal(0, 1, (400, 4))
    assert linear_probe(noise[:200], labels[:200], noise[200:], labels[200:])["top1"] < 0.4


def test_unmatched_pairs_are_wrong_ones() -> None:
    pairs = np.array([[0, 0], [0, 1], [1, 2], [1, 0]])
    right = {tuple(pair) for pair in pairs.tolist()}
    wrong = unmatched(pairs)
    assert len(wrong)
    assert not right & {tuple(pair) for pair in wrong.tolist()}


def test_tables_of_models_have_the_same_rows() -> None:
    a = {"sets": {"x": {"top1": 0.5, "top1_interval": [0.4, 0.6], "pictures": 7}}}
    b = {"retrieval": {"R@1": 0.25, "R@1_interval": [0.2, 0.3]}}
    text = markdown({"a": a, "b": b})
    first, second = (part.splitlines() for part in text.split("\n## ")[1:])
    keys = [[line.split("|")[1] for line in part if line.startswith("|")] for part in (first, second)]
    assert keys[0] == keys[1] == [" measure ", "---", " sets x top1 ", " retrieval R@1 "]
    assert "| sets x top1 | 0.5000 | 0.4000 | 0.6000 |" in first
    assert "| sets x top1 | – | – | – |" in second
