"""The commands that show what there is to choose from: recipes, rule sets, and systems to train by."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import recipe as models


def recipes() -> int:
    """The recipes that ship with pairmill."""
    table = Table.grid(padding=(0, 2))
    for name, path in models.shipped().items():
        table.add_row(Text(name, style="bold"), Text(models.load_recipe(path).about))
    Console().print(table)
    return 0


def systems(name: str | None = None) -> int:
    """The published systems that a model can be trained by.

    Parameters
    ----------
    name
        tell of this one: its parts, its parameters, what it needs
    """
    from .pretrain.objectives import registry

    print(registry.explain(name) if name else registry.table())
    return 0


def rules(name: str | None = None) -> int:
    """The sets of rules that decide, one a line.

    Parameters
    ----------
    name
        tell of this one: its rules, values, source, and what the source leaves open; or a YAML file of yours
    """
    from .filter.told import list_sets, tell_set

    print(tell_set(name) if name else list_sets())
    return 0
