"""Data of the user's own: four arrays from a factory, checked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qdtune.plugins import PluginError, blame_group, explain_errors, load_function, source_of

if TYPE_CHECKING:
    from qdtune.datasets.dataset import Splits

MAX_CLASSES = 65_536


def load_own(
    factory: str, root: Path, sha256: str | None = None, content: str | None = None
) -> tuple[Splits, dict[str, Any]]:
    """The data that a factory gives, and what is now known of it: `sha256`, `content` and `shape` of a data group.

    Args:
        factory: `package.module:function`, called as `factory(root)`, which returns train_x, train_y, test_x, test_y:
            (N, I) uint8 and (N,) whole numbers from 0.
        root: the folder of the data sets.
        sha256, content: what the factory's source and its arrays must hash to; None takes them as they are.

    Raises:
        SpecError: the factory cannot be used.
    """
    with blame_group("data"):
        load = load_function(factory, sha256)
        with explain_errors(f"{factory} failed"):
            given = load(root)
        splits = _checked(factory, given)
        digest = hashlib.sha256(repr([array.shape for array in splits]).encode())
        for array in splits:
            digest.update(array.data)
        if content not in (None, digest.hexdigest()):
            raise PluginError(f"{factory} gives other data than when `content` was written")
    train_x, train_y = splits[:2]
    shape = [*train_x.shape, int(train_y.max()) + 1]
    known = {"sha256": source_of(factory).sha256, "content": digest.hexdigest(), "shape": shape}
    return splits, known


def _checked(factory: str, given: Any) -> Splits:
    """The four arrays of a factory in our types."""
    if not isinstance(given, tuple | list) or len(given) != 4:
        raise PluginError(f"{factory} must return (train_x, train_y, test_x, test_y), got {type(given).__name__}")
    with explain_errors(f"{factory} must return four arrays"):
        arrays = [np.asarray(array) for array in given]
    train_x, train_y, test_x, test_y = arrays
    for split, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if x.dtype != np.uint8 or x.ndim != 2:
            what = f"{split}_x must be uint8 of shape (rows, inputs), got {x.dtype} of shape {x.shape}"
            raise PluginError(f"{factory}: {what}")
        if y.dtype.kind not in "iu" or y.shape != (len(x),):
            what = f"{split}_y must be one whole number for each of the {len(x)} rows of {split}_x"
            raise PluginError(f"{factory}: {what}, got {y.dtype} of shape {y.shape}")
    if len(train_x) < 2 or not test_x.size or train_x.shape[1] != test_x.shape[1]:
        what = "must give 2 rows to train on and 1 to test with, as wide as each other and not empty"
        raise PluginError(f"{factory} {what}, got shapes {train_x.shape} and {test_x.shape}")
    low, high = min(train_y.min(), test_y.min()), max(train_y.max(), test_y.max())
    if train_y.min() != 0 or low < 0 or high > train_y.max() or not 1 <= high < MAX_CLASSES:
        what = "labels must run from 0 to the number of classes - 1, and each of the test set's occur in training"
        raise PluginError(f"{factory}: {what}, got {low} to {high}")
    wide, whole = np.ascontiguousarray, np.int64
    return wide(train_x), wide(train_y, whole), wide(test_x), wide(test_y, whole)
