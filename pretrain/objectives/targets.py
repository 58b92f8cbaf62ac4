"""Target rules: which keys each query should choose, as rows that sum to 1 over the columns that are there.

Every rule is (1 - w) P + w Q, row by row. A new one is a function of `Asked`, or a frozen class with its
parameters that is called with it, and a line in RULES, which the tests walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..batch import Batch
from .system import Asked, Target, Trust


def one_hot(asked: Asked) -> Tensor:
    """A pair is right for itself alone (a term without a target does the same without the matrix)."""
    return asked.one_hot


def same_pair(asked: Asked) -> Tensor:
    """Pairs with the same picture or the same caption are as right as the pair itself."""
    alike = torch.zeros(len(asked.own), asked.columns, dtype=torch.bool, device=asked.own.device)
    for name in ("picture", "caption"):
        alike |= asked.batch[name][asked.rows, None] == asked.labels(name)
    return _shares(alike, asked)


@dataclass(frozen=True)
class SameLabel:
    """Pairs of one label are right for each other (UniCL, equations 2 and 3)."""

    label: str = "label"

    def __call__(self, asked: Asked) -> Tensor:
        return _shares(asked.batch[self.label][asked.rows, None] == asked.labels(self.label), asked)


@dataclass(frozen=True)
class Smooth:
    """`share` of each row is spread evenly over all columns, its own included, as cross-entropy does it."""

    share: float
    rule: Target = one_hot

    def __call__(self, asked: Asked) -> Tensor:
        valid = asked.valid
        return (1 - self.share) * self.rule(asked) + self.share * valid / valid.sum().clamp(min=1)


@dataclass(frozen=True)
class OptimalTransport:
    """The plan that moves queries to keys at least cost, by `iterations` of Sinkhorn's (OTTER, section 3.2).

    A pair's own cost is infinite (`remove_diag`): with unit rows it would else be so low that the plan is the
    diagonal, and the loss InfoNCE. regularisation: lambda, the entropy's weight.
    """

    regularisation: float = 0.15
    iterations: int = 5

    def __call__(self, asked: Asked) -> Tensor:
        plan = self.plan(asked)[asked.rows]
        rows = plan / plan.sum(1, keepdim=True).clamp(min=1e-30)
        return torch.nn.functional.pad(rows, (0, asked.columns - rows.shape[1]))

    def plan(self, asked: Asked) -> Tensor:
        """(N, N) with columns that sum to 1/N, and rows nearly so; 0 on the diagonal."""
        queries, keys = asked.queries.pooled, asked.keys.pooled
        gain = queries @ queries.T + keys @ keys.T + queries @ keys.T
        valid = asked.batch["valid"]
        off = ~torch.eye(len(gain), dtype=torch.bool, device=gain.device) & valid & valid[:, None]
        return sinkhorn(gain, off, self.regularisation, self.iterations)


def sinkhorn(gain: Tensor, allowed: Tensor, regularisation: float, iterations: int) -> Tensor:
    """(N, N) the entropic plan for even marginals; mass only where `allowed`. gain: minus the cost."""
    top = gain.masked_fill(~allowed, -torch.inf).amax()  # exp of more would overflow
    plan = torch.exp((gain - top) / regularisation) * allowed
    n = allowed.any(1).sum().clamp(min=1)
    for _ in range(iterations):
        plan = plan / (plan.sum(1, keepdim=True) * n).clamp(min=1e-30)
        plan = plan / (plan.sum(0, keepdim=True) * n).clamp(min=1e-30)
    return plan


@dataclass(frozen=True)
class NoiseAdaptive:
    """The likelier a pair is mismatched, the more of its row goes to the others (NLIP, harmonisation).

    w = strength * noise, from the field `noise` in [0, 1].
    """

    strength: float = 0.9

    def __call__(self, asked: Asked) -> Tensor:
        own = asked.one_hot
        weight = self.strength * asked.batch["noise"].to(own.dtype)[asked.rows, None]
        others = asked.valid * (1 - own)
        return (1 - weight) * own + weight * others / others.sum(1, keepdim=True).clamp(min=1)


def _shares(alike: Tensor, asked: Asked) -> Tensor:
    rows = alike * asked.valid
    rows = torch.maximum(
        rows, asked.one_hot
    )  # a row whose own pair is not there counts nowhere, but sums to 1
    return rows / rows.sum(1, keepdim=True)


@dataclass(frozen=True)
class Doubt:
    """The `share` of pairs that are least similar as yet are not learned from; they stay wrong answers.

    Where pairs are noisy the towers learn the true ones first, so the least similar are mostly false. The
    share rises over the first `rises` of the steps: a new model cannot tell good from bad.
    """

    share: float
    rises: float = 0.5
    ask: Literal["pair", "captions"] = (
        "pair"  # captions: how well they agree with the picture's others counts too
    )

    def __call__(self, asked: Asked) -> Tensor:
        valid = asked.batch["valid"]
        share = self.share * min(1.0, asked.progress / self.rises)
        if share == 0:
            return valid.float()
        belief = asked.interact.paired(asked.queries, asked.keys).float()
        if self.ask == "captions":
            agreement, asked_any = agreement_of_captions(asked.keys.pooled.float(), asked.batch)
            belief = _standard(belief, valid)
            belief = torch.where(asked_any, (belief + _standard(agreement, asked_any)) / 2**0.5, belief)
        return _all_but_least(belief, valid, share)


@dataclass(frozen=True)
class DoubtCaption:
    """Of captions held against each other: those alone with their picture do not count, nor do the `share`
    that least agree with the picture's other captions. It rises as `Doubt` does."""

    share: float
    rises: float = 0.5

    def __call__(self, asked: Asked) -> Tensor:
        agreement, asked_any = agreement_of_captions(asked.keys.pooled.float(), asked.batch)
        return _all_but_least(agreement, asked_any, self.share * min(1.0, asked.progress / self.rises))


def agreement_of_captions(captions: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(N,) the mean cosine of each caption with the picture's other captions, and (N,) whether it has any.

    captions: (N, D) unit rows, of all pairs. A caption that is said again testifies to nothing.
    """
    valid = batch["valid"]
    same = (batch["picture"][:, None] == batch["picture"]) & (batch["caption"][:, None] != batch["caption"])
    same = same & valid & valid[:, None]
    n = same.sum(1)
    others = same.to(captions.dtype) @ captions
    return (captions * others).sum(1) / n.clamp(min=1), n > 0


def _standard(values: Tensor, among: Tensor) -> Tensor:
    """In standard deviations from the mean of those `among`."""
    some = values[among]
    if len(some) < 2:
        return torch.zeros_like(values)
    return (values - some.mean()) / some.std().clamp(min=1e-12)


def _all_but_least(belief: Tensor, among: Tensor, share: float) -> Tensor:
    """(N,) 1 for those `among` but the least believed `share` of them, else 0."""
    if share == 0 or not among.any():
        return among.float()
    least = torch.quantile(belief.masked_fill(~among, torch.inf), share * among.float().mean())
    return (belief >= least).float() * among


RULES: dict[str, Target] = {
    "one_hot": one_hot,
    "same": same_pair,
    "same_label": SameLabel(),
    "smooth": Smooth(0.1),
    "optimal_transport": OptimalTransport(),
    "noise_adaptive": NoiseAdaptive(),
}
TRUSTS: dict[str, Trust] = {
    "doubt": Doubt(0.25),
    "doubt_asking_captions": Doubt(0.25, ask="captions"),
    "doubt_caption": DoubtCaption(0.25),
}
