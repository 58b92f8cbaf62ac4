"""Target rules: which keys each query should choose, as rows that sum to 1 over the columns that are there.

Every rule is (1 - w) P + w Q, row by row. A new one is a function of `Asked`, or a frozen class with its
parameters that is called with it, and a line in RULES, which the tests walk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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

    def __call__(self, asked: Asked) -> Tensor:
        cosine = asked.interact.paired(asked.queries, asked.keys).float()
        share = self.share * min(1.0, asked.progress / self.rises)
        valid = asked.batch["valid"]
        if share == 0:
            return valid.float()
        least = torch.quantile(cosine.masked_fill(~valid, torch.inf), share * valid.float().mean())
        return (cosine >= least).float() * valid


RULES: dict[str, Target] = {
    "one_hot": one_hot,
    "same": same_pair,
    "same_label": SameLabel(),
    "smooth": Smooth(0.1),
    "optimal_transport": OptimalTransport(),
    "noise_adaptive": NoiseAdaptive(),
}
TRUSTS: dict[str, Trust] = {"doubt": Doubt(0.25)}
