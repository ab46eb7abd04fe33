"""What is known of a data set before it is read.

Sweep files are checked against it, so nothing heavy is imported here: readers import NumPy when they are called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    Splits: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # train_x, train_y, test_x, test_y


DTYPES = ("uint8", "int16", "uint16", "float32")  # of the rows of a data set


class DataError(ValueError):
    """A data set that cannot be had, or whose files are damaged; the message says what to do."""


class Averaging(NamedTuple):
    """How images are averaged down, once, before training.

    Attributes:
        image: channels, height and width of the images.
        size: height and width of what comes out.
    """

    image: tuple[int, int, int]
    size: tuple[int, int]

    @property
    def smaller(self) -> tuple[int, int, int]:
        """Channels, height and width of what comes out."""
        return (self.image[0], *self.size)


class DatasetInfo(NamedTuple):
    """Training samples (validation split included), input features, classes (or targets per sample), and the rows.

    `image` has the channels, height and width of a sample, channel by channel: 1, 1 and I of a sample that is no
    image. If it is None, as in sweep files of older versions, a square number of features is taken for an image.
    `dtype` is one of `DTYPES`.
    """

    train: int
    inputs: int
    classes: int
    image: tuple[int, int, int] | None = None
    dtype: str = "uint8"

    @property
    def square(self) -> tuple[int, int, int] | None:
        """The channels, height and width of samples that are square images; None if they are not."""
        if self.image is None:
            side = image_side(self.inputs)
            return None if side is None else (self.inputs // side**2, side, side)
        return self.image if self.image[1] == self.image[2] else None

    @property
    def pixels(self) -> tuple[int, int, int] | None:
        """The channels, height and width of samples that are images, of any sides; None if they are none."""
        image = self.square if self.image is None else self.image
        return image if image is not None and image[1] > 1 else None

    def averaging(self, resolution: int | None) -> Averaging | None:
        """How its images are averaged down to a resolution; None if they stay as they are.

        Both sides become shorter by the same factor, the longer one to the nearest whole number, halves up.

        Args:
            resolution: pixels of the shorter side after averaging, not more than before; None: no averaging.
        """
        image = self.pixels
        if resolution is None or image is None or resolution == min(image[1:]):
            return None
        shorter = min(image[1:])
        height, width = ((2 * side * resolution + shorter) // (2 * shorter) for side in image[1:])
        return Averaging(image, (height, width))

    def pixels_at(self, resolution: int | None) -> tuple[int, int, int] | None:
        """As `pixels`, of images averaged down to a resolution, which may leave them one pixel."""
        how = self.averaging(resolution)
        return self.pixels if how is None else how.smaller

    def averaged(self, resolution: int | None) -> DatasetInfo:
        """The same data set with images averaged down, see `averaging`."""
        how = self.averaging(resolution)
        if how is None:
            return self
        return self._replace(inputs=math.prod(how.smaller), image=how.smaller)


class DataFile(NamedTuple):
    """One unpacked file of a data set: its path under the root of all data sets, and its md5 if one is known."""

    path: str
    md5: str | None = None


class Archive(NamedTuple):
    """One file to download: its path under the root of all data sets, and its md5."""

    path: str
    md5: str


def find_no_fault(dataset: Dataset, file: DataFile, content: bytes) -> str | None:
    """None: any content is accepted."""
    return None


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes:
        name: what sweep files and tables call it.
        text: one sentence for the docs.
        train: training samples, validation split included.
        test: test samples.
        inputs: numbers per sample.
        classes: number of labels.
        read: its samples, given the data set and the root folder: train_x, train_y, test_x, test_y; x is uint8
            (N, inputs), y is int64 (N,).
        image: channels, height and width of a sample, channel by channel; None if samples are no images.
        files: what has to lie under the root; empty if it comes with a package or is drawn.
        find_fault: what is wrong with the content of one of its files, if anything.
        source: the class of torchvision that downloads it; empty if there is nothing to download.
        list_archives: what that class downloads.
    """

    name: str
    text: str
    train: int
    test: int
    inputs: int
    classes: int
    read: Callable[[Dataset, Path], Splits]
    image: tuple[int, int, int] | None = None
    files: tuple[DataFile, ...] = ()
    find_fault: Callable[[Dataset, DataFile, bytes], str | None] = find_no_fault
    source: str = ""
    list_archives: Callable[[Any], list[Archive]] = lambda source: []

    @property
    def info(self) -> DatasetInfo:
        """Its sizes, as data of the user's own have them, too."""
        return DatasetInfo(self.train, self.inputs, self.classes, self.image)


def image_side(inputs: int) -> int | None:
    """Pixels along a side of a square image with this many numbers, of one or three colours; None if it is none."""
    for colours in (1, 3):
        side = math.isqrt(inputs // colours)
        if colours * side**2 == inputs:
            return side
    return None
