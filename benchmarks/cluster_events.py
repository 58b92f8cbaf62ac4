"""Tasks on machines that come and go, event by event: what `simulate_cluster.py` adds up.

A slot for each core; a task takes a slot of any node. A lost node takes its tasks with it, which are the next
to be handed out; a new node joins some minutes later. The same seed gives the same course.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from dataclasses import dataclass

import numpy as np

DONE, LOST, JOINED = range(3)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Machines, and what happens to them. The disks of `slow_nodes` of them take `slow_factor` as long."""

    nodes: int = 100
    cores: int = 32
    losses_per_hour: float = 0.0
    back_after_s: float = 300.0
    slow_nodes: int = 0
    slow_factor: float = 3.0
    hand_out_s: float = 0.0  # of the driver's time, for each task; one after the other


@dataclass(frozen=True, slots=True)
class Giant:
    """A host with a share of all URLs, asked at most `rate` times a second, from `lanes` tasks at a time."""

    share: float = 0.0
    rate: float = 10.0
    lanes: int = 4
    first: bool = False  # its shards begin before others; in a plan they stand last


@dataclass(slots=True)
class Work:
    """The tasks of one phase, in the order in which they begin.

    lengths: (N,) seconds on a node whose disk is not slow. lanes: (N,) of each task; of one lane no two run
    at a time, and -1 is none. counts: as how many such phases it counts.
    """

    lengths: np.ndarray
    lanes: np.ndarray | None = None
    on_disk: bool = False
    counts: int = 1


@dataclass(slots=True)
class Course:
    """How a phase went. tail_s: from the beginning of the last first attempt to the end."""

    seconds: float = 0.0
    tasks: int = 0
    done: int = 0
    attempts: int = 0
    lost: int = 0
    work_s: float = 0.0
    tail_s: float = 0.0


class Phase:
    """One phase on a cluster: events by time, a slot for each core."""

    def __init__(self, work: Work, cluster: Cluster, dice: np.random.Generator) -> None:
        self.work, self.cluster, self.dice = work, cluster, dice
        self.waiting = deque(range(len(work.lengths)))
        self.held: dict[int, deque[int]] = defaultdict(deque)  # by lane, while another task of it runs
        self.busy: set[int] = set()
        self.begun = bytearray(len(work.lengths))
        self.running: dict[int, set[int]] = {}  # tasks by living node
        self.free: list[tuple[int, int]] = []  # (node, its life)
        self.life = [0] * cluster.nodes
        self.events: list[tuple[float, int, int, int, int, int]] = []
        self.now, self.number, self.last_begun = 0.0, 0, 0.0
        self.slow = {int(node) for node in dice.permutation(cluster.nodes)[: cluster.slow_nodes]}
        self.driver_free = 0.0  # when it can hand out the next task
        self.course = Course(tasks=len(work.lengths))

    def run(self) -> Course:
        """The phase to its end: every task is done once."""
        for node in reversed(range(self.cluster.nodes)):
            self._join(node)
        self._plan_loss()
        self._hand_out()
        while self.course.done < self.course.tasks:
            self.now, _, kind, node, task, life = heapq.heappop(self.events)
            if kind == DONE and life == self.life[node]:
                self._end(node, task)
            elif kind == LOST:
                self._lose()
            elif kind == JOINED:
                self._join(node)
            self._hand_out()
        self.course.seconds = self.now
        self.course.tail_s = self.now - self.last_begun
        return self.course

    def _event(self, after_s: float, kind: int, node: int = 0, task: int = 0) -> None:
        self.number += 1  # of two events at one time the one that was planned first
        heapq.heappush(self.events, (self.now + after_s, self.number, kind, node, task, self.life[node]))

    def _hand_out(self) -> None:
        while self.free:
            node, life = self.free[-1]
            if life != self.life[node] or node not in self.running:
                self.free.pop()
            elif (task := self._next()) is None:
                return
            else:
                self.free.pop()
                self._begin(node, task)

    def _next(self) -> int | None:
        while self.waiting:
            task = self.waiting.popleft()
            lane = self._lane(task)
            if lane not in self.busy:
                return task
            self.held[lane].append(task)
        return None

    def _begin(self, node: int, task: int) -> None:
        if self._lane(task) >= 0:
            self.busy.add(self._lane(task))
        self.running[node].add(task)
        self.course.attempts += 1
        self.driver_free = max(self.now, self.driver_free) + self.cluster.hand_out_s
        if not self.begun[task]:
            self.begun[task], self.last_begun = True, self.driver_free
        slow = self.work.on_disk and node in self.slow
        seconds = float(self.work.lengths[task]) * (self.cluster.slow_factor if slow else 1.0)
        self._event(self.driver_free - self.now + seconds, DONE, node, task)

    def _end(self, node: int, task: int) -> None:
        self.running[node].remove(task)
        self.free.append((node, self.life[node]))
        self.course.done += 1
        self.course.work_s += float(self.work.lengths[task])
        self._leave_lane(task)

    def _lose(self) -> None:
        """A node goes with all its tasks, which are the next to be handed out."""
        self._plan_loss()
        if not self.running:
            return
        node = sorted(self.running)[int(self.dice.integers(len(self.running)))]
        self.life[node] += 1  # so the ends of its tasks are not heard
        for task in sorted(self.running.pop(node), reverse=True):
            self.course.lost += 1
            self._leave_lane(task)
            self.waiting.appendleft(task)
        self._event(self.cluster.back_after_s, JOINED, node)

    def _join(self, node: int) -> None:
        self.running[node] = set()
        self.free += [(node, self.life[node])] * self.cluster.cores

    def _plan_loss(self) -> None:
        if self.cluster.losses_per_hour:
            self._event(float(self.dice.exponential(3600 / self.cluster.losses_per_hour)), LOST)

    def _lane(self, task: int) -> int:
        return -1 if self.work.lanes is None else int(self.work.lanes[task])

    def _leave_lane(self, task: int) -> None:
        lane = self._lane(task)
        self.busy.discard(lane)
        if self.held[lane]:
            self.waiting.appendleft(self.held[lane].popleft())
