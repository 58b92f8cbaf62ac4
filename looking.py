"""The commands that look into an output folder and change nothing of its data: one JSON object each."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from .folders import Where
from .shards.store_path import reach


def explain(
    folder: Where, what: str, *, as_json: Annotated[bool, Parameter(name="--json", negative=())] = False
) -> int:
    """Tell the whole story of one pair.

    Parameters
    ----------
    what
        a uid (32 hex digits), or a URL as it stands in a list
    as_json
        one JSON object instead of words
    """
    from .crawl.url import canonical_url
    from .stats.explain import explain as explain_pair
    from .stats.story import render_story

    reach(folder)
    story = explain_pair(folder, what, canonical_url)
    print(json.dumps(story.as_json())) if as_json else Console().print(render_story(story))
    return 0


def verify(folder: Where, *, mend: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Re-hash every file that a stage left, and hold the dataset against its selection and its raw shards.

    Parameters
    ----------
    mend
        make anew what is damaged or missing; pictures that are damaged are asked for again
    """
    from .shards.verify import verify as verify_folder

    reach(folder)
    found = verify_folder(folder)
    for problem in found["problems"]:
        print(problem, file=sys.stderr)
    if found["problems"] and mend:
        from .mend import mend as mend_folder

        found = {"mended": mend_folder(folder), **verify_folder(folder)}
    elif found["problems"]:
        print("To make these anew: pairmill verify --mend", file=sys.stderr)
    print(json.dumps(found))
    return 1 if found["problems"] else 0


def diff(folder: Where, a: str, b: str) -> int:
    """Tell how two selections differ: what one of them keeps and the other drops, and why.

    Parameters
    ----------
    a
        name of a selection, as `pairmill decide --name` gave it
    b
        name of another one
    """
    from .filter.differ import differences
    from .pins import stored_recipe

    reach(folder)
    stored_recipe(folder)  # refuses a folder that is none
    print(json.dumps(differences(folder, a, b)))
    return 0


def try_decide(folder: Path, overrides: Mapping[str, Any]) -> int:
    """Show what the rules of `decide` would keep: the numbers on stdout, and a page with pictures."""
    from .filter.decide import decide_plans
    from .filter.rules import check_rules
    from .filter.trial import try_rules
    from .pins import command_recipe
    from .shards.commit import write_bytes
    from .stats.trial_page import trial_page

    reach(folder)
    recipe = command_recipe(folder, "decide", overrides)
    rules = decide_plans(recipe.decide)[recipe.decide.name]
    check_rules(rules, "decide")
    trial = try_rules(folder, rules, recipe.dedup, recipe.run.memory_mb)
    page = folder / "report" / "try.html"
    html = trial_page(folder, trial.as_json(), trial.examples, recipe.report.title or recipe.name)
    write_bytes(html.encode("utf-8"), page)
    print(f"Page: {page}", file=sys.stderr)
    print(json.dumps(trial.as_json()))
    return 0
