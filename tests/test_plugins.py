"""Models and data of the user's own: the door they come through, what is refused, and that they train as ours do."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qdtune import __main__, plugins
from qdtune.datasets import load
from qdtune.datasets.dataset import DatasetInfo
from qdtune.messages import SpecError
from qdtune.model import networks
from qdtune.model.chain import Chain
from qdtune.model.factored import decompose
from qdtune.model.quantize import count_sizes, quantize
from qdtune.plugins import Grant, PluginError
from qdtune.spec.comparable import check_comparable
from qdtune.spec.configuration import OwnData, OwnModel
from qdtune.spec.groups import Qat, Warmup
from qdtune.spec.plan import plan
from qdtune.spec.structure import LayerShape, Structure
from qdtune.spec.sweep_file import Spec, loads
from qdtune.sweep.prepare import call_own_data
from qdtune.training.own_model import describe_own_model, try_own_model
from qdtune.training.tensors import Tensors
from qdtune.training.train import train_configuration
from tests.training.test_cohort import CPU, a_trial, make_generator
from tests.training.test_train import Kept, numbers

PAGE = (Path(__file__).parent.parent / "docs" / "your-own-code.md").read_text(encoding="utf-8")
PY, YAML = (PAGE.split("<!-- own -->")[1].split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "yaml"))

MODELS = """
import torch
from torch import nn


class Tokens(nn.Module):
    '''Patches of the input as tokens, with a table of frequencies that is no parameter.'''

    def __init__(self, inputs, width, classes, block):
        super().__init__()
        self.embed = nn.Linear(inputs // 4, width)
        self.place = nn.Parameter(0.1 * torch.randn(4, width))
        self.register_buffer("table", torch.linspace(0, 1, width), persistent=False)
        self.register_buffer("saved", torch.ones(3, dtype=torch.int64))
        self.block = block
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.embed(x.view(len(x), 4, -1)) + self.place + self.table
        return self.head(self.block(x).mean(1))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        y = self.norm(x)
        weights = (self.q(y) @ self.k(y).transpose(-1, -2) / len(y[0, 0]) ** 0.5).softmax(-1)
        return x + self.o(weights @ self.v(y))


class Conv(nn.Module):
    def __init__(self, inputs, width, classes):
        super().__init__()
        self.side = round(inputs**0.5)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * inputs, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x.view(len(x), 1, self.side, self.side)))))


def encoder(inputs, hidden, classes, *, seed):
    block = nn.TransformerEncoderLayer(hidden[0], 2, 2 * hidden[0], dropout=0.0, batch_first=True)
    return Tokens(inputs, hidden[0], classes, nn.TransformerEncoder(block, 1))


def attention(inputs, hidden, classes, *, seed):
    return Tokens(inputs, hidden[0], classes, Attention(hidden[0]))


def conv(inputs, hidden, classes, *, seed):
    return Conv(inputs, hidden[0], classes)
"""
NETS = ("encoder", "attention", "conv")
INFO = DatasetInfo(512, 16, 4)  # of `synthetic`
SPEC = """\
version: 1
name: own
parameters: {depth: {values: [1, 2, 3]}, weight_bits: {values: [2, 32]}, act_bits: {values: [null, 4]}}
data: {dataset: synthetic, val_size: 128}
train: {batch_size: 16}
"""


def planted(folder: Path, text: str, name: str = "planted") -> Grant:
    """A module that may be imported."""
    (folder / f"{name}.py").write_text(text)
    plugins.allow(grant := Grant((name,), (str(folder),)))
    return grant


def spec_of(model: str = "", data: str = "") -> Spec:
    text = SPEC + (f"model: {{factory: '{model}', hidden: [8]}}\n" if model else "")
    if data:
        text = text.replace("dataset: synthetic", f"factory: '{data}'")
    return loads(text.encode(), "x.yaml")


def own_model(folder: Path, net: str) -> OwnModel:
    planted(folder, MODELS)
    trial = plan(describe_own_model(spec_of(f"planted:{net}"))).trials[0]
    assert trial.own_model is not None
    return trial.own_model


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    return Tensors.of(load.load(["synthetic"], tmp_path_factory.mktemp("data"), 128)[0], CPU)


def last(trial, tensors, compile="never"):
    *_, report = train_configuration(trial, tensors, Kept(), compile)
    return report


# --- training


@pytest.mark.parametrize(
    "changes", [{}, {"depth": 3, "act_bits": 8, "scale": "lsq"}, {"factor_init": "isometry"}], ids=str
)
def test_our_own_mlp_as_a_factory_gives_the_numbers_of_the_built_in_one(tmp_path, tensors, changes):
    factory = "qdtune.model.networks:build_mlp"
    plugins.allow(Grant(("qdtune.model.networks",), ()))
    trial = a_trial(hidden=(8,), activation="identity", **changes)
    spec = describe_own_model(spec_of(factory))
    own = replace(trial, own_model=plan(spec).trials[0].own_model)
    assert own.sizes == trial.sizes
    (rows, history), (expected, curves) = numbers(last(own, tensors)), numbers(last(trial, tensors))
    assert history == curves
    assert {row.pop("model") for row in rows} == {factory}
    assert {row.pop("model") for row in expected} == {"mlp"}
    assert {row.pop("trial_id") for row in rows}.isdisjoint({row.pop("trial_id") for row in expected})
    assert rows == expected


@pytest.mark.parametrize("net", NETS)
def test_a_replica_of_a_cohort_gives_the_numbers_that_it_gives_alone(tmp_path, tensors, net):
    own = own_model(tmp_path, net)
    trial = a_trial(hidden=(8,), act_bits=8, scale="lsq", weight_bits=4, own_model=own, seeds=(3, 0, 7))
    trial = replace(trial, warmup=Warmup(epochs=1, lr=0.1), qat=Qat(epochs=1, lr=0.01), batch_size=96)
    together = last(trial, tensors)["history"]
    for seed in trial.seeds:
        alone = last(replace(trial, seeds=(seed,)), tensors)["history"]
        mine = [entry for entry in together if entry["seed"] == seed]
        assert [e["train_loss"] for e in mine] == pytest.approx([e["train_loss"] for e in alone], rel=1e-3)
        assert [e["val_accuracy"] for e in mine] == pytest.approx([e["val_accuracy"] for e in alone], abs=0.02)
    assert len({entry["train_loss"] for entry in together}) == len(together)


@pytest.mark.parametrize("net", NETS)
def test_models_of_ones_own_learn(tmp_path, tensors, net):
    trial = a_trial(hidden=(8,), depth=1, own_model=own_model(tmp_path, net), seeds=(0,))
    trial = replace(trial, warmup=Warmup(epochs=6, lr=0.01, optimizer="adam"), qat=Qat(epochs=2, lr=0.01))
    (row,) = last(trial, tensors)["rows"]
    assert row["test_accuracy"] > 0.8  # of four classes
    assert (row["model"], row["state"]) == (f"planted:{net}", "ok")


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("net", NETS)
def test_compiled_training_gives_the_numbers_of_the_eager_one(tmp_path, tensors, net):
    trial = a_trial(hidden=(8,), act_bits=8, batch_size=384, own_model=own_model(tmp_path, net), seeds=(0, 1))
    trial = replace(trial, warmup=Warmup(epochs=0), qat=Qat(epochs=1, lr=0.03))
    eager, compiled = (last(trial, tensors, mode)["history"] for mode in ("never", "always"))
    assert [e["train_loss"] for e in compiled] == pytest.approx([e["train_loss"] for e in eager], rel=1e-4)


def test_first_weights_come_from_the_seed_and_from_nothing_else(tmp_path):
    planted(tmp_path, MODELS)
    sha256 = hashlib.sha256(MODELS.encode()).hexdigest()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    place = lambda seed: networks.build_own("planted:attention", sha256, 16, (8,), 4, seed=seed).place  # noqa: E731
    first, other = place(1), place(2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(3)
    assert torch.equal(place(1), first)
    assert not torch.equal(other, first)


# --- what it consists of


@pytest.mark.parametrize(("net", "chains"), [("encoder", 4), ("attention", 6), ("conv", 3)])
def test_ledger_by_arithmetic_is_the_one_of_the_tensors(tmp_path, net, chains):
    own = own_model(tmp_path, net)
    for trial in plan(describe_own_model(spec_of(f"planted:{net}"))).trials:
        model = networks.build_own(*own[:2], *INFO[1:2], (8,), INFO.classes, seed=0)
        whole = sum(p.numel() for p in model.parameters())
        decompose(model, trial.depth, generator=make_generator("init", 0))
        assert sum(isinstance(m, Chain) for m in model.modules()) == chains
        inner = [m.inner_dims for m in model.modules() if isinstance(m, Chain)]
        assert count_sizes(quantize(model, trial.weight_bits, trial.act_bits)) == trial.sizes
        assert trial.columns["inner_dims"] == inner
        if (trial.depth, trial.weight_bits, trial.act_bits) == (1, 32, None):
            assert trial.sizes.params == whole
            assert trial.sizes.size_bytes == 4 * whole + (0 if net == "conv" else 24)  # the saved table


def test_other_bytes_are_those_of_all_that_is_not_split(tmp_path):
    width = 8
    attention = 3 * width * width + 3 * width + width * width + width
    assert own_model(tmp_path, "encoder").structure.other_bytes == 4 * (4 * width + attention + 4 * width) + 24
    conv = own_model(tmp_path, "conv").structure
    assert (conv.norms, conv.other, conv.other_bytes, conv.factor_norms) == (4, 0, 0, False)


def test_trial_ids_tell_factories_and_sources_apart_and_never_change():
    mine = replace(a_trial(), dataset="mine:load", own_data=OwnData("a" * 64, "b" * 64, INFO))
    trials = [
        a_trial(),
        replace(a_trial(), own_model=OwnModel("mine:net", "c" * 64)),
        replace(a_trial(), own_model=OwnModel("mine:net2", "c" * 64)),
        replace(a_trial(), own_model=OwnModel("mine:net", "d" * 64)),
        mine,
        replace(mine, own_data=OwnData("e" * 64, "b" * 64, INFO)),
        replace(mine, own_data=OwnData("a" * 64, "e" * 64, INFO)),
    ]
    assert len({trial.trial_id for trial in trials}) == len({trial.warmup_id for trial in trials}) == len(trials)
    assert [trials[i].trial_id for i in (0, 1, 4)] == ["512e1167ac4d", "87ed737367e6", "f26d1a480418"]


def test_a_trial_whose_convolutions_are_quantised_is_another_one():
    """Older versions left them float, so their results do not count for it; a model without them keeps its ids."""

    def trial_id(*kinds):
        layers = tuple(LayerShape(9, 8, True, kind) for kind in kinds)
        return replace(a_trial(), own_model=OwnModel("mine:net", "c" * 64, Structure(layers))).trial_id

    assert trial_id("linear") == trial_id() == "87ed737367e6"
    assert len({trial_id("linear"), trial_id("linear", "conv2d"), trial_id("conv1d")}) == 3


def test_a_changed_source_is_refused_where_results_are_kept(tmp_path):
    planted(tmp_path, MODELS)
    spec = describe_own_model(spec_of("planted:conv"))
    kept = spec.to_yaml().encode()
    check_comparable(spec, kept, "run")
    wider = loads(spec.to_yaml().replace("hidden: [8]", "hidden: [9]").encode(), "x.yaml")
    check_comparable(describe_own_model(wider), kept, "run")  # an axis may change
    with pytest.raises(SpecError, match=rf"not comparable \(model.sha256: {spec.model.sha256} there, {'a' * 64} now"):
        check_comparable(spec.changed("model", sha256="a" * 64), kept, "run")
    with pytest.raises(SpecError, match=r"planted.py has changed: its sha256 was aaaa"):
        describe_own_model(spec.changed("model", sha256="a" * 64))


def test_canonical_text_holds_what_is_known(tmp_path):
    planted(tmp_path, MODELS + "\n" + PY)
    spec, _ = call_own_data(spec_of("planted:conv", "planted:digits"), tmp_path)
    spec = describe_own_model(spec)
    again = loads(spec.to_yaml().encode(), "again.yaml")
    assert again == spec
    assert plan(again).trials == plan(spec).trials
    assert again.data.info == DatasetInfo(1200, 64, 10, (1, 1, 64))


def test_plan_asks_for_what_a_factory_gives_first():
    with pytest.raises(ValueError, match="needs to know what mine:f gives: call it first"):
        plan(spec_of(model="mine:f"))
    with pytest.raises(ValueError, match="needs to know what mine:f gives: call it first"):
        plan(spec_of(data="mine:f"))


# --- what is refused

NET = "import torch\nfrom torch import nn\ndef f(inputs, hidden, classes, *, seed):\n    "
SEQ = f"{NET}return nn.Sequential"
TWO = f"""{NET}return T()
class T(nn.Module):
    def __init__(s):
        super().__init__()
        s.a, s.b = nn.Linear(16, 16), nn.Linear(16, 4)
    def forward(s, x):
        """
LINEAR = f"{NET}m = nn.Linear(16, 4)\n    "
UNTRAINABLE = "cannot be split, quantised and trained: "
BAD_MODELS = [
    ("1 / 0", r"planted cannot be imported: ZeroDivisionError: division by zero \(.*planted.py:1\)"),
    ("import nowhere_at_all", r"planted cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ("def f(:", r"planted cannot be imported: SyntaxError: .*planted.py, line 1"),
    ("raise SystemExit(0)", r"planted cannot be imported: SystemExit: 0"),
    ("g = 1", r"planted.py has no function f$"),
    ("f = 1", r"planted.py has no function f$"),
    (f"{NET}raise OSError('no\\nspace')", r"planted:f cannot build a model: OSError: no space \(.*planted.py:4\)$"),
    (
        "def f(inputs, hidden):\n    pass",
        r"planted:f cannot build a model: TypeError: f\(\) got an unexpected keyword argument 'seed'$",
    ),
    (f"{NET}return 7", r"planted:f must return an nn.Module, got int"),
    (f"{NET}return nn.Identity()", r"without any nn.Linear, nn.Conv1d or nn.Conv2d: there is nothing to split"),
    (f"{NET}return nn.Linear(inputs, 5)", r"float32 outputs of shape \(8, 4\), got torch.float32 of shape \(8, 5\)"),
    (f"{NET}return nn.Linear(3, classes)", r"cannot be called: RuntimeError: .*mat1 and mat2 shapes cannot"),
    (f"{NET}return nn.Linear(inputs, classes).double()", r"parameter weight is torch.float64: parameters must be"),
    (f"{LINEAR}return m.requires_grad_(False)", r"whose parameters are all frozen"),
    (
        f"N = iter([1, 2])\n{NET}return nn.Sequential(*[nn.Linear(16, 4)] * next(N))",
        r"the same model for the same seed",
    ),
    (f"N = iter([1])\n{NET}return nn.Linear(16, 4) if next(N, 0) else 'x'", r"must return an nn.Module, got str"),
    (
        f"{SEQ}(nn.Linear(16, 4), type('Drop', (nn.Dropout,), {{}})(0.2))",
        r"with a subclass of dropout, Drop, in 1, which may .*: use nn.Dropout itself",
    ),
    (
        f"{SEQ}(nn.Linear(16, 8), nn.TransformerEncoderLayer(8, 2, 8))",
        r"dropout 0.1 inside .* 1.self_attn, ",
    ),
    (f"{TWO}return nn.functional.dropout(s.b(x), 0.5)", r"answers a row otherwise when .* or again"),
    (f"{TWO}return s.b(x) if s.a(x).sum() > 0 else s.b(-x)", rf"{UNTRAINABLE}RuntimeError: vmap: .* data-dependent"),
    (
        f"{TWO}return s.b(x @ s.a.weight)",
        rf"{UNTRAINABLE}AttributeError: 'FactoredLinear' .* 'weight' \(.*planted.py:",
    ),
    (
        f"{NET}a = nn.Linear(16, 16)\n    return nn.Sequential(a, a, nn.Linear(16, 4))",
        r"whose 1.weight is also its 0.w",
    ),
    (
        f"{LINEAR}o = nn.Linear(16, 4)\n    o.bias = m.bias\n    return nn.Sequential(m, o)",
        r"1.bias is also its 0.bias",
    ),
    (f"{LINEAR}m.register_forward_hook(lambda *a: None)\n    return m", r"with hooks on an nn.Linear"),
    (f"{LINEAR}m.scale = torch.ones(4)\n    return m", r"with a tensor in the attribute scale that is not trained"),
    (f"import random\n{LINEAR}m.weight.data += random.random()\n    return m", r"the same model for the same seed"),
]


@pytest.mark.parametrize(("text", "message"), BAD_MODELS, ids=range(len(BAD_MODELS)))
def test_a_model_that_cannot_be_used_is_told_in_one_line(tmp_path, text, message):
    planted(tmp_path, text)
    with pytest.raises(SpecError, match=message) as caught:
        try_own_model(describe_own_model(spec_of("planted:f")))
    lines = str(caught.value).splitlines()
    assert all(line.startswith("error: model.factory: ") and line.isprintable() for line in lines)


DATA = "import numpy as np\ndef f(root):\n    x, y = np.zeros((200, 6), np.uint8), np.arange(200) % 3\n    return "
ROWS = r"must give 2 rows to train on and 1 to test with"
BAD_DATA = [
    (f"{DATA}x, y", r"planted:f must return \(train_x, train_y, test_x, test_y\), got tuple"),
    (f"{DATA}None", r"test_x, test_y\), got NoneType"),
    (
        f"{DATA}open(root / 'none')",
        r"planted:f failed: FileNotFoundError: .*none' \(.*planted.py:4\); its argument is the folder of the "
        r"data sets, /.* \(--data-dir\), and not that of the sweep file",
    ),
    (f"{DATA}1 / 0", r"planted:f failed: ZeroDivisionError: division by zero \(.*planted.py:4\)$"),
    (f"{DATA}[[1], [2, [3]]], y, x, y", r"must return four arrays: ValueError: "),
    (
        f"{DATA}x.astype('i8'), y, x, y",
        r"train_x must be uint8, int16, .* of shape \(rows, inputs\), or .*, got int64 of shape \(200, 6\)",
    ),
    (f"{DATA}x / 255, y, x, y", r"test_x must be float32 as train_x is, got uint8"),
    (
        f"{DATA}np.full((200, 6), np.nan), y, x / 1, y",
        r"train_x must be finite float32, got 1200 numbers that are not, .* row 0",
    ),
    (
        f"{DATA}np.ma.masked_less(np.ones((200, 6)) * (np.arange(200) != 4)[:, None], 1), y, x / 1, y",
        r"f: train_x must have no masked elements, got 1 rows with some, the first is row 4",
    ),
    (
        f"{DATA}x, y, x, list(np.ma.masked_equal(y, 1))",
        r"f: test_y must have no masked elements, got 67 rows .* row 1",
    ),
    (f"{DATA}x, y, x.reshape(200, 2, 3), y", rf"{ROWS}, as wide .*got shapes \(200, 6\) and \(200, 1, 2, 3\)"),
    (
        f"{DATA}x, y, x.reshape(200, 1, 1, 2, 3), y",
        r"test_x must be uint8, .* got uint8 of shape \(200, 1, 1, 2, 3\)",
    ),
    (f"{DATA}x.reshape(200, 1, 6, 1), y, x, y", rf"{ROWS}, as wide .*got shapes \(200, 1, 6, 1\) and \(200, 6\)"),
    (
        f"{DATA}np.zeros((9, 8, 8, 3), 'u1'), y, x, y",
        r"train_x must have its channels before height and width: use .transpose.*, got shape \(9, 8, 8, 3",
    ),
    (f"{DATA}x, y[1:], x, y", r"train_y must be one whole number for each of the 200 rows of train_x, got int64 of"),
    (f"{DATA}x, y, x, y / 1", r"test_y must be one whole number .* got float64"),
    (f"{DATA}x, y, x[:, 1:], y", rf"{ROWS}, as wide .*got shapes \(200, 6\) and \(200, 5\)"),
    (f"{DATA}x, y, x[:0], y[:0]", ROWS),
    (f"{DATA}x[:1], y[:1], x, y", ROWS),
    (f"{DATA}x[:, :0], y, x[:, :0], y", ROWS),
    (f"{DATA}x, y + 1, x, y", r"labels must run from 0 .* got 0 to 3"),
    (f"{DATA}x, y - 1, x, y", r"got -1 to 2"),
    (f"{DATA}x, y, x, y + 1", r"each of the test set's occur in training, got 0 to 3"),
    (f"{DATA}x, y * 0, x, y * 0", r"got 0 to 0"),
    (f"{DATA}x, y * 10**6, x, y", r"got 0 to 2000000"),
]


@pytest.mark.parametrize(("text", "message"), BAD_DATA, ids=range(len(BAD_DATA)))
def test_data_that_cannot_be_used_is_told_in_one_line(tmp_path, text, message):
    planted(tmp_path, text)
    with pytest.raises(SpecError, match=message) as caught:
        call_own_data(spec_of(data="planted:f"), tmp_path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith("error: data.factory: planted") and line.isprintable() for line in lines)


def test_faults_of_one_model_are_told_together(tmp_path):
    planted(tmp_path, f"{SEQ}(nn.Linear(16, 8), nn.MultiheadAttention(8, 2, 0.2), nn.LSTM(8, 8), nn.Linear(8, 4))")
    with pytest.raises(SpecError) as caught:
        describe_own_model(spec_of("planted:f"))
    said = str(caught.value).splitlines()
    assert ["with dropout 0.2 inside" in said[0], "with an nn.LSTM in 2" in said[1], len(said)] == [True, True, 2]


def test_faults_of_one_factory_are_told_together(tmp_path):
    planted(tmp_path, f"{DATA}x.astype('i8'), y + 1, np.full((200, 6), np.nan), y")
    with pytest.raises(SpecError) as caught:
        call_own_data(spec_of(data="planted:f"), tmp_path)
    said = str(caught.value).splitlines()
    parts = ["train_x must be uint8", "test_x must be finite float32", "labels must run from 0"]
    assert all(f"error: data.factory: planted:f: {part}" in line for part, line in zip(parts, said, strict=True))


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (
            128,
            "data.val_size: 128 leaves none of the 128 training samples of planted:f: set data.val_size, at most 127",
        ),
        (130, "train.batch_size: 16 is above the 2 training samples of planted:f (130 less val_size 128)"),
    ],
)
def test_data_too_small_for_the_spec_is_told_as_for_a_known_set(tmp_path, rows, line):
    planted(tmp_path, f"{DATA}x[:{rows}], y[:{rows}], x, y")
    with pytest.raises(SpecError) as caught:
        call_own_data(spec_of(data="planted:f"), tmp_path)
    assert str(caught.value) == f"error: {line}"


def test_data_come_as_a_known_set_does_whatever_their_types(tmp_path):
    planted(tmp_path, f"import torch\n{DATA}torch.arange(1200).to(torch.uint8).view(6, 200).T, y.astype('u1'), x, y")
    spec, found = call_own_data(spec_of(data="planted:f"), tmp_path)
    assert (found.name, found.inputs, found.classes) == ("planted:f", 6, 3)
    assert spec.data.info == DatasetInfo(200, 6, 3, (1, 1, 6))
    assert (len(found.train_x), len(found.val_x), len(found.test_x)) == (72, 128, 200)
    assert all(a.flags.c_contiguous for a in (found.train_x, found.val_x, found.test_x))
    assert {a.dtype.name for a in (found.train_y, found.val_y, found.test_y)} == {"int64"}
    (trial,) = [t for t in plan(spec).trials if (t.depth, t.weight_bits, t.act_bits) == (1, 32, None)]
    assert trial.sizes.params == 6 * 24 + 24 + 24 * 3 + 3
    assert (trial.columns["dataset"], trial.columns["model"]) == ("planted:f", "mlp")


def test_data_that_changed_under_the_same_source_get_another_id(tmp_path):
    planted(tmp_path, f"{DATA}x + int((root / 'n').read_text()), y, x, y")
    specs = []
    for number in "12":
        (tmp_path / "n").write_text(number)
        specs.append(call_own_data(spec_of(data="planted:f"), tmp_path)[0])
    a, b = (plan(spec).trials[0].trial_id for spec in specs)
    assert a != b
    with pytest.raises(SpecError, match="planted:f gives other data than when `content` was written"):
        call_own_data(specs[0], tmp_path)


# --- the door


def launched(capsys, *argv: str) -> tuple[int, str, str]:
    code = __main__.main(["launch", *argv])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    "allowed", [[], ["evil"], ["evil.mod:f"], ["evil.mod.f"], ["os"]], ids=lambda names: "-".join(names) or "none"
)
def test_what_was_not_allowed_by_its_full_name_is_never_imported(tmp_path, monkeypatch, capsys, allowed, dry):
    (tmp_path / "evil").mkdir()
    for file in ("__init__", "mod"):
        (tmp_path / "evil" / f"{file}.py").write_text("open('imported', 'w')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(SPEC + "model: {factory: 'evil.mod:f'}\n")
    options = [text for name in allowed for text in ("--allow-plugin", name)]
    assert launched(capsys, "a.yaml", *options, *dry) == (
        2,
        "",
        "error: a.yaml: model.factory: evil.mod:f is code of your own: "
        "it is imported only where the command says --allow-plugin evil.mod\n",
    )
    assert sorted(os.listdir(tmp_path)) == ["a.yaml", "evil"]
    assert not {"evil", "evil.mod"} & set(sys.modules)


def test_a_name_of_the_standard_library_opens_no_door(tmp_path, monkeypatch, capsys):
    asked = []
    import_module = plugins.importlib.import_module

    def ask(name):  # `qdtune` imports its own verb the same way
        return import_module(name) if name.partition(".")[0] == "qdtune" else asked.append(name)

    monkeypatch.setattr(plugins.importlib, "import_module", ask)
    monkeypatch.setattr(os, "system", asked.append)
    (tmp_path / "a.yaml").write_text(SPEC.replace("dataset: synthetic", "factory: 'os:system'"))
    code, out, err = launched(capsys, str(tmp_path / "a.yaml"), "--set", "model={factory: 'os:system'}")
    assert (code, out, asked) == (2, "", [])
    assert [line.split(": ")[2:4] for line in err.splitlines()] == [
        [f"{group}.factory", "os:system is code of your own"] for group in ("model", "data")
    ]


def test_nothing_is_imported_that_was_not_granted(tmp_path):
    planted(tmp_path, "def f(): pass")
    (tmp_path / "other.py").write_text("")
    with pytest.raises(PluginError, match="other was not allowed by --allow-plugin"):
        plugins.load_function("other:f")
    assert "other" not in sys.modules
    assert plugins.load_function("planted:f").__name__ == "f"
    plugins.allow(Grant(("sys",), ()))
    with pytest.raises(PluginError, match="sys has no source file"):
        plugins.load_function("sys:exit")


def test_a_worker_is_granted_what_its_driver_was_and_checks_the_source(tmp_path):
    grant = planted(tmp_path, "def f(): pass")
    assert plugins.current_grant() == grant
    sha256 = hashlib.sha256(b"def f(): pass").hexdigest()
    assert plugins.load_function("planted:f", sha256).__name__ == "f"
    assert plugins.sources() == [("planted", str(tmp_path / "planted.py"), sha256)]
    with pytest.raises(PluginError, match=f"planted.py has changed: its sha256 was {'0' * 64}, it is {sha256}"):
        plugins.load_function("planted:f", "0" * 64)


def test_a_module_of_the_users_takes_no_others_place(tmp_path):
    (tmp_path / "colorsys.py").write_text("def hls_to_rgb(): raise SystemExit")
    planted(tmp_path, "from colorsys import hls_to_rgb as f")
    assert sys.path[-1] == str(tmp_path)
    sys.modules.pop("colorsys", None)
    assert plugins.load_function("planted:f")(0, 0, 0) == (0, 0, 0)


def test_a_dry_run_shows_the_source_and_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PY)
    (tmp_path / "mine.yaml").write_text(YAML)
    code, out, err = launched(capsys, "mine.yaml", "--allow-plugin", "mine", "--dry-run")
    assert (code, err) == (0, "")
    said = "".join(out.split())
    assert f"{tmp_path / 'mine.py'},sha256{hashlib.sha256(PY.encode()).hexdigest()}" in said
    assert "mine:digits:900samplestotrainon,300tojudgeby" in said
    assert set(os.listdir(tmp_path)) - {"__pycache__"} == {"mine.py", "mine.yaml"}
