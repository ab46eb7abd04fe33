"""A data set as tensors on a device, with what its images look like averaged down or distorted."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qdtune.datasets.dataset import Averaging
from qdtune.datasets.load import Samples
from qdtune.training.augment import distort_images
from qdtune.training.averaging import average_images, blur_images
from qdtune.training.step import normalise


@dataclass(frozen=True)
class Tensors:
    """A data set on a device.

    Attributes:
        train_x, val_x: (N, I), uint8, or float32 and normalised.
        test_x: (N, I), as the data has it, because it is read by what is shipped.
        train_y, val_y, test_y: labels (N,) or targets (N, O), see `Samples`.
        inputs: I.
        classes: as in `Samples`.
        image: the channels, height and width of inputs that are square images.
        scale, shift: as in `Samples`; they are shipped.
        averaging: how the images of `test_x` become the inputs of the network; the others are averaged down already.
        whole: the same before anything was averaged down.
    """

    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    test_y: Tensor
    inputs: int
    classes: int
    image: tuple[int, int, int] | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    averaging: Averaging | None = None
    whole: Tensors | None = None
    _averaged: dict[Averaging, Tensors] = field(init=False, default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, data: Samples, device: torch.device) -> Tensors:
        """The tensors of a data set on a device."""

        def put(array: np.ndarray) -> Tensor:
            with warnings.catch_warnings():
                # Arrays from Ray's object store are read-only, and nothing writes to them.
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                return torch.from_numpy(array).to(device)

        scale, shift = (None if part is None else put(part) for part in (data.scale, data.shift))

        splits = ("train_x", "train_y", "val_x", "val_y", "test_x", "test_y")
        arrays: dict[str, Any] = {name: put(getattr(data, name)) for name in splits}
        raw = cls(
            **arrays,
            inputs=data.inputs,
            classes=data.classes,
            image=data.image,
            scale=scale,
            shift=shift,
        )
        if raw.train_x.dtype == torch.uint8:  # a quarter of the memory; the step normalises its batch
            return raw
        return replace(raw, train_x=raw.normalise(raw.train_x), val_x=raw.normalise(raw.val_x))

    def averaged(self, how: Averaging | None) -> Tensors:
        """The same data set with its training and validation images averaged down; made once, then kept.

        The test images stay as they are, because what is shipped averages them down itself.
        """
        if how is None:
            return self
        if how not in self._averaged:
            train_x, val_x = (average_images(x, how) for x in (self.train_x, self.val_x))
            image = how.smaller if how.size[0] == how.size[1] else None
            inputs = train_x.shape[1]
            self._averaged[how] = replace(
                self, train_x=train_x, val_x=val_x, inputs=inputs, image=image, averaging=how, whole=self
            )
        return self._averaged[how]

    def distort(
        self, augment: str, draw: torch.Generator, plain_share: float = 0.0, out: Tensor | None = None
    ) -> Tensor:
        """The training images, each one distorted or plain, as inputs of a network, uint8 (N, I).

        They are distorted as they are and then averaged down, `shift` in two steps and the others in one. A pixel of
        an image averaged down is large: moved by one of 8 x 8, networks lost 5.4 points (MNIST, 64-64-10, 2 bits, 3
        seeds).

        Args:
            augment, draw, plain_share, out: as for `distort_images`.
        """
        whole = self.whole or self
        assert whole.image is not None, "a sweep is refused that augments what is no square image"
        if self.averaging is not None and "shift" not in augment:
            return distort_images(self._blurred, augment, draw, whole.image, plain_share, self.train_x, out)
        if self.averaging is None:
            return distort_images(whole.train_x, augment, draw, whole.image, plain_share, out=out)
        images = distort_images(whole.train_x, augment, draw, whole.image, plain_share)
        smaller = average_images(images, self.averaging)
        return smaller if out is None else out.copy_(smaller)

    @cached_property
    def _blurred(self) -> Tensor:
        """The whole training images in which `distort` looks up pixels of smaller ones, uint8 (N, I before)."""
        assert self.whole is not None, "they are averaged down"
        assert self.averaging is not None, "they are averaged down"
        return blur_images(self.whole.train_x, self.averaging)

    def normalise(self, rows: Tensor) -> Tensor:
        """Rows (B, I), as the data has them, as float32 inputs of a network."""
        inputs = normalise(rows if self.averaging is None else average_images(rows, self.averaging))
        return inputs if self.scale is None or self.shift is None else inputs * self.scale + self.shift
