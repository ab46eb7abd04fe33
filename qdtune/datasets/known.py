"""The data sets that a sweep file can name.

To add one, write its `Dataset` in a file of its kind and name it in `DATASETS`; all else is derived from that.
"""

from __future__ import annotations

from qdtune.datasets.cifar import CIFAR10
from qdtune.datasets.dataset import Dataset
from qdtune.datasets.digits import DIGITS
from qdtune.datasets.idx import FASHION_MNIST, KMNIST, MNIST
from qdtune.datasets.synthetic import SYNTHETIC

DATASETS: tuple[Dataset, ...] = (MNIST, FASHION_MNIST, KMNIST, CIFAR10, DIGITS, SYNTHETIC)
DATASET_NAMES = tuple(dataset.name for dataset in DATASETS)


def find_dataset(name: str) -> Dataset | None:
    """The data set of this name; None if there is none, such as the factory of a user."""
    return next((dataset for dataset in DATASETS if dataset.name == name), None)


def dataset_of(name: str) -> Dataset:
    """The data set of this name.

    Raises:
        KeyError: there is none.
    """
    dataset = find_dataset(name)
    if dataset is None:
        raise KeyError(name)
    return dataset
