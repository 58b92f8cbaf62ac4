"""What `auto` chose on the first machine holds on every other."""

from __future__ import annotations

from pathlib import Path

import pytest

from pairmill.errors import DataError
from pairmill.pretrain import precision
from pairmill.pretrain.precision import NAME, with_precision
from pairmill.recipe import Training


def on_a_machine(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    import torch

    dtype = torch.bfloat16 if native else None
    monkeypatch.setattr(precision, "autocast_dtype", lambda *_: dtype)


@pytest.mark.parametrize(("first", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_the_first_machine_decides_for_all(
    first: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for native in (first, not first):
        on_a_machine(monkeypatch, native)
        assert with_precision(Training(), tmp_path).precision == expected


def test_a_precision_that_is_named_is_nobodys_choice(tmp_path: Path) -> None:
    named = Training(precision="bfloat16")
    assert with_precision(named, tmp_path) == named
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_choice_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"precision": "float31"}')
    with pytest.raises(DataError, match=r"precision\.json: not a precision; `pairmill verify --mend`"):
        with_precision(Training(), tmp_path)
