"""English captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .scenes import Group

if TYPE_CHECKING:
    from .captions import Plan

NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "circle": (("circle", "circles"), ("circle", "circles"), ("disc", "discs")),
    "square": (("square", "squares"), ("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"), ("star", "stars"), ("five-pointed star", "five-pointed stars")),
    "heart": (("heart", "hearts"),),
    "cross": (("cross", "crosses"), ("cross", "crosses"), ("plus sign", "plus signs")),
    "ring": (("ring", "rings"), ("ring", "rings"), ("hoop", "hoops")),
    "moon": (("moon", "moons"), ("crescent moon", "crescent moons"), ("crescent", "crescents")),
    "arrow": (("arrow", "arrows"),),
    "house": (("house", "houses"), ("house", "houses"), ("cottage", "cottages")),
}
RARE_COLOURS = {"red": "scarlet", "purple": "violet", "turquoise": "teal", "white": "snow white"}
SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge"), "middle": ("",)}
NUMBERS = {2: "two", 3: "three", 4: "four"}
PLACES = {
    "left": ("on the left", "at the left edge"),
    "right": ("on the right", "at the right edge"),
    "top": ("at the top", "in the upper half"),
    "bottom": ("at the bottom", "in the lower half"),
    "middle": ("in the middle", "in the centre"),
}
RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
TEXTURES = {
    "plain": ("plain", "smooth", "plain"),
    "striped": ("striped", "striped", "stripy"),
    "dotted": ("dotted", "dotted", "polka dot"),
    "checkered": ("checkered", "checkered", "chequered"),
    "wavy": ("wavy", "wavy", "rippled"),
    "cloudy": ("cloudy", "cloudy", "blotchy"),
}
GROUNDS = ("background", "background", "background", "backdrop", "wallpaper", "paper", "wall")
KINDS = ("a picture", "photo", "an illustration", "a drawing", "art print", "painting", "poster", "sticker")
WITH_GROUND = (
    "{things} on {ground}",
    "{things} on {ground}",
    "{things} against {ground}",
    "{kind} of {things} on {ground}",
    "{kind} showing {things} in front of {ground}",
    "{ground} with {things}",
    "{things}, {ground}",
    "I made this with {things} on {ground}",
    "look at {things} on {ground}",
)
WITHOUT_GROUND = (
    "{kind} of {things}",
    "{things}, {kind}",
    "here you can see {things}",
    "{kind} with {things}",
    "this is {things}",
)
DETAILS = (
    ", made by hand",
    ", number {n} of the series",
    " - page {n}",
    " for the children's room",
    ", seen at the market in {year}",
    ", drawn in {year}",
    " (my favourite so far)",
    " | shape library {n}",
    ", lot {n}",
)


def write(plan: Plan) -> str:
    """One caption."""
    choose = plan.dice.choice
    words = {"things": _things(plan), "kind": choose(KINDS), "ground": _ground(plan)}
    text = choose(WITH_GROUND if plan.ground else WITHOUT_GROUND).format(**words)
    if plan.dice.random() < 0.35:
        text += choose(DETAILS).format(n=plan.dice.randint(2, 900), year=plan.dice.randint(1990, 2024))
    return text[0].upper() + text[1:] + ("." if plan.dice.random() < 0.3 else "")


def _things(plan: Plan) -> str:
    named = [_group(group, plan) for group in plan.groups]
    if plan.relation:
        return f"{named[0]} {plan.dice.choice(RELATIONS[plan.relation])} {named[1]}"
    if plan.place:
        named[0] += f" {plan.dice.choice(PLACES[plan.place])}"
    if len(named) == 1:
        return named[0]
    return ", ".join(named[:-1]) + plan.dice.choice((" and ", " and ", " with ")) + named[-1]


def _group(group: Group, plan: Plan) -> str:
    colour = _colour(group.colour, plan)
    size = plan.dice.choice(SIZES[group.size]) if plan.dice.random() < 0.6 else ""
    one, many = plan.dice.choice(NOUNS[group.shape])
    if group.count > 1:
        return " ".join(filter(None, (NUMBERS[group.count], size, colour, many)))
    return _with_article(" ".join(filter(None, (size, colour, one))))


def _colour(colour: str, plan: Plan) -> str:
    return RARE_COLOURS.get(colour, colour) if plan.dice.random() < 0.12 else colour


def _ground(plan: Plan) -> str:
    if plan.ground is None:
        return ""
    texture = plan.dice.choice(TEXTURES[plan.texture]) if plan.texture else ""
    words = [texture, _colour(plan.ground, plan)]
    if plan.dice.random() < 0.4:
        words.reverse()
    return _with_article(" ".join(filter(None, (*words, plan.dice.choice(GROUNDS)))))


def _with_article(phrase: str) -> str:
    if phrase.endswith(("paper", "wallpaper")):
        return phrase
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
