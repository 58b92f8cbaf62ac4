"""Languages of real captions: accuracy and macro F1 of the bare model and of ours, reliability, and speed.

PAIRMILL_DATA=folder python benchmarks/bench_language.py

Sentences of Tatoeba (100 of each language that lid.176 knows, with their first three words and their first
word), captions of Flickr8k in Chinese, and mixes: the first words of a sentence in another script with a real
product title before or behind it (a third of it, or all), which is in the sentence's language; and a sentence
in Latin letters with one word of another script behind it, which is in the sentence's language too.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import data_folder, machine  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.filter.language import LABEL, LanguageIdentifier, bundled_model, load_binding
from pairmill.filter.scripts import scripts_of

# ISO 639-3 as Tatoeba has it -> the label of lid.176; languages that differ in name only are one
NAMES = """
afr=af ara=ar arq=ar arz=arz aze=az bel=be ben=bn bos=bs bre=br bul=bg cat=ca ceb=ceb ces=cs cmn=zh
cor=kw cym=cy dan=da deu=de dsb=dsb ell=el eng=en epo=eo est=et eus=eu fin=fi fra=fr fry=fy gla=gd
gle=ga glg=gl heb=he hin=hi hrv=hr hsb=hsb hun=hu hye=hy ido=io ile=ie ina=ia ind=id isl=is ita=it
jav=jv jpn=ja kat=ka kaz=kk khm=km kor=ko kur=ku lat=la lit=lt lvs=lv mal=ml mar=mr mhr=mhr mkd=mk
mon=mn nds=nds nld=nl nno=nn nob=no oci=oc pes=fa pms=pms pol=pl por=pt ron=ro rus=ru slk=sk slv=sl
spa=es sqi=sq srp=sr swe=sv swh=sw tam=ta tat=tt tel=te tgl=tl tha=th tuk=tk tur=tr uig=ug ukr=uk
urd=ur uzb=uz vie=vi war=war wuu=zh yid=yi yue=zh zsm=ms amh=am ast=ast gsw=als
"""
CODES = {pair[:3]: pair[4:] for pair in NAMES.split()}
EACH = 100
Captions = tuple[list[str], list[str]]  # texts, languages
Answers = tuple[list[str | None], list[float]]


def tatoeba(folder: Path, each: int | None = EACH) -> Captions:
    """The first `each` sentences of every language; all when None."""
    texts: list[str] = []
    languages: list[str] = []
    seen: dict[str, int] = {}
    with gzip.open(folder / "langid" / "tatoeba112.tsv.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            code, text = line.rstrip("\n").split("\t", 1)
            if code in CODES and (each is None or seen.get(code, 0) < each):
                seen[code] = seen.get(code, 0) + 1
                texts.append(text)
                languages.append(CODES[code])
    return texts, languages


def first_words(texts: Sequence[str], n: int) -> list[str]:
    """The first `n` words; of a script without spaces twice as many characters."""
    return [
        " ".join(text.split()[:n]) if " " in text.strip() or text.isascii() else text[: 2 * n]
        for text in texts
    ]


def titles(folder: Path) -> list[str]:
    """Real product titles, in Latin letters."""
    lines = (folder / "fashion-products" / "products.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [line.split("\t")[1] for line in lines]


def mixes(captions: Captions, names: list[str]) -> dict[str, Captions]:
    """Captions of two scripts, by kind."""
    dice = np.random.default_rng(0)
    latin = scripts_of(captions[0]) == 1
    others = [(t, g) for t, g, is_latin in zip(*captions, latin, strict=True) if not is_latin]
    plain = [(t, g) for t, g, is_latin in zip(*captions, latin, strict=True) if is_latin]
    found: dict[str, Captions] = {}
    loud = [
        first_words([text], 4)[0].upper() + " " + names[n % len(names)] for n, (text, _) in enumerate(others)
    ]
    found["4 words in capitals and a title"] = loud, [language for _, language in others]
    for n in (1, 2, 4):
        for part, cut in (("a third of a title", 3), ("a title", 1)):
            texts = []
            for text, _ in others:
                title = names[dice.integers(len(names))].split()
                words = [first_words([text], n)[0], " ".join(title[: -(-len(title) // cut)])]
                texts.append(" ".join(words[:: dice.choice((1, -1))]))
            found[f"{n} words and {part}"] = texts, [language for _, language in others]
    words = [first_words([others[dice.integers(len(others))][0]], 1)[0] for _ in plain]
    texts = [f"{text} {word}" for (text, _), word in zip(plain, words, strict=True)]
    found["Latin sentences and one foreign word"] = texts, [language for _, language in plain]
    return found


def scores(said: Sequence[str | None], true: Sequence[str]) -> tuple[float, float]:
    """Accuracy, and the mean over the true languages of F1."""
    said_, true_ = np.array([each or "" for each in said]), np.array(true)
    f1 = []
    for language in sorted(set(true)):
        right = ((said_ == language) & (true_ == language)).sum()
        f1.append(2 * right / ((said_ == language).sum() + (true_ == language).sum()))
    return float((said_ == true_).mean()), float(np.mean(f1))


def reliability(answers: Answers, true: Sequence[str]) -> list[str]:
    """For captions by stated probability: how many, the mean stated, the share that was right."""
    right = np.array([one == other for one, other in zip(answers[0], true, strict=True)])
    prob = np.array(answers[1])
    edges = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.01)
    bins = [(prob >= low) & (prob < high) for low, high in pairwise(edges)]
    return [
        f"{low:g}-: n {b.sum()}, said {prob[b].mean():.2f}, right {right[b].mean():.2f}"
        for low, b in zip(edges, bins, strict=False)
        if b.any()
    ]


def ours(identify: LanguageIdentifier) -> Callable[[list[str]], Answers]:
    """The identifier over a list; a caption without a language has probability 0."""

    def answer(texts: list[str]) -> Answers:
        found = identify(pa.array(texts, pa.string()))
        return found.column(0).to_pylist(), [prob or 0.0 for prob in found.column(1).to_pylist()]

    return answer


def bare(texts: list[str]) -> Answers:
    """What the model alone says, Wu and Cantonese as Chinese."""
    said = [predict(text.replace("\n", " "), 1)[0] for text in texts]
    names = [label.removeprefix(LABEL) for _, label in said]
    return [{"wuu": "zh", "yue": "zh"}.get(name, name) for name in names], [prob for prob, _ in said]


predict = load_binding(bundled_model())


def show(what: str, captions: Captions, answer: Callable[[list[str]], Answers], **more: object) -> None:
    """One line: bare and ours."""
    texts, true = captions
    figures = {}
    for name, how in (("bare", bare), ("ours", answer)):
        accuracy, f1 = scores(how(texts)[0], true)
        figures |= {f"{name}_accuracy": round(accuracy, 3), f"{name}_macro_f1": round(f1, 3)}
    print(json.dumps({"captions": what, "n": len(texts), **figures, **more}), flush=True)


def main() -> None:
    """Print one JSON line for each set, then reliability and speed."""
    folder = data_folder("langid")
    answer = ours(LanguageIdentifier())
    sets = tatoeba(folder)
    lengths = {"sentences": sets, "capitals": ([text.upper() for text in sets[0]], sets[1])}
    lengths |= {f"first {n} words": (first_words(sets[0], n), sets[1]) for n in (3, 1)}
    for what, captions in lengths.items():
        show(f"Tatoeba, {what}", captions, answer)
    lines = (folder / "flickr8k" / "captions.zh-human.tsv").read_text(encoding="utf-8").splitlines()[1:]
    chinese = [line.split("\t")[-1] for line in lines][:5_000]
    show("Flickr8k, Chinese", (chinese, ["zh"] * len(chinese)), answer)
    names = titles(folder)
    for what, captions in mixes(sets, names).items():
        show(what, captions, answer)
    mixed = [f"{names[n % len(names)]} {text[:4]}" for n, text in enumerate(chinese)]
    show("Flickr8k, four Chinese characters behind a title", (mixed, ["zh"] * len(mixed)), answer)
    for what, captions in lengths.items():
        print(json.dumps({"reliability": what, "bins": reliability(answer(captions[0]), captions[1])}))
    whole = tatoeba(folder, None)
    for words in (1, 3):
        short = first_words(whole[0], words)
        print(
            json.dumps(
                {
                    "reliability": f"44 % English, first {words} words",
                    "bins": reliability(answer(short), whole[1]),
                }
            )
        )
    table = pq.read_table(folder / "urls-reddit", columns=None)
    name = next(name for name in table.column_names if name in ("caption", "title", "text"))
    captions = table.column(name).slice(0, 100_000).combine_chunks()
    identify = LanguageIdentifier()
    seconds = []
    for _ in range(4):
        start = time.process_time()
        identify(captions)
        seconds.append(time.process_time() - start)
    print(
        json.dumps(
            {
                "speed": "Reddit titles per CPU second",
                "rate": round(len(captions) / min(seconds)),
                **machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
