"""Many pictures or captions to unit rows, as numpy has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .tokenizer import Encode, pad_tokens
from .towers import autocast_dtype
from .two_towers import TwoTowers


def on_tensor_cores(model: TwoTowers) -> torch.autocast:
    """bfloat16 products on a GPU that has them; a CPU computes in float32, with the same bytes anywhere."""
    device = model.device
    wanted = device.type == "cuda" and autocast_dtype("auto", device) is not None
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


@torch.no_grad()
def embed_pictures(model: TwoTowers, pictures: np.ndarray) -> np.ndarray:
    """(N, D) float32 unit rows from (N, S, S, 3) uint8."""
    with on_tensor_cores(model):
        rows = model.encode_pictures(torch.from_numpy(pictures).to(model.device))
    return rows.float().cpu().numpy()


@torch.no_grad()
def embed_captions(model: TwoTowers, captions: Sequence[str], encode: Encode, batch: int) -> np.ndarray:
    """(N, D) float32 unit rows; at most `batch` captions go through the tower at once."""
    tokens, lengths = encode(captions)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    found = [np.zeros((0, model.dimension), np.float32)]
    for at in range(0, len(captions), batch):
        block = pad_tokens(tokens, starts[at : at + batch], lengths[at : at + batch], model.context_length)
        rows = torch.from_numpy(block.astype(np.int64)).to(model.device)
        with on_tensor_cores(model):
            found.append(model.encode_captions(rows).float().cpu().numpy())
    return np.concatenate(found)
