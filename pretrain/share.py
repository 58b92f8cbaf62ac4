"""A rank's share of every batch: a span of its rows."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from ..errors import ConfigError
from .mixed import MixedOrder
from .order import Order
from .samples import Rows


class Share:
    """Stands in for an order where there are several ranks."""

    def __init__(self, order: Order | MixedOrder, rank: int, ranks: int) -> None:
        """Raises ConfigError where a batch cannot be shared evenly."""
        if order.batch % ranks:
            raise ConfigError(
                f"a batch of {order.batch} pairs cannot be shared by {ranks} ranks: set training.batch_size"
                f" to a multiple of {ranks}, at most {order.samples}"
            )
        self.order, self.rank, self.ranks = order, rank, ranks
        self.source, self.encode = order.source, order.encode
        self.batch, self.samples, self.per_epoch = order.batch, order.samples, order.per_epoch

    def __reduce__(self) -> tuple[type[Share], tuple[Order | MixedOrder, int, int]]:
        return Share, (self.order, self.rank, self.ranks)

    def __getitem__(self, k: int) -> Rows:
        """This rank's samples of batch k, counted from 0."""
        size = self.batch // self.ranks
        return cut_rows(self.order[k], slice(self.rank * size, (self.rank + 1) * size))

    def close(self) -> None:
        """Stop reading ahead."""
        self.order.close()


def cut_rows(rows: Rows, span: slice) -> Rows:
    """The samples of a span, with their tokens; rows: whose captions lie one behind the other."""
    picked = {item.name: getattr(rows, item.name)[span] for item in fields(rows)[:-1]}
    start, length = picked["start"], picked["length"]
    first, last = int(start[0]), int(start[-1] + length[-1])
    return Rows(**picked | {"start": start - np.int64(first)}, tokens=rows.tokens[first:last])


AnyOrder = Order | MixedOrder | Share


def whole_batch(order: AnyOrder, k: int) -> Rows:
    """All samples of batch k, whatever the share."""
    return order.order[k] if isinstance(order, Share) else order[k]
