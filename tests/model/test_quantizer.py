"""Step sizes of tensors without a spread: of one value, one element, zeros, a dead channel, one side of zero."""

from __future__ import annotations

import math

import pytest
import torch

from qdtune.model.quantizer import Quantizer, fake_quantize, scale_mix
from qdtune.reader import GRIDS

RULES = ["minmax", "absmean", "lsq"]
TENSORS = {
    "one element": torch.tensor([[0.7]]),
    "one element below zero": torch.tensor([[-0.7]]),
    "one value": torch.full((3, 5), 0.3),
    "above zero": torch.linspace(1.0, 1.2, 15).view(3, 5),
    "below zero": -torch.linspace(1.0, 1.2, 15).view(3, 5),
    "one input per channel": torch.tensor([[0.5], [-0.2], [1.5]]),
}


def quantized(x, bits, scale, rows=None, levels="symmetric"):
    quantizer = Quantizer(bits, scale, levels, rows)
    quantizer.start(x)
    return quantizer(x).detach()


@pytest.mark.parametrize("rows", [None, 3], ids=["tensor", "channel"])
@pytest.mark.parametrize("scale", RULES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", TENSORS)
def test_a_narrow_range_survives(name, bits, scale, rows):
    x = TENSORS[name]
    if rows and len(x) != rows:
        return  # it has one row
    if name == "one input per channel" and not rows:
        return  # it has a spread
    if bits == 2 and scale == "lsq" and "zero" in name and "one" not in name:
        return  # learned steps start at twice the mean: some of these values round to zero, others to the step
    found = quantized(x, bits, scale, rows)
    assert (found.sign() == x.sign()).all()
    if scale == "minmax":  # the largest magnitude is met, nothing is further off than half a step or what it is worth
        assert found.abs().max() == pytest.approx(x.abs().max().item(), rel=1e-5)
    assert (found / x).min() > 0.3
    assert (found / x).max() < 3.1


@pytest.mark.parametrize("scale", RULES)
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_zeros_stay_zeros_and_can_be_trained(bits, scale):
    """A channel that is dead at first learns as the others do once its weights move."""
    x = torch.tensor([[0.0, 0.0, 0.0], [0.5, -0.5, 0.1]])
    quantizer = Quantizer(bits, scale, "symmetric", rows=2)
    quantizer.start(x)
    assert quantizer(x)[0].abs().max() < 1e-6 or scale == "lsq"
    if scale == "lsq":
        assert quantizer.step[0].item() == pytest.approx(quantizer.step[1].item())
        moved = torch.tensor([[0.01, -0.01, 0.0], [0.5, -0.5, 0.1]], requires_grad=True)
        quantizer(moved).square().sum().backward()
        assert bits == 1 or torch.isfinite(moved.grad).all()
        fake = fake_quantize(moved, quantizer.step_size(moved), quantizer.grid)
        (gradient,) = torch.autograd.grad(fake.sum(), moved)
        assert gradient[0].abs().sum() > 0  # within the grid


def test_a_tensor_of_zeros_starts_as_one_of_mean_one():
    quantizer = Quantizer(4, "lsq")
    quantizer.start(torch.zeros(3, 4))
    assert quantizer.step.item() == pytest.approx(2 / math.sqrt(7))


@pytest.mark.parametrize("levels", ["symmetric", "full"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_minmax_of_a_range_with_zero_in_it_is_the_notebooks(bits, levels):
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    low, high, _ = GRIDS[bits, levels]
    quantizer = Quantizer(bits, "minmax", levels)
    assert scale_mix(bits, levels, "minmax")[0] == 1 / (high - low)
    torch.testing.assert_close(quantizer.step_size(x), (x.max() - x.min()) / (high - low), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", RULES)
def test_inputs_on_one_side_of_zero_are_not_clipped(scale):
    x = torch.rand(50, 8, generator=torch.Generator().manual_seed(0)) + 3
    quantizer = Quantizer(8, scale, observe=True).eval()
    quantizer.start(x)
    assert quantizer.levels == "unsigned"
    found = quantizer(x).detach()
    if scale == "minmax":
        assert (found - x).abs().max() < 0.02
    assert (found / x).min() > 0.3
