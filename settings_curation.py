"""The settings of the stages that hold a crawl against other collections: evaluation sets, entries, lists."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from .setting_types import Settings


class Decontaminate(Settings):
    """Pictures and captions of evaluation sets, and hashes that must not be kept, found in the crawl."""

    against: tuple[str, ...] = Field(
        default=(),
        description="folders of evaluation sets: pictures, captions beside them (.txt), or WebDataset tars",
    )
    blocklist: tuple[str, ...] = Field(
        default=(),
        description="text files of hashes, one a line: PDQ or sha256 (64 hex digits), md5 (32); never shown",
    )
    md5_column: str = Field(
        default="md5", description="the list's column with the md5 of a picture's bytes; pairmill has none"
    )
    mirrored: bool = Field(default=True, description="whether a mirrored evaluation picture is a leak too")

    @field_validator("against", "blocklist", mode="before")
    @classmethod
    def _one_is_enough(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def asked(self) -> bool:
        """Whether there is anything to hold the crawl against."""
        return bool(self.against or self.blocklist)


class Entries(Settings):
    """Which entries (queries, words of metadata) captions hold, and how pairs are balanced by them."""

    file: str | None = Field(
        default=None,
        description="text file (an entry a line) or JSON list; or a folder of <language>.txt or .json",
    )
    match: Literal["substring", "word"] = Field(
        default="substring",
        description="substring: whole words in order, case kept, as MetaCLIP; word: one word, lower case",
    )
    t: int = Field(default=20_000, gt=0, description="pairs that an entry brings on average, at most")
    per_language: bool = Field(
        default=False,
        description="a t for each language, with the same share of pairs in the tail (MetaCLIP 2)",
    )
    reference: str = Field(default="en", description="the language that t is meant for, with per_language")
    seed: int = 0
