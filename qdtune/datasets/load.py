"""Data sets as six arrays, checked once by the driver and handed to the trials from memory.

torch, torchvision and scikit-learn are imported inside the functions that need them: a dry run answers in under
a second, and the workers, which get their arrays through Ray's object store, import no torchvision. Rows
stay as they are here, pixels 0..255; they are normalised where they are trained on.

Alphabet: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qdtune.datasets.dataset import DataError, Dataset, DatasetInfo
from qdtune.datasets.download import download
from qdtune.datasets.known import DATASET_NAMES, find_dataset
from qdtune.machine import expand_home
from qdtune.messages import name_option

if TYPE_CHECKING:
    from qdtune.datasets.dataset import Splits

LEAST_SPREAD = float(np.finfo(np.float32).eps)  # a standard deviation that normalises, as a share of the values
SMALLEST = 1e-37  # the same; its inverse and the shift stay well within float32


@dataclass(frozen=True, eq=False)
class Samples:
    """One data set, split in three; C-contiguous NumPy arrays, which Ray's object store hands out without a copy.

    Attributes:
        name: of the data set, or the factory that gave it.
        train_x, val_x, test_x: (N, I) of one of `DTYPES`; colour images channel by channel.
        train_y, val_y, test_y: (N,) int64 labels, 0..classes-1; or float32 (N, O), see `targets`.
        inputs: I, numbers per row.
        classes: number of labels, or of targets per row.
        image: channels, height and width of a row, if rows are square images.
        scale, shift: float32 (1,) or (I,); rows that are not uint8 are normalised as x * scale + shift. None if they
            are taken as they are.
    """

    name: str
    train_x: NDArray[Any]
    train_y: NDArray[Any]
    val_x: NDArray[Any]
    val_y: NDArray[Any]
    test_x: NDArray[Any]
    test_y: NDArray[Any]
    inputs: int
    classes: int
    image: tuple[int, int, int] | None = None
    scale: NDArray[np.float32] | None = None
    shift: NDArray[np.float32] | None = None


def default_root() -> Path:
    """The folder the data sets are looked for in: QDTUNE_DATA, else `data` in the current folder."""
    return Path(expand_home(os.environ.get("QDTUNE_DATA") or "data"))


def on_disk(name: str, root: Path) -> bool:
    """Whether every file of the data set `name` lies under `root`; `load` checks their content."""
    dataset = find_dataset(name)
    # `os.path`: False, too, in a folder that may not be searched.
    return dataset is not None and all(os.path.isfile(root / file.path) for file in dataset.files)


def load(names: Sequence[str], root: Path, val_size: Callable[[str], int] | int) -> tuple[Samples, list[str]]:
    """The first of `names` that can be had, and the lines to print about it (none if it is the first name).

    What is not under `root` is downloaded there by torchvision, if it has the data set.

    Args:
        names: of data sets, the wanted one first.
        root: folder laid out as torchvision does: MNIST/raw, FashionMNIST/raw, KMNIST/raw, cifar-10-batches-py.
        val_size: rows cut from the training set for validation, 1 to its rows - 1; a function of the name if it
            depends on the set. The cut is the same for every trial and seed.

    Raises:
        DataError: none can be had; a file that is there is damaged (never replaced, never fallen back from);
            an unknown name; a val_size out of range.
    """
    misses: list[str] = []
    for name in names:
        dataset = find_dataset(name)
        if dataset is None:
            raise DataError(f"dataset must be one of {', '.join(DATASET_NAMES)}, got {name!r}")
        is_there = on_disk(name, root)
        if not is_there and not dataset.source:
            misses.append(f"{name} could not be had (not in {root}, and it cannot be downloaded)")
            continue
        try:
            if not is_there:
                download(dataset, root)
        except (OSError, RuntimeError, HTTPException) as error:  # URLError and timeouts are OSErrors
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            misses.append(f"{name} could not be had (not in {root}, download failed: {reason})")
            continue
        notes = [f"{', '.join(misses)}: training on {name} instead"] if misses else []
        held = val_size(name) if callable(val_size) else val_size
        return cut(name, _read(dataset, root), held, dataset.info), notes
    elsewhere = f"point {name_option('--data-dir')} or QDTUNE_DATA to a folder that holds one"
    raise DataError(f"no data set: {', '.join(misses)}; {elsewhere}")


def _read(dataset: Dataset, root: Path) -> Splits:
    """What its reader returns, which must have the sizes that sweep files were checked against."""
    splits = dataset.read(dataset, root)
    sizes = [(dataset.train, dataset.inputs), (dataset.train,), (dataset.test, dataset.inputs), (dataset.test,)]
    found = [array.shape for array in splits]
    if found != sizes:
        raise DataError(f"the arrays of {dataset.name} must have the shapes {sizes}, its reader returned {found}")
    return splits


def cut(
    name: str, splits: Splits, val_size: int, info: DatasetInfo | None = None, normalize: str = "none"
) -> Samples:
    """`splits` with `val_size` rows of the training set held out, always the same ones.

    Args:
        info: knows images and classes.
        normalize: `none`, or rows get mean 0 and standard deviation 1 over the whole `dataset` or over each
            `feature`. The training rows without the validation split decide the mean and the deviation.

    Raises:
        DataError: the training set has too few rows.
    """
    train_x, train_y, test_x, test_y = splits
    if not 0 < val_size < len(train_x):
        raise DataError(f"val_size must be 1 to {len(train_x) - 1} for {name}, got {val_size}")
    # RandomState, not default_rng: NumPy promises that its stream never changes, so the split outlives versions.
    order = np.random.RandomState(0).permutation(len(train_x))
    kept, held = order[val_size:], order[:val_size]
    scale, shift = _measure(train_x[kept], normalize)
    return Samples(
        name=name,
        train_x=train_x[kept],
        train_y=train_y[kept],
        val_x=train_x[held],
        val_y=train_y[held],
        test_x=test_x,
        test_y=test_y,
        inputs=train_x.shape[1],
        classes=info.classes if info else int(train_y.max()) + 1,
        image=info and info.square,
        scale=scale,
        shift=shift,
    )


def _measure(x: NDArray[Any], normalize: str) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """The scale and the shift that normalise rows x (N, I); what does not vary by more than rounding is only shifted.

    A spread within the rounding of float32, or too small for its inverse to be one, counts as none: its scale would
    blow up the next row that differs.
    """
    if normalize == "none":
        return None, None
    axis = 0 if normalize == "feature" else None
    mean, spread = np.atleast_1d(x.mean(axis, dtype=np.float64)), np.atleast_1d(x.std(axis, dtype=np.float64))
    largest = np.atleast_1d(np.maximum(x.max(axis), -x.min(axis)).astype(np.float64)) if x.dtype.kind == "f" else 0
    scale = 1 / np.where(spread > np.maximum(LEAST_SPREAD * largest, SMALLEST), spread, 1)
    return scale.astype(np.float32), (-mean * scale).astype(np.float32)
