"""The digits that come with scikit-learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from qdtune.datasets.dataset import Dataset

if TYPE_CHECKING:
    import numpy as np

    from qdtune.datasets.dataset import Splits


def _read(dataset: Dataset, root: Path) -> Splits:
    import numpy as np

    table = _table()
    x, y = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8), table[:, -1].astype(np.int64)  # grey levels 0..16
    # RandomState, not default_rng: NumPy promises that its stream never changes, so the split outlives versions.
    order = np.random.RandomState(0).permutation(len(x))
    train, test = np.split(order, [dataset.train])
    return x[train], y[train], x[test], y[test]


def _table() -> np.ndarray:
    """The grey levels of all digits, and in the last column their class: float64 of shape (1797, 65).

    To import scikit-learn, which brings pandas, takes longer than all else that a launch does before it trains. So
    the file is read where its releases have it; if it is not there, `load_digits` knows where it is.
    """
    import numpy as np

    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return np.loadtxt(file, delimiter=",")  # which unpacks it
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return np.column_stack([x, y])


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
