"""A Fistful of Words: a caption teaches as much as its bag of words does, and balanced words teach more."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..captions import DropFrequent, drop_stop_words
from ..objectives.interactions import Global
from ..objectives.system import Captions, System, Term
from ..views.bag_of_words import ShuffleWords
from .clip import SIDES


def make(
    shuffle: Annotated[bool, Field(description="words in another order in each step")] = True,
    keep: Annotated[
        int | None, Field(gt=0, description="words of a caption kept, at random; null: all")
    ] = None,
    stop_words: Annotated[bool, Field(description="drop stop words and what has no letter")] = True,
    frequent: Annotated[int, Field(ge=0, description="drop so many of the most frequent words")] = 0,
    bank: Annotated[int, Field(ge=0, description="keys of earlier batches, as further wrong answers")] = 8192,
    pseudo: Annotated[
        int, Field(ge=0, description="nearest pictures whose words are written as a pseudo caption; 0: none")
    ] = 0,
    temperature: Annotated[float, Field(gt=0, description="fixed")] = 0.02,
) -> System:
    """BoW with the paper's bank and fixed temperature."""
    drop = ((drop_stop_words,) if stop_words else ()) + ((DropFrequent(frequent),) if frequent else ())
    return System(
        name="bow",
        paper="Tejankar et al., A Fistful of Words: Visual Models from Bag-of-Words Supervision, 2021",
        about="captions as shuffled bags of their words, with a bank of earlier keys and a fixed temperature",
        sides=SIDES,
        terms=(Term("image", "text", Global(), bank=bank > 0),),
        views=(ShuffleWords(keep),) if shuffle or keep else (),
        captions=Captions(groups="words", drop=drop),
        bank=bank,
        pseudo=pseudo,
        temperature=temperature,
        learn_temperature=False,
        needs=("a text tower that knows order, or shuffling does nothing",),
    )


SYSTEM = make()
