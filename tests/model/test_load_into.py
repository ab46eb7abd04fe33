"""A packed file of a user's own model in a module of the user's own: it computes what was trained, or is refused."""

import copy
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import qdtune
from qdtune import reader
from qdtune.model.chain import ACTIVATIONS
from qdtune.model.factored import decompose
from qdtune.model.formats.card import make_card
from qdtune.model.formats.format import TrainedModel
from qdtune.model.formats.known import FORMATS
from qdtune.model.formats.packed import one_seed
from qdtune.model.networks import build_mlp
from qdtune.model.packed import pack_replicas
from qdtune.model.quantize import calibrate, quantize
from qdtune.model.rounding import match_rows
from qdtune.reader import Model, ReaderError
from qdtune.spec.axes import AXIS_NAMES, OVERHEAD
from qdtune.spec.sizes import code_bytes
from tests.training.test_cohort import a_trial


class Net(nn.Module):
    """Layers of every kind, at several levels, in an order that is not that of their registration."""

    def __init__(self, width: int = 9, *, has_bias: bool = True):
        super().__init__()
        self.head = nn.Linear(width, 4, bias=has_bias)
        self.factors = nn.ModuleList([nn.Linear(16, width)])  # a name that chains have, too
        self.norm = nn.BatchNorm1d(width)
        self.plain = nn.BatchNorm1d(width, affine=False)
        self.conv = nn.Conv1d(1, 1, 3, padding=1)
        self.shift = nn.Parameter(torch.randn(width))
        self.register_buffer("table", torch.randn(width).to(torch.float64))
        self.register_buffer("count", torch.tensor(3))
        self.act = nn.Tanh()

    def forward(self, x):
        x = self.act(self.norm(self.factors[0](x)))
        x = self.plain(self.conv(x[:, None])[:, 0] + self.shift)
        return self.head(x * self.table.float() * self.count)


def trained(net=Net, *, depth=2, activation="relu", **settings) -> nn.Module:
    """A network as a training leaves it: split, quantised, with statistics of batches."""
    torch.manual_seed(1)
    model = decompose(net(), depth, activation, generator=torch.Generator().manual_seed(2))
    quantize(model, **settings)
    x = torch.rand(64, 16) * 2 - 1
    calibrate(model, x)
    with torch.no_grad():
        for _ in range(3):
            model.train()(x)
    return model.eval()


def packed(model: nn.Module, name: str = "mine:net") -> bytes:
    return one_seed(pack_replicas({7: model}, "0" * 12, 16, 4, name), 7)


ROWS = torch.rand(50, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
CASES = [
    *[{"weight_bits": 4, "activation": name} for name in ACTIVATIONS],
    *[{"weight_bits": bits, "scale": "lsq"} for bits in (1, 2, 3, 8, 9, 16, 32)],
    *[{"weight_bits": bits, "act_bits": act} for bits in (1, 4, 32) for act in (1, 2, 8, 16)],
    *[{"weight_bits": 3, "depth": depth, "scale": "minmax", "act_bits": 8} for depth in (1, 2, 3, 5)],
    {"weight_bits": 2, "levels": "ternary"},
    {"weight_bits": 4, "levels": "full", "granularity": "channel", "act_bits": 4},
    {"weight_bits": 32, "depth": 1},
    {"weight_bits": 4, "overhead": "float16", "act_bits": 4},
    {"weight_bits": 3, "overhead": "pow2", "granularity": "channel"},
    {"weight_bits": 32, "overhead": "pow2"},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_the_module_computes_what_was_trained(settings):
    model = trained(**settings)
    torch.manual_seed(9)
    fresh = Net()
    before = fresh(ROWS)
    loaded = qdtune.load_into(fresh, packed(model))
    assert loaded is fresh
    assert not loaded.training
    expected = model(ROWS)
    assert match_rows(expected, loaded, ROWS).all()
    assert not torch.allclose(before, expected, atol=1e-2), "it would prove nothing"
    if settings.get("act_bits") is None:  # no code can flip
        torch.testing.assert_close(loaded(ROWS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("overhead", OVERHEAD.names)
def test_it_gives_the_very_logits_again_and_packs_to_the_same_file(overhead):
    blob = packed(trained(weight_bits=2, act_bits=4, granularity="channel", overhead=overhead))
    loaded = qdtune.load_into(Net(), blob)
    assert packed(loaded) == blob
    torch.testing.assert_close(copy.deepcopy(loaded)(ROWS), loaded(ROWS), rtol=0, atol=0)
    assert torch.equal(qdtune.load_into(Net(), blob)(ROWS), loaded(ROWS))


@pytest.mark.parametrize(("bits", "kind"), [(1, torch.int8), (8, torch.int8), (9, torch.int16)])
def test_quantised_weights_are_codes_inside(bits, kind):
    loaded = qdtune.load_into(Net(), packed(trained(weight_bits=bits)))
    codes = {name: b for name, b in loaded.named_buffers() if name.endswith("codes")}
    assert {name: b.dtype for name, b in codes.items()} == {
        f"{layer}.factors.{k}.codes": kind for layer in ("conv", "head", "factors.0") for k in (0, 1)
    }
    assert "head.factors.0.weight" not in dict(loaded.named_parameters())


def test_a_model_that_is_one_layer_is_replaced(tmp_path):
    net = partial(nn.Linear, 16, 4)
    model = trained(net, weight_bits=4, activation="tanh")
    (tmp_path / "a.safetensors").write_bytes(packed(model))
    loaded = qdtune.load_into(net(), str(tmp_path / "a.safetensors"))
    torch.testing.assert_close(loaded(ROWS), model(ROWS))


def test_the_file_names_the_activation_between_factors():
    program = reader.load(packed(trained(weight_bits=4, activation="gelu"))).program
    assert program["between"] == {"conv": "gelu", "head": "gelu", "factors.0": "gelu"}
    assert reader.load(packed(trained(weight_bits=4, depth=1))).program["between"] == {}
    mlp = decompose(build_mlp(16, [8], 4, seed=0), 2, "gelu")
    assert "between" not in reader.load(packed(mlp, "mlp")).program  # its operations say it


class Other(Net):
    def __init__(self):
        super().__init__()
        self.more = nn.Parameter(torch.zeros(2))


class Renamed(Net):
    def __init__(self):
        super().__init__()
        self.tail = self.head
        del self.head


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (partial(Net, 8), "built as in the sweep"),
        (partial(Net, has_bias=False), "has the shape [4, 3] with a bias in the file, [4, 3] without one in the mod"),
        (Other, "only the module has more"),
        (Renamed, "by mine:net at the same widths, got AttributeError: "),
        (partial(nn.Linear, 16, 4), "by mine:net at the same widths, got AttributeError: "),
    ],
)
def test_a_module_of_another_shape_is_refused(net, message):
    with pytest.raises(ReaderError) as caught:
        qdtune.load_into(net(), packed(trained(weight_bits=4)))
    assert message in str(caught.value)


def test_files_that_cannot_be_loaded_are_told():
    blob = packed(trained(weight_bits=4))
    with pytest.raises(ReaderError, match="damaged"):
        qdtune.load_into(Net(), blob[:-1] + b"x")
    mlp = packed(decompose(build_mlp(16, [8], 4, seed=0), 2), "mlp")
    with pytest.raises(ReaderError, match="the model mlp in this file needs no module"):
        qdtune.load_into(build_mlp(16, [8], 4, seed=0), mlp)


def test_the_bytes_of_a_loaded_model_are_those_of_the_file():
    blob = packed(trained(weight_bits=3))
    stored = reader.load(blob).stored
    assert stored["head.factors.1.weight"].nbytes == code_bytes(4 * 3, 3, "symmetric")
    loaded = qdtune.load_into(Net(), blob)
    np.testing.assert_array_equal(loaded.table.numpy(), stored["table"])
    assert loaded.count.item() == 3


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("model", ["mlp", "mine:net"])
def test_the_card_says_how_a_model_of_this_kind_is_read(form, model):
    card = card_of(form, model, a_trial())
    assert ("qdtune.load_into(module, file)(x)" in card["read_with"]) == (model != "mlp" and form.name == "packed")
    assert ("load(file).logits(x)" in card["read_with"]) == (model == "mlp" and form.name == "packed")
    assert "blocks" not in card


def test_the_card_of_a_cnn_says_its_blocks():
    card = card_of(FORMATS[0], "cnn", replace(a_trial(), blocks=("conv 8", "mean"), padding="same"))
    assert (card["model"], card["blocks"], card["padding"]) == ("cnn", ["conv 8", "mean"], "same")
    assert "load(file).logits(x)" in card["read_with"]


def card_of(form, model, trial):
    names = [*AXIS_NAMES, "trial_id", "model", "dataset", "n_seeds", "size_bytes"]
    spread = [f"{split}_accuracy{end}" for split in ("val", "test") for end in ("", "_low", "_high")]
    row = {"seed": 0, "trial_id": "a", "val_accuracy": 1.0, "test_accuracy": 1.0}
    entry = dict.fromkeys([*names, *spread]) | {"model": model}
    packed = Model({"inputs": 2, "model": model, "complete": model == "cnn", "ops": []}, {}, {})
    return json.loads(make_card(TrainedModel(entry, row, trial, b"", packed, {}), form, "a", 1))
