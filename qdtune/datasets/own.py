"""Data of the user's own: four arrays from a factory, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qdtune.datasets.dataset import DTYPES
from qdtune.datasets.targets import TargetError, Targets
from qdtune.messages import name_option, one_line
from qdtune.plugins import PluginError, blame_group, explain_errors, load_function, source_of

if TYPE_CHECKING:
    from qdtune.datasets.dataset import Splits

NAMES = ("train_x", "train_y", "test_x", "test_y")  # of the arrays of a factory
MAX_CHANNELS = 4  # of an image whose last axis is taken for its channels


def load_own(
    factory: str, root: Path, targets: Targets, sha256: str | None = None, content: str | None = None
) -> tuple[Splits, dict[str, Any]]:
    """The data that a factory gives, and what is now known of it: keys of a data group.

    Images come out as rows, channel by channel, and are known by `image`.

    Args:
        factory: `package.module:function`, called as `factory(root)`, which returns train_x, train_y, test_x, test_y:
            x of one of `DTYPES` (N, I), or images (N, C, H, W) or (N, H, W); y as `targets` reads it.
        root: the folder of the data sets.
        targets: the kind of y.
        sha256, content: what the factory's source and its arrays must hash to; None takes them as they are.

    Raises:
        SpecError: the factory cannot be used; it has every fault that can be told at once.
    """
    with blame_group("data"):
        load = load_function(factory, sha256)
        given = _call(factory, load, root)
        splits, image, count = _checked(factory, given, targets)
        digest = hashlib.sha256(repr([array.shape for array in splits]).encode())
        dtype = splits[0].dtype.name
        if image != (1, 1, splits[0].shape[1]):  # rows that are no images keep the hash of older versions
            digest.update(repr(image).encode())
        if dtype != DTYPES[0]:
            digest.update(dtype.encode())
        for array in splits:
            digest.update(array.data)
        if content not in (None, digest.hexdigest()):
            raise PluginError(f"{factory} gives other data than when `content` was written")
    shape = [*splits[0].shape, count]
    known = {"sha256": source_of(factory).sha256, "content": digest.hexdigest(), "shape": shape}
    known["image"] = list(image)
    if dtype != DTYPES[0]:
        known["dtype"] = dtype
    return splits, known


def _checked(factory: str, given: Any, targets: Targets) -> tuple[Splits, tuple[int, int, int], int]:
    """The four arrays of a factory in our types, x as rows; the channels, height and width of a sample; the number of
    classes, or of targets."""
    if not isinstance(given, tuple | list) or len(given) != 4:
        raise PluginError(f"{factory} must return (train_x, train_y, test_x, test_y), got {type(given).__name__}")
    with explain_errors(f"{factory} must return four arrays"):
        arrays = [_as_array(f"{factory}: {name}", array) for name, array in zip(NAMES, given, strict=True)]
    train_x, train_y, test_x, test_y = arrays
    faults: list[str] = []
    rows = [_check_rows(factory, split, x, faults) for split, x in (("train", train_x), ("test", test_x))]
    if faults:
        if train_x.ndim and test_x.ndim:  # as many targets are needed as there are rows, of whatever kind
            faults += _find_target_fault(factory, targets, train_y, test_y, len(train_x), len(test_x))
        raise PluginError(*faults)
    train_x, test_x = rows
    if len(train_x) < 2 or not test_x.size or train_x.shape[1:] != test_x.shape[1:]:
        what = "must give 2 rows to train on and 1 to test with, as wide as each other and not empty"
        raise PluginError(f"{factory} {what}, got shapes {train_x.shape} and {test_x.shape}")
    if train_x.dtype != test_x.dtype:
        raise PluginError(f"{factory}: test_x must be {train_x.dtype} as train_x is, got {test_x.dtype}")
    try:
        train_y, test_y, count = targets.read(train_y, test_y, len(train_x), len(test_x))
    except TargetError as error:
        raise PluginError(f"{factory}: {error}") from None
    image = train_x.shape[1:] if train_x.ndim == 4 else (1, 1, train_x.shape[1])
    train_x, test_x = (np.ascontiguousarray(x.reshape(len(x), -1)) for x in (train_x, test_x))
    return (train_x, train_y, test_x, test_y), image, count


def _call(factory: str, load: Callable[[Path], Any], root: Path) -> Any:
    """What the factory returns.

    Raises:
        PluginError: it fails; if a file is missing, the message says what `root` is.
    """
    try:
        with explain_errors(f"{factory} failed"):
            return load(root)
    except PluginError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        folder, option = one_line(str(root)), name_option("--data-dir")
        what = f"its argument is the folder of the data sets, {folder} ({option}), and not that of the sweep file"
        raise PluginError(f"{error}; {what}") from error.__cause__


def _find_target_fault(factory: str, targets: Targets, *given: Any) -> list[str]:
    """The fault of the targets, if they have one; the arguments are those of `Targets.read`."""
    try:
        targets.read(*given)
    except TargetError as error:
        return [f"{factory}: {error}"]
    return []


def _as_array(name: str, given: Any) -> np.ndarray:
    """An array without a mask.

    Raises:
        PluginError: elements are masked, and would count as numbers.
    """
    rows = given if isinstance(given, np.ma.MaskedArray | list | tuple) else ()
    masked = [k for k, row in enumerate(rows) if np.ma.is_masked(row)]
    if masked:
        what = f"must have no masked elements, got {len(masked)} rows with some, the first is row {masked[0]}"
        raise PluginError(f"{name} {what} (fill them in, or leave these rows out)")
    return np.asarray(given)


def _check_rows(factory: str, split: str, x: np.ndarray, faults: list[str]) -> np.ndarray:
    """The rows of a split; floats as float32, and images (N, H, W) with their one channel. Its fault is added."""
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):  # told below
            x = x.astype(np.float32)
    x = x.astype(x.dtype.newbyteorder("="), copy=False)  # torch takes no other order of bytes
    if x.dtype.name not in DTYPES or x.ndim not in (2, 3, 4):
        kinds = ", ".join(DTYPES[:-1])
        shapes = "(rows, inputs), or images (rows, channels, height, width) or (rows, height, width)"
        what = f"{split}_x must be {kinds} or float of shape {shapes}, got {x.dtype} of shape {x.shape}"
        faults.append(f"{factory}: {what}")
    elif x.ndim == 4 and x.shape[1] > MAX_CHANNELS >= x.shape[3]:
        what = "must have its channels before height and width: use .transpose(0, 3, 1, 2)"
        faults.append(f"{factory}: {split}_x {what}, got shape {x.shape}")
    elif x.dtype.kind == "f" and not np.isfinite(x).all():
        first = int(np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))[0])
        faults.append(
            f"{factory}: {split}_x must be finite float32, got {(~np.isfinite(x)).sum()} numbers that are not, "
            f"the first in row {first}"
        )
    return x[:, None] if x.ndim == 3 else x
