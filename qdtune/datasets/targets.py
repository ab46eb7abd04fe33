"""What a factory may give as targets, one `Targets` for each kind: checked, and in one type.

Alphabet: N rows, O targets per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]

MAX_CLASSES = 65_536
MAX_ROUNDING = 1e-3  # of float32, as a share of the standard deviation of a target
MAX_NUMBER = 1e17  # of a target to train on: the squared errors of 10,000 of them sum to less than float32 holds


class TargetError(ValueError):
    """Targets that cannot be used; the message begins with the split, such as `train_y must be ...`."""


@dataclass(frozen=True)
class Targets:
    """A kind of targets.

    Attributes:
        name: of the kind.
        read: the targets of the training and the test set in our types, and their number: classes, or O. Arguments:
            both arrays, and the rows of each set. Raises TargetError.
    """

    name: str
    read: Callable[[Array, Array, int, int], tuple[Array, Array, int]]


def _read_labels(train: Array, test: Array, train_rows: int, test_rows: int) -> tuple[Array, Array, int]:
    """Labels (N,), int64: 0 to the number of classes - 1."""
    for split, y, rows in (("train", train, train_rows), ("test", test, test_rows)):
        _check_finite(split, y)
        if y.dtype.kind not in "iu" or y.shape != (rows,):
            raise TargetError(
                f"{split}_y must be one whole number for each of the {rows} rows of {split}_x, {_got(y)}"
            )
    low, high = min(train.min(), test.min()), max(train.max(), test.max())
    if train.min() != 0 or low < 0 or high > train.max() or not 1 <= high < MAX_CLASSES:
        what = "labels must run from 0 to the number of classes - 1, and each of the test set's occur in training"
        raise TargetError(f"{what}, got {low} to {high}")
    return _whole(train), _whole(test), int(high) + 1


def _read_label(train: Array, test: Array, train_rows: int, test_rows: int) -> tuple[Array, Array, int]:
    """Labels 0 and 1 as float32 (N, 1); of training, both occur."""
    for split, y, rows in (("train", train, train_rows), ("test", test, test_rows)):
        _check_finite(split, y)
        if y.shape not in ((rows,), (rows, 1)) or not _is_flags(y):
            raise TargetError(f"{split}_y must be a label 0 or 1 for each of the {rows} rows of {split}_x, {_got(y)}")
    if train.min() == train.max():
        raise TargetError(f"train_y must have both labels, 0 and 1, got {train.min():g} alone")
    return _column(train), _column(test), 2


def _read_flags(train: Array, test: Array, train_rows: int, test_rows: int) -> tuple[Array, Array, int]:
    """Labels 0 and 1 as float32 (N, O)."""
    for split, y, rows in (("train", train, train_rows), ("test", test, test_rows)):
        _check_finite(split, y)
        if y.ndim != 2 or len(y) != rows or not y.size or y.shape[1:] != train.shape[1:] or not _is_flags(y):
            what = f"must be labels 0 or 1 of shape ({rows}, labels), as many of them in training as in the test set"
            raise TargetError(f"{split}_y {what}, {_got(y)}")
    return _column(train), _column(test), train.shape[1]


def _read_numbers(train: Array, test: Array, train_rows: int, test_rows: int) -> tuple[Array, Array, int]:
    """Numbers as float32 (N, O); each of the O varies in training."""
    import numpy as np

    for split, y, rows in (("train", train, train_rows), ("test", test, test_rows)):
        if y.dtype.kind not in "iuf" or y.ndim not in (1, 2) or len(y) != rows or y.shape[1:] != train.shape[1:]:
            raise TargetError(f"{split}_y must be numbers of shape ({rows},) or ({rows}, targets), {_got(y)}")
    found = []
    for split, y in (("train", train), ("test", test)):
        with np.errstate(over="ignore"):  # told below
            found.append(_column(y))
        _check_finite(split, found[-1])
    _check_precision(train.reshape(len(train), -1), found[0])
    if not found[0].shape[1] or not varies(found[0]):
        constant = np.flatnonzero(found[0].min(0) == found[0].max(0))
        which = f"column {constant[0]} is the same in all rows" if len(constant) else "there is none"
        raise TargetError(f"each target in train_y must vary: {which}")
    largest = float(np.abs(found[0]).max())
    if largest > MAX_NUMBER:
        what = (
            f"must lie between -{MAX_NUMBER:g} and {MAX_NUMBER:g}, because squared errors overflow float32 above that"
        )
        raise TargetError(f"train_y {what}, got {largest:g} (choose a larger unit)")
    return found[0], found[1], found[0].shape[1]


def _read_anomalies(train: Array, test: Array, train_rows: int, test_rows: int) -> tuple[Array, Array, int]:
    """Test labels 0 (normal) and 1 (anomaly) as float32 (N, 1). Training labels are not used and come out as 0."""
    import numpy as np

    _check_finite("test", test)
    if test.shape not in ((test_rows,), (test_rows, 1)) or not _is_flags(test):
        raise TargetError(
            f"test_y must be a label, 0 for normal and 1 for an anomaly, for each of the {test_rows} rows of test_x, "
            f"{_got(test)}"
        )
    return np.zeros((train_rows, 1), np.float32), _column(test), 2


def varies(y: Array) -> bool:
    """Whether each target takes several values among the rows; else a metric such as R² or AUC is not defined."""
    return bool((y.min(0) < y.max(0)).all())


def _check_finite(split: str, y: Array) -> None:
    """Raises TargetError if floats (N, ...) have a NaN or an infinity."""
    import numpy as np

    wrong = ~np.isfinite(y) if y.dtype.kind == "f" else np.zeros(0, bool)
    if wrong.any():
        first = int(np.flatnonzero(wrong.reshape(len(y), -1).any(1))[0])
        what = f"got {wrong.sum()} numbers that are not, the first in row {first}"
        raise TargetError(f"{split}_y must be finite float32, {what}")


def _check_precision(y: Array, rounded: Array) -> None:
    """Raises TargetError if float32 rounds away the differences between the targets of a column.

    Args:
        y: numbers (N, O) as they were given.
        rounded: the same as float32.
    """
    import numpy as np

    exact = y.astype(np.longdouble)
    spread, rounding = exact.std(0), np.abs(rounded - exact).max(0, initial=0)
    for column in np.flatnonzero((rounding > MAX_ROUNDING * spread) & (exact.min(0) < exact.max(0))):
        most, (before, after) = np.abs(exact[:, column]).max(), (len(np.unique(a[:, column])) for a in (y, rounded))
        by, around = f"{rounding[column]:.3g}", f"{spread[column]:.3g} at values up to {most:.10g}"
        raise TargetError(
            f"train_y must keep its differences as float32, which rounds column {column} by up to {by}, and its "
            f"standard deviation is {around} ({before:,} distinct values become {after:,}): subtract an offset, "
            "such as the mean"
        )


def _is_flags(y: Array) -> bool:
    return y.dtype.kind in "biuf" and bool(((y == 0) | (y == 1)).all())


def _column(y: Array) -> Array:
    """The targets as float32 (N, O)."""
    import numpy as np

    return np.ascontiguousarray(y.reshape(len(y), -1), np.float32)


def _whole(y: Array) -> Array:
    import numpy as np

    return np.ascontiguousarray(y, np.int64)


def _got(y: Array) -> str:
    values = f" with values {y.min():g} to {y.max():g}" if y.dtype.kind in "biuf" and y.size else ""
    return f"got {y.dtype} of shape {y.shape}{values}"


LABELS = Targets("labels", _read_labels)
LABEL = Targets("label", _read_label)
FLAGS = Targets("flags", _read_flags)
NUMBERS = Targets("numbers", _read_numbers)
ANOMALIES = Targets("anomalies", _read_anomalies)
