"""The parts of a system, all frozen values: sides, terms, heads, stages, and the system itself."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ..batch import Batch

Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]  # captions to flat tokens and lengths
Words = Sequence[str]


@dataclass(frozen=True)
class Tokens:
    """What a tower says of N things."""

    pooled: Tensor  # (N, D) unit rows
    tokens: Tensor | None = None  # (N, T, D) unit rows
    mask: Tensor | None = None  # (N, T) bool: which tokens are there; all of them where it is None
    hidden: tuple[Tensor, ...] = ()  # (N, L, W) of layers, unprojected, the last one last
    hidden_mask: Tensor | None = None  # (N, L) bool

    def map(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        """The same of every tensor."""
        return Tokens(*(_mapped(getattr(self, name), change) for name in self.__dataclass_fields__))


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, tuple):
        return tuple(change(item) for item in value)
    return None if value is None else change(value)


class Interaction(Protocol):
    """How like each query is to each key: cosines or means of cosines, without the temperature."""

    reads: str  # pooled or tokens
    symmetric: bool  # whether the other direction is the transpose

    def __call__(self, queries: Tokens, keys: Tokens) -> Tensor:
        """(Nq, Nk): one direction; the other is another call."""
        ...

    def paired(self, left: Tokens, right: Tokens) -> Tensor:
        """(N,) of row i with row i, left to right."""
        ...


@dataclass(frozen=True)
class Asked:
    """What a target rule may look at, for n rows of a score matrix with M columns.

    Columns are the pairs of all ranks, N of them, then those of the bank.
    """

    own: Tensor  # (n,) int64: the column of each row's own pair
    columns: int  # M
    batch: Batch  # the small fields of all N pairs
    rows: Tensor  # (n,) int64: which of the N pairs the rows are
    queries: Tokens  # of all N pairs, by the teacher where there is one; no gradient
    keys: Tokens
    scale: Tensor  # one over the temperature
    interact: Interaction
    bank: Batch | None = None  # the small fields of the bank's keys
    progress: float = 0.0  # share of the steps that are done

    @property
    def valid(self) -> Tensor:
        """(M,) float: 1 for columns that are there."""
        mine = self.batch["valid"]
        whole = mine if self.bank is None else torch.cat([mine, self.bank["valid"]])
        return whole.to(self.keys.pooled.dtype)

    def labels(self, name: str) -> Tensor:
        """(M,) a field of all columns."""
        mine = self.batch[name]
        return mine if self.bank is None else torch.cat([mine, self.bank[name]])

    @property
    def one_hot(self) -> Tensor:
        """(n, M) each row's own column."""
        found = torch.zeros(len(self.own), self.columns, device=self.own.device, dtype=self.valid.dtype)
        return found.scatter_(1, self.own[:, None], 1.0)


Target = Callable[[Asked], Tensor]  # (n, M), rows sum to 1 over the columns that are there
Trust = Callable[[Asked], Tensor]  # (N,) how much each of all pairs counts as a pair


@dataclass(frozen=True)
class Side:
    """One thing that is compared: a field of the batch through a tower."""

    field: str
    tower: str
    of: str | None = None  # the side whose encoding this one begins with, so that nothing is encoded twice
    then: str | None = None  # a module of the system that makes tokens of what the tower said


@dataclass(frozen=True)
class Term:
    """One contrastive loss between two sides, in both directions."""

    left: str
    right: str
    interact: Interaction
    target: Target | None = None  # None: one-hot, without the matrix
    weight: float = 1.0
    scale: str = "scale"  # which temperature; "scale" is the towers' own
    loss: Literal["softmax", "sigmoid"] = "softmax"
    keys: Literal["online", "teacher"] = "online"
    bank: bool = False  # further keys from the memory's ring
    trust: Trust | None = None
    own: bool = True  # whether a row may choose its own column; not where a side is compared with itself
    name: str = "itc"


@dataclass(frozen=True)
class Widths:
    """What the modules of a system must fit to."""

    image: int  # of the picture tower's hidden states
    text: int
    dim: int  # of the pooled rows
    vocab: int
    context: int
    causal: bool = True  # whether a text state knows nothing of the tokens behind it


@dataclass
class Step:
    """What a head may look at."""

    model: nn.Module  # the objective: `towers`, `parts`, `scales`
    batch: Batch
    encoded: Mapping[str, Tokens]  # by side
    teacher: Mapping[str, Tokens]
    scores: Mapping[str, Tensor]  # by term: (B, B) left to right, without gradient


class Head(nn.Module):
    """A further loss, made of the towers' widths and options.

    `forward(step)` gives {name: (sum, count)}, so that chunks and ranks add up.
    """

    needs: ClassVar[tuple[str, ...]] = ()  # sides whose hidden states it reads
    within_chunk: ClassVar[bool] = False  # whether its loss depends on which pairs are in a piece

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__()

    def fit(self, captions: Callable[[], Iterator[str]], encode: Encode) -> None:
        """Learn from the corpus what is not learned by gradients, before the first step."""

    def end_epoch(self, towers: Any) -> None:
        """Every pair was seen once more."""

    def forward(self, step: Step) -> dict[str, tuple[Tensor, Tensor]]:
        raise NotImplementedError


@dataclass(frozen=True)
class HeadOf:
    """How a head is made, and what its loss weighs."""

    make: type[Head]
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)  # for `make`, besides the widths


View = Callable[[Batch, Generator], Batch]
Sampler = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # picture numbers of a window to its order
Modules = Callable[[Widths], Mapping[str, nn.Module]]


@dataclass(frozen=True)
class Captions:
    """How captions become numbers."""

    groups: Literal["words", "entities"] | None = None  # asks for the field `group`
    entities: str | None = None  # file with one entity a line; mined from the captions where not given
    drop: tuple[
        Callable[[Sequence[Words]], Callable[[Words], Words]], ...
    ] = ()  # filters, fitted to captions


@dataclass(frozen=True)
class Refresh:
    """A per-pair value that is reckoned from the losses of an epoch, and that targets read as a field."""

    field: str
    term: str
    reckon: Callable[[np.ndarray], np.ndarray]  # (N,) losses to (N,) values


@dataclass(frozen=True)
class Stage:
    """A stretch of the run with other trainable weights, or with parts of the system replaced."""

    until: float  # share of the steps at which it ends
    train: tuple[str, ...] = ("*",)  # patterns of parameter names
    override: Mapping[str, Any] = field(default_factory=dict)

    def trains(self, name: str) -> bool:
        """Whether a parameter is learned in this stage."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.train)


@dataclass(frozen=True)
class System:
    """One published way to train: everything that is not data, towers or optimizer."""

    name: str
    paper: str  # authors, title, year
    about: str  # what is special about it, one line
    sides: Mapping[str, Side]
    terms: tuple[Term, ...]
    heads: Mapping[str, HeadOf] = field(default_factory=dict)
    modules: Modules | None = None
    scales: Mapping[str, float] = field(default_factory=dict)  # further temperatures, at the start
    biases: Mapping[str, float] = field(default_factory=dict)  # added to scaled scores, by temperature
    temperature: float = 0.07  # of the towers' own scale, at the start
    learn_temperature: bool = True
    views: tuple[View, ...] = ()
    sampler: Sampler | None = None  # None: pairs, shuffled
    captions: Captions = Captions()
    lock: tuple[str, ...] = ()  # towers that are not trained and stay in evaluation mode
    image_from: str | None = None  # model folder whose picture tower is taken over at the start
    cached: bool = False  # pictures of a locked tower are embedded once, before the first step
    ema: float | None = None  # decay of the teacher's weights; None: no teacher
    bank: int = 0  # keys that the ring holds
    table: Refresh | None = None
    complete: float | None = None  # probability of mismatch from which on a captioner writes captions anew
    pseudo: int = 0  # nearest pictures whose words make a pseudo caption
    label: str | None = None  # column of the shards' tables that says which pairs are of one class
    stages: tuple[Stage, ...] = ()
    towers: Mapping[str, Any] = field(default_factory=dict)  # settings of the towers that it needs otherwise
    needs: tuple[str, ...] = ()  # of the data or the towers, for people

    def at(self, progress: float) -> System:
        """The system as it is when `progress` of the steps are done."""
        stage = self.stage(progress)
        return self if stage is None or not stage.override else replace(self, **stage.override)

    def stage(self, progress: float) -> Stage | None:
        """The stage at a point of the run; None where it has no stages."""
        return next((stage for stage in self.stages if progress < stage.until), None)
