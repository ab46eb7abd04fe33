"""Distorts the training images anew in every epoch (Simard, Steinkraus and Platt 2003, section 2).

An epoch draws up to `DRAWS` distortions and applies each of them to as many images, which lie side by side. So an
image gets another one in each epoch, of the same distribution as if it had been drawn for this image alone. Images of
one distortion share the places from which their pixels come, which saves most of the time.

Images that are averaged down are not distorted pixel by pixel first: each of their pixels is looked up in images in
which every pixel is already the mean of the square that a smaller pixel covers, see `averaging.blur_images`.

Alphabet: N samples, I in = C * side^2 pixels, channel by channel and row by row, C channels, D distortions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFTS = 9  # of an image: none, and one pixel towards each side and corner
SIGMA, ALPHA = 4.0, 34.0  # the paper's, for a side of 28 pixels (its 29 include an empty row)
TURN, MOVE, SCALE = math.radians(10), 0.1, 0.1  # the most that `affine` does: radians, part of the side, part of 1
DRAWS = 1024  # distortions of an epoch, but for `shift`; fewer images have one each
WARP_ROWS = 4096  # images distorted at a time on a GPU; this bounds the memory of their displacements
_STAY = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # the map that moves nothing
# A float32 of this size holds whole numbers only, and its bits, read as an integer, end with those of what was added.
# torch rounds and converts to uint8 in three times the time.
_ROUNDED = 1.5 * 2**23
CACHED_NUMBERS = 400_000  # of images distorted at a time on a CPU: they stay in its cache, and calls are few

Image = tuple[int, int, int]  # channels, height and width, which are equal


def distort_images(
    x: Tensor,
    augment: str,
    draw: torch.Generator,
    image: Image,
    plain_share: float = 0.0,
    plain: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """All images, each one distorted, but some left as they are; `out` if it is given.

    Args:
        x: uint8 (N, I).
        augment: `shift`, `elastic`, `affine` or `affine_elastic`. With `flip` at its end, or alone, half of the
            images are mirrored.
        draw: a generator on the CPU, so that the images are the same on every device.
        image: what a row of x is.
        plain_share: the chance, 0 to 1, that an image stays as it is.
        plain: uint8 (N, C * fewer^2), the images as they are if they have fewer pixels than x, which then holds their
            `blur_images`; distorted ones get as many pixels. Not with `shift`. None: x.
        out: as `plain`, to be filled; new memory takes a fifth of the time. None: a new one.
    """
    plain = x if plain is None else plain
    out = torch.empty_like(plain) if out is None else out
    chosen = torch.arange(len(x))
    if plain_share:
        chosen = (torch.rand(len(x), generator=draw) >= plain_share).nonzero().squeeze(1)
    distortion = augment.removesuffix("flip").removesuffix("_")
    _distort_rows(x, distortion, draw, image, plain, out, chosen.to(x.device))
    if augment.endswith("flip"):
        mirrored = chosen[torch.rand(len(chosen), generator=draw) < 0.5].to(x.device)
        _put_rows(out, mirrored, flip_images(out.index_select(0, mirrored), image[0]))
    return out


def _distort_rows(
    x: Tensor, distortion: str, draw: torch.Generator, image: Image, plain: Tensor, out: Tensor, chosen: Tensor
) -> None:
    """Fills `out`: the images of these places distorted, all others plain."""
    is_all = len(chosen) == len(x)
    if not (is_all and distortion):
        out.copy_(plain)
    if not distortion:
        return
    if distortion == "shift":
        shift = torch.randint(SHIFTS, (len(chosen),), generator=draw).to(x.device)
        moved = shift_images(x if is_all else x.index_select(0, chosen), shift, image)
        out.copy_(moved) if is_all else _put_rows(out, chosen, moved)
        return
    side = math.isqrt(plain.shape[1] // image[0])
    for part, places in _draw_places(len(chosen), distortion, draw, x, image, side):
        if is_all:
            resample_images(x[part], places, image, out=out[part])
        else:
            made = out.new_empty(len(chosen[part]), out.shape[1])
            resample_images(x.index_select(0, chosen[part]), places, image, out=made)
            _put_rows(out, chosen[part], made)


def flip_images(x: Tensor, colours: int) -> Tensor:
    """Images (N, I) of C colours, left and right exchanged."""
    side = math.isqrt(x.shape[1] // colours)
    return x.view(len(x), colours * side, side).flip(2).view_as(x)


def _put_rows(x: Tensor, chosen: Tensor, rows: Tensor) -> Tensor:
    """`x` with other rows at these places."""
    if x.is_cuda:
        return x.index_copy_(0, chosen, rows)
    x.numpy()[chosen.numpy()] = rows.numpy()  # torch copies byte by byte, which takes eight times as long
    return x


def _draw_places(
    n: int, augment: str, draw: torch.Generator, x: Tensor, image: Image, side: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yields n images part by part: which ones, and their places as `resample_images` takes them.

    Args:
        x: the images from which pixels come.
        side: of the images that are made.
    """
    group = max(1, -(-n // DRAWS))  # images of one distortion
    count = -(-n // group)
    maps = draw_maps(count, draw).to(x.device) if "affine" in augment else _STAY.to(x.device).expand(count, 2, 3)
    size = max(1, (WARP_ROWS if x.is_cuda else CACHED_NUMBERS // x.shape[1]) // group)
    for start in range(0, count, size):
        places = map_places(maps[start : start + size], side)
        if "elastic" in augment:
            noise = 2 * torch.rand(len(places), 2, *image[1:], generator=draw) - 1
            places = places + bend_places(noise.to(x.device), side)
        yield slice(start * group, (start + size) * group), places


def shift_images(x: Tensor, shift: Tensor, image: Image) -> Tensor:
    """All images, each one shifted by up to one pixel in each direction; pixels from outside are 0.

    These are the paper's simplest distortions.

    Args:
        x: (N, I).
        shift: (N,), 0 to `SHIFTS` - 1; pixels come from row + shift // 3 - 1 and column + shift % 3 - 1.
        image: as of `distort_images`.
    """
    side = image[-1]
    result = torch.empty_like(x)
    for number in range(SHIFTS):
        (down, right), chosen = divmod(number, 3), (shift == number).nonzero().squeeze(1)
        padded = F.pad(x.index_select(0, chosen).unflatten(1, image), (1, 1, 1, 1))
        _put_rows(result, chosen, padded[..., down : down + side, right : right + side].flatten(1))
    return result


def draw_maps(n: int, draw: torch.Generator) -> Tensor:
    """Maps (n, 2, 3) for `map_places`: a turn, a scale and a move of each image, all uniform in their ranges.

    An image is turned about its centre by up to `TURN` in either direction, scaled by 1 - `SCALE` to 1 + `SCALE`, and
    then moved by up to `MOVE` of its side in each direction.
    """
    turn, scale, right, down = (2 * torch.rand(n, 4, generator=draw) - 1).unbind(1)
    factor = 1 + SCALE * scale
    cos, sin = torch.cos(TURN * turn) / factor, torch.sin(TURN * turn) / factor
    right, down = 2 * MOVE * right, 2 * MOVE * down  # the side is 2 long
    rows = [cos, sin, -cos * right - sin * down], [-sin, cos, sin * right - cos * down]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def map_places(maps: Tensor, side: int) -> Tensor:
    """The places from which pixels come under affine maps: columns and rows, (D, 2, side, side).

    -1 and 1 are the outer edges of the image.

    Args:
        maps: (D, 2, 3); the pixel at p = (column, row, 1) comes from the place `maps` @ p.
        side: of the images that are made.
    """
    # One product of matrices: `affine_grid` multiplies image by image, which takes longer than all the rest.
    return (maps.reshape(-1, 3) @ _pixels(side, maps.device)).view(-1, 2, side, side)


def bend_places(noise: Tensor, side: int) -> Tensor:
    """How far an elastic distortion moves these places, (D, 2, side, side), in the same unit.

    Each pixel comes from a place nearby, close to that of its neighbours: the displacement is `noise`, smoothed with
    a Gaussian of `SIGMA` pixels and multiplied by `ALPHA`. Its root mean square is 1.4 pixels. Both constants scale
    with the side of the image.

    Args:
        noise: for each pixel of the images from which pixels come, uniform in -1..1: for columns and for rows.
        side: of the images that are made.
    """
    pixels = noise.shape[-1]
    alpha = ALPHA * (pixels / 28) ** 2  # a wider Gaussian makes the noise smaller
    kernel = _gaussians(pixels, side, noise.device)
    return 2 * alpha / pixels * (kernel @ noise @ kernel.T)


@lru_cache(maxsize=8)
def _gaussians(pixels: int, side: int, device: torch.device) -> Tensor:
    """The weight of each of `pixels` at the centre of each of `side` pixels over the same length, (side, pixels)."""
    sigma = SIGMA * pixels / 28
    place = torch.arange(pixels, dtype=torch.float32, device=device)
    centre = (torch.arange(side, dtype=torch.float32, device=device) + 0.5) * (pixels / side) - 0.5
    return torch.exp(-((centre[:, None] - place) ** 2) / (2 * sigma**2)) / (sigma * (2 * torch.pi) ** 0.5)


@lru_cache(maxsize=8)
def _pixels(side: int, device: torch.device) -> Tensor:
    """Column, row and 1 of each pixel, (3, side^2): -1 and 1 are the outer edges of the image."""
    centres = (2 * torch.arange(side, dtype=torch.float32, device=device) + 1) / side - 1
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten(), torch.ones_like(rows).flatten()])


def resample_images(x: Tensor, places: Tensor, image: Image, out: Tensor) -> None:
    """Makes images whose pixels come from these places.

    Values between pixels are interpolated linearly; pixels from outside are 0.

    Args:
        x: uint8 (N, I).
        places: (D, 2, side, side) in -1..1 between the outer edges of an image, columns and rows. The first N / D
            images (rounded up) share the first of them, as many images the second, and so on.
        image: what a row of x is.
        out: uint8 (N, C * side^2), to be filled.
    """
    floats = x.float()
    if missing := -len(x) % len(places):
        floats = F.pad(floats, (0, 0, 0, missing))
    channels = floats.view(len(places), -1, *image[1:])  # (D, C N / D, H, W)
    found = F.grid_sample(channels, places.movedim(1, -1).contiguous(), align_corners=False)
    whole = found.add_(_ROUNDED).view(torch.int32)  # its last byte is the number, rounded
    out.copy_(whole.view(-1, out.shape[1])[: len(x)])
