"""German captions: nouns with gender and plural, adjectives that agree."""

from __future__ import annotations

from .plan import Plan
from .scenes import Group

# noun, gender, plural, dative plural
NOUNS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "circle": (("Kreis", "m", "Kreise", "Kreisen"), ("Scheibe", "f", "Scheiben", "Scheiben")),
    "square": (("Quadrat", "n", "Quadrate", "Quadraten"), ("Viereck", "n", "Vierecke", "Vierecken")),
    "triangle": (("Dreieck", "n", "Dreiecke", "Dreiecken"),),
    "star": (("Stern", "m", "Sterne", "Sternen"),),
    "heart": (("Herz", "n", "Herzen", "Herzen"),),
    "cross": (("Kreuz", "n", "Kreuze", "Kreuzen"),),
    "ring": (("Ring", "m", "Ringe", "Ringen"),),
    "moon": (("Mond", "m", "Monde", "Monden"), ("Mondsichel", "f", "Mondsicheln", "Mondsicheln")),
}
COLOURS = {
    "red": "rot",
    "blue": "blau",
    "green": "grün",
    "yellow": "gelb",
    "white": "weiß",
    "black": "schwarz",
    "orange": "orangefarben",
    "purple": "violett",
}
SIZES = {"small": ("klein", "klein", "winzig"), "large": ("groß", "groß", "riesig"), "middle": ("",)}
NUMBERS = {2: "zwei", 3: "drei", 4: "vier"}
ARTICLES = {
    "nominative": {"m": "ein", "f": "eine", "n": "ein"},
    "accusative": {"m": "einen", "f": "eine", "n": "ein"},
    "dative": {"m": "einem", "f": "einer", "n": "einem"},
}
ENDINGS = {  # of adjectives after ein; "many" after a bare number
    "nominative": {"m": "er", "f": "e", "n": "es", "many": "e"},
    "accusative": {"m": "en", "f": "e", "n": "es", "many": "e"},
    "dative": {"m": "en", "f": "en", "n": "en", "many": "en"},
}
PLACES = {
    "left": ("links", "am linken Rand"),
    "right": ("rechts", "am rechten Rand"),
    "top": ("oben", "in der oberen Hälfte"),
    "bottom": ("unten", "in der unteren Hälfte"),
    "middle": ("in der Mitte", "genau in der Mitte"),
}
RELATIONS = {
    "left": ("links neben", "links von"),
    "right": ("rechts neben", "rechts von"),
    "above": ("über", "oberhalb von"),
    "below": ("unter", "unterhalb von"),
}
GROUNDS = {
    "grass": ("auf dem Gras", "auf einer Wiese", "auf dem Rasen"),
    "water": ("auf dem Wasser", "im Wasser", "auf einem See"),
    "sand": ("auf dem Sand", "am Strand", "im Wüstensand"),
    "snow": ("im Schnee", "auf frischem Schnee", "auf verschneitem Boden"),
    "night": ("am Nachthimmel", "vor dem Nachthimmel", "am dunklen Himmel"),
    "bricks": ("auf einer Ziegelmauer", "vor einer Ziegelmauer", "auf Ziegelsteinen"),
    "wood": ("auf einem Holztisch", "auf Holz", "auf Brettern aus Holz"),
    "chessboard": ("auf einem Schachbrett", "auf dem Schachbrett", "auf einem Schachbrettmuster"),
    "curtain": ("vor einem Vorhang", "auf Samt", "vor einem Vorhang aus Samt"),
    "stone": ("auf Stein", "auf einem Betonboden", "auf grauem Fels"),
    "wallpaper": ("auf rosa Tapete", "auf einer Tapete mit Punkten", "vor gepunkteter Tapete"),
    "tiles": ("auf Fliesen", "auf Badezimmerfliesen", "an einer Wand aus Fliesen"),
}
KINDS = ("Bild", "Foto", "Zeichnung", "Kunstdruck", "Gemälde", "Plakat", "Aufkleber")
# {n}, {a}, {d}: the things in the nominative, the accusative, the dative
TEMPLATES = (
    "{n} {ground}",
    "{n} {ground}",
    "{n} {ground}",
    "{kind} mit {d} {ground}",
    "{kind}: {n} {ground}",
    "man sieht {a} {ground}",
    "hier sieht man {a} {ground}",
    "ich habe {a} {ground} gesehen",
)
DETAILS = (
    ", von Hand gemacht",
    ", Nummer {n} der Reihe",
    " - Seite {n}",
    " für das Kinderzimmer",
    ", gesehen auf dem Markt im Jahr {year}",
    ", gezeichnet {year}",
    " (mein Lieblingsbild)",
    ", Blatt {n} aus der Sammlung",
)


def write(plan: Plan) -> str:
    """One caption."""
    choose = plan.dice.choice
    ground = choose(GROUNDS[plan.ground]) if plan.ground else ""
    template = choose(TEMPLATES) if plan.ground else "{kind} mit {d}"
    case = "dative" if "{d}" in template else "accusative" if "{a}" in template else "nominative"
    things = _things(plan, case)
    text = template.format(n=things, a=things, d=things, kind=choose(KINDS), ground=ground)
    if plan.dice.random() < 0.25:
        text += choose(DETAILS).format(n=plan.dice.randint(2, 900), year=plan.dice.randint(1990, 2024))
    return text[0].upper() + text[1:] + ("." if plan.dice.random() < 0.3 else "")


def _things(plan: Plan, case: str) -> str:
    if plan.relation:
        first, second = _group(plan.groups[0], plan, case), _group(plan.groups[1], plan, "dative")
        return f"{first} {plan.dice.choice(RELATIONS[plan.relation])} {second}"
    named = [_group(group, plan, case) for group in plan.groups]
    if plan.place:
        named[0] += f" {plan.dice.choice(PLACES[plan.place])}"
    return " und ".join((", ".join(named[:-1]), named[-1]) if len(named) > 1 else named)


def _group(group: Group, plan: Plan, case: str) -> str:
    noun, gender, many, dative_many = plan.dice.choice(NOUNS[group.shape])
    size = plan.dice.choice(SIZES[group.size]) if plan.dice.random() < 0.4 else ""
    form = gender if group.count == 1 else "many"
    said = [word + ENDINGS[case][form] for word in (size, COLOURS[group.colour]) if word]
    if group.count == 1:
        return " ".join((ARTICLES[case][gender], *said, noun))
    return " ".join((NUMBERS[group.count], *said, dative_many if case == "dative" else many))
