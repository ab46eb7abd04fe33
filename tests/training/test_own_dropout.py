"""Dropout of a user's model: what is drawn, for each replica by itself, and that nothing of it is shipped."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from qdtune import reader
from qdtune.model.dropout import ReplicaDropout, find_states, replace_dropout
from qdtune.model.factored import decompose
from qdtune.model.formats.packed import one_seed
from qdtune.model.load_into import load_into
from qdtune.spec.configuration import OwnModel
from qdtune.spec.groups import Qat, Warmup
from qdtune.training.cohort import Cohort, make_generator
from qdtune.training.own_structure import describe_structure
from qdtune.training.step import StepShape
from tests.training.test_cohort import a_trial
from tests.training.test_own_model import net, refusal, taken, tensors  # noqa: F401
from tests.training.test_paused import Memory, numbers, train

LAYERS = {  # and an input
    "Dropout": (nn.Dropout(0.3), (64, 400)),
    "Dropout1d": (nn.Dropout1d(0.3), (400, 16, 5)),
    "Dropout2d": (nn.Dropout2d(0.3), (400, 16, 3, 2)),
    "Dropout3d": (nn.Dropout3d(0.3), (400, 16, 2, 2, 2)),
    "AlphaDropout": (nn.AlphaDropout(0.3), (64, 400)),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout(0.3), (400, 16, 5)),
}


def build(_factory, _sha256, inputs, hidden, outputs, *, seed):
    torch.manual_seed(seed)
    parts = nn.Linear(inputs, hidden[0]), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden[0], outputs)
    return nn.Sequential(nn.Dropout(0.1), *parts)


@pytest.fixture
def trial(monkeypatch):
    monkeypatch.setattr("qdtune.model.networks.build_own", build)
    own = OwnModel("mine:f", "0" * 64, describe_structure(build("", "", 16, (12,), 4, seed=0)))
    return a_trial(batch_size=48, own_model=own, warmup=Warmup(epochs=1), qat=Qat(epochs=3, lr=0.03))


def a_cohort(trial, data, seeds, purpose="warmup", compile=False):
    shape = StepShape.of(trial, data.inputs, data.classes, "warmup")
    between = trial.depth, trial.activation, trial.factor_init
    replicas = [decompose(shape.build_undivided(n), *between, make_generator("init", n)) for n in seeds]
    return Cohort(replicas, shape, trial.warmup, seeds, purpose, data, trial.batch_size, compile)


@pytest.mark.parametrize("name", LAYERS)
def test_draws_are_those_of_torch_in_number_place_and_scale(name):
    theirs, shape = LAYERS[name]
    ours = replace_dropout(copy.deepcopy(theirs)).train()
    assert isinstance(ours, ReplicaDropout)
    x = torch.rand(shape) + 1
    found, expected = ours(x), theirs.train()(x)
    is_dropped = [y < 0.5 for y in (found, expected)]  # x is 1 to 2: what is kept is larger, at any scale
    for mask in is_dropped:
        assert mask.float().mean().item() == pytest.approx(0.3, abs=0.03)
    if len(shape) > 2:
        flat = is_dropped[0].flatten(2)
        assert torch.equal(flat.all(2), flat.any(2))  # whole channels
    ends = []
    for y, dropped in zip((found, expected), is_dropped, strict=True):
        ends.append(torch.stack([y[dropped].max(), y[~dropped].min(), y[~dropped].max()]))
    torch.testing.assert_close(*ends, rtol=0.01, atol=0.01)
    assert not torch.equal(found, ours(x))
    assert torch.equal(ours.eval()(x), x)


def test_neighbours_steps_and_seeds_draw_independently():
    layer = replace_dropout(nn.Dropout(0.5)).train()
    masks = []
    for state in (0, 1, 2**31, 2**40, 2**61 + 7):
        layer.state.fill_(state)
        masks += [layer(torch.ones(100, 100)).gt(0).float() * 2 - 1 for _ in range(3)]
    flat = torch.stack(masks).flatten(1)
    alike = flat @ flat.T / 10_000  # of independent draws: 0 with a standard deviation of 0.01
    assert alike[alike < 0.99].abs().max() < 0.05
    assert (alike > 0.99).sum() == len(
        masks
    ) + 4  # each with itself, and the two that follow from both states 0 and 1
    for mask in masks:
        assert abs(mask.mean().item()) < 0.05
        for moved in (mask.roll(1, 0), mask.roll(1, 1), mask.roll(16, 1), mask.T):
            assert abs((mask * moved).mean().item()) < 0.06


def test_stacked_replicas_draw_as_they_do_alone(trial, tensors):  # noqa: F811
    together = a_cohort(trial, tensors, (3, 0, 3))
    losses = together.train(0)
    assert losses[0] == losses[2] != losses[1]
    for k, seed in enumerate((3, 0)):
        alone = a_cohort(trial, tensors, (seed,))
        assert alone.train(0)[0] == pytest.approx(losses[k], rel=1e-5)
        for name in find_states(together.template):
            assert alone.buffers[name][0] == together.buffers[name][k]
    steps = {name: together.buffers[name].clone() for name in find_states(together.template)}
    assert sorted(steps) == ["0.state", "3.state"]
    assert len({int(number) for state in steps.values() for number in state}) == 4
    other = a_cohort(trial, tensors, (3,), purpose="qat")
    assert other.buffers["0.state"][0] != a_cohort(trial, tensors, (3,)).buffers["0.state"][0]


@pytest.mark.slow
def test_compiled_steps_draw_as_eager_ones(trial, tensors):  # noqa: F811
    eager, compiled = (a_cohort(trial, tensors, (3, 0), compile=compile) for compile in (False, True))
    assert compiled.train(0) == pytest.approx(eager.train(0), rel=1e-4)
    assert all(torch.equal(eager.buffers[name], compiled.buffers[name]) for name in find_states(eager.template))


def test_training_goes_on_to_the_same_bits_and_ships_no_dropout(trial, tensors):  # noqa: F811
    memory = Memory()
    *_, whole = train(trial, tensors, memory)
    *_, resumed = train(trial, tensors, Memory({trial.trial_id: memory.all[0]}))
    assert resumed["resumed_at"] == 1
    assert numbers(resumed) == numbers(whole)
    alone = one_seed(whole["weights"], 0)
    model = reader.load(alone)
    assert model.is_complete
    rows = tensors.test_x[:50]
    module = load_into(build("", "", 16, (12,), 4, seed=0), alone)
    found = module(rows.float() / 127.5 - 1)
    np.testing.assert_allclose(model.logits(rows.numpy()), found.numpy(), rtol=1e-4, atol=1e-4)


def test_a_model_with_dropout_is_taken_and_other_draws_are_refused(tmp_path):
    taken(tmp_path, net("self.drop = nn.Dropout(0.2)", "return self.b(self.drop(torch.relu(self.a(x))))"))
    for draw in ("nn.functional.dropout(y, 0.2, self.training)", "y + torch.rand(y.shape) * self.training"):
        said = refusal(tmp_path, net(forward=f"y = torch.relu(self.a(x))\nreturn self.b({draw})"))
        assert "draws random numbers in its forward pass" in said
        assert "use nn.Dropout" in said
