"""Distorts the training images anew in every epoch (Simard, Steinkraus and Platt 2003, section 2).

Alphabet: N samples, I in = C * side^2 pixels, channel by channel and row by row, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFTS = 9  # of an image: none, and one pixel towards each side and corner
SIGMA, ALPHA = 4.0, 34.0  # the paper's, for a side of 28 pixels (its 29 include an empty row)
WARP_ROWS = 4096  # images distorted at a time; this bounds the memory of their displacements

Image = tuple[int, int, int]  # channels, height and width, which are equal


def distort_images(x: Tensor, augment: str, draw: torch.Generator, image: Image) -> Tensor:
    """All images, each one distorted.

    Args:
        x: uint8 (N, I).
        augment: `shift` or `elastic`.
        draw: a generator on the CPU, so that the images are the same on every device.
        image: what a row is.
    """
    if augment == "shift":
        return shift_images(x, torch.randint(SHIFTS, (len(x),), generator=draw).to(x.device), image)
    side = image[-1]
    noise = (2 * torch.rand(len(rows), 2, side, side, generator=draw) - 1 for rows in x.split(WARP_ROWS))
    pairs = zip(x.split(WARP_ROWS), noise, strict=True)
    return torch.cat([warp_images(rows, n.to(x.device), image) for rows, n in pairs])


def shift_images(x: Tensor, shift: Tensor, image: Image) -> Tensor:
    """All images, each one shifted by up to one pixel in each direction; pixels from outside are 0.

    These are the paper's simplest distortions.

    Args:
        x: (N, I).
        shift: (N,), 0 to `SHIFTS` - 1; pixels come from row + shift // 3 - 1 and column + shift % 3 - 1.
        image: as of `distort_images`.
    """
    side = image[-1]
    images = x.unflatten(1, image)
    result = torch.empty_like(images)
    for number in range(SHIFTS):
        (down, right), chosen = divmod(number, 3), shift == number
        padded = F.pad(images[chosen], (1, 1, 1, 1))
        result[chosen] = padded[..., down : down + side, right : right + side]
    return result.flatten(1)


def warp_images(x: Tensor, noise: Tensor, image: Image) -> Tensor:
    """All images under an elastic distortion: each pixel comes from a place nearby, close to that of its neighbours.

    The displacement is `noise`, smoothed with a Gaussian of `SIGMA` pixels and multiplied by `ALPHA`. Its root mean
    square is 1.4 pixels. Both constants scale with the side of the image. Values between pixels are interpolated
    linearly.

    Args:
        x: uint8 (N, I).
        noise: (N, 2, side, side), uniform in -1..1: for columns and for rows.
        image: as of `distort_images`.
    """
    side = image[-1]
    place = torch.arange(side, dtype=torch.float32, device=x.device)
    sigma, alpha = SIGMA * side / 28, ALPHA * (side / 28) ** 2  # a wider Gaussian makes the noise smaller
    kernel = torch.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2)) / (sigma * (2 * torch.pi) ** 0.5)
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    source = torch.stack([columns, rows]) + alpha * (kernel @ noise @ kernel)  # (N, 2, side, side), in pixels
    grid = ((2 * source + 1) / side - 1).movedim(1, -1)  # -1 and 1 are the outer edges of the image
    images = x.unflatten(1, image).float()
    return F.grid_sample(images, grid, align_corners=False).round().to(torch.uint8).flatten(1)
