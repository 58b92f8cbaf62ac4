"""Which members of a tar make a sample: those of one WebDataset key, whether they are neighbours or not.

A key goes up to the first dot of the last component. Under one key there may be several pictures:
`1.jpg 1.mask.png 1.txt` is one sample, of the plain picture; `d.1.jpg d.1.txt d.2.jpg d.2.txt` are two, since
each picture has a text of its own name. Hidden members are skipped, as hidden files are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

import xxhash

from .tar import Member, entries, read_at

PICTURES = {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"}
TEXTS = ("txt", "json")
LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini", "@LongLink", "@PaxHeader"}  # of other systems
CHUNK = 2**20
HELD = 200_000  # members in memory, about 300 bytes each


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a tar: its picture and texts, or `reason`, for which it can be none."""

    key: str
    picture: Member | None = None
    txt: Member | None = None
    json: Member | None = None
    reason: str | None = None
    names: tuple[str, ...] = field(default=())  # of all its members

    @property
    def named(self) -> str:
        """Its members' names, with what is wrong with the picture."""
        problem = f" ({self.picture.problem})" if self.picture and self.picture.problem else ""
        return " ".join(self.names) + problem


def visible(path: Path) -> Iterator[Member]:
    """The members of a tar that are not hidden, their names without `./`, `/` and Windows' separators."""
    for member in entries(path):
        name = member.name if "/" in member.name else member.name.replace("\\", "/")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if parts and not any(_is_hidden(part) for part in parts):
            yield replace(member, name="/".join(parts))


def _is_hidden(part: str) -> bool:
    return (part[0] == "." and part != "..") or part in LITTER


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a tar, in the order of `by_key`."""
    with open(path, "rb") as file:
        for key, members in by_key(path):
            yield from _samples(file, key, members)


def by_key(path: Path) -> Iterator[tuple[str, list[Member]]]:
    """Every key of a tar with its members; behind the others the keys whose members are not neighbours.

    That a key comes again is known only at the end: the headers of a tar of more than HELD are read twice.
    """
    held = list(islice(visible(path), HELD + 1))
    members = held if len(held) <= HELD else None
    parted = _parted_keys(members or visible(path))
    waiting: dict[str, list[Member]] = {}
    for key, group in groupby(members or visible(path), key=attrgetter("stem")):
        if key in parted:
            waiting.setdefault(key, []).extend(group)
        else:
            yield key, list(group)
    yield from waiting.items()


def _parted_keys(members: Iterable[Member]) -> set[str]:
    """The keys that come again after others."""
    seen: set[int] = set()  # hashes: 100 bytes each; where two are equal, the samples only come later
    again: set[str] = set()
    for key, _ in groupby(members, key=attrgetter("stem")):
        mark = xxhash.xxh3_64_intdigest(key.encode())
        if mark in seen:
            again.add(key)
        seen.add(mark)
    return again


def _samples(file: BinaryIO, key: str, members: list[Member]) -> Iterator[Sample]:
    """The samples under one key: usually one."""
    by_suffix: dict[str, list[Member]] = {}
    for member in members:
        by_suffix.setdefault(member.suffix, []).append(member)
    if not _even(by_suffix):
        by_suffix = {suffix: _distinct(file, same) for suffix, same in by_suffix.items()}
    if not _even(by_suffix):  # of two pictures and one text nobody knows which belong together
        yield Sample(key, reason="member_twice", names=_names(members))
        return
    for parts in zip(*by_suffix.values(), strict=True):  # several: joined tars that number alike
        yield from _split(key, dict(zip(by_suffix, parts, strict=True)))


def _even(by_suffix: dict[str, list[Member]]) -> bool:
    return len({len(same) for same in by_suffix.values()}) == 1


def _distinct(file: BinaryIO, same: list[Member]) -> list[Member]:
    """Members of one name without copies of the same bytes."""
    if len(same) == 1:
        return same
    return list({content_hash(file, member): member for member in reversed(same)}.values())[::-1]


def content_hash(file: BinaryIO, member: Member) -> str:
    """32 hex digits, xxh3-128 of a member's bytes."""
    digest = xxhash.xxh3_128()
    for at in range(0, member.size, CHUNK):
        digest.update(read_at(file, member.offset + at, min(CHUNK, member.size - at)))
    return digest.hexdigest()


def _names(members: Iterable[Member]) -> tuple[str, ...]:
    return tuple(member.name for member in members)


def _split(key: str, parts: dict[str, Member]) -> Iterator[Sample]:
    """The samples of members that all have other suffixes: `input.jpg` is a picture, called `input`."""
    groups: dict[str, dict[str, Member]] = {}
    for suffix, member in parts.items():
        inner, _, last = suffix.rpartition(".")
        groups.setdefault(inner, {})[last] = member
    pictured = [inner for inner, group in groups.items() if group.keys() & PICTURES]
    plain = groups.get("", {})
    if len(pictured) < 2:
        named = groups[pictured[0]] if pictured else {}
        yield _sample(key, {**plain, **named}, parts.values())
    elif "" in pictured:  # others beside the plain one are masks and the like, unless they have texts
        yield _sample(key, plain, plain.values())
        for inner in pictured:
            if inner and groups[inner].keys() & {*TEXTS}:
                yield _sample(f"{key}.{inner}", groups[inner], groups[inner].values())
    elif plain.keys() & {*TEXTS}:
        yield Sample(key, reason="picture_unclear", names=_names(parts.values()))
    else:
        for inner, group in groups.items():
            yield _sample(f"{key}.{inner}", group, group.values())


def _sample(key: str, parts: dict[str, Member], members: Iterable[Member]) -> Sample:
    picture = next((member for suffix, member in parts.items() if suffix in PICTURES), None)
    reason = "picture_missing" if picture is None or picture.problem else None
    return Sample(key, picture, parts.get("txt"), parts.get("json"), reason, _names(members))
