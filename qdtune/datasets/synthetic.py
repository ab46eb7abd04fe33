"""Gaussian blobs, one per class, far enough apart for a small network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qdtune.datasets.dataset import Dataset

if TYPE_CHECKING:
    from qdtune.datasets.dataset import Splits


def _read(dataset: Dataset, root: Path) -> Splits:
    import numpy as np

    random = np.random.RandomState(0)
    centres = random.uniform(64, 192, (dataset.classes, dataset.inputs))
    y = np.arange(dataset.train + dataset.test) % dataset.classes
    x = np.rint(random.normal(centres[y], 24)).clip(0, 255).astype(np.uint8)
    return x[: dataset.train], y[: dataset.train], x[dataset.train :], y[dataset.train :]


SYNTHETIC = Dataset(
    "synthetic", "four Gaussian blobs, for tests", train=512, test=256, inputs=16, classes=4, read=_read
)
