"""A taped function does what the function does, to the last bit, whatever it changes, repeats or draws."""

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad_and_value, vmap

from qdtune.datasets.load import load
from qdtune.spec.configuration import OwnModel
from qdtune.spec.tasks import ACCURACY
from qdtune.training import tape, tape_passes
from qdtune.training.compiled import PAYS_AFTER, make_eager_step
from qdtune.training.own_structure import describe_structure
from qdtune.training.tape import PLAIN_CALLS, NotTapedError, Taped, record
from qdtune.training.tape_passes import _sizes_written_out, write_out
from qdtune.training.tensors import Tensors
from tests.training import test_cnn, test_cohort, test_own_dropout
from tests.training.test_cohort import data  # noqa: F401


def a_program(seed):
    """A random function of three tensors (4, 4), which changes some, views others, and repeats itself."""
    draw = random.Random(seed)
    kinds = [
        "add",
        "twice",
        "view",
        "turn",
        "part",
        "copy",
        "in place",
        "through a view",
        "write",
        "constant",
        "list",
    ]
    plan = [(draw.choice(kinds), draw.randrange(99), draw.randrange(99)) for _ in range(draw.randrange(3, 30))]

    def run(*inputs):
        values = list(inputs)
        for kind, i, j in plan:
            one, other = values[i % len(values)], values[j % len(values)]
            if kind == "add":
                values.append(one + other * 0.5)
            elif kind == "twice":
                values += [one.sin(), one.sin()]
            elif kind == "view":
                values.append(one.reshape(2, 8).view(4, 4))
            elif kind == "turn":
                values.append(one.t())
            elif kind == "part":
                values.append(one[:2].repeat(2, 1))
            elif kind == "copy":
                values.append(one.clone())
            elif kind == "in place":
                one.add_(other.detach().clone(), alpha=0.1)
            elif kind == "through a view":
                one.t()[1:].mul_(0.5)
            elif kind == "write":
                one.copy_(other.clone().cos())
            elif kind == "constant":
                values.append(torch.full((4, 4), float(i)) + one)
            else:
                torch._foreach_mul_([one.clone(), inputs[0]], 0.9)
                values += torch._foreach_tanh([one, other])
        return {"last": values[-1], "all": [values[j % len(values)] for _, _, j in plan]}

    return run


@pytest.mark.parametrize("seed", range(80))
def test_a_taped_program_gives_the_same_numbers(seed):
    """Of every second program all tensors last."""
    program = a_program(seed)
    draw = torch.Generator().manual_seed(seed)
    plain = [torch.randn(4, 4, generator=draw) for _ in range(3)]
    taped = [tensor.clone() for tensor in plain]
    play = record(program, taped, lasting=3 * (seed % 2))
    assert all(map(torch.equal, plain, taped))  # recording changes nothing
    for _ in range(3):
        expected, found = program(*plain), play(*taped)
        assert torch.equal(expected["last"], found["last"])
        assert all(map(torch.equal, expected["all"], found["all"]))
        assert all(map(torch.equal, plain, taped))


def test_what_is_repeated_or_vain_is_not_played(monkeypatch):
    def function(x, state):
        copy = state.clone()
        for _ in range(5):
            x = x.sin() + x.sin().view(x.shape) + torch.ones(3)
        torch.cos(x)
        state.copy_(copy)
        return x

    calls = []
    compose = tape._compose
    monkeypatch.setattr(
        tape, "_compose", lambda made, given, *rest: calls.extend(given) or compose(made, given, *rest)
    )
    record(function, (torch.ones(3), torch.ones(3)))
    assert [str(call.function) for call in calls] == ["aten.sin.default", "aten.add.Tensor", "aten.add.Tensor"] * 5


def test_views_of_lasting_tensors_are_made_once(monkeypatch):
    """Their numbers may change, also through the views. Views of other tensors are made at each play."""

    def function(weights, total, x):
        first, second = weights.view(2, 3).split([1, 2], 1)
        total.add_((second.t() * x.view(1, 2)).sum())
        second.mul_(0.5)
        return first.t() + x.t()

    calls, find = [], tape.find_lasting_views
    monkeypatch.setattr(tape, "find_lasting_views", lambda *given: calls.extend(find(*given)) or calls[-2:])
    taped = [torch.arange(6.0), torch.zeros(())]
    plain = [tensor.clone() for tensor in taped]
    play = record(function, (*taped, torch.ones(2)), lasting=2)
    for k in range(3):
        x = torch.randn(2, generator=torch.Generator().manual_seed(k))
        assert torch.equal(play(*taped, x), function(*plain, x))
        assert all(map(torch.equal, plain, taped))
    once, each = ([call.function.overloadpacket.__name__ for call in some] for some in calls)
    assert sorted(once) == ["split_with_sizes", "t", "t", "view"]
    assert sorted(each)[-3:] == ["sum", "t", "view"]


def test_inputs_that_share_memory_are_not_taped():
    def function(first, second):
        return first.add_(1) + second

    whole = torch.ones(6)
    for other in (whole, whole.view(2, 3), whole[2:4]):
        with pytest.raises(NotTapedError, match="share memory"):
            record(function, (whole, other))
    halves = torch.ones(6).split(3)
    assert torch.equal(record(function, halves)(*halves), torch.full((3,), 3.0))


def test_a_copy_that_changes_before_it_is_written_back_stays_a_copy():
    def function(state):
        copy = state.clone()
        copy.add_(1)
        before = state * 2
        state.copy_(copy)
        return before

    state = torch.ones(3)
    play = record(function, (state,))
    assert torch.equal(play(state), torch.full((3,), 2.0))
    assert torch.equal(state, torch.full((3,), 2.0))


def test_a_copy_is_changed_in_place_if_nothing_uses_the_original_meanwhile(monkeypatch):
    def function(first, second, third, fourth):
        copies = [state.clone() for state in (first, second, third, fourth)]
        for copy in copies:
            copy.view(-1).add_(1)
        before = second * 2  # of the original
        for copy, state in zip(copies, (first, second, third, fourth), strict=True):
            state.copy_(copy)
        third.mul_(2)
        return before, copies[2] * 3, copies[3].view(-1)

    calls, compose = [], tape._compose
    monkeypatch.setattr(tape, "_compose", lambda made, some, *rest: calls.extend(some) or compose(made, some, *rest))
    plain = [torch.full((3,), float(k)) for k in range(4)]
    taped = [tensor.clone() for tensor in plain]
    play = record(function, taped)
    assert sum(call.function is torch.ops.aten.clone.default for call in calls) == 3
    for _ in range(2):
        found, expected = play(*taped), function(*plain)
        assert all(map(torch.equal, (*found, *taped), (*expected, *plain)))


def test_statistics_that_a_normalisation_changes_are_kept():
    def function(x, mean, variance):
        kept = mean.clone(), variance.clone()
        y = torch.nn.functional.batch_norm(x, *kept, training=True)
        before = y + mean + variance
        mean.copy_(kept[0])
        variance.copy_(kept[1])
        return before

    plain = [torch.zeros(3), torch.ones(3)]
    taped = [tensor.clone() for tensor in plain]
    play = record(function, (torch.zeros(5, 3), *taped))
    for _ in range(3):
        x = torch.randn(5, 3)
        assert torch.equal(function(x, *plain), play(x, *taped))
    assert all(map(torch.equal, plain, taped))
    assert plain[0].abs().sum() > 0


def test_gradients_of_stacked_replicas_are_played():
    def loss(w, x):
        return (torch.tanh(x @ w) ** 2).mean()

    def function(w, x):
        slope, value = vmap(grad_and_value(loss))(w, x)
        w.sub_(0.1 * slope)
        return value

    plain = torch.randn(3, 5, 2)
    taped, play = plain.clone(), None
    for _ in range(4):
        x = torch.randn(3, 7, 5)
        play = play or record(function, (taped, x))
        assert torch.equal(function(plain, x), play(taped, x))
    assert torch.equal(plain, taped)


@pytest.mark.parametrize("reads", ["item", "nonzero", "draws"])
def test_what_may_differ_from_call_to_call_runs_as_it_is(reads):
    def function(x):
        if reads == "draws":
            return x + torch.rand(3) * 0
        if reads == "nonzero":
            return x[x > 0].sum()
        return x * 2 if x.sum().item() > 0 else x

    with pytest.raises(NotTapedError, match="reads values of a tensor, or draws"):
        record(function, (torch.ones(3),))
    taped = Taped(function, 1)
    for sign in (1, -1, 1, -1):
        x = torch.ones(3) * sign
        assert torch.equal(taped(x), function(x))


@pytest.mark.parametrize("fault", ["another result", "no such call"])
def test_a_tape_that_does_something_else_is_not_played(fault, monkeypatch):
    wrong = torch.cos if fault == "another result" else torch.stack
    monkeypatch.setattr(tape, "_find_binding", lambda function: wrong)
    with pytest.raises(NotTapedError, match="its tape"):
        record(lambda x: x.sin(), (torch.ones(3),))
    taped = Taped(lambda x: x.sin(), 0)
    assert all(torch.equal(taped(torch.ones(3)), torch.ones(3).sin()) for _ in range(3))


class Counting:
    """A function that is another one in each call."""

    calls = 0

    def __call__(self, x):
        self.calls += 1
        return x / self.calls


@pytest.mark.parametrize(
    "make",
    [
        lambda: lambda x: x / float(x.numpy().max()),  # is a number before torch sees it
        lambda: lambda x: x + torch.tensor(x.tolist()),
        lambda: lambda x: x.sign() if x.numpy().min() < 0 else x,
        Counting,
    ],
)
def test_what_python_computes_of_numbers_is_computed_in_each_call(make):
    taped, function = Taped(make(), 2), make()
    for number in range(1, 6):
        if isinstance(function, Counting) and number == 3:
            function.calls += 2  # to record it and to compare both
        x = torch.arange(3.0) + (number - 3) * 0.5
        assert torch.equal(taped(x), function(x))


def test_a_result_that_lies_unsaid_in_the_memory_of_another_one_changes_it():
    """The product of a linear layer without a bias. Nothing shows it while all numbers are positive."""

    def function(x, w):
        first = F.linear(x, w).relu_()
        return first - F.linear(x, w)

    play = record(function, (torch.ones(2, 3, 4), torch.ones(5, 4)))
    x = torch.randn(2, 3, 4)
    assert torch.equal(play(x, torch.ones(5, 4)), function(x, torch.ones(5, 4)))


def test_numbers_that_are_none_are_played_too():
    play = record(lambda x: x.log() + 1, (torch.tensor([-1.0, 1.0]),))
    assert play(torch.tensor([1.0, -1.0])).isnan().tolist() == [False, True]


def test_it_is_recorded_after_the_plain_calls():
    calls = []

    def function(x):
        calls.append(len(x))
        return x + 1

    taped = Taped(function, 2)
    for _ in range(5):
        assert torch.equal(taped(torch.ones(3)), torch.full((3,), 2.0))
    assert len(calls) == 4  # two as they are, one that is recorded, one that it is compared with


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.tensor([1.0, 2.0, 3.0]),
        lambda x: x.clone().index_fill_(0, torch.tensor([1]), 5.0).add_(torch.tensor([1.0, 2.0, 3.0]).mul_(2.0)),
        lambda x: _set_part(x.clone()),
        lambda x: F.prelu(x, torch.tensor(0.2)),
    ],
)
def test_a_tensor_that_the_function_makes_is_no_other_one_when_it_is_played(function):
    """`torch.tensor` and `x[1] = 5` make tensors of which only their first use tells; it returns the same one."""
    play = record(function, (torch.ones(3),))
    for x in (torch.randn(3), torch.randn(3)):
        assert torch.equal(play(x), function(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, torch.tensor([1, 0, 1])],
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    ],
)
def test_what_only_may_differ_from_call_to_call_is_played(function):
    play = record(function, (torch.randn(2, 3),))
    x = torch.randn(2, 3)
    assert torch.equal(play(x), function(x))
    mask = torch.tensor([True, False])
    with pytest.raises(NotTapedError, match="reads values of a tensor, or draws"):
        record(lambda x: x[mask], (x,))


def _set_part(x):
    x[1] = 5.0
    return x


def test_tensors_are_dropped_after_their_last_use():
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.weak import WeakTensorKeyDictionary

    class Alive(TorchDispatchMode):
        most, tensors = 0, WeakTensorKeyDictionary()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            self.tensors[found] = True
            self.most = max(self.most, len(self.tensors))
            return found

    def function(x):
        for number in range(20):
            x = x * number
        return x

    play = record(function, (torch.ones(3),))
    with Alive() as alive:
        play(torch.ones(3))
    assert alive.most <= 3  # one is made while another is still read


def assert_alike(make, data, monkeypatch):  # noqa: F811
    """A cohort that is played gives the numbers of one that runs as it is: of two epochs and of evaluations."""
    ends = []
    for plain_calls in (10**9, 1):
        for module in ("cohort", "compiled"):
            monkeypatch.setattr(f"qdtune.training.{module}.PLAIN_CALLS", plain_calls)
        cohort = make()
        numbers = []
        for epoch in range(2):
            numbers += [cohort.train(epoch), cohort.measure(ACCURACY, data.val_x, data.val_y)]
        ends.append((numbers, cohort.params | cohort.buffers))
    assert ends[0][0] == ends[1][0]
    for name, tensor in ends[0][1].items():
        assert torch.equal(tensor, ends[1][1][name]), name


@pytest.mark.parametrize("trial", test_cohort.CASES, ids=lambda t: f"{t.label} {t.scale} {t.qat.optimizer}")
def test_a_played_training_gives_the_same_bits(trial, data, monkeypatch):  # noqa: F811
    trial = replace(trial, batch_size=48)
    assert_alike(lambda: test_cohort.a_cohort(trial, data, (3, 0)), data, monkeypatch)


@pytest.mark.parametrize("changes", [{"act_bits": 8, "granularity": "channel"}, {"weight_bits": 1, "scale": "lsq"}])
def test_played_convolutions_give_the_same_bits(changes, monkeypatch, tmp_path):
    loaded, _ = load(["digits"], tmp_path, 300)
    digits = Tensors.of(loaded, torch.device("cpu"))
    trial = test_cnn.a_cnn(batch_size=400, **changes)
    assert_alike(lambda: test_cnn.a_cohort(trial, digits, (3, 0)), digits, monkeypatch)


def test_played_dropout_draws_the_same(data, monkeypatch):  # noqa: F811
    monkeypatch.setattr("qdtune.model.networks.build_own", test_own_dropout.build)
    structure = describe_structure(test_own_dropout.build("", "", 16, (12,), 4, seed=0))
    trial = test_cohort.a_trial(batch_size=48, own_model=OwnModel("mine:f", "0" * 64, structure))
    assert_alike(lambda: test_own_dropout.a_cohort(trial, data, (3, 0)), data, monkeypatch)


def spread_over(shape, order, small, seed):
    """A function of a tensor in this order in memory and of small ones, which are spread over it, and its inputs."""
    draw = torch.Generator().manual_seed(seed)
    dense = torch.randn([shape[axis] for axis in order], generator=draw)
    large = dense.permute([order.index(axis) for axis in range(len(order))])
    others = [torch.randn(one, generator=draw) for one in small]

    def run(x, *others):
        total = x
        for one in others:
            total = torch.where(total >= one, total * one, x / (1 + one.abs()))
            total = torch.clamp(total, -one.abs(), one.abs() + 1)
        return total

    return run, [large, *others]


@pytest.mark.parametrize("seed", range(40))
def test_small_tensors_that_are_written_out_give_the_same_numbers(seed, monkeypatch):
    draw = random.Random(seed)
    shape = tuple(draw.choice([1, 2, 3, 5, 17]) for _ in range(draw.randrange(1, 6)))
    order = draw.sample(range(len(shape)), len(shape))
    small = [tuple(side if draw.random() < 0.4 else 1 for side in shape) for _ in range(3)]
    small += [shape[len(shape) // 2 :], ()]
    monkeypatch.setattr(tape_passes, "LONG_ROW", draw.choice([4, 30, 512]))
    monkeypatch.setattr(tape_passes, "FEW_COPIES", draw.choice([1, 2, 16]))
    function, inputs = spread_over(shape, order, small, seed)
    play = record(function, inputs)
    function, others = spread_over(shape, order, small, seed + 1000)
    assert torch.equal(play(*others), function(*others))


def recorded_calls(function, inputs, monkeypatch):
    """The calls of a tape, before and after small tensors are written out, and the layouts."""
    seen = []
    monkeypatch.setattr(tape, "write_out", lambda calls, at: seen.append((calls, write_out(calls, at), at)) or calls)
    record(function, inputs)
    return seen[0]


def test_kernels_on_images_side_by_side_have_long_rows(monkeypatch):
    shape = (3, 64, 8, 9, 9)  # (K, B, C, H, W), with all channels of all replicas last in memory
    function, inputs = spread_over(shape, (1, 3, 4, 0, 2), [(3, 1, 1, 1, 1)], 0)
    before, after, layouts = recorded_calls(function, inputs, monkeypatch)
    large = [call for call in after if call.makes() and layouts[call.makes()[0]][0] == shape]
    assert len(large) == 5, "larger or equal, times, through, chosen, clamped"
    short = [
        call for call in before if any(_sizes_written_out(layouts[s], layouts[call.makes()[0]]) for s in call.reads())
    ]
    assert short
    for call in large:
        assert all(_sizes_written_out(layouts[s], layouts[call.makes()[0]]) is None for s in call.reads())
    copied = [call for call in after if call not in before and call.function is torch.ops.aten.clone.default]
    assert len(copied) == 3, "one, -|one| and |one| + 1: each once"


def test_rows_that_are_long_already_are_left_alone(monkeypatch):
    function, inputs = spread_over((5, 64, 100), (0, 1, 2), [(5, 1, 1), ()], 0)
    before, after, _ = recorded_calls(function, inputs, monkeypatch)
    assert after == before


def test_what_changes_is_not_written_out(monkeypatch):
    shape = (3, 64, 8, 9, 9)
    _, inputs = spread_over(shape, (1, 3, 4, 0, 2), [(3, 1, 1, 1, 1)], 0)

    def run(x, one):
        first = x * one
        one.add_(1)
        return first, x * one

    before, after, _ = recorded_calls(run, inputs, monkeypatch)
    assert after == before
    other = [tensor.clone() for tensor in inputs]
    assert all(map(torch.equal, record(run, inputs)(*inputs), run(*other)))


def test_what_depends_on_how_a_kernel_goes_is_not_written_out():
    shape = (3, 64, 8, 9, 9)
    _, (x, one) = spread_over(shape, (1, 3, 4, 0, 2), [(3, 1, 1, 1, 1)], 0)

    def run(x, one):
        return torch.add(x.abs() ** one.abs(), one, alpha=0.1)

    assert torch.equal(record(run, [x, one])(2 * x, one + 1), run(2 * x, one + 1))


def test_what_only_lasting_tensors_decide_is_computed_once(monkeypatch):
    """The third tensor lasts, too, but is changed."""
    calls = []
    compose = tape._compose
    monkeypatch.setattr(tape, "_compose", lambda tape, some, *rest: calls.append(some) or compose(tape, some, *rest))

    def run(grid, view, count, x):
        count.add_(1)
        return x * grid.sqrt().view(2, 1) + view[0] * count.sqrt() + torch.ones(3).mul_(2) + grid[:1] * 2

    def inputs(seed):
        draw = torch.Generator().manual_seed(seed)
        return [*(torch.rand(2, generator=draw) for _ in range(2)), torch.ones(()), torch.randn(2, 3, generator=draw)]

    for lasting in (0, 3):
        first = inputs(0)
        play = record(run, first, lasting=lasting)
        plain = [tensor.clone() for tensor in first]
        for seed in (1, 2):
            first[3] = plain[3] = inputs(seed)[3]
            assert torch.equal(play(*first), run(*plain))
    names = [[call.function.overloadpacket for call in some] for some in calls]
    assert torch.ops.aten.view in names[0]
    assert names[1].count(torch.ops.aten.sqrt) == 1, "of what is counted"
    assert torch.ops.aten.view not in names[1]


@pytest.mark.parametrize("is_true", [True, False])
def test_a_choice_that_lasting_masks_have_settled_is_made_once(is_true, monkeypatch):
    """Other choices stay: where the mask changes or is mixed, the layout is another, or what is chosen is changed."""
    calls = []
    compose = tape._compose
    monkeypatch.setattr(tape, "_compose", lambda tape, some, *rest: calls.append(some) or compose(tape, some, *rest))

    def run(mask, mixed, x):
        settled = torch.where(mask.view(1, 1), x.sin(), x.cos())
        changing = torch.where(x > 0, x.exp(), x.abs())
        other = torch.where(mixed, x, -x) + torch.where(mask, x[:1], x[1:])
        wide = torch.where(mask, x[0], x[1]).expand(2, 3) + torch.where(mask.expand(2, 3), x[0], x[1])
        kept = torch.where(mask, x, x + 1)
        x.mul_(0.5)
        return settled + changing + other + wide, kept

    masks = torch.tensor(is_true), torch.tensor([True, False, True])
    draw = torch.Generator().manual_seed(0)
    play = record(run, [*masks, torch.randn(2, 3, generator=draw)], lasting=2)
    for _ in range(3):
        x = torch.randn(2, 3, generator=draw)
        plain = x.clone()
        found, expected = play(*masks, x), run(*masks, plain)
        assert all(map(torch.equal, (*found, x), (*expected, plain)))
    names = [call.function.overloadpacket for call in calls[0]]
    assert (torch.ops.aten.sin in names, torch.ops.aten.cos in names) == (is_true, not is_true)
    assert names.count(torch.ops.aten.where) < 7


@pytest.mark.parametrize(
    ("steps", "plain"), [(0, PLAIN_CALLS), (PAYS_AFTER * PLAIN_CALLS, PLAIN_CALLS), (PAYS_AFTER * PLAIN_CALLS + 1, 1)]
)
def test_a_step_that_is_made_often_is_recorded_after_the_first(steps, plain, monkeypatch):
    made = []
    monkeypatch.setattr(tape, "record", lambda function, *rest: lambda *inputs: made.append(len(inputs)))
    step = make_eager_step(lambda total, x, rate: total.add_(x.sum()), (torch.zeros(()),), (torch.ones(4, 2),), steps)
    for k in range(PLAIN_CALLS + 2):
        assert len(made) == max(0, k - plain)
        step(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(()))
