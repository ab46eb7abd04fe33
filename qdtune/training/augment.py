"""Images as training sees them, distorted anew in every epoch: Simard, Steinkraus and Platt 2003, section 2.

Alphabet: N samples, I in = c * side^2 pixels, channel by channel and row by row, c = 1 or 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qdtune.datasets.dataset import image_side

MOVES = 9  # of an image: none, and one pixel to each side and corner
SIGMA, ALPHA = 4.0, 34.0  # the paper's, for images of 28 pixels (its 29 have an empty row more)
ROWS = 4096  # images distorted at a time, which bounds the memory that their displacements take


def distorted(x: Tensor, augment: str, draw: torch.Generator) -> Tensor:
    """Every image once, distorted.

    Args:
        x: uint8 (N, I).
        augment: `shift` or `elastic`.
        draw: of numbers on the CPU, so that every device sees the same images.
    """
    if augment == "shift":
        return moved(x, torch.randint(MOVES, (len(x),), generator=draw).to(x.device))
    side = _side(x)
    noise = (2 * torch.rand(len(rows), 2, side, side, generator=draw) - 1 for rows in x.split(ROWS))
    return torch.cat([warped(rows, n.to(x.device)) for rows, n in zip(x.split(ROWS), noise, strict=True)])


def moved(x: Tensor, move: Tensor) -> Tensor:
    """Images, each moved by up to one pixel in each direction; what comes in from outside is 0.

    The paper's simplest distortions.

    Args:
        x: (N, I).
        move: (N,), 0 to `MOVES` - 1; pixels come from row + move // 3 - 1 and column + move % 3 - 1.
    """
    side = _side(x)
    images = x.unflatten(1, (-1, side, side))
    result = torch.empty_like(images)
    for number in range(MOVES):
        (down, right), mine = divmod(number, 3), move == number
        padded = F.pad(images[mine], (1, 1, 1, 1))
        result[mine] = padded[..., down : down + side, right : right + side]
    return result.flatten(1)


def warped(x: Tensor, noise: Tensor) -> Tensor:
    """Images under an elastic distortion: each pixel comes from a place nearby, and neighbours from nearly the same.

    Where from is `noise`, smoothed with a Gaussian of `SIGMA` pixels and multiplied by `ALPHA`: 1.4 pixels away in
    the root mean square; in images of another side both in proportion. Between pixels it is interpolated linearly.

    Args:
        x: uint8 (N, I).
        noise: (N, 2, side, side), uniform in -1..1: of columns and of rows.
    """
    side = _side(x)
    place = torch.arange(side, dtype=torch.float32, device=x.device)
    sigma, alpha = SIGMA * side / 28, ALPHA * (side / 28) ** 2  # noise smoothed over a longer way is smaller
    kernel = torch.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2)) / (sigma * (2 * torch.pi) ** 0.5)
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    source = torch.stack([columns, rows]) + alpha * (kernel @ noise @ kernel)  # (N, 2, side, side), in pixels
    grid = ((2 * source + 1) / side - 1).movedim(1, -1)  # -1 and 1 are the outer edges of the image
    images = x.unflatten(1, (-1, side, side)).float()
    return F.grid_sample(images, grid, align_corners=False).round().to(torch.uint8).flatten(1)


def _side(x: Tensor) -> int:
    side = image_side(x.shape[1])
    assert side is not None
    return side
