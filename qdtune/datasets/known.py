"""The data sets that a sweep file can name."""

from __future__ import annotations

import math
from typing import NamedTuple


class DatasetInfo(NamedTuple):
    """Training samples (validation split included), input features, classes."""

    train: int
    inputs: int
    classes: int


DATASETS = {
    "mnist": DatasetInfo(60_000, 784, 10),
    "fashion_mnist": DatasetInfo(60_000, 784, 10),
    "kmnist": DatasetInfo(60_000, 784, 10),
    "cifar10": DatasetInfo(50_000, 3072, 10),
    "digits": DatasetInfo(1437, 64, 10),
    "synthetic": DatasetInfo(512, 16, 4),  # blobs, for tests only
}


def image_side(inputs: int) -> int | None:
    """Pixels along a side of a square image of one or three colours and so many numbers; None where it is none."""
    for colours in (1, 3):
        side = math.isqrt(inputs // colours)
        if colours * side**2 == inputs:
            return side
    return None
