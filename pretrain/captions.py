"""Captions to tokens by groups: words that may be dropped, shuffled or told apart, or entities of many words.

The tokens of a word are those that the tokenizer gives it alone; in the tokenizers used here (byte pairs
within words) a caption's tokens are its words' tokens, one after the other. Marks on tokens say where
groups begin. Nothing here imports torch: captions become tokens in the loader's own process.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError
from .tokenizer import GROUPED, OWN_CHARACTER, STARTS, Encode

if TYPE_CHECKING:
    from .objectives.system import Captions

WORD = re.compile(rf"{OWN_CHARACTER}|[^\W_]+(?:['’][^\W_]+)*|[^\w\s]|_")
MINED_FROM = 1_000_000  # captions that frequencies and entities are taken from
KNOWN_WORDS = 200_000  # words whose tokens are remembered
LONGEST = 8  # words of an entity
PMI, LEAST = 3.0, 5  # an entity: two words that meet e^3 times as often as by chance, in 5 captions at least

STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the and or but if of at by for with about into through to from in out on off over under then"
        " once here there all any both each few more most other some such no nor not only own same so than"
        " too very"
        " is are was were be been being has have had do does did it its this that these those he she they"
        " his her their them as i my me we our you your",
    )
)

Words = Sequence[str]
Filter = Callable[[Words], Words]


def split_words(caption: str) -> list[str]:
    """Its words, punctuation marks and Chinese or Japanese characters, lower-cased."""
    return WORD.findall(caption.lower())


def grouped_encode(captions: Captions, corpus: Iterable[str], encode: Encode, context: int) -> Encode:
    """The encoder that a system asks for, fitted to the corpus; `encode` itself where it asks for nothing.

    context: most tokens of a caption, begin and end included. Raises ConfigError for a file of entities that
    cannot be read.
    """
    if captions.groups is None:
        return encode
    sample = [split_words(caption) for caption in islice(corpus, MINED_FROM)]
    keep = [make(sample) for make in captions.drop]
    entities = _entities(captions.entities, sample) if captions.groups == "entities" else None
    return GroupedEncode(encode, context, keep, entities)


class GroupedEncode:
    """Called with captions: flat marked tokens and their number in each, begin and end included."""

    def __init__(
        self, encode: Encode, context: int, keep: Sequence[Filter], entities: set[tuple[str, ...]] | None
    ) -> None:
        """entities: groups are these, and single tokens; None: groups are words."""
        self.encode, self.context, self.keep, self.entities = encode, context, keep, entities
        self.longest = max(map(len, entities), default=1) if entities is not None else 1
        self._known: dict[str, np.ndarray] = {}
        tokens, _ = encode([""])
        self._ends = tokens[:1], tokens[-1:]

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [self._row(split_words(caption)) for caption in captions]
        lengths = np.array([len(row) for row in rows], np.int32)
        return np.concatenate([np.empty(0, np.int32), *rows]), lengths

    def _row(self, words: Words) -> np.ndarray:
        for filtered in self.keep:
            words = filtered(words)
        self._learn(words)
        begin, end = self._ends
        parts = [self._marked(group) for group in self.groups(words)]
        inner = np.concatenate([np.empty(0, np.int32), *parts])[: self.context - 2]
        return np.concatenate([begin, inner, end]).astype(np.int32)

    def groups(self, words: Words) -> list[Words]:
        """The words of each group: the longest entity that begins at each place, else one word."""
        found, at = [], 0
        while at < len(words):
            length = 1
            if self.entities is not None:
                tries = range(min(self.longest, len(words) - at), 1, -1)
                length = next((n for n in tries if tuple(words[at : at + n]) in self.entities), 1)
            found.append(words[at : at + length])
            at += length
        return found

    def _marked(self, group: Words) -> np.ndarray:
        tokens = np.concatenate([self._known[word] for word in group]) | GROUPED
        whole = self.entities is None or len(group) > 1 or tuple(group) in self.entities
        tokens[0 : 1 if whole else None] |= STARTS
        return tokens

    def _learn(self, words: Words) -> None:
        new = sorted({word for word in words if word not in self._known})
        if not new:
            return
        if len(self._known) > KNOWN_WORDS:
            self._known.clear()
            new = sorted(set(words))
        tokens, lengths = self.encode(new)
        ends = np.cumsum(lengths)
        for word, stop, length in zip(new, ends, lengths, strict=True):
            self._known[word] = tokens[stop - length + 1 : stop - 1].astype(np.int32)


def _entities(path: str | None, sample: Sequence[Words]) -> set[tuple[str, ...]]:
    if path is None:
        return mine_entities(sample)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"entities {path}: expected a text file with one entity a line: {error}") from error
    found = {tuple(split_words(line)[:LONGEST]) for line in lines}
    return found - {()}


def mine_entities(sample: Sequence[Words]) -> set[tuple[str, ...]]:
    """Pairs of neighbouring words that meet far oftener than by chance: a dictionary where none is given."""
    words = Counter(word for caption in sample for word in caption if word[0].isalnum())
    pairs = Counter(pair for caption in sample for pair in pairwise(caption))
    total = max(1, sum(words.values()))
    return {
        (one, two)
        for (one, two), n in pairs.items()
        if n >= LEAST and words[one] * words[two] and math.log(n * total / (words[one] * words[two])) > PMI
    }


def frequencies(sample: Sequence[Words]) -> Mapping[str, int]:
    """In how many captions each word stands."""
    return Counter(word for caption in sample for word in set(caption))


def drop_stop_words(sample: Sequence[Words]) -> Filter:
    """No stop words, and nothing without a letter."""
    return without_stop_words


def without_stop_words(words: Words) -> Words:
    """Those of a caption that say something."""
    return [word for word in words if word not in STOP_WORDS and any(c.isalpha() for c in word)]


@dataclass(frozen=True)
class DropFrequent:
    """Without the `top` words that most captions have: the others weigh more (word balancing)."""

    top: int

    def __call__(self, sample: Sequence[Words]) -> Filter:
        counts = frequencies(sample)
        return Without(frozenset(sorted(counts, key=lambda word: (-counts[word], word))[: self.top]))


@dataclass(frozen=True)
class Without:
    """The words of a caption but for those that are `gone`."""

    gone: frozenset[str]

    def __call__(self, words: Words) -> Words:
        return [word for word in words if word not in self.gone]
