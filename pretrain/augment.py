"""Random crops and mirror images of a whole batch at once, on the device, from a seed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def batch_seed(seed: int, step: int) -> int:
    """The seed of everything random in one step: a pure function of both, 63 bits."""
    mixed = (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed ^= mixed >> 31
    return (mixed * 0x94D049BB133111EB & (2**64 - 1)) >> 1


def normalised(pictures: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B, 3, H, W) float32, channels last, from (B, H, W, 3) uint8. mean, std: (3,), of values in [0, 1]."""
    scaled = pictures.permute(0, 3, 1, 2).float().div_(255.0)
    return scaled.sub_(mean.view(1, 3, 1, 1)).div_(std.view(1, 3, 1, 1))


def draw_crops(n: int, *, crop: float, flip: bool, seed: int) -> Tensor | None:
    """(n, 2, 3) float32 for `cropped`; None where every picture stays as it is.

    crop: smallest share of the side that is kept, in (0, 1]. Half of the pictures are mirrored if `flip`. The
    random numbers are drawn on the CPU, so every device sees the same crops.
    """
    if crop == 1 and not flip:
        return None
    generator = torch.Generator().manual_seed(seed)
    side, left, top, coin = torch.rand(4, n, generator=generator)
    kept = crop + (1 - crop) * side
    mirror = torch.where(coin < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    moves = torch.zeros(n, 2, 3)
    moves[:, 0, 0], moves[:, 1, 1] = kept * mirror, kept
    moves[:, 0, 2], moves[:, 1, 2] = (1 - kept) * (2 * left - 1), (1 - kept) * (2 * top - 1)
    return moves


def cropped(pictures: Tensor, moves: Tensor | None) -> Tensor:
    """Each picture (P, 3, H, W) cropped, and brought back to its size."""
    if moves is None:
        return pictures
    grid = functional.affine_grid(moves.to(pictures.device), list(pictures.shape), align_corners=False)
    moved = functional.grid_sample(
        pictures, grid.to(pictures.dtype), padding_mode="border", align_corners=False
    )
    return moved.contiguous(memory_format=torch.channels_last)
