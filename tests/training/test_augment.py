"""Distorted images: pixel by pixel, as the paper has them."""

import math

import pytest
import torch

from qdtune.datasets.dataset import Averaging
from qdtune.training.augment import (
    ALPHA,
    DRAWS,
    SHIFTS,
    SIGMA,
    bend_places,
    distort_images,
    flip_images,
    map_places,
    resample_images,
    shift_images,
)
from qdtune.training.averaging import average_images, blur_images

NO_MAP = torch.tensor([[1.0, 0, 0], [0, 1, 0]])


def bend_images(images, noise, image):
    """Each image under its own elastic distortion."""
    side = image[-1]
    found = torch.empty_like(images)
    places = map_places(NO_MAP.expand(len(images), 2, 3), side) + bend_places(noise, side)
    resample_images(images, places, image, found)
    return found


@pytest.mark.parametrize(("colours", "side"), [(1, 4), (3, 5), (1, 1)])
def test_moved_images_are_their_pixels_one_place_further(colours, side):
    draw = torch.Generator().manual_seed(side)
    images = torch.randint(1, 256, (2 * SHIFTS, colours, side, side), generator=draw, dtype=torch.uint8)
    move = torch.randperm(2 * SHIFTS, generator=draw) % SHIFTS
    found = shift_images(images.flatten(1), move, (colours, side, side)).view_as(images)
    for n, image in enumerate(images):
        down, right = (step - 1 for step in divmod(move[n].item(), 3))
        for row in range(side):
            for column in range(side):
                r, c = row + down, column + right
                expected = image[:, r, c].tolist() if 0 <= r < side and 0 <= c < side else [0] * colours
                assert found[n, :, row, column].tolist() == expected


def gaussian(distance, sigma):
    return math.exp(-(distance**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))


@pytest.mark.parametrize(("colours", "side"), [(1, 7), (3, 5), (1, 2), (1, 1)])
def test_warped_pixels_come_from_where_the_smoothed_noise_says(colours, side):
    draw = torch.Generator().manual_seed(side)
    images = torch.randint(0, 256, (3, colours, side, side), generator=draw, dtype=torch.uint8)
    noise = 6 * (2 * torch.rand(3, 2, side, side, generator=draw) - 1)  # strong: over the edges, too
    found = bend_images(images.flatten(1), noise, (colours, side, side)).view_as(images)
    sigma, alpha = SIGMA * side / 28, ALPHA * (side / 28) ** 2
    moves = []
    for n in range(3):
        for row in range(side):
            for column in range(side):
                weight = [
                    (r, c, gaussian(r - row, sigma) * gaussian(c - column, sigma))
                    for r in range(side)
                    for c in range(side)
                ]
                right, down = (alpha * sum(w * noise[n, axis, r, c].item() for r, c, w in weight) for axis in (0, 1))
                moves += [right, down]
                for colour in range(colours):
                    expected = 0.0
                    for at, value in enumerate(images[n, colour].flatten().tolist()):
                        r, c = divmod(at, side)
                        near = max(0.0, 1 - abs(row + down - r)) * max(0.0, 1 - abs(column + right - c))
                        expected += near * value
                    assert found[n, colour, row, column].item() == pytest.approx(expected, abs=0.51)
    assert max(map(abs, moves)) > side / 28


def test_without_noise_nothing_is_warped():
    images = torch.arange(2 * 784).remainder(256).to(torch.uint8).view(2, 784)
    assert torch.equal(bend_images(images, torch.zeros(2, 2, 28, 28), (1, 28, 28)), images)


def test_elastic_moves_pixels_by_more_than_one_and_neighbours_alike():
    """A ramp tells where each pixel came from, by the arithmetic of noise smoothed as in the paper."""
    ramp = (8 * torch.arange(28)).to(torch.uint8).expand(500, 28, 28).flatten(1)
    draw = torch.Generator().manual_seed(0)
    seen = distort_images(ramp, "elastic", draw, (1, 28, 28)).view(500, 28, 28).float()
    move = (seen / 8 - torch.arange(28))[:, 9:19, 9:19]  # far from the edges, where noise is missing
    expected = 34 / math.sqrt(3) / (2 * 4 * math.sqrt(math.pi))  # 1.38 pixels, in the root mean square
    assert move.square().mean().sqrt().item() == pytest.approx(expected, rel=0.05)
    assert (move[:, 1:] - move[:, :-1]).square().mean().sqrt().item() < expected / 4


@pytest.mark.parametrize("augment", ["shift", "elastic", "affine", "affine_elastic"])
def test_distorted_images_are_of_the_generator_alone_and_few_share_a_distortion(augment):
    image = torch.randint(0, 256, (1, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = image.expand(3 * DRAWS - 5, 64)
    draws = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    one, again, other = (distort_images(images, augment, draw, (1, 8, 8)) for draw in draws)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert (one.shape, one.dtype) == (images.shape, torch.uint8)
    kinds, counts = one.unique(dim=0, return_counts=True)
    if augment == "shift":
        assert len(kinds) == SHIFTS
    else:
        assert len(kinds) > 0.95 * DRAWS
        assert counts.median() == 3


@pytest.mark.parametrize("augment", ["affine", "elastic", "affine_elastic"])
def test_an_image_is_distorted_as_if_it_were_alone(augment, monkeypatch):
    """Whatever shares its distortion, and however many are distorted at a time."""
    images = torch.randint(0, 256, (11, 2 * 49), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    monkeypatch.setattr("qdtune.training.augment.DRAWS", 4)
    few = distort_images(images, augment, torch.Generator().manual_seed(1), (2, 7, 7))
    monkeypatch.setattr("qdtune.training.augment.CACHED_NUMBERS", 1)
    assert torch.equal(few, distort_images(images, augment, torch.Generator().manual_seed(1), (2, 7, 7)))
    for first in range(3):  # of each three that share one
        alone = torch.cat([images, images])[first : first + 12 : 3]
        found = distort_images(alone, augment, torch.Generator().manual_seed(1), (2, 7, 7))
        assert torch.equal(found[: len(few[first::3])], few[first::3])


@pytest.mark.parametrize("side", [28, 16, 5])
def test_a_map_that_moves_nothing_gives_the_image(side):
    images = torch.arange(2 * 3 * side**2).remainder(256).to(torch.uint8).view(2, -1)
    found = torch.empty_like(images)
    resample_images(images, map_places(NO_MAP[None], side), (3, side, side), found)
    assert torch.equal(found, images)


@pytest.mark.parametrize("augment", ["affine", "affine_elastic"])
def test_a_ramp_tells_how_far_images_are_turned_scaled_and_moved(augment, monkeypatch):
    """On two ramps, of columns and of rows, each image is a plane whose slopes and height are those of its map."""
    if augment == "affine_elastic":
        monkeypatch.setattr("qdtune.training.augment.ALPHA", 0.0)
    side, n = 20, 400
    ramp = (10 * torch.arange(side)).to(torch.uint8).expand(side, side)
    images = torch.stack([ramp, ramp.T]).flatten().expand(n, -1)
    seen = distort_images(images, augment, torch.Generator().manual_seed(0), (2, side, side)).view(n, 2, side, side)
    middle = seen[..., 5:15, 5:15].float() / 10  # what comes from inside the image
    across = (middle[..., -1] - middle[..., 0]).mean(-1) / 9  # (n, 2): the slopes along a row
    along = (middle[..., -1, :] - middle[..., 0, :]).mean(-1) / 9
    assert torch.allclose(across[:, 0], along[:, 1], atol=0.02)  # a turn and a scale, no shear
    assert torch.allclose(across[:, 1], -along[:, 0], atol=0.02)
    turn = torch.rad2deg(torch.atan2(across[:, 1], across[:, 0]))
    scale = 1 / across.norm(dim=1)
    # The centre of the image has moved to where the centre of the ramps is seen now.
    offset = middle.mean((-2, -1)) - (side - 1) / 2
    inverse = torch.linalg.inv(torch.stack([across, along], 2))
    move = -(inverse @ offset[..., None]).squeeze(2) / side
    for found, least, most in ((turn, -10, 10), (scale, 0.9, 1.1), *((m, -0.1, 0.1) for m in move.unbind(1))):
        slack = 0.03 * (most - least)
        assert least - slack < found.min() < least + 3 * slack
        assert most - 3 * slack < found.max() < most + slack
        assert found.mean().item() == pytest.approx((least + most) / 2, abs=3 * slack)


def test_plain_images_are_as_many_as_asked_for_and_others_in_each_epoch():
    images = torch.randint(0, 256, (400, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    plain = []
    for seed in (1, 2):
        found = distort_images(images, "affine", torch.Generator().manual_seed(seed), (1, 8, 8), plain_share=0.25)
        plain.append((found == images).all(1))
        assert 70 < plain[-1].sum() < 130
    assert not torch.equal(*plain)
    assert torch.equal(distort_images(images, "affine", torch.Generator(), (1, 8, 8), plain_share=1.0), images)


@pytest.mark.parametrize(
    ("augment", "side", "share"), [("affine", 8, 0.1), ("affine", 14, 0.1), ("elastic", 14, 0.2)]
)
def test_smaller_images_are_about_the_distorted_ones_averaged_down(augment, side, share):
    """The same distortions in one step; neither sharper nor more blurred."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(200, 1, 6, 6, generator=draw) ** 2
    images = torch.nn.functional.interpolate(255 * noise, size=28, mode="bicubic").clamp(
        0, 255
    )  # strokes of 4 pixels
    images = images.to(torch.uint8).flatten(1)
    how = Averaging((1, 28, 28), (side, side))
    plain = average_images(images, how)
    draws = [torch.Generator().manual_seed(3) for _ in range(2)]
    found = distort_images(blur_images(images, how), augment, draws[0], (1, 28, 28), plain=plain).float()
    expected = average_images(distort_images(images, augment, draws[1], (1, 28, 28)), how).float()
    inside = torch.zeros(side, side, dtype=torch.bool)
    inside[2:-2, 2:-2] = True
    inside = inside.flatten()

    def distance(a, b):
        return (a - b)[:, inside].square().mean().sqrt().item()

    assert distance(found, expected) < share * distance(plain.float(), expected)
    assert found[:, inside].std().item() == pytest.approx(expected[:, inside].std().item(), rel=0.03)
    some = distort_images(blur_images(images, how), augment, draws[0], (1, 28, 28), 0.5, plain)
    assert 60 < (some == plain).all(1).sum() < 140


@pytest.mark.parametrize("augment", ["flip", "shift_flip", "affine_flip"])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_half_of_the_images_that_are_not_plain_are_mirrored(augment, share):
    """Images are distorted as without `flip`, and then some of them are mirrored."""
    image = (3, 8, 8)
    n = 4_000
    images = torch.randint(0, 256, (n, 3 * 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = distort_images(images, augment, torch.Generator().manual_seed(1), image, plain_share=share)
    before = images
    if augment != "flip":
        distortion = augment.removesuffix("_flip")
        before = distort_images(images, distortion, torch.Generator().manual_seed(1), image, plain_share=share)
    mirrored = before.view(n, *image).flip(3).flatten(1)
    assert torch.equal(flip_images(before, 3), mirrored)
    are_mirrored, are_same = (found == mirrored).all(1), (found == before).all(1)
    assert (are_mirrored ^ are_same).all()
    assert abs(are_mirrored.sum() - n / 2 * (1 - share)) <= (100 if share < 1 else 0)
    if augment == "affine_flip":
        assert not are_mirrored[(before == images).all(1)].any(), "plain images stay as they are"
    other = distort_images(images, augment, torch.Generator().manual_seed(2), image, plain_share=share)
    assert share == 1 or not torch.equal(found, other)
