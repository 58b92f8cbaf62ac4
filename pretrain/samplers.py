"""In which order the samples of a window come: a permutation from what they are and a seed's dice.

A sampler is a function of (N,) picture numbers and a generator; a system names one, or has pairs shuffled.
"""

from __future__ import annotations

import numpy as np


def shuffled(picture: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """(N,) every pair by itself."""
    return dice.permutation(len(picture))


def by_picture(picture: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """(N,) the pictures shuffled, each followed by all its pairs: a picture is computed once in a batch."""
    distinct, number = np.unique(picture, return_inverse=True)
    return np.argsort(dice.permutation(len(distinct))[number], kind="stable")


SAMPLERS = {"shuffled": shuffled, "by_picture": by_picture}
