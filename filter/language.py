"""Stage `language`: which language each caption is in, by fastText's lid.176 and the caption's scripts.

The rule: one answer for one caption, whichever package brought the model's code. Many distributions install
`fasttext_pybind` and a folder `fasttext/` (pairmill asks for fasttext-turbo, which has wheels and is the
fastest), and of two the one installed last overwrites the other. All of them agree on
`fasttext().loadModel(path)` and `.predict(line, k, threshold, "strict") -> [(prob, label)]`, the line ending
in a newline; so this file uses these two and nothing else.

Three things are done to what the bare model says, each measured (benchmarks/bench_language.py): captions in
Title Case or CAPITALS are lower-cased; a language none of whose scripts occurs in the caption is no answer;
and Han text without Kana is told Chinese or Japanese by characters that only one of them has. A caption of
which the model knows no word gets the likeliest language all the same, with the model's small probability.
Wu and Cantonese are reported as `zh`, the code that covers them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import ConfigError
from ..recipe import Language
from ..runner import Stage, Tally, Task, Worker, beat
from ..shards.commit import write_table
from ..shards.files import readable
from ..shards.schema import LANGUAGE
from .columns import part_names
from .scripts import NAMES, fits, han_leaning, scripts_of

MAGIC = (793_712_314).to_bytes(4, "little")  # the first four bytes of every fastText model
LABEL = "__label__"
SAME = {"wuu": "zh", "yue": "zh"}
EVERY = 1_000  # answers; asking for all takes twice as long as asking for the best
EVEN_NONE = -1.0  # the smallest probability of an answer: with 0, labels of none are left out
HAN = 1 << NAMES.index("Han")
LONG_HAN = 5  # characters: Japanese of that length has Kana in it,
JA_IN_HAN = 0.1  # so that without Kana it is this much less likely than the model says
Answer = tuple[str | None, float | None]
Predict = Callable[..., list[tuple[float, str]]]


class Allowed(NamedTuple):
    """What can be the answer: label -> language; the languages; whether the model's best alone will do."""

    labels: dict[str, str]
    languages: frozenset[str]
    first: bool


NOTHING: Answer = (None, None)
URL = r"(?i)(?:https?://|www\.)\S+"
NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
CAPITAL = r"(?:^|[\s\-/(\"'])\p{Lu}"
ROWS = 10_000  # captions at a time: bounds the memory of the script count


def bundled_model() -> Path:
    """fastText's lid.176.ftz, which lies beside this file (see README.md for its source and licence)."""
    return Path(__file__).parent / "lid.176.ftz"


def check_model(model: Path | None) -> Path:
    """The model file that will be loaded. Raises ConfigError where it is none.

    fastText's loader trusts its input, so a file without fastText's mark is never handed to it.
    """
    path = bundled_model() if model is None else model
    try:
        with open(path, "rb") as file:
            mark = file.read(4)
    except OSError as error:
        raise ConfigError(
            f"language.model: {path}: {error.strerror}; give the path of lid.176.bin"
        ) from error
    if mark != MAGIC:
        raise ConfigError(f"language.model: {path}: begins with {mark!r}: not a fastText model")
    return path


def load_binding(path: Path) -> Predict:
    """The model as a function of (one line, how many answers) to its answers, best first."""
    try:
        binding = importlib.import_module("fasttext_pybind")
    except ImportError as error:
        raise ConfigError(
            f"language: fastText is not installed ({error}): pip install fasttext-turbo"
        ) from error
    model = binding.fasttext()
    try:
        model.loadModel(str(path))
    except (ValueError, RuntimeError, MemoryError) as error:
        raise ConfigError(f"language.model: {path}: fastText cannot load it: {error}") from error
    predict = model.predict
    return lambda line, k, least=0.0: predict(line + "\n", k, least, "strict")


class LanguageIdentifier:
    """Name the language of captions; built once per process.

    model: lid.176.bin or .ftz; the bundled one when None.
    among: the only languages that can be the answer, ISO 639-1; any when None.
    Raises ConfigError for a file that is no such model, and for a language it does not know.
    """

    def __init__(self, model: Path | None = None, among: Sequence[str] | None = None) -> None:
        path = check_model(model)
        self._predict = load_binding(path)
        self._silence = self._predict("", EVERY)  # what the model says when it has seen nothing
        known = {label.removeprefix(LABEL) for _, label in self._predict("", EVERY, EVEN_NONE)}
        if not {"en", "zh", "ru"} <= known:
            raise ConfigError(
                f"language.model: {path}: labels such as {min(known)!r}, expected those of lid.176"
            )
        if among is not None and (unknown := sorted(set(among) - known)):
            raise ConfigError(f"language.among: the model does not know {', '.join(unknown)}")
        self._known, self._among = known, among
        self._allowed = cache(self._allow)  # as many as there are sets of scripts

    def _allow(self, scripts: int) -> Allowed:
        """What the answer can be for a text of these scripts (bits); worked out once for each set of them."""
        names = [name for bit, name in enumerate(NAMES) if scripts >> bit & 1]
        codes = {code: SAME.get(code, code) for code in sorted(self._known)}
        labels = {
            LABEL + code: language
            for code, language in codes.items()
            if any(fits(language, name) for name in names)
            and (self._among is None or language in self._among)
        }
        languages = frozenset(labels.values())
        return Allowed(labels, languages, self._among is None and not scripts & HAN and len(languages) > 1)

    def __call__(self, captions: pa.StringArray) -> pa.RecordBatch:
        """(N,) captions to `lang_v1` (NULL: no letters, or of no language that may be) and `lang_prob_v1`.

        The probability is the model's, shared out over the languages that the scripts (and `among`) allow.
        """
        texts, scripts = prepare(captions)
        leaning = self._leaning(texts, scripts)
        predict, allow, silence = self._predict, self._allowed, self._silence[0]
        languages: list[str | None] = []  # two lists, not one of tuples, which would keep the collector busy
        probs: list[float | None] = []
        for row, (text, script) in enumerate(zip(texts, scripts, strict=True)):
            allowed, language, prob = allow(script), None, None
            if allowed.first:  # most captions: all answers cost twice one
                best = predict(text, 1)[0]
                if best != silence:
                    language, prob = allowed.labels.get(best[1]), min(1.0, best[0])
            if language is None:
                language, prob = self._one(text, script, allowed, leaning.get(row, 0))
            languages.append(language)
            probs.append(prob)
        names, values = pa.array(languages, pa.string()), pa.array(probs, pa.float32())
        return pa.record_batch({"lang_v1": names, "lang_prob_v1": values})

    @staticmethod
    def _leaning(texts: list[str], scripts: list[int]) -> dict[int, int]:
        """Row -> `han_leaning` of the texts with Han."""
        rows = [row for row, script in enumerate(scripts) if script & HAN]
        return dict(zip(rows, han_leaning([texts[row] for row in rows]).tolist(), strict=True))

    def _one(self, text: str, scripts: int, allowed: Allowed, leaning: int) -> Answer:
        if not allowed.languages:
            return NOTHING
        if len(allowed.languages) == 1:
            return next(iter(allowed.languages)), 1.0
        if scripts == HAN and leaning and (sure := "zh" if leaning > 0 else "ja") in allowed.languages:
            return sure, 1.0
        return self._shared(self._said(text), allowed, leaning, len(text) if scripts & HAN else 0)

    def _said(self, text: str) -> list[tuple[float, str]]:
        """All that the model says; in lower case where it knows no word or letter group as it stands."""
        for known in (text, text.lower()):
            if self._predict(known, 1)[0] != self._silence[0]:
                return self._predict(known, EVERY)
        return self._silence

    @staticmethod
    def _shared(said: list[tuple[float, str]], allowed: Allowed, leaning: int, n_han: int) -> Answer:
        """The likeliest of the allowed languages, and its share of what the model gives to them.

        leaning: of Han characters, to Chinese (above 0) or to Japanese. n_han: characters of a text with Han.
        """
        sums: dict[str, float] = {}
        for prob, label in said:
            if (language := allowed.labels.get(label)) is not None:
                sums[language] = sums.get(language, 0.0) + prob
        if leaning and {"zh", "ja"} <= sums.keys():
            right, wrong = ("zh", "ja") if leaning > 0 else ("ja", "zh")
            sums[right] += sums.pop(wrong)
        elif n_han >= LONG_HAN and "ja" in sums:
            sums["ja"] *= JA_IN_HAN
        if not sums:
            return NOTHING
        best = max(sums, key=lambda language: (sums[language], language))
        return best, min(1.0, sums[best] / sum(sums.values()))


def prepare(captions: pa.StringArray) -> tuple[list[str], list[int]]:
    """Captions as the model likes them, on one line and without URLs, and the scripts of each (bits).

    Where most words are capitalised they are lower-cased; of a caption of several scripts the words that are
    not Latin alone, for in those the Latin ones are names, and `nike air max` says English more than its own.
    """
    texts = pc.fill_null(captions, "")
    texts = pc.replace_substring_regex(texts, URL, " ")
    texts = pc.replace_substring_regex(texts, r"[\r\n]+", " ")
    capitals = pc.count_substring_regex(texts, CAPITAL)
    words = pc.add(pc.count_substring(texts, " "), 1)
    shouted = pc.greater(pc.multiply(capitals, 2), words)
    lines: list[str] = pc.if_else(shouted, pc.utf8_lower(texts), texts).to_pylist()
    scripts = scripts_of(lines)
    for row in np.flatnonzero(scripts & (scripts - 1) & -shouted.to_numpy(False).astype(np.int64)).tolist():
        lines[row] = NOT_ASCII.sub(lambda found: found.group().lower(), texts[row].as_py())
    return lines, scripts.tolist()


def language_tasks(out: Path) -> list[Task]:
    """One task for each part of pairs."""
    return [Task("language", name) for name in part_names(out)]


def language_stage(out: Path, settings: Language) -> Stage:
    """The stage `language`. Raises ConfigError where the model file cannot be used."""
    return Stage("language", _start, (out, check_settings(settings), settings.among))


def check_settings(settings: Language) -> Path:
    """The model file that will be loaded. Raises ConfigError for a file or a language that cannot work."""
    path = check_model(settings.model)
    if settings.among is not None:
        LanguageIdentifier(path, settings.among)
    return path


def _start(out: Path, model: Path, among: tuple[str, ...] | None) -> Worker:
    return partial(_identify_part, LanguageIdentifier(model, among), out)


def _identify_part(identifier: LanguageIdentifier, out: Path, task: Task) -> Tally:
    """Write scores/language/<part>.parquet. Counts rows by language, NULL as 'unknown'."""
    pairs = pq.read_table(readable(out / "pairs" / f"{task.name}.parquet"), columns=["uid", "caption"])
    answers: list[pa.RecordBatch] = []
    for begin in range(0, len(pairs), ROWS):
        captions = pairs.column("caption").slice(begin, ROWS).combine_chunks()
        answers.append(identifier(captions))
        beat(task, begin, len(pairs))
    schema = pa.schema([LANGUAGE.field("lang_v1"), LANGUAGE.field("lang_prob_v1")])
    found = pa.Table.from_batches(answers, schema)
    table = found.add_column(0, LANGUAGE.field("uid"), pairs.column("uid"))
    write_table(table, out / "scores" / "language" / f"{task.name}.parquet")
    return Tally(_count(found.column("lang_v1")))


def _count(languages: Any) -> dict[str, int]:
    counted = pc.value_counts(pc.fill_null(languages, "unknown").combine_chunks())
    names, counts = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
    return dict(sorted(zip(names, (int(count) for count in np.asarray(counts)), strict=True)))
