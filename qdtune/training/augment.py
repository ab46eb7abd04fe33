"""Distorts the training images anew in every epoch (Simard, Steinkraus and Platt 2003, section 2).

Alphabet: N samples, I in = C * side^2 pixels, channel by channel and row by row, C channels.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFTS = 9  # of an image: none, and one pixel towards each side and corner
SIGMA, ALPHA = 4.0, 34.0  # the paper's, for a side of 28 pixels (its 29 include an empty row)
TURN, MOVE, SCALE = math.radians(10), 0.1, 0.1  # the most that `affine` does: radians, part of the side, part of 1
WARP_ROWS = 4096  # images distorted at a time; this bounds the memory of their displacements
CACHED_NUMBERS = 100_000  # of images that `affine` resamples at a time on a CPU: in its cache it takes half the time

Image = tuple[int, int, int]  # channels, height and width, which are equal


def distort_images(x: Tensor, augment: str, draw: torch.Generator, image: Image, plain_share: float = 0.0) -> Tensor:
    """All images, each one distorted, but some left as they are.

    Args:
        x: uint8 (N, I).
        augment: `shift`, `elastic`, `affine` or `affine_elastic`.
        draw: a generator on the CPU, so that the images are the same on every device.
        image: what a row is.
        plain_share: the chance, 0 to 1, that an image stays as it is.
    """
    if not plain_share:
        return _distort_all(x, augment, draw, image)
    chosen = (torch.rand(len(x), generator=draw) >= plain_share).nonzero().squeeze(1).to(x.device)
    return x.index_copy(0, chosen, _distort_all(x[chosen], augment, draw, image)) if len(chosen) else x


def _distort_all(x: Tensor, augment: str, draw: torch.Generator, image: Image) -> Tensor:
    if augment == "shift":
        return shift_images(x, torch.randint(SHIFTS, (len(x),), generator=draw).to(x.device), image)
    maps = None if augment == "elastic" else draw_maps(len(x), draw).to(x.device)
    if maps is not None and augment == "affine":
        size = WARP_ROWS if x.is_cuda else max(1, CACHED_NUMBERS // x.shape[1])
        pairs = zip(x.split(size), maps.split(size), strict=True)
        return torch.cat([map_images(rows, some, image) for rows, some in pairs])
    warped = []
    for start in range(0, len(x), WARP_ROWS):
        part = slice(start, start + WARP_ROWS)
        noise = 2 * torch.rand(len(x[part]), 2, *image[1:], generator=draw) - 1
        warped.append(warp_images(x[part], noise.to(x.device), image, None if maps is None else maps[part]))
    return torch.cat(warped)


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


def warp_images(x: Tensor, noise: Tensor, image: Image, maps: Tensor | None = None) -> Tensor:
    """All images under an elastic distortion: each pixel comes from a place nearby, close to that of its neighbours.

    The displacement is `noise`, smoothed with a Gaussian of `SIGMA` pixels and multiplied by `ALPHA`. Its root mean
    square is 1.4 pixels. Both constants scale with the side of the image. Values between pixels are interpolated
    linearly.

    Args:
        x: uint8 (N, I).
        noise: (N, 2, side, side), uniform in -1..1: for columns and for rows.
        image: as of `distort_images`.
        maps: of `map_images`, which are then applied too, in the same interpolation.
    """
    side = image[-1]
    place = torch.arange(side, dtype=torch.float32, device=x.device)
    sigma, alpha = SIGMA * side / 28, ALPHA * (side / 28) ** 2  # a wider Gaussian makes the noise smaller
    kernel = torch.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2)) / (sigma * (2 * torch.pi) ** 0.5)
    displaced = alpha * (kernel @ noise @ kernel)  # (N, 2, side, side), in pixels
    if maps is not None:
        return _resample(x, _place_pixels(maps, side) + 2 * displaced / side, image)
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    return _resample(x, (2 * (torch.stack([columns, rows]) + displaced) + 1) / side - 1, image)


def draw_maps(n: int, draw: torch.Generator) -> Tensor:
    """Maps (n, 2, 3) for `map_images`: a turn, a scale and a move of each image, all uniform in their ranges.

    An image is turned about its centre by up to `TURN` in either direction, scaled by 1 - `SCALE` to 1 + `SCALE`, and
    then moved by up to `MOVE` of its side in each direction.
    """
    turn, scale, right, down = (2 * torch.rand(n, 4, generator=draw) - 1).unbind(1)
    factor = 1 + SCALE * scale
    cos, sin = torch.cos(TURN * turn) / factor, torch.sin(TURN * turn) / factor
    right, down = 2 * MOVE * right, 2 * MOVE * down  # the side is 2 long
    rows = [cos, sin, -cos * right - sin * down], [-sin, cos, sin * right - cos * down]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def map_images(x: Tensor, maps: Tensor, image: Image) -> Tensor:
    """All images, each one under an affine map; pixels from outside are 0, values between pixels are interpolated.

    Args:
        x: uint8 (N, I).
        maps: (N, 2, 3); the pixel at p = (column, row, 1), where -1 and 1 are the outer edges of the image, comes
            from the place `maps` @ p.
        image: as of `distort_images`.
    """
    return _resample(x, _place_pixels(maps, image[-1]), image)


def _place_pixels(maps: Tensor, side: int) -> Tensor:
    """The places (N, 2, side, side) from which pixels come: columns and rows, in -1..1 between the outer edges."""
    # One product of matrices: `affine_grid` multiplies image by image, which takes longer than all the rest.
    return (maps.reshape(-1, 3) @ _pixels(side, maps.device)).view(-1, 2, side, side)


@lru_cache(maxsize=8)
def _pixels(side: int, device: torch.device) -> Tensor:
    """Column, row and 1 of each pixel, (3, side^2): -1 and 1 are the outer edges of the image."""
    centres = (2 * torch.arange(side, dtype=torch.float32, device=device) + 1) / side - 1
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten(), torch.ones_like(rows).flatten()])


def _resample(x: Tensor, places: Tensor, image: Image) -> Tensor:
    """The images whose pixels come from these places, (N, 2, side, side) in -1..1 between the outer edges."""
    found = F.grid_sample(x.unflatten(1, image).float(), places.movedim(1, -1), align_corners=False)
    return found.round_().to(torch.uint8).flatten(1)
