"""Captions to token numbers: byte-pair encoding trained on the crawl's own captions, in any language.

Bytes are the alphabet, so no caption has an unknown token and the vocabulary's size is exact; words are
never merged across, and a Chinese, Japanese or Korean character is a word of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from ..recipe import Towers
from ..shards.commit import write_bytes
from .clip_tokens import clip_encode
from .render import characters

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, BEGIN, END = 0, 1, 2
SPECIAL = ("<pad>", "<begin>", "<end>")
MAX_CAPTIONS = 2_000_000  # more captions than this change a vocabulary of some thousands no longer
MULTIPLE = 8  # text is padded to the batch's longest, up to a multiple of this
ENCODE_AT_ONCE = 10_000  # captions; bounds the Python objects between two arrays
OWN_CHARACTER = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]"

STARTS, GROUPED = 1 << 30, 1 << 29  # marks on a token: it begins a group (a word, an entity), it is in one

Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]  # to flat tokens and lengths


def train_tokenizer(captions: Iterable[str], towers: Towers) -> Tokenizer:
    """A tokenizer of `towers.vocab_size` tokens; the same captions in the same order give the same file."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.Split(Regex(OWN_CHARACTER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=towers.vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", BEGIN), ("<end>", END)]
    )
    tokenizer.enable_truncation(towers.context_length)
    return tokenizer


def make_tokenizer(captions: Iterable[str], towers: Towers, folder: Path) -> Tokenizer:
    """Train on the first MAX_CAPTIONS captions and commit `tokenizer.json`."""
    tokenizer = train_tokenizer(islice(captions, MAX_CAPTIONS), towers)
    write_bytes(tokenizer.to_str(pretty=True).encode(), folder / "tokenizer.json")
    return tokenizer


def open_tokenizer(towers: Towers, path: Path) -> Encode:
    """The encoder of `towers`: the named open_clip model's own, the trained one in `path`, or plain
    characters for a tower that sees captions as pictures.

    It gives all tokens of all captions in one int32 array, and how many each has (begin and end
    included, at most the context's length). Raises DataError where the file is missing or unreadable.
    """
    if towers.text.get("render"):
        return characters
    if towers.name is not None:
        return _named(towers.name)
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
        Tokenizer.from_str(text)
    except Exception as error:
        raise DataError(f"{path}: not a tokenizer file: {error}; train the tokenizer first") from error
    return TrainedEncode(text)


@dataclass(frozen=True)
class TrainedEncode:
    """Encodes with a tokenizer that was trained here; can be sent to another process."""

    text: str  # of tokenizer.json

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.text)
        tokenizer.encode_special_tokens = True  # "<end>" in a caption is five characters, not the end mark
        return tokenizer

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Flat tokens and their number in each caption."""
        return encode_fast(self._tokenizer, captions)

    def __reduce__(self) -> tuple[type[TrainedEncode], tuple[str]]:
        return TrainedEncode, (self.text,)


def encode_fast(tokenizer: Tokenizer, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Flat tokens of captions, and how many each has."""
    tokens, lengths = [np.empty(0, np.int32)], []
    for start in range(0, len(captions), ENCODE_AT_ONCE):
        found = tokenizer.encode_batch_fast(list(captions[start : start + ENCODE_AT_ONCE]))
        rows = [item.ids for item in found]
        lengths += map(len, rows)
        tokens.append(np.fromiter(chain.from_iterable(rows), np.int32))
    return np.concatenate(tokens), np.array(lengths, np.int32)


def _named(name: str) -> Encode:
    import open_clip

    return clip_encode(open_clip.get_tokenizer(name)) or NamedEncode(name)


@dataclass(frozen=True)
class NamedEncode:
    """Encodes with the tokenizer of a named open_clip model; can be sent to another process."""

    name: str

    @cached_property
    def _tokenizer(self) -> Any:
        import open_clip

        return open_clip.get_tokenizer(self.name)

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Flat tokens and their number in each caption."""
        tokens, lengths = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        for start in range(0, len(captions), ENCODE_AT_ONCE):
            block = self._tokenizer(list(captions[start : start + ENCODE_AT_ONCE])).numpy().astype(np.int32)
            # what follows the last non-zero is padding in every open_clip tokenizer that pads with 0;
            # where another number pads, the whole row is kept
            used = block.shape[1] - (block[:, ::-1] != 0).argmax(1)
            tokens.append(block[np.arange(block.shape[1]) < used[:, None]])
            lengths.append(used.astype(np.int32))
        return np.concatenate(tokens), np.concatenate(lengths)

    def __reduce__(self) -> tuple[type[NamedEncode], tuple[str]]:
        return NamedEncode, (self.name,)


def pad_tokens(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray, context: int) -> np.ndarray:
    """(B, L) int32 of the rows that start at `starts` in flat `tokens`, the rest PAD.

    L is the longest of `lengths`, up to a multiple of MULTIPLE, at most `context`.
    """
    columns = np.arange(min(context, -(-int(lengths.max(initial=1)) // MULTIPLE) * MULTIPLE))
    inside = columns < lengths[:, None]
    return np.where(inside, tokens[np.where(inside, starts[:, None] + columns, 0)], PAD).astype(np.int32)


def pad_groups(
    tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray, context: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """(B, L) int64 tokens as `pad_tokens` gives them, and the group of each, counted from 1 in its caption.

    0 is the group of what is in none (begin, end, padding). None where no token bears a mark.
    """
    marked = pad_tokens(tokens, starts, lengths, context).astype(np.int64)
    inside = (marked & GROUPED) > 0
    if not inside.any():
        return marked, None
    return marked & (GROUPED - 1), np.cumsum((marked & STARTS) > 0, 1) * inside
