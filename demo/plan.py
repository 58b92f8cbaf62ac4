"""What a caption mentions of a scene, before any language puts it into words."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .scenes import Group, Scene


@dataclass(frozen=True, slots=True)
class Plan:
    """What a caption mentions, in its order. Where a field is None it says nothing of it."""

    dice: random.Random
    groups: tuple[Group, ...]
    ground: str | None
    place: str | None  # of the first group: left, right, top, bottom, middle
    relation: str | None  # of the first group to the second: left, right, above, below


def make_plan(scene: Scene, dice: random.Random) -> Plan:
    """Choose what to mention: nearly always the ground, most groups, now and then where they are."""
    groups = list(scene.groups)
    dice.shuffle(groups)
    if len(groups) > 1 and dice.random() < 0.1:
        groups.pop()
    ground = scene.ground if dice.random() < 0.95 else None
    relation = _relation(groups) if dice.random() < 0.3 else None
    place = _place(groups[0]) if not relation and dice.random() < 0.25 else None
    return Plan(dice, tuple(groups), ground, place, relation)


def _place(group: Group) -> str | None:
    if group.count > 1:
        return None
    x, y = group.places[0]
    if max(abs(x - 0.5), abs(y - 0.5)) < 0.12:
        return "middle"
    if abs(x - 0.5) > abs(y - 0.5):
        return "left" if x < 0.5 else "right"
    return "top" if y < 0.5 else "bottom"


def _relation(groups: list[Group]) -> str | None:
    if len(groups) != 2 or any(group.count > 1 for group in groups):
        return None
    (x, y), (other_x, other_y) = groups[0].places[0], groups[1].places[0]
    if abs(x - other_x) > abs(y - other_y):
        return "left" if x < other_x else "right"
    return "above" if y < other_y else "below"
