"""What goes wrong, as values: it crosses processes whole, and its message names the place."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator

import pytest

from pairmill import errors
from pairmill.errors import ConfigError, OutputError, RowError, ShardError


def all_errors(kind: type[Exception] = errors.PairmillError) -> Iterator[type[Exception]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:  # others have tests beside their own
            yield from all_errors(child)


@pytest.mark.parametrize("kind", sorted(all_errors(), key=str))
def test_errors_survive_a_process_border(kind: type[Exception]) -> None:
    special: dict[type[Exception], Exception] = {
        RowError: RowError("url_invalid", "row 3"),
        ShardError: ShardError("a.tar", 512, "cut"),
    }
    error = special.get(kind) or kind("what, where")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_messages_name_the_place() -> None:
    assert str(ShardError("a.tar", 512, "cut")) == "a.tar, byte 512: cut"
    assert str(ShardError("a.tar", None, "cut")) == "a.tar: cut"
    assert str(RowError("url_invalid", "row 3")) == "row 3: url_invalid"
    assert str(RowError("url_invalid")) == "url_invalid"
    assert (ConfigError("x").exit_code, OutputError("x").exit_code) == (2, 1)
    assert json.dumps(vars(RowError("a", "b"))) == '{"reason": "a", "key": "b"}'
