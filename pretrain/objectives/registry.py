"""Systems by name: those that come with pairmill, and a user's own as `package.module:VALUE`.

A system's module has SYSTEM, and where it has parameters `make(...)`, whose keywords they are.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import xxhash
from pydantic import ValidationError, validate_call
from pydantic.fields import FieldInfo

from ...errors import ConfigError
from .. import systems
from .system import System

PACKAGE = systems.__name__


def names() -> list[str]:
    """The systems that come with pairmill: one for each module of `systems/`."""
    return sorted(module.name for module in pkgutil.iter_modules(systems.__path__))


def find_system(reference: str | Mapping[str, Any]) -> System:
    """The system of a name, or of {"name": ..., parameter: value}.

    Raises ConfigError for an unknown name or parameter, with the nearest right one, and for a module that
    cannot be imported or holds no system.
    """
    name, given = split(reference)
    module, value = _module(name)
    if not given:
        return value
    make = getattr(module, "make", None)
    if make is None:
        raise ConfigError(f"system {name}: has no parameters (found {', '.join(given)})")
    known = parameters(make)
    for key in given:
        if key not in known:
            raise ConfigError(f"system {name}: no such parameter {key!r}; {_nearest(key, list(known))}")
    try:
        return validate_call(make)(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"system {name}: {where}: {first['msg']} (found {first['input']!r})") from error


def split(reference: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and parameters."""
    if isinstance(reference, str):
        return reference, {}
    given = dict(reference)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"system: expected a name, or name and parameters; found {dict(reference)!r}")
    return name, given


def digest(reference: str | Mapping[str, Any]) -> str:
    """Of the source of a user's own system, "" for one of ours: part of what a run is."""
    name, _ = split(reference)
    if ":" not in name:
        return ""
    module, _ = _module(name)
    source = getattr(module, "__file__", None)
    return xxhash.xxh3_64_hexdigest(Path(source).read_bytes()) if source else ""


def parameters(make: Callable[..., System]) -> dict[str, inspect.Parameter]:
    """A system's parameters, by name."""
    return dict(inspect.signature(make).parameters)


def table() -> str:
    """Every system, one a line: its name, what it is, its paper, what it needs of the data."""
    lines = []
    for name in names():
        _, system = _module(name)
        needs = f"; needs {', '.join(system.needs)}" if system.needs else ""
        lines.append(f"{name:<10} {system.about} ({system.paper}){needs}")
    return "\n".join(lines)


def explain(name: str) -> str:
    """What a system is, in some lines: paper, parts, parameters with their defaults, needs."""
    module, system = _module(name)
    said = [f"{system.name}: {system.about}", f"paper: {system.paper}"]
    for side, one in system.sides.items():
        begins = f"{one.field} through the {one.tower} tower" if one.of is None else f"from {one.of}"
        said.append(f"side {side}: {begins}{f', then {one.then}' if one.then else ''}")
    for term in system.terms:
        rule = "one-hot" if term.target is None else _called(term.target)
        said.append(
            f"term {term.name}: {term.left} and {term.right}, {_called(term.interact)}, {term.loss},"
            f" target {rule}, weight {term.weight:g}"
        )
    said += [f"head {head}: weight {one.weight:g}" for head, one in system.heads.items()]
    said += [f"needs: {need}" for need in system.needs]
    make = getattr(module, "make", None)
    if make is not None:
        hints = get_type_hints(make, include_extras=True)
        for key, parameter in parameters(make).items():
            said.append(f"parameter {key} = {parameter.default!r}: {_described(hints[key])}")
    recipe = f"train: {{system: {name}}}"
    return "\n".join([*said, f"in a recipe: {recipe}"])


def _described(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        found = [part.description for part in get_args(hint) if isinstance(part, FieldInfo)]
        return found[0] or "" if found else ""
    return ""


def _called(part: object) -> str:
    fields = getattr(part, "__dataclass_fields__", None)
    name = getattr(part, "__name__", type(part).__name__)
    if not fields:
        return name
    values = {key: getattr(part, key) for key in fields}
    return f"{name}({', '.join(f'{key}={_called(v) if callable(v) else v}' for key, v in values.items())})"


def _module(name: str) -> tuple[ModuleType, System]:
    if ":" in name:
        return _own(name)
    if name not in names():
        raise ConfigError(f"system {name!r}: no such system; {_nearest(name, names())}")
    module = importlib.import_module(f"{PACKAGE}.{name}")
    return module, module.SYSTEM


def _own(name: str) -> tuple[ModuleType, System]:
    place, _, value = name.partition(":")
    try:
        module = importlib.import_module(place)
    except Exception as error:  # whatever a user's own module raises
        raise ConfigError(
            f"system {name}: {place} cannot be imported ({error}): expected package.module:SYSTEM, the module"
            " on Python's path"
        ) from error
    system = getattr(module, value, None)
    if not isinstance(system, System):
        found = "nothing" if system is None else type(system).__name__
        raise ConfigError(f"system {name}: {place} has {found} under {value}, expected a System")
    return module, system


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=2)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
