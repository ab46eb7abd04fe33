"""Rows that differ by more than rounding are found; a row may differ only as far as codes on an edge can move it."""

import pytest
import torch
from torch import nn

from qdtune.model.quantize import calibrate, quantize
from qdtune.model.rounding import match_rows

X = torch.rand(50, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
BITS = [(32, None), (4, None), (32, 8), (4, 4), (1, 1), (8, 16)]


def network(weight_bits, act_bits):
    torch.manual_seed(1)
    layers = [nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)]
    model = quantize(nn.Sequential(*layers), weight_bits, act_bits)
    calibrate(model, X)
    return model.eval()


@pytest.mark.parametrize("bits", BITS, ids=str)
def test_wrong_rows_are_found_and_only_these(bits):
    model = network(*bits)
    with torch.no_grad():
        found = model(X)
    assert match_rows(found, model, X).all()
    found[::10] *= 1.05
    matched = match_rows(found, model, X)
    assert not matched[::10].any()
    assert matched.sum() == 45


def test_a_code_on_an_edge_may_flip_and_no_other():
    model = quantize(nn.Sequential(nn.Linear(1, 1, bias=False)), 32, 4)
    layer = model[0]
    calibrate(model, torch.ones(8, 1))
    model.eval()
    step = layer.input_quantizer.current_step(torch.ones(1)).item()
    weight = layer.weight.item()
    x = torch.tensor([[0.0], [2.5 * step * (1 - 1e-7)], [2.3 * step]])
    with torch.no_grad():
        found = model(x)
    for moved, expected in ((1, [False, True, False]), (2, [False, False, False])):
        assert match_rows(found + moved * step * weight, model, x).tolist() == expected
    assert not layer._forward_pre_hooks


def test_numbers_that_are_not_finite_have_to_be_the_same():
    model = nn.Identity()
    x = torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0], [2.0, 3.0]])
    assert match_rows(x.clone(), model, x).all()
    assert match_rows(x.nan_to_num(posinf=5.0), model, x).tolist() == [False, False, True]
    assert match_rows(torch.full_like(x, float("nan")), model, x).tolist() == [False, False, False]
