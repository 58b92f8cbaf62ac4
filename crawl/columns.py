"""Which column holds the URL and which the caption: by their usual names, or as the recipe says."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ..recipe import Ingest
from .encoding import TextForm

# Compared in lower case without punctuation; the first of these that a list has is taken, so names that can
# only be a picture's stand before `url`, which may be the page's. LAION, DataComp, COYO and RedCaps say
# url; reddit lists and WIT image_url; SBU image_urls; Tate thumbnailUrl; Open Images and XM3600 OriginalURL.
URL_NAMES = (
    *("imageurl", "imageurls", "imgurl", "imgurls", "pictureurl", "photoimageurl", "imageuri", "imagelink"),
    *("imagesrc", "imgsrc", "originalurl", "cocourl", "mediaurl", "contenturl"),
    *("url", "urls", "thumbnailurl", "src"),
)
CAPTION_NAMES = (
    *("caption", "text", "alttext", "alt", "title", "captions", "texts", "description"),
    *("captionreferencedescription", "captionalttextdescription", "rawcaption"),
)
_URL = re.compile(r"\s*(https?:)?//[^\s/]", re.IGNORECASE)
# Row numbers that pandas writes beside the columns: in Parquet, in CSV, in CSV written anew.
_ROW_NUMBERS = re.compile(r"(?:__index_level_\d+__|Unnamed: \d+)?")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a list by name: `caption` is None where the list holds nothing but URLs."""

    url: str
    caption: str | None
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a list is laid out, known from its beginning."""

    names: tuple[str, ...]
    columns: Columns
    has_header: bool = False  # a first row of names, in a list of text
    carry: tuple[str, ...] | None = None  # for objects, whose keys differ from row to row
    form: TextForm = field(default_factory=lambda: TextForm("parquet"))

    def choice(self) -> dict[str, Any]:
        """Which columns were taken for what, in plain values."""
        columns = self.columns
        used = {columns.url, columns.caption, *columns.others}
        unusual = self.form.encoding not in ("utf-8-sig", "utf-8")
        return {
            "url": columns.url,
            "caption": columns.caption,
            "carried": list(columns.others),
            "left_out": [name for name in self.names if name not in used],
            **({"encoding": self.form.encoding} if unusual else {}),
        }

    def metadata(self) -> dict[str, str]:
        """`choice` as Arrow metadata of the list's batches."""
        return {"columns": json.dumps(self.choice())}


class EmptyListError(ConfigError):
    """A list without a single row."""


def is_url(cell: str | None) -> bool:
    """Whether a cell is an absolute web URL at first sight."""
    return cell is not None and _URL.match(cell) is not None


def find_columns(names: Sequence[str], settings: Ingest, where: str) -> Columns:
    """The columns to read of a list that has these names.

    A list whose only column is the URL is taken as pictures without captions. Row numbers are not carried.
    Raises ConfigError naming `where` and the columns for a list without URL or caption column, with two of
    one name, or without one that the recipe names.
    """
    names = [name for name in names if not _ROW_NUMBERS.fullmatch(name) or name in (settings.carry or ())]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if list(names).count(name) > 1})
        raise ConfigError(f"{where}: two columns are named {twice[0]!r}: rename one")
    url = _pick(names, settings.url_column, URL_NAMES, "url", where)
    caption = None
    if len(names) > 1 or settings.caption_column is not None:
        rest = [name for name in names if name != url]
        caption = _pick(rest, settings.caption_column, CAPTION_NAMES, "caption", where)
    return Columns(url, caption, _carried(names, {url, caption}, settings, where))


def _pick(names: Sequence[str], asked: str | None, usual: Sequence[str], what: str, where: str) -> str:
    if asked is not None:
        if asked not in names:
            near = difflib.get_close_matches(asked, names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{where}: no column {asked!r} (ingest.{what}_column); it has {say_names(names)}{hint}"
            )
        return asked
    found = usual_name(names, usual)
    if found is not None:
        return found
    raise ConfigError(
        f"{where}: no {what} column among {say_names(names)}; name it with --set ingest.{what}_column=NAME"
    )


def usual_name(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """The first of the usual names that is among `names`, as it is spelled there, or None."""
    bare = {re.sub(r"[\W_]+", "", name).lower(): name for name in reversed(names)}
    return next((bare[name] for name in usual if name in bare), None)


def _carried(names: Sequence[str], used: set[str | None], settings: Ingest, where: str) -> tuple[str, ...]:
    if settings.carry is None:
        return tuple(name for name in names if name not in used)
    missing = [name for name in settings.carry if name not in names]
    if missing:
        raise ConfigError(f"{where}: no column {missing[0]!r} (ingest.carry); it has {say_names(names)}")
    return settings.carry


def say_names(names: Sequence[str]) -> str:
    """Names for a message, the first thirty."""
    shown = ", ".join(repr(name) for name in names[:30])
    return f"{shown} and {len(names) - 30} more" if len(names) > 30 else shown or "nothing"


def say_choices(choices: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each choice of columns, with the lists (the keys) that it was made for."""
    lists: dict[str, list[str]] = {}
    for source, choice in choices.items():
        lists.setdefault(json.dumps(choice), []).append(source)
    return [f"{_say_lists(sources)}: {say_choice(json.loads(key))}" for key, sources in lists.items()]


def _say_lists(sources: list[str]) -> str:
    return sources[0] if len(sources) == 1 else f"{sources[0]} and {len(sources) - 1:,} more lists"


def say_choice(choice: Mapping[str, Any]) -> str:
    """Which columns of a list were taken for what, in words."""
    caption = "no caption column" if choice["caption"] is None else f"caption from {choice['caption']!r}"
    parts = [f"URL from {choice['url']!r}, {caption}"]
    parts.append(f"carried {say_names(choice['carried'])}")
    if choice["left_out"]:
        parts.append(f"left out {say_names(choice['left_out'])}")
    if "encoding" in choice:
        parts.append(f"read as {choice['encoding']}")
    return "; ".join(parts)
