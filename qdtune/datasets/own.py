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
MAX_CHANNELS = 4  # of an image whose last axis is taken for its channels


def load_own(
    factory: str, root: Path, sha256: str | None = None, content: str | None = None
) -> tuple[Splits, dict[str, Any]]:
    """The data that a factory gives, and what is now known of it: keys of a data group.

    Images come out as rows, channel by channel, and are known by `image`.

    Args:
        factory: `package.module:function`, called as `factory(root)`, which returns train_x, train_y, test_x, test_y:
            uint8 (N, I), or images (N, C, H, W), and (N,) whole numbers from 0.
        root: the folder of the data sets.
        sha256, content: what the factory's source and its arrays must hash to; None takes them as they are.

    Raises:
        SpecError: the factory cannot be used.
    """
    with blame_group("data"):
        load = load_function(factory, sha256)
        with explain_errors(f"{factory} failed"):
            given = load(root)
        splits, image = _checked(factory, given)
        digest = hashlib.sha256(repr([array.shape for array in splits]).encode())
        if image != (1, 1, splits[0].shape[1]):  # rows that are no images keep the hash of older versions
            digest.update(repr(image).encode())
        for array in splits:
            digest.update(array.data)
        if content not in (None, digest.hexdigest()):
            raise PluginError(f"{factory} gives other data than when `content` was written")
    train_x, train_y = splits[:2]
    shape = [*train_x.shape, int(train_y.max()) + 1]
    known = {"sha256": source_of(factory).sha256, "content": digest.hexdigest(), "shape": shape}
    known["image"] = list(image)
    return splits, known


def _checked(factory: str, given: Any) -> tuple[Splits, tuple[int, int, int]]:
    """The four arrays of a factory in our types, x as rows, and the channels, height and width of a sample."""
    if not isinstance(given, tuple | list) or len(given) != 4:
        raise PluginError(f"{factory} must return (train_x, train_y, test_x, test_y), got {type(given).__name__}")
    with explain_errors(f"{factory} must return four arrays"):
        arrays = [np.asarray(array) for array in given]
    train_x, train_y, test_x, test_y = arrays
    for split, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if x.dtype != np.uint8 or x.ndim not in (2, 4):
            what = f"{split}_x must be uint8 of shape (rows, inputs), or images (rows, channels, height, width)"
            raise PluginError(f"{factory}: {what}, got {x.dtype} of shape {x.shape}")
        if x.ndim == 4 and x.shape[1] > MAX_CHANNELS >= x.shape[3]:
            what = "must have its channels before height and width: use .transpose(0, 3, 1, 2)"
            raise PluginError(f"{factory}: {split}_x {what}, got shape {x.shape}")
        if y.dtype.kind not in "iu" or y.shape != (len(x),):
            what = f"{split}_y must be one whole number for each of the {len(x)} rows of {split}_x"
            raise PluginError(f"{factory}: {what}, got {y.dtype} of shape {y.shape}")
    if len(train_x) < 2 or not test_x.size or train_x.shape[1:] != test_x.shape[1:]:
        what = "must give 2 rows to train on and 1 to test with, as wide as each other and not empty"
        raise PluginError(f"{factory} {what}, got shapes {train_x.shape} and {test_x.shape}")
    low, high = min(train_y.min(), test_y.min()), max(train_y.max(), test_y.max())
    if train_y.min() != 0 or low < 0 or high > train_y.max() or not 1 <= high < MAX_CLASSES:
        what = "labels must run from 0 to the number of classes - 1, and each of the test set's occur in training"
        raise PluginError(f"{factory}: {what}, got {low} to {high}")
    wide, whole = np.ascontiguousarray, np.int64
    image = train_x.shape[1:] if train_x.ndim == 4 else (1, 1, train_x.shape[1])
    train_x, test_x = (wide(x.reshape(len(x), -1)) for x in (train_x, test_x))
    return (train_x, wide(train_y, whole), test_x, wide(test_y, whole)), image
