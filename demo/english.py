"""English captions."""

from __future__ import annotations

from .plan import Plan
from .scenes import Group

NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "circle": (("circle", "circles"), ("circle", "circles"), ("disc", "discs")),
    "square": (("square", "squares"), ("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"), ("star", "stars"), ("five-pointed star", "five-pointed stars")),
    "heart": (("heart", "hearts"),),
    "cross": (("cross", "crosses"), ("cross", "crosses"), ("plus sign", "plus signs")),
    "ring": (("ring", "rings"), ("ring", "rings"), ("hoop", "hoops")),
    "moon": (("moon", "moons"), ("crescent moon", "crescent moons"), ("crescent", "crescents")),
}
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
GROUNDS = {
    "grass": ("on the grass", "on green grass", "in a meadow", "on the lawn"),
    "water": ("on the water", "in blue water", "floating on the lake", "in the sea"),
    "sand": ("on the sand", "on the beach", "in desert sand"),
    "snow": ("in the snow", "on fresh snow", "on snowy ground"),
    "night": ("in the night sky", "against the night sky", "in the dark sky"),
    "bricks": ("on a brick wall", "in front of a brick wall", "on bricks"),
    "wood": ("on a wooden table", "on wood", "on wooden boards"),
    "chessboard": ("on a chessboard", "on the chessboard", "on a chessboard pattern"),
    "curtain": ("in front of a curtain", "on velvet", "against a velvet curtain"),
    "stone": ("on stone", "on a concrete floor", "on grey rock"),
    "wallpaper": ("on pink wallpaper", "on wallpaper with dots", "against dotted wallpaper"),
    "tiles": ("on bathroom tiles", "on tiles", "on a tiled wall"),
}
KINDS = ("a picture", "photo", "an illustration", "a drawing", "art print", "painting", "poster", "sticker")
TEMPLATES = (
    "{things} {ground}",
    "{things} {ground}",
    "{things} {ground}",
    "{kind} of {things} {ground}",
    "{kind} showing {things} {ground}",
    "{things} {ground}, {kind}",
    "I saw {things} {ground}",
    "look at {things} {ground}",
    "here you can see {things} {ground}",
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
    ground = choose(GROUNDS[plan.ground]) if plan.ground else ""
    template = choose(TEMPLATES) if plan.ground else "{kind} of {things}"
    text = template.format(things=_things(plan), kind=choose(KINDS), ground=ground)
    if plan.dice.random() < 0.25:
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
    size = plan.dice.choice(SIZES[group.size]) if plan.dice.random() < 0.4 else ""
    one, many = plan.dice.choice(NOUNS[group.shape])
    if group.count > 1:
        return " ".join(filter(None, (NUMBERS[group.count], size, group.colour, many)))
    return _with_article(" ".join(filter(None, (size, group.colour, one))))


def _with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
