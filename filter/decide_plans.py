"""Which rules make which selection: what a recipe says, and what is decided before there is a score."""

from __future__ import annotations

from ..errors import ConfigError
from ..recipe import Decide, Rule, Rules
from ..shards.schema import MISMATCH, NOISE
from .rules import names_in
from .rulesets import rules_of


def decide_plans(settings: Decide) -> dict[str, Rules]:
    """Which selections `decide` writes: the named one, and 'everything' that was fetched, if asked for."""
    rules = settings.rules
    if settings.max_noise is not None:
        values = {**rules.values, "max_noise": settings.max_noise}
        sets = rules.sets if "noise" in rules.sets else (*rules.sets, "noise")
        rules = rules.model_copy(update={"sets": sets, "values": values})
    plans = {settings.name: rules, **({"everything": Rules()} if settings.baseline else {})}
    if settings.name in ("bootstrap", "candidates", "screen") or (
        settings.baseline and plans[settings.name] != rules
    ):
        raise ConfigError(
            f"decide.name: {settings.name!r} is the name of a selection that pairmill itself makes"
        )
    return plans


def before_scores(rules: Rules) -> Rules:
    """The rules less the sets and extra rules that ask for a model's score, and less the values of these."""
    scores = {*NOISE.names, *MISMATCH.names} - {"uid"}

    def free(rule: Rule) -> bool:
        return not scores & names_in(rule.where)[1]

    held = {name: [rule for _, _, rule, _ in rules_of(name, rules.own)] for name in rules.sets}
    sets = tuple(name for name in rules.sets if all(map(free, held[name])))
    extra = tuple(rule for rule in rules.extra if free(rule))
    left = [*extra, *(rule for name in sets for rule in held[name])]
    wanted = {name for rule in left for name in names_in(rule.where)[0]}
    values = {name: value for name, value in rules.values.items() if name in wanted}
    return Rules(sets=sets, values=values, extra=extra, own=rules.own)
