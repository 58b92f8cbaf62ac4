"""What a named set of rules is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..recipe import Rule


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Rules in order, the default values of their $names, and one sentence on what they are."""

    about: str
    rules: tuple[Rule, ...]
    values: Mapping[str, Any] = field(default_factory=dict)
