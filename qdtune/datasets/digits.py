"""The digits that come with scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qdtune.datasets.dataset import Dataset

if TYPE_CHECKING:
    from qdtune.datasets.dataset import Splits


def _read(dataset: Dataset, root: Path) -> Splits:
    import numpy as np
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = np.rint(x * (255 / 16)).astype(np.uint8)  # grey levels 0..16
    # RandomState, not default_rng: NumPy promises that its stream never changes, so the split outlives versions.
    order = np.random.RandomState(0).permutation(len(x))
    train, test = np.split(order, [dataset.train])
    return x[train], y[train], x[test], y[test]


DIGITS = Dataset(
    "digits",
    "handwritten digits of 8 x 8 pixels, which come with scikit-learn",
    train=1437,
    test=360,
    inputs=64,
    classes=10,
    read=_read,
    image=(1, 8, 8),
)
