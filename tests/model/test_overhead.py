"""Numbers that are no weights, as they are stored: rounded, packed, read, and their gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qdtune.model.layers.batch_norm import BatchNorm, ScaleNorm
from qdtune.model.overhead import pack_factor, pack_terms, round_factor, round_terms
from qdtune.reader import read_number
from qdtune.spec.axes import OVERHEAD

floats = st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False)


def stored(packed):
    return read_number(packed.numpy())


@settings(max_examples=60)
@given(st.lists(floats, min_size=1, max_size=9), st.sampled_from(OVERHEAD.names))
def test_what_is_computed_with_is_what_is_read(numbers, overhead):
    x = torch.tensor(numbers)
    for round_numbers, pack in ((round_factor, pack_factor), (round_terms, pack_terms)):
        x = x.abs() if pack is pack_factor and overhead == "pow2" else torch.tensor(numbers)
        found = stored(pack(x, overhead))
        assert found.dtype == np.float32
        assert np.array_equal(found, round_numbers(x, overhead).numpy())
        again = pack(torch.from_numpy(found.copy()), overhead)  # a file that is loaded and packed again is the same
        assert torch.equal(again, pack(x, overhead))


@settings(max_examples=60)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_float16_is_that_of_numpy_up_to_its_largest_number(numbers):
    x = np.array(numbers, np.float32)
    expected = x.clip(-65504, 65504).astype(np.float16)
    for found in (pack_factor(torch.from_numpy(x), "float16"), pack_terms(torch.from_numpy(x), "float16")):
        assert np.array_equal(found.numpy(), expected)
    assert np.array_equal(round_terms(torch.from_numpy(x), "float16").numpy(), expected.astype(np.float32))


def test_bytes_of_pow2_by_hand():
    factors = torch.tensor([1.0, 0.25, 2.0, 1.4, 1.42, 3e38, 0.0])  # 1.41421 is in the middle of 1 and 2
    assert pack_factor(factors, "pow2").tolist() == [128, 126, 129, 128, 129, 255, 2]
    assert stored(pack_factor(factors, "pow2")).tolist() == [1, 0.25, 2, 1, 2, 2.0**127, 2.0**-126]
    terms = torch.tensor([1.0, -0.4, 0.004, 0.0])  # 127 units of 1/64 reach 1.98, those of 1/128 only 0.99
    assert pack_terms(terms, "pow2").tolist() == pack_terms(terms, "int8").tolist() == [-6, 64, -26, 0, 0]
    assert stored(pack_terms(terms, "pow2")).tolist() == [1, -0.40625, 0, 0]
    assert pack_terms(torch.tensor([0.0]), "pow2").tolist() == [-126, 0]


@pytest.mark.parametrize("overhead", OVERHEAD.names)
def test_gradient_passes_straight_through(overhead):
    for round_numbers in (round_factor, round_terms):
        x = torch.tensor([0.3, 0.7, 5.0], requires_grad=True)
        (round_numbers(x, overhead) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        assert x.grad.tolist() == [1, 2, 3]


def a_norm(overhead, kind=nn.BatchNorm1d):
    """A normalisation of three features with statistics, and rows for it."""
    norm = BatchNorm().set_overhead(kind(3), overhead)
    with torch.no_grad():
        for name, numbers in {"weight": [0.7, -1.3, 2.0], "bias": [0.3, -0.1, 4.0]}.items():
            if getattr(norm, name) is not None:
                getattr(norm, name).copy_(torch.tensor(numbers))
        norm.running_var.copy_(torch.tensor([0.5, 3.0, 9.0]))
        if kind is nn.BatchNorm1d:
            norm.running_mean.copy_(torch.tensor([1.0, -2.0, 0.4]))
    return norm, torch.randn(16, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, ScaleNorm])
@pytest.mark.parametrize("overhead", ["float16", "int8", "pow2"])
def test_a_normalisation_answers_as_the_reader_and_trains_with_the_errors_of_what_is_stored(overhead, kind):
    norm, x = a_norm(overhead, kind)
    has_shift = kind is nn.BatchNorm1d
    op, tensors = BatchNorm().pack(norm, "")
    scale, shift = (stored(tensors[op[role]]) if op[role] else np.float32(0) for role in ("scale", "shift"))
    assert np.array_equal(norm.eval()(x).detach().numpy(), x.numpy() * scale + shift)
    weight, spread = norm.weight.detach(), (norm.running_var + norm.eps).sqrt()
    exact = weight / spread
    if overhead == "pow2":  # one for all features, the mean: (0.99 + 0.75 + 0.67) / 3
        assert scale.tolist() == [1.0]
    elif overhead == "int8":
        assert np.allclose(scale, exact.abs().mean(), rtol=2**-11)
        assert len(scale) == 1
    else:
        assert np.allclose(scale, exact, rtol=2**-11)
    # In training the batch normalises, and the weight and the bias have the errors of what is stored.
    moved = torch.from_numpy(np.broadcast_to(scale, 3).copy()) * spread
    beside = torch.from_numpy(shift + norm.running_mean.numpy() * scale) if has_shift else torch.zeros(())
    mean, square = (x.mean(0), x.var(0, unbiased=False)) if has_shift else (0.0, x.square().mean(0))
    unit = (x - mean) / (square + norm.eps).sqrt()
    weights = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    before = norm.running_var.clone()
    found = norm.train()(x)
    torch.testing.assert_close(found, unit * moved + beside)
    (found * weights).sum().backward()
    torch.testing.assert_close(norm.weight.grad, (unit * weights).sum(0))  # straight through the rounding
    if has_shift:
        torch.testing.assert_close(norm.bias.grad, weights.sum(0))
    else:
        torch.testing.assert_close(norm.running_var, 0.9 * before + 0.1 * square)
        assert (op["shift"], norm.bias) == (None, None)


def test_float32_packs_the_numbers_of_a_scale_norm_as_they_are():
    norm, x = a_norm("float32", ScaleNorm)
    op, tensors = BatchNorm().pack(norm.eval(), "n.")
    assert op == {"op": "affine", "scale": "n.scale", "shift": None}
    assert torch.equal(x * tensors["n.scale"], norm(x))
