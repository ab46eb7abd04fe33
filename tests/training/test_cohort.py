"""The cohort: K stacked replicas are K single runs, the step is what autograd and torch.optim would do."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from qdtune.datasets.load import load
from qdtune.model import networks
from qdtune.model.chain import ACTIVATIONS
from qdtune.model.factored import decompose
from qdtune.model.quantize import calibrate, quantize
from qdtune.spec.configuration import Configuration
from qdtune.spec.groups import Qat, Warmup
from qdtune.spec.tasks import ACCURACY
from qdtune.training import cohort as cohort_module
from qdtune.training import compiled
from qdtune.training.augment import SHIFTS, shift_images
from qdtune.training.cohort import Cohort, make_generator
from qdtune.training.step import StepShape, normalise, update_params
from qdtune.training.tensors import Tensors

CPU = torch.device("cpu")
SHIFTING = Qat(epochs=2, lr=0.03, augment="shift")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    loaded, _ = load(["synthetic"], tmp_path_factory.mktemp("data"), 128)
    return Tensors.of(loaded, CPU)


def a_trial(**changes):
    base = Configuration(
        depth=2,
        weight_bits=4,
        activation="relu",
        act_bits=None,
        scale="absmean",
        factor_init="orthogonal",
        hidden=(12,),
        batch_norm=False,
        dataset="synthetic",
        val_size=128,
        batch_size=16,
        warmup=Warmup(epochs=2, lr=0.3),
        qat=Qat(epochs=2, lr=0.03),
        seeds=(0, 1, 2),
    )
    return replace(base, **changes)


def a_short_trial(**changes):
    """With half of the steps, for tests of what does not depend on them."""
    return a_trial(**({"batch_size": 32} | changes))


def a_replica(trial, seed):
    norms = {"batch_norm": bool(trial.batch_norm), "bias": trial.bias}
    model = networks.build_mlp(16, trial.hidden, 4, **norms, seed=seed)
    norm = trial.batch_norm == "factors"
    between = (trial.depth, trial.activation, trial.factor_init)
    decompose(model, *between, make_generator("init", seed), trial.decompose, norm, bias=trial.bias)
    return model


def quantised(trial, seeds, data):
    replicas = [a_replica(trial, seed) for seed in seeds]
    for replica in replicas:
        settings = (trial.scale, trial.levels, trial.granularity, trial.overhead)
        quantize(replica, trial.weight_bits, trial.act_bits, *settings)
        calibrate(replica, normalise(data.train_x[:256]))
    return replicas


def a_cohort(trial, data, seeds, phase="qat", compile=False):
    replicas = quantised(trial, seeds, data) if phase == "qat" else [a_replica(trial, seed) for seed in seeds]
    settings = trial.qat if phase == "qat" else trial.warmup
    shape = StepShape.of(trial, data.inputs, data.classes, phase)
    return Cohort(replicas, shape, settings, tuple(seeds), phase, data, trial.batch_size, compile)


def assert_same(stack, k, single):
    for name, tensor in (single.params | single.buffers).items():
        together = (stack.params | stack.buffers)[name]
        torch.testing.assert_close(together[k], tensor[0], rtol=1e-3, atol=2e-5, msg=name)


CASES = [
    *[a_trial(activation=a) for a in ACTIVATIONS],
    *[a_trial(depth=d) for d in (1, 3, 4)],
    *[a_trial(weight_bits=b) for b in (1, 2, 8, 32)],
    *[a_trial(scale=s) for s in ("minmax", "lsq")],
    a_trial(act_bits=4),
    a_trial(weight_bits=2, scale="lsq", granularity="channel", levels="full", decompose="hidden"),
    a_trial(act_bits=1, weight_bits=1, scale="lsq"),
    a_trial(batch_norm=True, hidden=(12, 8)),
    a_trial(batch_norm="factors", weight_bits=1, scale="lsq"),
    a_trial(batch_norm=True, weight_bits=2, scale="lsq", act_bits=4, overhead="pow2"),
    a_trial(batch_norm="factors", weight_bits=32, overhead="int8"),
    a_trial(batch_norm=True, overhead="pow2", bias="none"),
    a_trial(qat=Qat(epochs=2, lr=0.03, momentum=0.9, schedule="cosine")),
    a_trial(qat=Qat(epochs=2, lr=0.003, optimizer="adam", augment="shift")),
    a_trial(qat=Qat(epochs=2, lr=0.03, augment="affine_elastic", plain_share=0.5)),
]


@pytest.mark.parametrize("trial", CASES, ids=lambda t: f"{t.label} {t.scale} {t.qat.optimizer}")
def test_stacked_replicas_equal_single_runs(trial, data):
    trial, seeds = replace(trial, batch_size=96), (3, 0)
    together = a_cohort(trial, data, seeds)
    losses = [together.train(epoch) for epoch in range(2)]
    accuracies = together.measure(ACCURACY, data.val_x, data.val_y)
    for k, seed in enumerate(seeds):
        alone = a_cohort(trial, data, (seed,))
        assert [alone.train(epoch)[0] for epoch in range(2)] == pytest.approx([loss[k] for loss in losses], rel=1e-3)
        assert_same(together, k, alone)
        assert alone.measure(ACCURACY, data.val_x, data.val_y)[0] == pytest.approx(accuracies[k], abs=0.01)


def test_replicas_of_one_seed_are_twins_and_of_two_are_not(data):
    cohort = a_cohort(a_trial(), data, (4, 4, 5))
    a, b, c = cohort.train(0)
    assert a == pytest.approx(b, rel=1e-5)
    assert a != c


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"act_bits": 8}, marks=pytest.mark.slow),  # each takes half a minute where no cache has it
        {"weight_bits": 1, "scale": "lsq", "batch_norm": True},
        pytest.param({"batch_norm": True, "overhead": "pow2"}, marks=pytest.mark.slow),
        pytest.param({"batch_norm": True, "overhead": "float16", "bias": "none"}, marks=pytest.mark.slow),
    ],
)
def test_compiled_step_equals_the_eager_one(changes, data):
    # Compiled for real, or taken from this machine's cache.
    # One step, and not too few codes: sums of few codes meet the edges of ReLU and clip exactly, where the last bit
    # of a float decides, and later steps would multiply that.
    trial = a_trial(batch_size=384, **changes)
    eager, compiled = (a_cohort(trial, data, (0, 1), compile=c) for c in (False, True))
    before = {name: p.clone() for name, p in eager.params.items()}
    assert eager.train(0) == pytest.approx(compiled.train(0), rel=1e-4)
    for name, tensor in eager.params.items():
        moved = (tensor - before[name]).abs().max().item()
        torch.testing.assert_close(tensor, compiled.params[name], rtol=0, atol=0.05 * moved + 1e-7, msg=name)


@pytest.fixture
def builds(monkeypatch, tmp_path):
    """An empty cache, and a compiler that only notes what it is called for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    class Library:
        def run(self, tensors):
            pass

    def build(function, tensors):
        function(*[t.clone() for t in tensors])  # it can be run
        made.append(function)
        return b"machine code"

    monkeypatch.setattr(compiled, "build_library", build)
    monkeypatch.setattr(compiled, "_load", lambda path: Library())
    return made


def test_one_compilation_serves_bits_scales_rates_and_seeds(data, builds):
    """One per phase, depth, activation, width and K; none for what enters as a tensor."""
    settings = [
        (1, "absmean", "symmetric", 0.1, (0, 1)),
        (2, "minmax", "ternary", 0.03, (5, 6)),
        (8, "absmean", "full", 0.01, (2, 3)),
    ]
    for bits, scale, levels, lr, seeds in settings:
        qat = Qat(epochs=1, lr=lr, schedule="cosine", augment="none" if bits == 2 else "shift")
        trial = a_trial(weight_bits=bits, scale=scale, levels=levels, qat=qat)
        a_cohort(trial, data, seeds, compile=True).train(0)
    assert len(builds) == 1
    others = [{"depth": 3}, {"activation": "tanh"}, {"hidden": (9,)}, {"act_bits": 4}, {"batch_size": 32}]
    others += [{"granularity": "channel"}, {"decompose": "hidden"}, {"scale": "lsq"}]
    for changes in others:
        a_cohort(a_trial(**changes), data, (0, 1), compile=True).train(0)
    a_cohort(a_trial(), data, (0, 1, 2), compile=True).train(0)
    a_cohort(a_trial(), data, (0, 1), phase="warmup", compile=True).train(0)
    a_cohort(a_trial(qat=Qat(epochs=1, lr=0.1, optimizer="adam")), data, (0, 1), compile=True).train(0)
    assert len(builds) == 1 + len(others) + 3


def test_a_step_is_made_for_training_whatever_its_shape_did_before(data, builds, monkeypatch):
    """Machine code traced while a batch normalisation evaluates would be kept, and train later sweeps wrongly."""
    trial, modes = a_trial(batch_norm=True), []
    a_cohort(trial, data, (0, 1)).measure(ACCURACY, data.val_x, data.val_y)
    build = compiled.build_library
    again = a_cohort(trial, data, (0, 1, 2), compile=True)
    monkeypatch.setattr(
        compiled, "build_library", lambda *given: modes.append(again.template.training) or build(*given)
    )
    again.prepare()
    assert modes == [True]


def test_a_step_that_only_evaluates_is_not_compiled(data, builds):
    a_cohort(a_trial(), data, (0, 1), compile=True).measure(ACCURACY, data.val_x, data.val_y)
    assert builds == []


@pytest.mark.parametrize("batch_norm", [False, True])
def test_one_step_is_autograd_and_torch_optim(batch_norm, data):
    trial = a_trial(batch_norm=batch_norm, batch_size=384)  # one batch is the whole training set
    cohort = a_cohort(trial, data, (2,), phase="warmup")
    model = a_replica(trial, 2).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=trial.warmup.lr)
    loss = F.cross_entropy(model(normalise(data.train_x)), data.train_y)
    loss.backward()
    optimiser.step()
    assert cohort.train(0)[0] == pytest.approx(loss.item(), rel=1e-5)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close((cohort.params | cohort.buffers)[name][0], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", ["absmean", "lsq"])
def test_a_step_trains_the_modules_as_they_are(scale, data):
    axes = {"scale": scale, "granularity": "channel", "levels": "full", "decompose": "hidden"}
    trial = a_trial(weight_bits=3, act_bits=3, batch_size=384, **axes)  # one batch is the whole training set
    (model,) = quantised(trial, (2,), data)
    loss = F.cross_entropy(model.train()(normalise(data.train_x)), data.train_y)
    assert a_cohort(trial, data, (2,)).train(0)[0] == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["sgd", "heavy ball", "adam"])
def test_optimisers_are_torchs(name):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(3, 4))
    reference = {
        "sgd": lambda: torch.optim.SGD([weight], lr=0.1),
        "heavy ball": lambda: torch.optim.SGD([weight], lr=0.1, momentum=0.9),
        "adam": lambda: torch.optim.Adam([weight], lr=0.1),
    }[name]()
    ours = {"w": weight.detach().clone()}
    kind, momentum = ("adam", 0.0) if name == "adam" else ("sgd", 0.9 if name == "heavy ball" else 0.0)
    state = replace(StepShape.of(a_trial(), 4, 3, "qat"), optimizer=kind, momentum=momentum).make_optimiser_state(
        ours
    )
    for _ in range(5):
        weight.grad = torch.randn(3, 4)
        reference.step()
        update_params(kind, momentum, ours, {"w": weight.grad.clone()}, state, torch.tensor(0.1))
    torch.testing.assert_close(ours["w"], weight.detach())


def test_adam_on_all_weights_at_once_gives_the_numbers_of_each_by_itself(data, monkeypatch):
    trial = a_trial(qat=Qat(epochs=2, lr=0.03, optimizer="adam"))
    together = a_cohort(trial, data, (0, 1))
    assert together.joined is not None
    monkeypatch.setattr(cohort_module, "Joined", lambda like: None)
    apart = a_cohort(trial, data, (0, 1))
    for epoch in range(2):
        assert together.train(epoch) == apart.train(epoch)
    for kind, stack in {"params": apart.params, **apart.moments}.items():
        found = together.params if kind == "params" else together.moments[kind]
        assert found.keys() == stack.keys()
        for name, tensor in stack.items():
            assert torch.equal(found[name], tensor), (kind, name)


def test_weights_spoilt_by_the_last_step_end_a_replica(data):
    cohort = a_cohort(a_trial(), data, (0, 1))

    def step(batch, lr):
        cohort.losses += 1.0
        cohort.params["2.factors.1.bias"][1, 0] = float("inf")

    cohort.step = step
    first, second = cohort.train(0)
    assert first == pytest.approx(1.0)
    assert second != second


def test_cosine_schedule_falls_from_the_rate_to_zero(data):
    cohort = a_cohort(a_trial(qat=Qat(epochs=4, lr=0.2, schedule="cosine")), data, (0,))
    rates = torch.cat([cohort.rates(epoch) for epoch in range(4)])
    assert rates[0].item() == pytest.approx(0.2)
    assert rates[len(rates) // 2].item() == pytest.approx(0.1, rel=1e-4)
    assert (rates.diff() < 0).all()
    assert 0 < rates[-1] < 0.001


def test_epochs_are_permutations_of_their_own(data):
    seen = []
    cohort = a_cohort(a_trial(), data, (0, 1))
    cohort.step = lambda batch, lr: seen.append(batch.clone())
    cohort.train(0)
    cohort.train(1)
    steps = len(data.train_x) // 16
    epochs = [torch.cat(seen[e * steps : (e + 1) * steps], dim=1) for e in range(2)]
    for epoch in epochs:
        for order in epoch:
            assert len(order.unique()) == len(order) == steps * 16
    assert not torch.equal(epochs[0][0], epochs[0][1])
    assert not torch.equal(epochs[0][0], epochs[1][0])


def test_shifting_shows_every_image_in_another_place_each_epoch(data):
    cohort = a_cohort(a_trial(qat=SHIFTING), data, (0, 1))
    cohort.step = lambda batch, lr: None
    whole, seen = data.train_x.clone(), []
    for epoch in range(2):
        cohort.train(epoch)
        seen.append(cohort.inputs.clone())
    assert torch.equal(data.train_x, whole)  # is shared with others
    ways = torch.stack(
        [shift_images(whole, torch.full((len(whole),), number), data.image) for number in range(SHIFTS)]
    )  # (9, N, I)
    for images in seen:
        hits = (ways == images).all(-1)
        assert hits.any(0).all()
        assert (hits.sum(1) > len(whole) / (2 * SHIFTS)).all()  # none of the nine is rare
    assert not torch.equal(*seen)


def test_elastic_shows_other_images_each_epoch(data):
    cohort = a_cohort(a_trial(qat=Qat(epochs=2, lr=0.03, augment="elastic")), data, (0, 1))
    cohort.step = lambda batch, lr: None
    whole = data.train_x.clone()
    for epoch in range(2):
        before = cohort.inputs.clone()
        cohort.train(epoch)
        assert (cohort.inputs != before).any(1).float().mean() > 0.9
    assert torch.equal(data.train_x, whole)  # is shared with others


def test_accuracy_is_counted_sample_by_sample(data):
    cohort = a_cohort(a_trial(), data, (0, 1))
    for k, replica in enumerate(quantised(a_trial(), (0, 1), data)):
        replica.eval()
        hits = sum(
            int(replica(normalise(x[None])).argmax() == y) for x, y in zip(data.val_x, data.val_y, strict=True)
        )
        assert cohort.measure(ACCURACY, data.val_x, data.val_y)[k] == hits / len(
            data.val_y
        )  # exactly, or ties are lost


def test_unstacked_replicas_have_every_number_of_the_stack(data):
    trial = a_trial(batch_norm=True)
    cohort = a_cohort(trial, data, (0, 1), phase="warmup")
    cohort.train(0)
    replicas = [a_replica(trial, 5) for _ in range(2)]
    for replica in replicas:
        replica.register_buffer("unsaved", torch.zeros(2), persistent=False)
    cohort.buffers["unsaved"] = torch.arange(4.0).view(2, 2)
    cohort.unstack(replicas)
    for k, replica in enumerate(replicas):
        numbers = dict(replica.named_parameters()) | dict(replica.named_buffers())
        assert numbers.keys() == (cohort.params | cohort.buffers).keys()
        for name, tensor in numbers.items():
            assert torch.equal(tensor, (cohort.params | cohort.buffers)[name][k]), name


def test_the_global_generator_is_left_alone(data):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a_cohort(a_trial(), data, (0, 1)).train(0)
    assert torch.equal(torch.get_rng_state(), before)
