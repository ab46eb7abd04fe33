"""CIFAR-10, in the batches of its authors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdtune.datasets.dataset import Archive, DataFile, Dataset
from qdtune.datasets.files import check_file, find_md5_fault

if TYPE_CHECKING:
    import numpy as np

    from qdtune.datasets.dataset import Splits

FOLDER = "cifar-10-batches-py"
_MD5S = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}


def _read(dataset: Dataset, root: Path) -> Splits:
    import numpy as np
    from torchvision import datasets

    for file in dataset.files:  # torchvision unpickles them
        check_file(dataset, file, root)
    train, test = (datasets.CIFAR10(root, train=is_train) for is_train in (True, False))
    return _rows_of(train.data), np.array(train.targets), _rows_of(test.data), np.array(test.targets)


def _rows_of(images: np.ndarray) -> np.ndarray:
    """(N, height, width, channels) as (N, channels * height * width)."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def _find_fault(dataset: Dataset, file: DataFile, content: bytes) -> str | None:
    return find_md5_fault(content, file.md5 or "")


def _list_archives(source: Any) -> list[Archive]:
    return [Archive(source.filename, source.tgz_md5)]


CIFAR10 = Dataset(
    "cifar10",
    "small colour photographs",
    train=50_000,
    test=10_000,
    inputs=3072,
    classes=10,
    read=_read,
    image=(3, 32, 32),
    files=tuple(DataFile(f"{FOLDER}/{file}", md5) for file, md5 in _MD5S.items()),
    find_fault=_find_fault,
    source="CIFAR10",
    list_archives=_list_archives,
)
