import math
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, vmap

from qdtune.model import networks
from qdtune.model.factored import decompose
from qdtune.model.layers.linear import FactoredLinear, QuantLinear
from qdtune.model.quantize import calibrate, calibrate_alike, count_sizes, quantize
from qdtune.model.quantizer import Quantizer, fake_quantize, round_to_codes, scale_mix
from qdtune.spec.axes import DECOMPOSE, GRANULARITY, LEVELS, SCALE
from qdtune.spec.structure import mlp_sizes

ALL_BITS = [*range(1, 17)]


class NotebookSTE(torch.autograd.Function):
    """The notebook's `SymQuantSTE`, forward and hand-written backward: the yardstick."""

    @staticmethod
    def forward(ctx, x, scale, bits):
        if bits == 1:
            s, q = scale.abs(), 1
            out = s * torch.sgn(x)
        else:
            s, q = scale.abs().clamp_min(1e-8), 2 ** (bits - 1) - 1
            out = torch.clamp(torch.round(x / s), -q, q) * s
        ctx.save_for_backward(x, q * s)
        return out

    @staticmethod
    def backward(ctx, upstream):
        x, edge = ctx.saved_tensors
        return upstream * (x.abs() <= edge), None, None


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def max_code(bits):
    return 1 if bits == 1 else 2 ** (bits - 1) - 1


def values(bits, levels):
    """Every code there is, ascending, written out."""
    if levels == "unsigned":
        return list(range(2**bits))
    if bits == 1:
        return [-1, 1]
    return list(range(-max_code(bits) - (levels == "full"), max_code(bits) + 1))


def constants(bits, levels="symmetric"):
    return Quantizer(bits, "lsq", levels).grid


# --- codes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("scale", SCALE.names)
def test_codes_are_symmetric_whole_numbers_within_range(bits, scale):
    quantizer = Quantizer(bits, scale)
    x = sample(50, 40) * 3
    quantizer.start(x)
    c = round_to_codes(x, quantizer.step_size(x), quantizer.grid)
    assert torch.equal(c, c.round())
    assert c.abs().max() <= max_code(bits)
    if bits == 1:
        assert set(c.unique().tolist()) == {-1.0, 1.0}
    else:
        mirrored = round_to_codes(-x, quantizer.step_size(x), quantizer.grid)
        assert torch.equal(mirrored, -c)


def test_codes_of_one_bit_call_zero_positive():
    assert round_to_codes(torch.tensor([0.0, -0.0, -1e-30, 2.0]), torch.tensor(1.0), constants(1)).tolist() == [
        1,
        1,
        -1,
        1,
    ]


@settings(max_examples=60)
@given(
    st.integers(1, 6),
    st.sampled_from([*LEVELS.names, "unsigned"]),
    st.integers(-300, 300),
    st.sampled_from([0.25, 1.0]),
)
def test_codes_are_the_nearest_there_are(bits, levels, eighths, step):
    there, x = values(bits, levels), eighths / 8
    code = round_to_codes(torch.tensor(x), torch.tensor(step), constants(bits, levels)).item()
    assert code in there
    assert abs(x - code * step) == min(abs(x - c * step) for c in there)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_levels_use_the_patterns_of_their_bits(bits):
    for levels, spare in (("unsigned", 0), ("full", 0), ("symmetric", bits > 1), ("ternary", bits > 1)):
        low, high, binary = (n.item() for n in constants(bits, levels))
        assert 1 + (high - low) / (1 + binary) == len(values(bits, levels)) == 2**bits - spare


@pytest.mark.parametrize("bits", ALL_BITS)
def test_minmax_step_is_the_notebooks(bits):
    x = sample(30, 20)
    expected = x.abs().mean() if bits == 1 else (x.max() - x.min()) / (2 * (2 ** (bits - 1) - 1))
    torch.testing.assert_close(Quantizer(bits, "minmax").step_size(x), expected)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_absmean_step_is_the_mean_over_the_root_of_the_levels(bits):
    x = sample(30, 20)
    expected = x.abs().mean() / (1 if bits <= 2 else math.sqrt(2 ** (bits - 1) - 1))
    torch.testing.assert_close(Quantizer(bits, "absmean").step_size(x), expected)


@pytest.mark.parametrize("levels", [*LEVELS.names, "unsigned"])
def test_lsq_step_starts_at_the_papers_value(levels):
    x = sample(30, 20).abs() if levels == "unsigned" else sample(30, 20)
    for bits in range(1 if levels == "unsigned" else 2, 9):
        quantizer = Quantizer(bits, "lsq", levels, observe=levels == "unsigned")
        quantizer.start(x)
        there = values(bits, levels)
        expected = 2 * x.abs().mean() / math.sqrt(there[-1])  # from one level to the next
        torch.testing.assert_close(quantizer.step_size(x) * (there[1] - there[0]), expected)


def test_steps_never_vanish():
    for bits, scale in product((1, 4), SCALE.names):
        quantizer = Quantizer(bits, scale)
        quantizer.start(torch.zeros(5))
        assert torch.isfinite(quantizer(torch.zeros(5))).all()


def test_lsq_step_of_activations_is_damped_by_features_not_by_the_batch():
    gradients = []
    for batch in (sample(4, 10), sample(4, 10).repeat(5, 1)):
        quantizer = Quantizer(3, "lsq", observe=True)
        quantizer.start(batch)
        quantizer(batch).mean(0).sum().backward()
        gradients.append(quantizer.step.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("observe", [False, True])
def test_only_a_learned_step_has_a_gradient(observe):
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for scale, learns in (("lsq", True), ("absmean", False), ("minmax", False)):
        quantizer = Quantizer(3, scale, observe=observe).train()
        quantizer.start(x)
        (quantizer(x) ** 2).sum().backward()
        assert (quantizer.step.grad is not None) is learns
        assert x.grad.abs().sum() > 0


def test_unknown_scale_and_bits_are_refused():
    with pytest.raises(ValueError, match="scale must be one of minmax, absmean, lsq, got 'max'"):
        scale_mix(4, "symmetric", "max")
    with pytest.raises(ValueError, match="scale must be one of minmax, absmean, lsq, got 'max'"):
        quantize(nn.Linear(2, 2), 4, scale="max")
    with pytest.raises(ValueError, match="levels must be one of symmetric, ternary, full, got 'unsigned'"):
        quantize(nn.Linear(2, 2), 4, levels="unsigned")
    with pytest.raises(ValueError, match="granularity must be one of tensor, channel, got 'row'"):
        quantize(nn.Linear(2, 2), 4, granularity="row")
    with pytest.raises(ValueError, match="weight_bits must be 1 to 16, or 32 for float, got 17"):
        quantize(nn.Linear(2, 2), 17)
    with pytest.raises(ValueError, match="act_bits must be 1 to 16, or None for float, got 0"):
        quantize(nn.Linear(2, 2), 4, 0)


# --- gradients: eager, vmap, compiled vmap ---------------------------------------------------------------------


def by_hand(x, step, bits, upstream):
    x = x.clone().requires_grad_()
    NotebookSTE.apply(x, step, bits).backward(upstream)
    return x.grad


@cache
def differentiated(mode: str, what: str):
    """A quantiser, and the gradient of what it makes of x (3, ...): one function for all bits, as in training."""
    quantizer = Quantizer(2, "minmax", observe=what == "activations")

    def loss(x: Tensor, upstream: Tensor) -> Tensor:
        step = quantizer.step_size(x) * 0.5  # halved, so that some values lie beyond the clip
        return (fake_quantize(x, step, quantizer.grid) * upstream).sum()

    def one_by_one(x: Tensor, upstream: Tensor) -> Tensor:
        leaves = [x[k].clone().requires_grad_() for k in range(3)]
        for k, leaf in enumerate(leaves):
            loss(leaf, upstream[k]).backward()
        return torch.stack([leaf.grad for leaf in leaves])

    stacked = vmap(grad(loss))
    compiled = torch.compile(stacked, fullgraph=True)
    return quantizer, {"eager": one_by_one, "vmap": stacked, "compiled": compiled}[mode]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
# training/test_cohort.py has a compiled step among ordinary tests.
@pytest.mark.parametrize("mode", ["eager", "vmap", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["weights", "activations"])
def test_gradient_equals_the_handwritten_one(bits, mode, what):
    shape = (24, 33) if what == "weights" else (16, 33)
    x, upstream = sample(3, *shape), sample(3, *shape, seed=1)
    quantizer, gradient = differentiated(mode, what)
    for name, buffer in Quantizer(bits, "minmax").named_buffers():
        getattr(quantizer, name).copy_(buffer)
    expected = torch.stack([by_hand(x[k], quantizer.step_size(x[k]) * 0.5, bits, upstream[k]) for k in range(3)])
    assert 0 < (expected == 0).sum() < expected.numel()  # both branches of the clip are there
    torch.testing.assert_close(gradient(x, upstream), expected)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_fake_quantize_is_the_notebooks_forward(bits):
    x = sample(40, 30)
    step = Quantizer(bits, "minmax").step_size(x)
    torch.testing.assert_close(fake_quantize(x, step, constants(bits)), NotebookSTE.apply(x, step, bits))


@pytest.mark.parametrize("levels", [*LEVELS.names, "unsigned"])
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_lsq_gradient_of_the_step_is_the_papers(bits, levels):
    x, low, high = sample(200) * 2, values(bits, levels)[0], values(bits, levels)[-1]
    step = torch.tensor(0.37, requires_grad=True)
    fake_quantize(x, step, constants(bits, levels)).sum().backward()
    v = x / 0.37
    rounded = torch.where(v >= 0, 1.0, -1.0) if values(bits, levels) == [-1, 1] else v.round()
    expected = torch.where(v < low, low, torch.where(v > high, high, rounded - v)).sum()  # -Qn, Qp, between
    torch.testing.assert_close(step.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", LEVELS.names)
@pytest.mark.parametrize("scale", SCALE.names)
def test_channels_are_quantised_as_tensors_of_their_own(levels, scale):
    x, upstream = sample(6, 40), sample(6, 40, seed=1)
    for bits in (1, 2, 5):
        whole = Quantizer(bits, scale, levels, rows=6)
        whole.start(x)
        made, steps, gradients = whole(x), [], []
        if scale == "lsq":
            (made * upstream).sum().backward()
        for channel, up in zip(x, upstream, strict=True):
            alone = Quantizer(bits, scale, levels)
            alone.start(channel)
            steps.append(alone.step_size(channel))
            if scale == "lsq":
                (alone(channel) * up).sum().backward()
                gradients.append(alone.step.grad)
        torch.testing.assert_close(whole.step_size(x).flatten(), torch.stack(steps))
        if scale == "lsq":
            torch.testing.assert_close(whole.step.grad.flatten(), torch.stack(gradients))


def test_lsq_step_is_damped():
    x, quantizer = sample(200), Quantizer(3, "lsq")
    quantizer.start(x)
    quantizer(x).sum().backward()
    step = quantizer.step.detach().clone().requires_grad_()
    fake_quantize(x, step, constants(3)).sum().backward()
    torch.testing.assert_close(quantizer.step.grad, step.grad / math.sqrt(200 * 3))


# --- layers ----------------------------------------------------------------------------------------------------


def test_quantize_swaps_nested_shared_and_swapped_layers():
    model = nn.Sequential(nn.Linear(12, 9), nn.ModuleDict({"a": FactoredLinear(9, 5, 3)}), nn.Conv2d(1, 1, 1))
    model.append(model[0])
    weight = model[0].weight
    quantize(model, 3, 4, "minmax")
    assert isinstance(model[0], QuantLinear)
    assert model[3] is model[0]
    assert model[0].weight is weight
    assert all(isinstance(f, QuantLinear) for f in model[1]["a"].factors)
    quantize(model, 1)
    assert (model[0].weight_bits, model[0].act_bits, model[0].input_quantizer) == (1, None, None)
    quantize(model, 32)
    assert type(model[0]) is nn.Linear
    assert model[0].weight is weight
    assert not any(isinstance(m, QuantLinear) for m in model.modules())


def test_quantize_of_float_weights_with_few_bit_inputs():
    layer = quantize(nn.Linear(6, 4), 32, 2)
    x = sample(50, 6)
    calibrate(layer, x)
    assert layer.weight_quantizer is None
    assert len(layer.input_quantizer(x).unique()) <= 3
    with pytest.raises(ValueError, match="weights are float"):
        layer.weight_codes()


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("scale", SCALE.names)
def test_codes_times_step_is_what_the_layer_computes_with(bits, scale):
    layer = quantize(nn.Linear(30, 20), bits, scale=scale)
    c, step = layer.weight_codes()
    assert c.dtype == torch.int32
    x = sample(8, 30)
    torch.testing.assert_close(layer(x), x @ (c * step).T + layer.bias, rtol=1e-4, atol=1e-5)


def test_activation_steps_do_not_depend_on_the_batch_in_evaluation():
    model = quantize(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), 4, 3, "minmax")
    calibrate(model, sample(100, 6))
    x = sample(40, 6, seed=2)
    model.eval()
    torch.testing.assert_close(torch.cat([model(r[None]) for r in x]), model(x))
    before = model[0].input_quantizer.running.clone()
    model.train()
    model(10 * x)
    assert model[0].input_quantizer.running > before


def test_calibration_reaches_every_layer_through_quantised_inputs():
    model = quantize(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), 4, 3, "minmax")
    x = sample(100, 6)
    calibrate(model, x)
    first, last = model[0].input_quantizer, model[2].input_quantizer
    torch.testing.assert_close(first.running, (x.max() - x.min()) / 6)
    inner = torch.relu(model[0](x)).detach()
    torch.testing.assert_close(last.running, (inner.max() - inner.min()) / 7)  # 0 to 7: never negative


def test_replicas_of_one_program_have_one_sign():
    models, x = [], sample(200, 6).abs()
    for sign in (1, -1, 1):
        model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
        with torch.no_grad():
            model[0].weight.abs_().mul_(sign)  # what comes out is negative in the second alone
        models.append(quantize(model, 32, 2, "lsq"))
    calibrate_alike(models, x)
    levels = [[m.levels for m in model.modules() if isinstance(m, Quantizer)] for model in models]
    assert levels == [["unsigned", "symmetric", "unsigned"]] * 3
    inner = models[0][0](x)
    expected = 2 * inner.abs().mean() / math.sqrt(1)  # of the signed grid: Q = 1
    torch.testing.assert_close(models[0][1].input_quantizer.step.detach(), expected.detach())


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_inputs_that_are_never_negative_waste_no_code(bits):
    model = quantize(nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)), 32, bits, "lsq")
    x = sample(500, 6)
    calibrate(model, x)
    model.eval()
    first, last = model[0].input_quantizer, model[2].input_quantizer
    assert (first.levels, last.levels) == ("symmetric", "unsigned")
    inner = torch.relu(model[0](x))
    found = round_to_codes(inner, last.current_step(inner), last.grid).unique().tolist()
    assert set(found) <= set(range(2**bits))
    signed = round_to_codes(inner, last.current_step(inner), constants(bits)).clamp(min=0).unique()
    assert len(found) > len(signed) or bits == 8  # where steps are that fine, few inputs lie far out


# --- the ledger --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [False, True, "factors"])
@pytest.mark.parametrize("depth", range(1, 7))
def test_ledger_of_tensors_equals_the_one_by_arithmetic(depth, batch_norm):
    for bits, act_bits in product([*range(1, 9), 16, 32], [None, 4]):
        levels, granularity, which = (
            LEVELS.names[bits % 3],
            GRANULARITY.names[bits // 3 % 2],
            DECOMPOSE.names[bits // 2 % 2],
        )
        model = networks.build_mlp(64, [24, 12], 10, batch_norm=bool(batch_norm), seed=0)
        decompose(model, depth, decomposed=which, norm=batch_norm == "factors")
        quantize(model, bits, act_bits, "lsq", levels, granularity)
        axes = {"levels": levels, "granularity": granularity, "decompose": which}
        bits_of = {"depth": depth, "weight_bits": bits, "act_bits": act_bits}
        assert count_sizes(model) == mlp_sizes(64, [24, 12], 10, **bits_of, batch_norm=batch_norm, **axes)


def test_ledger_counts_other_layers_as_floats():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LayerNorm(5))
    assert count_sizes(model).size_bytes == 4 * (36 + 4 + 10)
