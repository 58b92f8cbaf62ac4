"""Trials and differences: what rules would keep, told without deciding; what two selections disagree on."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from whole import go  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.commands import start
from pairmill.errors import ConfigError, DataError
from pairmill.filter.differ import differences
from pairmill.filter.trial import try_rules
from pairmill.pins import command_recipe
from pairmill.recipe import Rule, Rules

ODD = Rule("odd", "regexp_matches(caption, '[13579]$')")
LATE = Rule("late", "regexp_extract(caption, '[0-9]+$')::INT >= $late")
FOUR = Rule("odd", "caption LIKE '%4'")  # a second rule of the same reason
RULES = Rules(extra=(ODD, LATE, FOUR), values={"late": 30})


@pytest.fixture
def out(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run: 46 pairs with numbers in their captions, those that end in 9 not found."""
    shutil.copytree(finished_run / "out", tmp_path / "out")
    return tmp_path / "out"


def numbers(out: Path) -> dict[bytes, int]:
    rows = [
        row for path in sorted((out / "pairs").glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    return {row["uid"]: int(row["caption"].split()[-1]) for row in rows}


def files(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and "report" not in path.parts
    }


def test_a_trial_is_what_each_rule_says_by_itself(out: Path) -> None:
    trial = try_rules(out, RULES, examples=3)
    fetched = {uid: n for uid, n in numbers(out).items() if n % 10 != 9}
    says = {
        uid: [*(["odd"] if n % 2 or n % 10 == 4 else []), *(["late"] if n >= 30 else [])]
        for uid, n in fetched.items()
    }
    assert (trial.seen, trial.before) == (46, Counter(not_found=4))
    # the first rule names the reason: of 34 and 44 that is `late`, for FOUR comes behind it
    first = {
        uid: "odd" if n % 2 else "late" if n >= 30 else "odd" if n % 10 == 4 else "kept"
        for uid, n in fetched.items()
    }
    assert trial.first == Counter(first.values())
    assert trial.true == Counter(reason for true in says.values() for reason in true)
    assert trial.alone == Counter(true[0] for true in says.values() if len(true) == 1)
    assert trial.together == Counter(both for true in says.values() for both in combinations(sorted(true), 2))
    for reason, uids in trial.examples.items():
        assert uids == sorted(uid for uid, one in first.items() if one == reason)[:3]
    assert sum(counts["pairs"] for counts in trial.languages.values()) == 42
    assert sum(counts["kept"] for counts in trial.languages.values()) == trial.first["kept"]


def test_a_trial_counts_as_the_decision_would_and_writes_no_data(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(out)
    flags = [f'decide.rules.extra=[{{reason: odd, where: "{ODD.where}"}}]', "decide.name=odd"]
    assert start(["decide", str(out), "--try", "--set", *flags]) == 0
    said = json.loads(capsys.readouterr().out)
    assert files(out) == before
    page = (out / "report" / "try.html").read_text()
    assert page.count("<figure>") == min(20, said["kept"]) + min(20, said["dropped"]["odd"])
    assert f"{said['kept']:,} of 46 pairs would be kept" in page
    made = command_recipe(
        out, "decide", {"decide.name": "odd", "decide.rules.extra": [{"reason": "odd", "where": ODD.where}]}
    )
    decided = go(made, out, command="decide").stages["decide"].counts
    assert decided["kept"] - said["kept"] == 42  # of `everything`, which the recipe asks for as well
    assert decided["odd"] == said["dropped"]["odd"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--set", "decide.rules.sets=[nope]"], 2, "no rule set is called 'nope'"),
        (["--set", "decide.rules.sets=[metaclip]"], 1, "run stage entries, which writes it"),
        (["--set", "decide.rules.sets=[leaks]"], 1, "run stage decontaminate, which writes it"),
        (["--set", "decide.rules.sets=[redcaps]"], 1, "column 'score' is in none of the lists"),
        (
            ["--set", "decide.rules.extra=[{reason: bad, where: 'caption::INT > 1'}]"],
            1,
            "rule 'bad' .* Conversion Error",
        ),
        (["--set", "decide.rules.extra=[{reason: bad, where: 'captoin > 1'}]"], 2, "rule 'bad' .*captoin"),
    ],
)
def test_what_cannot_be_tried_is_one_line(
    out: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, message: str
) -> None:
    assert start(["decide", str(out), "--try", *flags]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert re.search(message, said.err), said.err


def test_too_many_rules_are_refused(out: Path) -> None:
    many = Rules(extra=tuple(Rule(f"r{number}", "false") for number in range(62)))
    with pytest.raises(ConfigError, match="62 rules, expected 61 at most"):
        try_rules(out, many)
    assert try_rules(out, Rules(extra=many.extra[:61])).first["kept"] == 42
    with pytest.raises(DataError, match=r"rule 'odd'.*cannot be evaluated"):
        try_rules(out, Rules(extra=(Rule("odd", "caption::INT > 3"),)))


def decide(out: Path, name: str, *rules: Rule) -> None:
    told: dict[str, Any] = {"decide.name": name, "decide.baseline": False}
    told["decide.rules.extra"] = [{"reason": rule.reason, "where": rule.where} for rule in rules]
    go(command_recipe(out, "decide", told), out, command="decide")


def test_two_selections_differ_by_what_one_of_them_drops(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decide(out, "odd", ODD)
    decide(out, "few", FOUR, Rule("three", "caption LIKE '%3'"))
    found = differences(out, "odd", "few")
    ends = Counter(n % 10 for n in numbers(out).values() if n % 10 != 9)
    even, three, four = sum(n for end, n in ends.items() if end % 2 == 0), ends[3], ends[4]
    assert found["both"] == even - four
    assert (found["only_odd"], found["only_few"]) == (four, 42 - even - three)
    said = {(line["odd"], line["few"]): line["pairs"] for line in found["changes"]}
    assert said == {("kept", "odd"): four, ("odd", "three"): three, ("odd", "kept"): 42 - even - three}
    assert start(["diff", str(out), "odd", "few"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert differences(out, "odd", "odd")["changes"] == []
    assert start(["diff", str(out), "odd", "fwe"]) == 2
    assert "no such selection; there are: dataset, everything, few, odd" in capsys.readouterr().err
