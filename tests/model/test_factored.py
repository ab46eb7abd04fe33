import pytest
import torch
from torch import nn

from qdtune.model.chain import ACTIVATIONS
from qdtune.model.factored import ORTHOGONAL_GAIN, decompose
from qdtune.model.layers.conv import FactoredConv2d
from qdtune.model.layers.linear import FactoredLinear
from qdtune.spec.axes import ACTIVATION, FACTOR_INIT
from qdtune.spec.sizes import factor_dims


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3)
        self.block = nn.Sequential(nn.Linear(12, 9), nn.ModuleDict({"head": nn.Linear(9, 5, bias=False)}))
        self.attention = nn.MultiheadAttention(8, 2)
        self.shared = self.block[0]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_activations_are_those_of_the_sweep_file():
    assert tuple(ACTIVATIONS) == ACTIVATION.names


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_factored_linear_is_its_factors_in_a_row(depth, activation):
    layer = FactoredLinear(20, 12, depth, activation=activation)
    assert [f.in_features for f in layer.factors] == list(factor_dims(20, 12, depth)[:-1])
    assert [f.bias is not None for f in layer.factors] == [False] * (depth - 1) + [True]
    x = torch.randn(7, 20, generator=seeded())
    function = {"identity": lambda v: v, "hardtanh": nn.functional.hardtanh, "tanh": torch.tanh}.get(
        activation, getattr(nn.functional, activation, None)
    )
    y = x
    for k, factor in enumerate(layer.factors):
        y = y @ factor.weight.T
        if k < depth - 1:
            y = function(y)
    torch.testing.assert_close(layer(x), y + layer.factors[-1].bias)


def test_factored_linear_refuses_bad_arguments():
    with pytest.raises(ValueError, match="depth must be >= 1, got 0"):
        FactoredLinear(4, 4, 0)
    with pytest.raises(ValueError, match=r"activation must be one of identity, .*got 'relo'"):
        FactoredLinear(4, 4, 2, activation="relo")
    with pytest.raises(ValueError, match=r"factor_init must be one of default, .*got 'xavier'"):
        decompose(nn.Linear(4, 4), 2, factor_init="xavier")


def test_decompose_swaps_nested_layers_and_keeps_their_biases():
    model = Nested()
    bias = model.block[0].bias.clone()
    decompose(model, 3, "relu")
    first, head = model.block[0], model.block[1]["head"]
    assert isinstance(first, FactoredLinear)
    assert isinstance(head, FactoredLinear)
    assert torch.equal(first.factors[-1].bias, bias)
    assert head.factors[-1].bias is None
    assert model.shared is first  # one layer in two places stays one layer
    assert isinstance(model.stem, FactoredConv2d)
    assert not any(isinstance(m, FactoredLinear) for m in model.attention.modules())
    model.attention(*[torch.zeros(3, 1, 8)] * 3)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_head_stays_one_factor_where_hidden_layers_are_split(depth):
    model = Nested()
    whole = model.block[1]["head"]
    decompose(model, depth, "relu", decomposed="hidden")
    first, head = model.block[0], model.block[1]["head"]
    assert (len(first.factors), len(head.factors), head.inner_dims) == (depth, 1, [])
    assert (head.in_features, head.out_features) == (whole.in_features, whole.out_features)
    assert model.shared is first
    again = decompose(model, 3, decomposed="all")
    assert [len(layer.factors) for layer in (again.block[0], again.block[1]["head"])] == [3, 3]
    alone = decompose(nn.Linear(9, 4), depth, decomposed="hidden")
    assert len(alone.factors) == 1
    with pytest.raises(ValueError, match="decompose must be one of all, hidden, got 'head'"):
        decompose(model, 2, decomposed="head")


def test_svd_leaves_the_head_as_it_was_trained():
    model = nn.Sequential(nn.Linear(30, 18), nn.ReLU(), nn.Linear(18, 4))
    weight = model[2].weight.detach().clone()
    decompose(model, 3, factor_init="svd", decomposed="hidden")
    assert torch.equal(model[2].factors[0].weight, weight)


def test_decompose_splits_a_root_layer_and_one_split_before():
    layer = decompose(nn.Linear(20, 12), 2)
    assert isinstance(layer, FactoredLinear)
    bias = layer.factors[-1].bias.clone()
    again = decompose(layer, 4, "tanh")
    assert len(again.factors) == 4
    assert isinstance(again.activation, nn.Tanh)
    assert torch.equal(again.factors[-1].bias, bias)


@pytest.mark.parametrize("factor_init", FACTOR_INIT.names)
def test_decompose_draws_from_the_generator_given(factor_init):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    base = nn.Linear(20, 12)
    a, b, c = (decompose(nn.Sequential(base), 3, "identity", factor_init, seeded(s)) for s in (1, 1, 2))
    torch.set_rng_state(before)
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    other = [torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True)]
    assert all(same)
    assert all(other) == (factor_init == "svd")  # svd draws nothing


def test_default_init_is_that_of_a_linear_layer():
    layer = decompose(nn.Linear(784, 24), 2, generator=seeded())
    w = layer.factors[0].weight
    bound = 1 / 784**0.5
    assert w.abs().max() <= bound
    assert abs(w.std().item() - bound / 3**0.5) < 0.02 * bound


@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_orthogonal_factors_are_orthogonal_and_chains_have_one_gain(depth, activation):
    layer = decompose(nn.Linear(40, 24), depth, activation, "orthogonal", seeded())
    product = 1.0
    for factor in layer.factors:
        w = factor.weight
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        square = gram[0, 0].item()
        torch.testing.assert_close(gram, square * torch.eye(len(gram)), atol=1e-5, rtol=0)
        product *= square
    rectified = 2 ** (depth - 1) if activation == "relu" else 1
    assert product == pytest.approx(ORTHOGONAL_GAIN**2 * rectified, rel=1e-4)


@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("depth", [2, 3, 8])
def test_isometric_chains_start_as_two_orthogonal_factors_at_every_depth(depth, activation):
    layer = decompose(nn.Linear(40, 24), depth, activation, "isometry", seeded())
    first, last = layer.factors[0].weight, layer.factors[-1].weight
    gain = 2.0 if activation == "relu" else 1.0  # He et al. 2015, section 2.2: twice the variance before a rectifier
    for w, square in ((first, gain), (last, 1.0)):
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        torch.testing.assert_close(gram, square * torch.eye(len(gram)), atol=1e-5, rtol=0)
    x = torch.randn(7, 40, generator=seeded(1))
    inner = x @ first.T
    inner = inner.clamp_min(0) if activation == "relu" else inner
    torch.testing.assert_close(layer(x), inner @ last.T + layer.factors[-1].bias)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_isometry_of_one_factor_is_an_orthogonal_layer(activation):
    w = decompose(nn.Linear(40, 24), 1, activation, "isometry", seeded()).factors[0].weight
    torch.testing.assert_close(w @ w.T, torch.eye(24), atol=1e-5, rtol=0)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_svd_factors_multiply_to_the_best_matrix_of_their_rank(depth):
    torch.manual_seed(0)
    base = nn.Linear(30, 18)
    weight = base.weight.detach().clone()
    layer = decompose(base, depth, factor_init="svd")
    product = (
        torch.linalg.multi_dot([f.weight for f in reversed(layer.factors)]) if depth > 1 else layer.factors[0].weight
    )
    u, s, vh = torch.linalg.svd(weight)
    rank = layer.inner_dims[0] if depth > 1 else 18
    best = u[:, :rank] * s[:rank] @ vh[:rank]
    torch.testing.assert_close(product, best, atol=1e-5, rtol=1e-4)
    norms = [f.weight.norm().item() for f in layer.factors]
    assert max(norms) / min(norms) < 1.001  # the singular values are shared evenly


@pytest.mark.parametrize(
    ("between", "what"), [({"activation": "relu"}, "activation"), ({"norm": True}, "normalisation")]
)
def test_svd_of_factors_with_something_between_is_refused(between, what):
    layer = decompose(nn.Linear(30, 18), 2, **between)
    with pytest.raises(ValueError, match=f"svd needs layers that are one matrix: there is an? {what} between"):
        decompose(layer, 3, factor_init="svd")


def test_a_normalisation_stands_before_each_activation_between_factors():
    layer = decompose(nn.Linear(30, 18), 3, "relu", norm=True)
    seen = []
    layer.activation.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    layer(100 * torch.randn(64, 30) + 7)
    assert len(seen) == 2
    for x in seen:
        torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(x.var(0, correction=0), torch.ones(x.shape[1]), atol=1e-2, rtol=0)
