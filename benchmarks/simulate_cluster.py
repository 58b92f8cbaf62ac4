"""How long a run takes on many machines, by simulation: measured rates, lost nodes, a giant host, slow disks.

python benchmarks/simulate_cluster.py [--rows 1e9] [--nodes 100] [--cores 32] [--losses-per-hour 1]
    [--giant-share 0.05] [--giant-rate 10] [--giant-lanes 4] [--giants-first] [--slow-nodes 1] [--seed 0]

The rates lie beside it (`cluster_rates.toml`). A stage begins when all tasks of the one before have ended, as
in a run, and with all nodes. Left out: the network, and the training of scorers and of models.
"""

from __future__ import annotations

import argparse
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from cluster_events import Cluster, Course, Giant, Phase, Work  # pyright: ignore[reportImplicitRelativeImport]

RATES = Path(__file__).with_name("cluster_rates.toml")
MOST_JOINS = 400_000  # where blocks have more, every k-th block is simulated and counts k times


def lengths_of(n: int, mean_s: float, sigma: float, dice: np.random.Generator) -> np.ndarray:
    """(n,) seconds, log-normal about `mean_s`."""
    return mean_s * np.exp(sigma * dice.standard_normal(n) - sigma**2 / 2)


def works_of(
    stage: Mapping[str, Any], units: float, giant: Giant, dice: np.random.Generator
) -> Iterator[Work]:
    """The phases of a stage over so many units."""
    on_disk, sigma = stage.get("on_disk", False), stage.get("sigma", 0.0)
    if not stage["per_task"]:
        seconds = np.full(stage.get("tasks", 1), units / stage["per_s"])
        yield Work(seconds, on_disk=on_disk)
        return
    n = max(1, math.ceil(units / stage["per_task"]))
    mean_s = units / n / stage["per_s"]
    if stage.get("giant") and giant.share:
        yield _with_giant(lengths_of(n, mean_s, sigma, dice), units, giant)
        return
    phases = stage.get("phases", 1)
    for _ in range(phases):
        yield Work(lengths_of(n, mean_s / phases, sigma, dice), on_disk=on_disk)
    if "join_s" in stage:
        yield from _blocks(stage, n, dice)


def _with_giant(lengths: np.ndarray, units: float, giant: Giant) -> Work:
    """Fetching: a task of the giant lasts as long as its share of the budget takes, or its own work."""
    n = len(lengths)
    own = max(1, round(n * giant.share))
    lanes = np.full(n, -1)
    of_giant = np.arange(own) if giant.first else np.arange(n - own, n)
    lanes[of_giant] = np.arange(own) % giant.lanes
    asked = units * giant.share / own
    lengths[of_giant] = np.maximum(lengths[of_giant], asked * min(giant.lanes, own) / giant.rate)
    return Work(lengths, lanes)


def _blocks(stage: Mapping[str, Any], n: int, dice: np.random.Generator) -> Iterator[Work]:
    """Near-copies: each block is joined with all before it, then settled alone; one block after the other."""
    every = max(1, math.ceil(n * (n - 1) / 2 / MOST_JOINS))
    for first in range(0, n, every):
        stands_for = min(every, n - first)
        block = first + stands_for // 2
        if block:
            joins = lengths_of(block, stage["join_s"], stage["sigma"], dice)
            yield Work(joins, on_disk=True, counts=stands_for)
        yield Work(lengths_of(1, stage["settle_s"], stage["sigma"], dice), on_disk=True, counts=stands_for)


@dataclass(slots=True)
class Total:
    """A stage's phases, added up."""

    seconds: float = 0.0
    tasks: int = 0
    done: int = 0
    attempts: int = 0
    lost: int = 0
    work_s: float = 0.0
    tail_s: float = 0.0
    puts: int = 0
    gets: int = 0
    slots: int = field(default=1, repr=False)

    def add(self, course: Course, counts: int) -> None:
        for name in ("seconds", "tasks", "done", "attempts", "lost", "work_s", "tail_s"):
            setattr(self, name, getattr(self, name) + counts * getattr(course, name))

    def as_json(self) -> dict[str, Any]:
        return {
            "hours": round(self.seconds / 3600, 3),
            "tasks": self.tasks,
            "lost": self.lost,
            "tail_hours": round(self.tail_s / 3600, 3),
            "busy": round(self.work_s / self.slots / self.seconds, 4),
            "puts": self.puts,
            "gets": self.gets,
        }


def simulate_stage(
    stage: Mapping[str, Any], units: float, cluster: Cluster, giant: Giant, dice: np.random.Generator
) -> Total:
    """All phases of a stage, one after the other."""
    total = Total(slots=cluster.nodes * cluster.cores)
    for work in works_of(stage, units, giant, dice):
        total.add(Phase(work, cluster, dice).run(), work.counts)
    total.puts, total.gets = total.tasks * stage.get("puts", 0), total.tasks * stage.get("gets", 0)
    sources = math.ceil(units / stage["per_task"]) if stage["per_task"] else 0
    total.gets += stage.get("exchanges", 0) * sources**2
    return total


def simulate(rows: float, cluster: Cluster, giant: Giant, seed: int = 0) -> dict[str, Any]:
    """A whole run: hours, tasks, requests by stage; hours and dollars in all."""
    rates = tomllib.loads(RATES.read_text())
    cluster = replace(cluster, hand_out_s=rates["driver"]["hand_out_s"])
    totals = {
        stage["name"]: simulate_stage(
            stage,
            rows * rates["funnel"][stage["unit"]],
            cluster,
            giant,
            np.random.default_rng([seed, number]),
        )
        for number, stage in enumerate(rates["stage"])
    }
    hours = sum(total.seconds for total in totals.values()) / 3600
    puts, gets = (sum(getattr(total, name) for total in totals.values()) for name in ("puts", "gets"))
    price = rates["prices"]
    requests = (puts * price["put_per_thousand"] + gets * price["get_per_thousand"]) / 1000
    return {
        "rows": rows,
        "hours": round(hours, 2),
        "core_hours_of_work": round(sum(total.work_s for total in totals.values()) / 3600),
        "tasks": sum(total.tasks for total in totals.values()),
        "lost": sum(total.lost for total in totals.values()),
        "puts": puts,
        "gets": gets,
        "dollars": {
            "nodes": round(hours * cluster.nodes * price["node_hour"]),
            "requests": round(requests),
        },
        "stages": {name: total.as_json() for name, total in totals.items()},
    }


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=float, default=1e9)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--cores", type=int, default=32)
    parser.add_argument("--losses-per-hour", type=float, default=1.0)
    parser.add_argument("--slow-nodes", type=int, default=1)
    parser.add_argument("--giant-share", type=float, default=0.05)
    parser.add_argument("--giant-rate", type=float, default=10.0)
    parser.add_argument("--giant-lanes", type=int, default=4)
    parser.add_argument("--giants-first", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if min(asked.rows, asked.nodes, asked.cores, asked.giant_rate, asked.giant_lanes) <= 0:
        parser.error("rows, nodes, cores, giant-rate and giant-lanes must be above 0")
    cluster = Cluster(asked.nodes, asked.cores, asked.losses_per_hour, slow_nodes=asked.slow_nodes)
    giant = Giant(asked.giant_share, asked.giant_rate, asked.giant_lanes, asked.giants_first)
    said = {"what": "simulated run", "nodes": asked.nodes, "cores": asked.cores, "seed": asked.seed}
    print(json.dumps(said | simulate(asked.rows, cluster, giant, asked.seed)))


if __name__ == "__main__":
    main()
