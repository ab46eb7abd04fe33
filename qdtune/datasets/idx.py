"""Data sets in idx files, MNIST's format: a big-endian header, then one byte per pixel or label."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdtune.datasets.dataset import Archive, DataFile, Dataset
from qdtune.datasets.files import check_file, find_md5_fault

if TYPE_CHECKING:
    import numpy as np

    from qdtune.datasets.dataset import Splits

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SIDE = 28  # pixels


def _read(dataset: Dataset, root: Path) -> Splits:
    # By hand: importing torchvision takes 2 s, and its class prefers a processed/*.pt of old versions, unchecked.
    train_x, train_y, test_x, test_y = (_read_file(dataset, file, root) for file in dataset.files)
    return train_x.reshape(-1, dataset.inputs), train_y, test_x.reshape(-1, dataset.inputs), test_y


def _read_file(dataset: Dataset, file: DataFile, root: Path) -> np.ndarray:
    """The numbers of a checked file without its header; labels as int64."""
    import numpy as np

    content = check_file(dataset, file, root)
    shape = _shape_in(dataset, file)
    numbers = np.frombuffer(content, np.uint8, offset=4 * (1 + len(shape)))
    return numbers if len(shape) > 1 else numbers.astype(np.int64)


def _shape_in(dataset: Dataset, file: DataFile) -> tuple[int, ...]:
    name = Path(file.path).name
    rows = dataset.train if name.startswith("train") else dataset.test
    return (rows, SIDE, SIDE) if "images" in name else (rows,)


def _find_fault(dataset: Dataset, file: DataFile, content: bytes) -> str | None:
    """Compares magic number, dimensions, length, then the md5; where none is known, the labels."""
    shape = _shape_in(dataset, file)
    head = struct.pack(f">{1 + len(shape)}i", 0x0800 + len(shape), *shape)
    size = len(head) + math.prod(shape)
    if content[:4] != head[:4]:
        return f"it must start with the bytes {head[:4].hex()}, found {content[:4].hex() or 'nothing'}"
    if len(content) != size:
        return f"it must have {size} bytes, found {len(content)}"
    if content[: len(head)] != head:
        return f"it must hold {' x '.join(map(str, shape))} bytes by its header, which says otherwise"
    if file.md5:
        return find_md5_fault(content, file.md5)
    if len(shape) == 1 and (largest := max(content[len(head) :])) >= dataset.classes:
        return f"labels must be below {dataset.classes}, found {largest}"
    return None


def _idx_dataset(
    name: str, text: str, source: str, md5s: tuple[str | None, ...] = (None, None, None, None)
) -> Dataset:
    """Ten classes of grey images, 28 x 28.

    Args:
        name, text, source: as in `Dataset`; `source` is the name of its folder, too.
        md5s: of the unpacked files, which torchvision does not check.
    """
    folder = f"{source}/raw"

    def list_archives(found: Any) -> list[Archive]:
        return [Archive(f"{folder}/{file}", md5) for file, md5 in found.resources]

    return Dataset(
        name,
        text,
        train=60_000,
        test=10_000,
        inputs=SIDE**2,
        classes=10,
        read=_read,
        image=(1, SIDE, SIDE),
        files=tuple(DataFile(f"{folder}/{file}", md5) for file, md5 in zip(FILES, md5s, strict=True)),
        find_fault=_find_fault,
        source=source,
        list_archives=list_archives,
    )


MNIST = _idx_dataset(
    "mnist",
    "handwritten digits",
    "MNIST",
    (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
)
FASHION_MNIST = _idx_dataset(
    "fashion_mnist",
    "clothes, in the format of MNIST",
    "FashionMNIST",
    (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
)
KMNIST = _idx_dataset("kmnist", "handwritten Japanese characters, in the format of MNIST", "KMNIST")
