"""Models of the user's own at the door: what is refused and why, and what counts of the models that are taken."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qdtune import plugins, reader
from qdtune.datasets import load
from qdtune.datasets.load import Samples
from qdtune.messages import SpecError
from qdtune.model.formats.packed import one_seed
from qdtune.plugins import Grant
from qdtune.spec.groups import Qat, Warmup
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec, loads
from qdtune.spec.tasks import ACCURACY
from qdtune.sweep.prepare import call_own_data
from qdtune.training.own_faults import SHIPPED_DTYPES, find_faults
from qdtune.training.own_model import describe_own_model, try_own_model
from qdtune.training.step import check_outputs
from qdtune.training.tensors import Tensors
from qdtune.training.train import TrainingLog
from tests.training.test_cohort import CPU, a_cohort
from tests.training.test_cohort import a_short_trial as a_trial
from tests.training.test_train import last

SWEEP = """\
version: 1
name: own
parameters: {depth: {values: [1, 2]}, weight_bits: {values: [4]}}
data: {dataset: synthetic, val_size: 128}
model: {factory: 'NAME:f', hidden: [8]}
train: {batch_size: 16}
"""
FACTORY = """
import torch
from torch import nn
def f(inputs, hidden, classes, *, seed):
    return T(inputs, hidden[0], classes)
class T(nn.Module):
    def __init__(self, inputs, width, classes):
        super().__init__()
        self.a, self.b = nn.Linear(inputs, width), nn.Linear(width, classes)
        INIT
    def forward(self, x):
        FORWARD
"""
PLAIN = "return self.b(torch.relu(self.a(x)))"


def net(init: str = "pass", forward: str = PLAIN) -> str:
    return FACTORY.replace("INIT", init.replace("\n", "\n        ")).replace(
        "FORWARD", forward.replace("\n", "\n        ")
    )


def spec_of(folder: Path, text: str, sweep: str = SWEEP) -> Spec:
    """A sweep of a module with this text, which may be imported."""
    name = f"own_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    (folder / f"{name}.py").write_text(text)
    plugins.allow(Grant((name,), (str(folder),)))
    return loads(sweep.replace("NAME", name).encode(), "x.yaml")


def taken(folder: Path, text: str, data: Samples | None = None, sweep: str = SWEEP) -> Spec:
    spec = describe_own_model(spec_of(folder, text, sweep), data)
    try_own_model(spec, data)
    return spec


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(SpecError) as caught:
        taken(folder, text)
    message = str(caught.value)
    assert message.startswith("error: model.factory: own_")
    assert message.isprintable()
    return message


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    return Tensors.of(load.load(["synthetic"], tmp_path_factory.mktemp("data"), 128)[0], CPU)


# --- logits and accuracies


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("return torch.squeeze(self.b(self.a(x)))", r"1 sample must give float32 outputs of shape (1, 4), got"),
        (
            "y = self.b(self.a(x))\nreturn y if len(x) != 2 else y.T",
            r"2 samples must give float32 outputs of shape (2, 4), got torch.float32 of shape (4, 2)",
        ),
        (
            "y = self.b(self.a(x))\nreturn y if len(x) % 2 == 0 or len(x) == 1 else y[:-1]",
            r"3 samples must give float32 outputs of shape (3, 4), got torch.float32 of shape (2, 4)",
        ),
        ("return self.b(self.a(x)), x", r"must give float32 outputs of shape (8, 4), got tuple"),
        ("return self.b(self.a(x)).half()", r"must give float32 outputs of shape (8, 4), got torch.float16"),
        ("return self.b(self.a(x - x.mean(0)))", "answers a row otherwise when it comes with other rows, or again"),
        (
            "return self.b(self.a(x)) + torch.rand(1)",
            "answers a row otherwise when it comes with other rows, or again",
        ),
    ],
)
def test_logits_are_tried_on_one_two_and_three_rows(tmp_path, forward, message):
    assert message in refusal(tmp_path, net(forward=forward))


@pytest.mark.parametrize(
    "forward",
    [
        "x.mul_(0)",
        "x[:, 0] = 0",
        "x.clamp_(-100, 100)",  # changes no value here
        "x.flatten(1).relu_()",
        "nn.Hardtanh(inplace=True)(x)",
        "if self.training: x.add_(1)",
    ],
)
def test_a_model_that_changes_its_input_is_refused(tmp_path, forward):
    message = refusal(tmp_path, net(forward=f"{forward}\n{PLAIN}"))
    assert "builds a model that changes its input in place, such as with clamp_" in message


def test_a_model_may_change_its_own_tensors_in_place(tmp_path):
    taken(
        tmp_path,
        net("self.r = nn.ReLU(inplace=True)", "x = x.clone().mul_(2)\nreturn self.b(self.r(self.a(x)))"),
    )


def test_a_batch_of_one_row_is_tried_if_training_has_such(tmp_path):
    text = net(forward="y = self.b(torch.relu(self.a(x)))\nreturn y.squeeze(0) if self.training else y")
    taken(tmp_path, text)
    one = SWEEP.replace("batch_size: 16", "batch_size: 1")
    with pytest.raises(SpecError, match=r"1 sample must give float32 outputs of shape \(1, 4\)"):
        taken(tmp_path, text, sweep=one)


def test_the_shape_of_logits_is_checked_wherever_they_are_used(tensors):
    trial = a_trial()
    cohort = a_cohort(trial, tensors, trial.seeds)
    template = cohort.template

    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = template

        def forward(self, x):
            return self.inner(x).squeeze(0)

    cohort.template = Squeezed()
    cohort.params = {f"inner.{name}": p for name, p in cohort.params.items()}
    cohort.buffers = {f"inner.{name}": b for name, b in cohort.buffers.items()}
    assert cohort.measure(ACCURACY, tensors.val_x[:2], tensors.val_y[:2])
    with pytest.raises(ValueError, match=r"1 sample must give float32 outputs of shape \(1, 4\)"):
        cohort.measure(ACCURACY, tensors.val_x[:1], tensors.val_y[:1])
    with pytest.raises(ValueError, match="got NoneType"):
        check_outputs(None, 2, 4)


def test_no_accuracy_leaves_0_to_1():
    log = TrainingLog((0,))
    with pytest.raises(AssertionError, match=r"accuracy must be 0\.0 to 1\.0, got 1\.001"):
        log.add("qat", 1, [0.5], [1.001], 1.0)


# --- modules, tensors and layers that would train or ship wrongly

REFUSED = [
    ("self.n = nn.BatchNorm1d(width, track_running_stats=False)", "nn.BatchNorm1d in n that keeps no statistics"),
    ("self.n = nn.BatchNorm1d(width)\nself.n.running_mean = None", "nn.BatchNorm1d in n that keeps no statistics"),
    ("self.r = nn.LSTM(4, 4)", "with an nn.LSTM in r: its fused kernel cannot train replicas together"),
    ("self.r = nn.Sequential(nn.GRU(4, 4))", "with an nn.GRU in r.0: its fused kernel"),
    ("self.r = nn.LSTMCell(4, 4)", "with an nn.LSTMCell in r: its fused kernel"),
    ("self.c = [nn.Linear(2, 2)]", "with an nn.Linear in c[0] that is not trained, counted or shipped"),
    ("self.c = {'x': (nn.Conv1d(1, 1, 1),)}", "with an nn.Conv1d in c['x'][0] that is not trained"),
    ("self.c = [self.a]", "with the layer a once more in c[0], which would miss it when it is split"),
    ("layer = nn.Linear(2, 2)\nself.c = lambda x: layer(x)", "with an nn.Linear in c that is not trained"),
    ("from functools import partial\nself.c = partial(nn.Linear(2, 2))", "with an nn.Linear in c that is not"),
    ("self.c = nn.Linear(2, 2).forward", "with an nn.Linear in c that is not trained"),
    ("self.c = [nn.Parameter(torch.ones(2))]", "with a parameter in the attribute c[0] that is not trained"),
    ("self.c = {1: torch.ones(2)}", "with a tensor in the attribute c[1] that is not trained"),
    ("self.c = torch.ones(2)", "with a tensor in the attribute c that is not trained, counted or shipped: use reg"),
    ("self.l = nn.LazyLinear(3)", "with an nn.LazyLinear in l, whose sizes are unknown until its first call"),
    ("self.l = nn.LazyConv1d(3, 1)", "with an nn.LazyConv1d in l, whose sizes are unknown"),
    (
        "type(self).get_extra_state = lambda self: 3",
        "whose state_dict differs from its parameters and buffers in _ex",
    ),
    (
        "self.register_state_dict_post_hook(lambda m, state, *_: (state.pop('a.bias'), None)[1])",
        "whose state_dict differs from its parameters and buffers in a.bias",
    ),
    ("self.register_buffer('q', torch.ones(2, dtype=torch.bfloat16))", "whose buffer q is torch.bfloat16, which a"),
    (
        "self.register_buffer('q', torch.ones(2, dtype=torch.complex64))",
        "buffer q is torch.complex64, ... view_as_real",
    ),
    ("self.register_buffer('q', torch.ones(2).to(torch.float8_e4m3fn))", "whose buffer q is torch.float8_e4m3fn"),
    ("self.register_buffer('q', torch.eye(2).to_sparse())", "whose buffer q is torch.sparse_coo, ... to_dense()"),
    ("self.p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))", "parameter p is torch.bfloat16: parameters must"),
    (
        "self.p = nn.Parameter(torch.ones(2, dtype=torch.complex64))",
        "parameter p is torch.complex64: parameters must",
    ),
    ("self.register_buffer('q', torch.ones(1).expand(3))", "whose q is expanded, ... : add .clone()"),
    ("self.register_buffer('q', self.a.bias.data[:2])", "whose q shares memory with its a.bias: add .clone()"),
    ("q = torch.ones(3)\nself.register_buffer('q', q)\nself.register_buffer('r', q)", "whose r is also its q: "),
    ("self.requires_grad_(False)", "whose parameters are all frozen: nothing is left to train"),
    (
        "class Own(nn.Linear): pass\nself.a = self.b = Own(2, 2)",
        "without any nn.Linear, nn.Conv1d or nn.Conv2d: ... "
        "a is a subclass, Own, and may compute something else; use nn.Linear itself",
    ),
    (
        "self.a = self.b = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))",
        "without any nn.Linear, nn.Conv1d or nn.Conv2d: ... a has a parametrization; use a plain nn.Linear",
    ),
]


@pytest.mark.parametrize(("init", "message"), REFUSED, ids=[init[:60] for init, _ in REFUSED])
def test_what_would_train_or_ship_wrongly_is_named_with_what_to_do(tmp_path, init, message):
    found = refusal(tmp_path, net(init))
    assert all(part in found for part in message.split(" ... "))


ACCEPTED = [
    "self.c = [self, nn.ReLU(), 'text', {1: None}]",
    "self.c = nn.ModuleList([nn.Linear(2, 2)])",
    "self.c = lambda x: self.a(x)",
    "self.n = nn.BatchNorm1d(width)",
    "self.n = nn.InstanceNorm1d(3, affine=True)",
    "self.register_buffer('q', torch.ones(2, dtype=torch.bfloat16), persistent=False)",
    "self.c = nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 1, 1))",
]


@pytest.mark.parametrize("init", ACCEPTED)
def test_what_trains_and_ships_is_taken(tmp_path, init):
    taken(tmp_path, net(init))


def test_every_type_of_buffer_that_is_taken_is_shipped(tmp_path, tensors):
    names = sorted(str(dtype).removeprefix("torch.") for dtype in SHIPPED_DTYPES)
    assert {"float64", "float16", "int8", "uint64", "bool"} <= {*names}
    init = "".join(f"self.register_buffer('q_{n}', torch.ones(2, dtype=torch.{n}))\n" for n in names)
    spec = taken(tmp_path, net(init))
    trial = replace(plan(spec).trials[0], qat=Qat(epochs=1), warmup=Warmup(epochs=0), seeds=(0,))
    model = reader.load(one_seed(last(trial, tensors)["weights"], 0))
    assert {model.stored[f"q_{n}"].dtype.name for n in names} == {*names}


@pytest.mark.filterwarnings("ignore")
def test_every_other_type_is_refused():
    for dtype in {v for v in vars(torch).values() if isinstance(v, torch.dtype)} - SHIPPED_DTYPES:
        model = nn.Linear(2, 2)
        try:
            model.register_buffer("q", torch.empty(2, dtype=dtype))
        except (RuntimeError, TypeError, NotImplementedError):
            continue  # torch makes no tensor of this type
        assert any(f"buffer q is {dtype}" in fault for fault in find_faults(model)), dtype


def test_a_class_inside_the_factory_is_trained(tmp_path, tensors):
    text = net()
    head, _, body = text.partition("class T")
    text = f"{head.split('def f')[0]}def f(inputs, hidden, classes, *, seed):\n"
    text += "".join(f"    {line}\n" for line in f"class T{body}".splitlines())
    text += "    return T(inputs, hidden[0], classes)\n"
    spec = taken(tmp_path, text)
    rows = last(replace(plan(spec).trials[0], seeds=(0, 1)), tensors)["rows"]
    assert [row["state"] for row in rows] == ["ok", "ok"]


@pytest.mark.parametrize(
    "init",
    [
        "self.register_buffer('n', torch.zeros(()), persistent=False)",
        "self.register_buffer('n', torch.randn(()), persistent=False)",
    ],
    ids=["changed by training", "drawn by the seed"],
)
def test_state_that_is_not_shipped_is_refused(tmp_path, init):
    count = "if self.training:\n    self.n += 1\n" if "zeros" in init else ""
    found = refusal(tmp_path, net(init, f"{count}return self.b(torch.relu(self.a(x))) * (1 + self.n)"))
    assert "answers otherwise once it is shipped: it depends on more than parameters and saved buffers" in found
    taken(tmp_path, net(init.replace("False", "True"), f"{count}return self.b(torch.relu(self.a(x))) * (1 + self.n)"))


def test_state_that_changes_few_rows_is_refused_too(tmp_path):
    forward = "if self.training:\n    self.n += 1\nfew = x[:, :1] == x[:, :1].max()\n"
    forward += "return self.b(torch.relu(self.a(x))) * (1 + self.n * few)"
    found = refusal(tmp_path, net("self.register_buffer('n', torch.zeros(()), persistent=False)", forward))
    assert "answers otherwise once it is shipped" in found


def test_a_module_that_fails_is_named(tmp_path):
    init = "self.n = nn.Sequential(nn.BatchNorm1d(width, momentum=None))"
    found = refusal(tmp_path, net(init, "return self.b(self.n(self.a(x)))"))
    assert found.endswith("; it failed in n.0, an nn.BatchNorm1d")


def test_a_model_is_tried_on_rows_of_the_data(tmp_path):
    data = "def g(root):\n    import numpy as np\n    x = np.arange(600).reshape(200, 3) % 26\n"
    data += "    x[150, 1], y = 26, np.arange(200) % 4\n    return x.astype('u1'), y, x[:9].astype('u1'), y[:9]\n"
    text = net(
        "self.e = nn.Embedding(27, 4)\nself.a = nn.Linear(12, width)",
        "x = self.e(((x + 1) * 127.5).round().long()).flatten(1)\nreturn self.b(torch.relu(self.a(x)))",
    )
    sweep = SWEEP.replace("dataset: synthetic", "factory: 'NAME:g'")
    spec, samples = call_own_data(spec_of(tmp_path, text + data, sweep), tmp_path)
    try_own_model(describe_own_model(spec, samples), samples)
    smaller = text.replace("Embedding(27", "Embedding(26")
    spec, samples = call_own_data(spec_of(tmp_path, smaller + data, sweep), tmp_path)
    assert np.any(np.concatenate([samples.train_x, samples.val_x]) == 26)  # in one row, which is found
    with pytest.raises(SpecError, match="cannot be called: IndexError"):
        describe_own_model(spec, samples)


def test_a_normalisation_with_an_own_forward_pass_ships_as_it_is(tmp_path, tensors):
    init = """class Twice(nn.BatchNorm1d):
    def forward(self, x):
        return 2 * super().forward(x)
self.n = Twice(width)"""
    spec = taken(tmp_path, net(init, "return self.b(torch.relu(self.n(self.a(x))))"))
    trial = plan(spec).trials[0]
    assert trial.sizes.bias_bytes == 4 * (8 + 4)
    assert trial.sizes.other_bytes == 4 * 4 * 8 + 8  # scale, shift and statistics; an int64 that counts batches
    report = last(replace(trial, seeds=(0,)), tensors)
    assert "n.running_mean" in reader.load(one_seed(report["weights"], 0)).stored
    assert report["rows"][0]["state"] == "ok"


@pytest.mark.parametrize("overhead", ["float16", "int8", "pow2"])
def test_overhead_of_an_own_model_is_that_of_its_layers(tmp_path, tensors, overhead):
    init = "self.n, self.p = nn.BatchNorm1d(width), nn.LayerNorm(width)"
    spec = taken(tmp_path, net(init, "return self.b(self.p(torch.relu(self.n(self.a(x)))))"))
    trial = replace(plan(spec).trials[0], overhead=overhead, seeds=(0,))
    report = last(trial, tensors)  # asserts that the bytes by arithmetic are those of the tensors
    stored = reader.load(one_seed(report["weights"], 0)).stored
    kinds = {name.rpartition(".")[2]: array.dtype.name for name, array in stored.items() if name[0] != "p"}
    factor, term = {"float16": ("float16", "float16"), "int8": ("float16", "int8"), "pow2": ("uint8", "int8")}[
        overhead
    ]
    assert kinds == {"weight": "uint8", "step": factor, "scale": factor, "shift": term, "bias": term}
    assert stored["p.weight"].dtype == np.float32
    assert report["rows"][0]["state"] == "ok"


# --- the user's own first weights

LOADED = """self.a.weight.data = torch.load(__file__.replace('.py', '.pt'))['a']
self.b.weight.data = torch.linspace(-1, 1, width * classes).view(classes, width)"""
GIVEN = """draw = torch.Generator().manual_seed(5)
self.a.weight.data = torch.randn(width, inputs, generator=draw)
self.b.weight.data = torch.randn(classes, width, generator=draw)"""


def trained(spec: Spec, tensors: Tensors, **changes) -> reader.Model:
    """The network of one seed after a training that changes nothing: what is shipped are its first weights."""
    trial = replace(plan(spec).trials[0], weight_bits=32, warmup=Warmup(epochs=0), seeds=(0,), **changes)
    trial = replace(trial, qat=Qat(epochs=1, lr=1e-30))
    return reader.load(one_seed(last(trial, tensors)["weights"], 0))


def given() -> tuple[np.ndarray, np.ndarray]:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(8, 16, generator=draw).numpy(), torch.randn(4, 8, generator=draw).numpy()


@pytest.mark.parametrize("factor_init", ["default", "orthogonal", "isometry", "svd"])
def test_own_first_weights_are_kept_at_depth_1(tmp_path, tensors, factor_init):
    model = trained(taken(tmp_path, net(GIVEN)), tensors, depth=1, factor_init=factor_init)
    for name, weight in zip("ab", given(), strict=True):
        np.testing.assert_array_equal(model.tensors[f"{name}.factors.0.weight"], weight)


def test_svd_splits_own_first_weights(tmp_path, tensors):
    model = trained(taken(tmp_path, net(GIVEN)), tensors, depth=2, factor_init="svd")
    for name, weight in zip("ab", given(), strict=True):
        first, second = (model.tensors[f"{name}.factors.{k}.weight"] for k in (0, 1))
        u, s, vh = np.linalg.svd(weight)
        best = (u[:, : len(first)] * s[: len(first)]) @ vh[: len(first)]
        np.testing.assert_allclose(second @ first, best, atol=1e-5)


def test_a_spared_head_keeps_its_own_first_weights(tmp_path, tensors):
    model = trained(taken(tmp_path, net(GIVEN)), tensors, depth=2, decompose="hidden")
    np.testing.assert_array_equal(model.tensors["b.factors.0.weight"], given()[1])


def test_a_trained_network_is_as_good_without_warmup_as_it_was(tmp_path, tensors):
    learn = "x, y = torch.load(__file__.replace('.py', '.pt'))\n"
    learn += "step = torch.optim.Adam(self.parameters(), 0.02)\nfor _ in range(60):\n    step.zero_grad()\n"
    learn += "    nn.functional.cross_entropy(self(x), y).backward()\n    step.step()"
    text = net(learn)
    name = f"own_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    x = tensors.train_x.float() / 127.5 - 1
    torch.save((x, tensors.train_y), tmp_path / f"{name}.pt")
    sweep = SWEEP.replace("16}", "16, warmup: {epochs: 0}, qat: {epochs: 1, lr: 1.0e-9}}")
    trials = plan(taken(tmp_path, text, sweep=sweep)).trials
    for trial in trials:
        trial = replace(trial, weight_bits=8, factor_init="svd", seeds=(0,))
        (row,) = last(trial, tensors)["rows"]
        assert row["error"] is None
        assert row["float_val_accuracy"] > 0.8, trial.label  # of four classes, after no epoch of ours
        assert row["test_accuracy"] > 0.8, trial.label


def test_a_checkpoint_that_changes_gives_other_ids_and_drawn_weights_give_none(tmp_path):
    text = net(LOADED)
    name = f"own_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    ids = []
    for fill in (1.0, 2.0):
        torch.save({"a": torch.linspace(0, fill, 128).view(8, 16)}, tmp_path / f"{name}.pt")
        spec = describe_own_model(spec_of(tmp_path, text))
        assert loads(spec.to_yaml().encode(), "x.yaml") == spec
        ids.append({trial.trial_id for trial in plan(spec).trials})
    assert not ids[0] & ids[1]
    drawn = describe_own_model(spec_of(tmp_path, net("self.c = nn.Parameter(torch.zeros(3))\n" * 2)))
    assert {parts.loaded for parts in drawn.model.built.values()} == {""}


# --- frozen layers, the layer that runs last


def test_frozen_weights_stay_whole_and_as_they_were(tmp_path, tensors):
    frozen = f"{GIVEN}\nself.a.requires_grad_(False)\nself.s = nn.Parameter(torch.ones(width), requires_grad=False)"
    spec = taken(tmp_path, net(frozen, "return self.b(torch.relu(self.a(x)) * self.s)"))
    (trial,) = [trial for trial in plan(spec).trials if trial.depth == 2]
    assert trial.columns["inner_dims"] == [[3]]
    trial = replace(trial, weight_bits=32, seeds=(0, 1), warmup=Warmup(epochs=2, lr=0.3))
    report = last(trial, tensors)
    assert [row["state"] for row in report["rows"]] == ["ok", "ok"]
    for seed in (0, 1):
        found = reader.load(one_seed(report["weights"], seed)).tensors
        np.testing.assert_array_equal(found["a.weight"], given()[0])
        np.testing.assert_array_equal(found["s"], np.ones(8))
        assert {name for name in found if name.startswith("b")} == {
            "b.factors.0.weight",
            "b.factors.1.weight",
            "b.factors.1.bias",
        }
    quantised = last(replace(trial, weight_bits=4, scale="absmean"), tensors)
    assert reader.load(one_seed(quantised["weights"], 0)).tensors["a.weight"].shape == (8, 16)


def test_a_frozen_bias_stays_as_it_was(tmp_path, tensors):
    spec = taken(tmp_path, net("nn.init.ones_(self.a.bias)\nself.a.bias.requires_grad_(False)"))
    trial = replace(plan(spec).trials[0], depth=2, seeds=(0,), warmup=Warmup(epochs=2, lr=0.3))
    found = reader.load(one_seed(last(trial, tensors)["weights"], 0)).tensors
    np.testing.assert_array_equal(found["a.factors.1.bias"], np.ones(8))


@pytest.mark.parametrize(
    ("init", "forward", "inner"),
    [
        ("pass", PLAIN, [[5], []]),
        (
            "self.a, self.b = nn.Linear(width, classes), nn.Linear(inputs, width)",
            "return self.a(torch.relu(self.b(x)))",
            [[], [5]],
        ),
    ],
    ids=["in order", "the other way round"],
)
def test_hidden_spares_the_layer_that_runs_last(tmp_path, tensors, init, forward, inner):
    sweep = SWEEP.replace("values: [4]}", "values: [4]}, decompose: {value: hidden}")
    spec = taken(tmp_path, net(init, forward), sweep=sweep)
    (trial,) = [trial for trial in plan(spec).trials if trial.depth == 2]
    assert trial.columns["inner_dims"] == inner
    assert loads(spec.to_yaml().encode(), "x.yaml") == spec
    for factor_init in ("orthogonal", "svd"):  # asserts that the tensors have the sizes that were planned
        assert last(replace(trial, factor_init=factor_init, seeds=(0,)), tensors)["rows"][0]["state"] == "ok"


def test_what_an_own_model_computes_is_recorded_by_a_forward_pass(tmp_path):
    model = net(
        "self.c, self.d = nn.Conv2d(1, 2, 3), nn.Linear(2, 2)",
        "y = self.c(x.unflatten(1, (1, 4, 4))).flatten(2).mT\nreturn self.b(self.a(x)) + self.d(self.d(y)).sum() * 0",
    )
    spec = taken(tmp_path, model)
    (built,) = spec.model.built.values()
    shapes = {(one.kind, one.inputs): one for one in built.layers}
    assert shapes["conv2d", 9][5:] == (4, 16, 2 * 4)
    assert shapes["linear", 2][5:] == (2 * 4, 8, 8)  # called twice
    assert shapes["linear", 16][5:] == (1, None, None)
    trial = plan(spec).trials[0]
    assert trial.columns["macs"] == built.macs(trial.depth)
    rows = sum(one.inputs * one.outputs for one in built.layers if one.positions == 1)
    assert built.macs(1) == 4 * 9 * 2 + 8 * 4 + rows


def test_a_convolution_may_be_called_at_two_sizes(tmp_path):
    init = "self.c, self.d = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(20, 4)"
    forward = """y = self.c(x.unflatten(1, (1, 4, 4)))
z = self.c(nn.functional.avg_pool2d(y, 2))
return self.b(self.a(x)) + self.d(torch.cat([y.flatten(1), z.flatten(1)], 1))"""
    (built,) = taken(tmp_path, net(init, forward)).model.built.values()
    assert built.macs(1) == 9 * (16 + 4) + 20 * 4 + 16 * 8 + 8 * 4


def test_an_input_given_by_its_name_is_refused(tmp_path):
    message = refusal(tmp_path, net(forward="return self.b(input=self.a(x))"))
    assert ": b must be called without the name of its input, as in b(x)" in message


@pytest.mark.parametrize(
    ("init", "forward", "bits"),
    [
        ("self.b.requires_grad_(False)", PLAIN, (4, 8)),
        ("self.c = nn.Conv1d(4, 4, 1, groups=4)", "return self.c(self.b(self.a(x))[..., None])[..., 0]", (4, 4, 8)),
        ("self.a, self.b = nn.Linear(width, classes), nn.Linear(16, width)", "return self.a(self.b(x))", (8, 4)),
    ],
    ids=["frozen", "in groups", "the other way round"],
)
def test_last_bits_are_those_of_the_layer_that_runs_last(tmp_path, init, forward, bits):
    sweep = SWEEP.replace("values: [4]}", "values: [4]}, last_bits: {value: 8}")
    spec = taken(tmp_path, net(init, forward), sweep=sweep)
    assert {trial.bits for trial in plan(spec).trials} == {bits}
    assert loads(spec.to_yaml().encode(), "x.yaml") == spec
