"""Averages images down before training, with the operation of `reader.py` that the shipped network begins with.

Alphabet: N images, I pixels of one, I' pixels that are left of it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qdtune.datasets.dataset import Averaging
from qdtune.reader import EXACT_FLOAT32, area_weights, average

ROWS = 200  # averaged at a time: their sums fit in the cache of a CPU


def average_images(x: Tensor, how: Averaging) -> Tensor:
    """The images averaged down, uint8 (N, I'), on the device of x; computed on the CPU, in whole numbers.

    Args:
        x: uint8 (N, I).
        how: the sizes before and after.
    """
    down, right = (area_weights(n, m) for n, m in zip(how.image[1:], how.size, strict=True))
    total = int(down[0].sum() * right[0].sum())
    if 2 * 256 * total >= EXACT_FLOAT32:
        op = {"image": list(how.image), "size": list(how.size)}
        parts = [torch.from_numpy(average(rows.numpy(), op)) for rows in x.cpu().split(ROWS)]
        return torch.cat(parts).to(x.device)
    return _filter_images(x, how, down, right, 2 * total)  # the same numbers in a third of the time


def blur_images(x: Tensor, how: Averaging) -> Tensor:
    """The images with as many pixels as before, each about the mean of those that one averaged down would cover.

    Places between their pixels, interpolated linearly, are as blurred as places of the original images that are
    interpolated first and averaged down then: the variance of the weights is the same.

    Args:
        x, how: as of `average_images`; what is left of images has I pixels here.
    """
    down, right = (_blur_weights(n, m) for n, m in zip(how.image[1:], how.size, strict=True))
    return _filter_images(x, how, down, right, 2)


def _blur_weights(side: int, fewer: int) -> np.ndarray:
    """How much each pixel of a side counts for each blurred one, (side, side); pixels from outside count as zeros."""
    place, weights = np.arange(side), area_weights(side, fewer)
    weights = weights / weights.sum(1, keepdims=True)
    spread = float((weights @ place**2 - (weights @ place) ** 2).mean())
    # A mean of the n pixels around a place has a variance of (n^2 - 1) / 12. Two of them are mixed.
    n = 1
    while ((n + 2) ** 2 - 1) / 12 <= spread:
        n += 2
    share = (spread - (n**2 - 1) / 12) / ((n + 1) / 3)
    away = np.abs(place[:, None] - place)
    return (1 - share) / n * (away <= n // 2) + share / (n + 2) * (away <= n // 2 + 1)


def _filter_images(x: Tensor, how: Averaging, down: np.ndarray, right: np.ndarray, twice: int) -> Tensor:
    """down @ x @ right.T of each channel, divided by half of `twice` and rounded, halves up; on the device of x."""
    rows, columns = (torch.from_numpy(one.astype("f4")) for one in (down, right))
    parts = []
    for part in x.cpu().split(ROWS):
        images = part.float().view(-1, how.image[2]) @ columns.T  # (N C H, w)
        images = images.view(-1, how.image[1], len(columns))
        sums = torch.bmm(rows.expand(len(images), *rows.shape), images)
        found = sums.mul_(2).add_(twice / 2).div_(twice).floor_()
        parts.append(found.to(torch.int16).to(torch.uint8).view(len(part), -1))  # at once it would take longer
    return torch.cat(parts).to(x.device)
