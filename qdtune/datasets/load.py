"""Data sets as six uint8 / int64 arrays, checked once by the driver and handed to the trials from memory.

torch, torchvision and scikit-learn are imported inside the functions that need them: a dry run answers in under
a second, and the workers, which get their arrays through Ray's object store, import no torchvision. Pixels stay
0..255 here; they are normalised inside the training step.

Alphabet: N rows, I inputs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdtune.datasets.known import DATASETS

_TIMEOUT_S = 20.0
_SIDE = 28  # pixels
_IDX_TEST_ROWS = 10_000
_IDX_FILES = tuple(
    f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)
_CIFAR_FILES = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta")
_LAYOUT = {  # name -> torchvision's class, its folder under the root, the unpacked files there
    "mnist": ("MNIST", "MNIST/raw", _IDX_FILES),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw", _IDX_FILES),
    "kmnist": ("KMNIST", "KMNIST/raw", _IDX_FILES),
    "cifar10": ("CIFAR10", "cifar-10-batches-py", _CIFAR_FILES),
}
_IDX_SUMS = {  # md5 of the unpacked files, which torchvision does not check; none is known for kmnist
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion_mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}


class DataError(ValueError):
    """A data set that cannot be had, or whose files are damaged; the message says what to do."""


@dataclass(frozen=True, eq=False)
class Samples:
    """One data set, split in three; C-contiguous NumPy arrays, which Ray's object store hands out without a copy.

    Attributes:
        name: which set this is, a key of `spec.DATASETS`.
        train_x, val_x, test_x: (N, I) uint8, 0..255; colour images channel by channel.
        train_y, val_y, test_y: (N,) int64, 0..classes-1.
        inputs: I, numbers per row.
        classes: number of labels.
    """

    name: str
    train_x: NDArray[np.uint8]
    train_y: NDArray[np.int64]
    val_x: NDArray[np.uint8]
    val_y: NDArray[np.int64]
    test_x: NDArray[np.uint8]
    test_y: NDArray[np.int64]
    inputs: int
    classes: int


def default_root() -> Path:
    """The folder the data sets are looked for in: QDTUNE_DATA, else `data` in the current folder."""
    return Path(os.environ.get("QDTUNE_DATA") or "data")


def on_disk(name: str, root: Path) -> bool:
    """Whether every unpacked file of the set `name` lies under `root`; what the files hold is checked by `load`."""
    if name not in _LAYOUT:
        return name in DATASETS  # digits come with scikit-learn, synthetic is drawn
    _, folder, files = _LAYOUT[name]
    return all(os.path.isfile(root / folder / file) for file in files)  # False, too, where one may not look


def load(names: Sequence[str], root: Path, val_size: Callable[[str], int] | int) -> tuple[Samples, list[str]]:
    """The first of `names` that can be had, and the lines to print about it (none where it is the first name).

    What is not under `root` is downloaded there by torchvision.

    Args:
        names: keys of `spec.DATASETS`, the wanted one first.
        root: folder laid out as torchvision does: MNIST/raw, FashionMNIST/raw, KMNIST/raw, cifar-10-batches-py.
        val_size: rows cut from the training set for validation, 1 to its rows - 1; a function of the name where
            it depends on the set. The cut is the same for every trial and seed.

    Raises:
        DataError: none can be had; a file that is there is damaged (never replaced, never fallen back from);
            an unknown name; a val_size out of range.
    """
    misses: list[str] = []
    for name in names:
        if name not in DATASETS:
            raise DataError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}")
        try:
            if not on_disk(name, root):
                _download(name, root)
        except (OSError, RuntimeError, HTTPException) as error:  # URLError and timeouts are OSErrors
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            misses.append(f"{name} could not be had (not in {root}, download failed: {reason})")
            continue
        notes = [f"{', '.join(misses)}: training on {name} instead"] if misses else []
        return cut(name, _READERS[name](name, root), val_size(name) if callable(val_size) else val_size), notes
    raise DataError(f"no data set: {', '.join(misses)}; point --data-dir or QDTUNE_DATA to a folder that holds one")


Splits = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # train_x, train_y, test_x, test_y


def cut(name: str, splits: Splits, val_size: int) -> Samples:
    """`splits` with `val_size` rows of the training set held out, always the same ones.

    Raises:
        DataError: there are not so many.
    """
    train_x, train_y, test_x, test_y = splits
    if not 0 < val_size < len(train_x):
        raise DataError(f"val_size must be 1 to {len(train_x) - 1} for {name}, got {val_size}")
    order = _permutation(len(train_x))
    kept, held = order[val_size:], order[:val_size]
    return Samples(
        name=name,
        train_x=train_x[kept],
        train_y=train_y[kept],
        val_x=train_x[held],
        val_y=train_y[held],
        test_x=test_x,
        test_y=test_y,
        inputs=train_x.shape[1],
        classes=int(train_y.max()) + 1,
    )


def _permutation(rows: int) -> np.ndarray:
    # RandomState, not default_rng: NumPy promises that its stream never changes, so the split outlives versions
    return np.random.RandomState(0).permutation(rows)


def _read_idx(name: str, root: Path) -> Splits:
    # By hand: importing torchvision takes 2 s, and its class prefers a processed/*.pt of old versions, unchecked.
    folder = root / _LAYOUT[name][1]
    train_x, train_y, test_x, test_y = (_idx(name, folder / file) for file in _IDX_FILES)
    return train_x.reshape(-1, _SIDE**2), train_y, test_x.reshape(-1, _SIDE**2), test_y


def _idx(name: str, path: Path) -> np.ndarray:
    """The bytes of a checked idx file (N x 28 x 28 pixels, N labels as int64), without its header."""
    content = _content(path)
    if fault := _idx_fault(name, path.name, content):
        raise _damaged(path, fault)
    images = "images" in path.name
    numbers = np.frombuffer(content, np.uint8, offset=4 * (4 if images else 2))
    return numbers if images else numbers.astype(np.int64)


def _read_cifar10(name: str, root: Path) -> Splits:
    from torchvision.datasets import CIFAR10

    for file in _CIFAR_FILES:
        _check(name, root / _LAYOUT[name][1] / file)
    train, test = (CIFAR10(root, train=is_train) for is_train in (True, False))

    def rows(images: np.ndarray) -> np.ndarray:  # (N, 32, 32, 3) -> (N, 3 * 32 * 32)
        return images.transpose(0, 3, 1, 2).reshape(len(images), -1)

    return rows(train.data), np.array(train.targets), rows(test.data), np.array(test.targets)


def _read_digits(name: str, root: Path) -> Splits:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = np.rint(x * (255 / 16)).astype(np.uint8)  # grey levels 0..16
    order = _permutation(len(x))
    train, test = np.split(order, [DATASETS[name].train])
    return x[train], y[train], x[test], y[test]


def _read_synthetic(name: str, root: Path) -> Splits:
    """Gaussian blobs, one per class, far enough apart for a small network; 256 test rows."""
    info = DATASETS[name]
    random = np.random.RandomState(0)
    centres = random.uniform(64, 192, (info.classes, info.inputs))
    y = np.arange(info.train + 256) % info.classes
    x = np.rint(random.normal(centres[y], 24)).clip(0, 255).astype(np.uint8)
    return x[: info.train], y[: info.train], x[info.train :], y[info.train :]


_READERS: dict[str, Callable[[str, Path], Splits]] = {
    "mnist": _read_idx,
    "fashion_mnist": _read_idx,
    "kmnist": _read_idx,
    "cifar10": _read_cifar10,
    "digits": _read_digits,
    "synthetic": _read_synthetic,
}


def _check(name: str, path: Path) -> None:
    """Raises DataError where the unpacked file `path` of the set `name` is not what was published."""
    content = _content(path)
    if name == "cifar10":
        from torchvision.datasets import CIFAR10

        sums = dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])
        fault = _sum_fault(content, sums[path.name])
    else:
        fault = _idx_fault(name, path.name, content)
    if fault:
        raise _damaged(path, fault)


def _idx_fault(name: str, file: str, content: bytes) -> str | None:
    """What is wrong with the bytes of an idx file: magic number and dimensions, big-endian, then one byte each."""
    rows = DATASETS[name].train if file.startswith("train") else _IDX_TEST_ROWS
    shape = (rows, _SIDE, _SIDE) if "images" in file else (rows,)
    head = struct.pack(f">{1 + len(shape)}i", 0x0800 + len(shape), *shape)
    size = len(head) + math.prod(shape)
    if content[:4] != head[:4]:
        return f"it must start with the bytes {head[:4].hex()}, found {content[:4].hex() or 'nothing'}"
    if len(content) != size:
        return f"it must have {size} bytes, found {len(content)}"
    if content[: len(head)] != head:
        return f"it must hold {' x '.join(map(str, shape))} bytes by its header, which says otherwise"
    if name in _IDX_SUMS:
        return _sum_fault(content, _IDX_SUMS[name][_IDX_FILES.index(file)])
    if len(shape) == 1 and (largest := max(content[len(head) :])) >= DATASETS[name].classes:
        return f"labels must be below {DATASETS[name].classes}, found {largest}"
    return None


def _sum_fault(content: bytes, md5: str) -> str | None:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return None if found == md5 else f"its md5 must be {md5}, found {found}"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error.strerror})") from error


def _damaged(path: Path, fault: str) -> DataError:
    return DataError(
        f"{path} is damaged: {fault}; delete it to have it fetched anew, or point --data-dir or QDTUNE_DATA elsewhere"
    )


def _download(name: str, root: Path) -> None:
    """Puts the missing files of the set `name` under `root`, each whole or not at all; nothing there is replaced.

    Archives that lie where torchvision would put them are unpacked instead of downloaded.

    Raises:
        DataError: a file or archive that is there is damaged.
        OSError, RuntimeError, HTTPException: no network, no such host, no space, a download cut short.
    """
    from torchvision import datasets

    kind, folder, files = _LAYOUT[name]
    source: Any = getattr(datasets, kind)
    if name == "cifar10":
        archives = [(source.filename, source.tgz_md5)]
    else:
        archives = [(f"{folder}/{file}", md5) for file, md5 in source.resources]
    for file in files:
        if (root / folder / file).exists():
            _check(name, root / folder / file)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as folder_name:
        scratch = Path(folder_name)
        for archive, md5 in archives:
            if (root / archive).exists():
                if fault := _sum_fault(_content(root / archive), md5):
                    raise _damaged(root / archive, fault)
                (scratch / archive).parent.mkdir(parents=True, exist_ok=True)
                (scratch / archive).symlink_to((root / archive).resolve())
        with _quiet_network():
            source(scratch, download=True)
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file in files:
            if not (root / folder / file).exists():
                os.replace(scratch / folder / file, root / folder / file)


@contextlib.contextmanager
def _quiet_network() -> Iterator[None]:
    """No progress bars, and no connection that hangs longer than the timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)
