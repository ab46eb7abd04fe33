"""The packed form: as long as was promised, with the numbers that were tested; and files that are something else."""

import json
import re
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qdtune import reader
from qdtune.datasets.load import load
from qdtune.model import packed
from qdtune.model.chain import ACTIVATIONS
from qdtune.model.formats.packed import one_seed
from qdtune.model.layers.matrix import pack_codes
from qdtune.model.quantize import count_sizes
from qdtune.model.signed_file import find_fault, sign_file, split_file
from qdtune.reader import ReaderError
from qdtune.spec.axes import BIAS, DECOMPOSE, GRANULARITY, LEVELS, OVERHEAD, SCALE
from qdtune.spec.groups import Qat, Warmup
from qdtune.spec.sizes import code_bytes
from qdtune.training import train
from qdtune.training.step import normalise
from qdtune.training.tensors import Tensors
from tests.training.test_cohort import CPU, a_trial
from tests.training.test_train import Kept

BITS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)


def spread():
    """Every value of every axis, in pairs that change: the cycles have lengths without a common period."""
    for k in range(12):
        bits, activation = BITS[k % 10], list(ACTIVATIONS)[k % 6]
        yield {
            "depth": 1 + k % 4 if k < 6 else 1 + (k + 1) % 4,
            "weight_bits": bits,
            "activation": activation,
            "scale": SCALE.names[(k + k // 3) % 3],
            "act_bits": (None, 1, 8, 4)[(k + k // 4) % 4],
            "batch_norm": (False, True, "factors")[(k + k // 4) % 3],
            "levels": LEVELS.names[(k + k // 10) % 3],
            "granularity": GRANULARITY.names[k // 2 % 2],
            "decompose": DECOMPOSE.names[k // 3 % 2],
            "overhead": OVERHEAD.names[(k + k // 4) % 4],
            "bias": BIAS.names[k // 3 % 2],
        }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    loaded, _ = load(["synthetic"], tmp_path_factory.mktemp("data"), 128)
    return Tensors.of(loaded, CPU)


def trained(trial, data):
    """The last report of a trial, and its replicas by seed."""
    kept = {}

    def pack(replicas, *arguments):
        kept.update(replicas)
        return packed.pack_replicas(replicas, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "pack_replicas", pack)
        *_, report = train.train_configuration(trial, data, Kept(), "never")
    return report, kept


@pytest.mark.parametrize("values", list(spread()), ids=lambda v: "-".join(map(str, v.values())))
def test_packed_model_is_as_long_as_promised_and_gives_the_tested_numbers(data, values):
    trial = a_trial(**values, seeds=(0, 3), warmup=Warmup(epochs=1, lr=0.1), qat=Qat(epochs=1, lr=0.01))
    report, replicas = trained(trial, data)
    assert list(replicas) == [0, 3]
    for row in report["rows"]:
        blob = one_seed(report["weights"], row["seed"])
        header, content = split_file(blob)
        assert len(content) == trial.sizes.size_bytes == row["size_bytes"]
        is_new = trial.overhead != "float32" or (trial.bias == "none" and trial.batch_norm)
        assert header["__metadata__"]["qdtune.packed"] == ("5" if is_new else "2")
        model, replica = reader.load(blob), replicas[row["seed"]]
        with torch.no_grad():
            expected = replica(normalise(data.test_x)).numpy()
        pixels = data.test_x.numpy()
        logits = model.logits(pixels)
        assert logits.dtype == np.float32
        assert np.array_equal(logits, model.logits(normalise(data.test_x).numpy()))
        close = np.isclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()).all(1)
        # Where inputs are quantised, a sum that differs in its last bit may round to the next code: seldom.
        least = 1.0 if trial.act_bits is None else 0.97
        assert close.mean() >= least
        assert (logits.argmax(1) == expected.argmax(1))[close].all()
        assert row["test_accuracy"] == pytest.approx((logits.argmax(1) == data.test_y.numpy()).mean(), abs=1 - least)
        for name, module in replica.named_modules():
            if hasattr(module, "weight_codes") and module.weight_quantizer is not None:
                codes, step = module.weight_codes()
                assert np.array_equal(model.tensors[f"{name}.weight"], (codes * step).numpy())


@settings(max_examples=60)
@given(
    st.just(2) | st.integers(1, 16), st.sampled_from(LEVELS.names), st.integers(1, 9), st.integers(1, 9), st.randoms()
)
def test_codes_come_back_and_lie_where_the_layout_says(bits, levels, o, i, random):
    low, high = (-1, 1) if bits == 1 else (-(2 ** (bits - 1)) + (levels != "full"), 2 ** (bits - 1) - 1)
    apart = 2 if bits == 1 else 1
    values = [random.randrange(low, high + 1, apart) for _ in range(o * i)]
    stream = pack_codes(torch.tensor(values).reshape(o, i), bits, levels).numpy()
    assert len(stream) == code_bytes(o * i, bits, levels)
    unsigned = [(code - low) // apart for code in values]
    if levels == "ternary" and bits == 2:
        digits = [unsigned[k : k + 5] for k in range(0, o * i, 5)]
        assert stream.tolist() == [sum(u * 3**n for n, u in enumerate(five)) for five in digits]
    else:
        whole = int.from_bytes(stream.tobytes(), "little")  # bit n of the stream is bit n of this number
        assert [whole >> (k * bits) & (2**bits - 1) for k in range(o * i)] == unsigned
        assert whole >> (o * i * bits) == 0
    op = {"weight": "w", "shape": [o, i], "bits": bits, "levels": levels}
    assert reader.codes({"w": stream}, op).flatten().tolist() == values


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_that_of_torch(name):
    x = torch.cat([torch.linspace(-9, 9, 1001), torch.tensor([0.0, -0.0, 1.0, -1.0])])
    assert reader.ACTIVATIONS[name](x.numpy()) == pytest.approx(ACTIVATIONS[name]()(x).numpy(), rel=1e-6, abs=1e-6)


def test_inputs_are_rounded_half_to_even_and_one_bit_has_no_zero():
    x, one = np.array([[0.5, 1.5, 2.5, -0.5, -2.5, 99, -99, 0.0, -0.0]], np.float32).T, np.ones((1, 1), np.float32)

    def quantised(bits, levels):
        op = {"op": "linear", "weight": "one", "bias": None, "act_bits": bits, "input_step": "one"}
        wide = {"op": "affine", "scale": "wide", "shift": "none"}  # floats are from -1 to 1
        program = {"model": "mlp", "inputs": 1, "outputs": 1, "ops": [wide, op | {"input_levels": levels}]}
        model = reader.Model(program, {}, {"one": one, "wide": 128 * one, "none": 0 * one})
        return model.logits(x / 128)[:, 0].tolist()

    assert quantised(3, "symmetric") == [0, 2, 2, 0, -2, 3, -3, 0, 0]
    assert quantised(1, "symmetric") == [1, 1, 1, -1, -1, 1, -1, 1, 1]
    assert quantised(2, "unsigned") == [0, 2, 2, 0, 0, 3, 0, 0, 0]
    assert quantised(1, "unsigned") == [0, 1, 1, 0, 0, 1, 0, 0, 0]


def test_only_replicas_that_came_to_their_end_are_packed(data):
    report, replicas = trained(a_trial(weight_bits=32, qat=Qat(epochs=1, lr=1e30)), data)
    assert (report["weights"], replicas) == (None, {})


class Own(nn.Module):
    """Linear layers among what stays as it is: a table, whole numbers, a subclass of a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(2)
        self.attention = nn.MultiheadAttention(4, 2)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.arange(5))
        self.register_buffer("mask", torch.ones(3, dtype=torch.bool))
        self.register_buffer("scratch", torch.ones(7), persistent=False)
        self.out = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


def test_a_model_of_the_users_own_has_its_tensors_and_no_forward_pass():
    model = train.quantize(train.decompose(Own(), 2), 3, 8)
    blob = one_seed(packed.pack_replicas({4: model}, "t", 8, 4, "mine:net"), 4)
    assert len(split_file(blob)[1]) == count_sizes(model).size_bytes
    read = reader.load(blob)
    assert {op["op"] for op in read.program["ops"]} == {"linear", "affine"}
    for name, tensor in model.state_dict().items():
        if name.startswith(("conv", "attention", "scale", "table", "mask")):
            assert np.array_equal(read.tensors[name], tensor.numpy())
            assert read.tensors[name].dtype == tensor.numpy().dtype
    assert "scratch" not in read.tensors
    with pytest.raises(ReaderError, match="the forward pass of 'mine:net' is in its own code"):
        read.logits(np.zeros((1, 8), np.float32))


@pytest.fixture(scope="module")
def blob(data):
    report, _ = trained(a_trial(act_bits=4, batch_norm=True, seeds=(0,), qat=Qat(epochs=1)), data)
    return one_seed(report["weights"], 0)


def test_a_file_of_version_1_is_read_as_it_was(blob):
    header, numbers = split_file(blob)
    program = json.loads(header["__metadata__"][reader.MODEL])
    assert {op["input_levels"] for op in program["ops"] if op["op"] == "linear"} == {"symmetric", "unsigned"}
    models = []
    for version, levels in (("2", {"input_levels": "symmetric"}), ("1", {})):  # which had no other
        ops = [{k: v for k, v in op.items() if k not in ("levels", "input_levels")} | levels for op in program["ops"]]
        header["__metadata__"] |= {reader.PACKED: version, reader.MODEL: json.dumps(program | {"ops": ops})}
        models.append(reader.load(sign_file(header, numbers)))
    x = np.random.default_rng(0).integers(0, 256, (50, 16), np.uint8)
    assert np.array_equal(models[0].logits(x), models[1].logits(x))


PIXELS = np.arange(48, dtype=np.uint8).reshape(3, 16) * 5


@pytest.mark.parametrize(
    "x",
    [
        PIXELS.tolist(),
        PIXELS.astype(np.int64),
        normalise(torch.from_numpy(PIXELS)),
        (PIXELS / 127.5 - 1).tolist(),
        PIXELS / 255 * 2.0 - 1,
        list(PIXELS),
    ],
    ids=["whole", "int64", "tensor", "floats", "float64", "rows"],
)
def test_pixels_are_read_in_many_forms(blob, x):
    model = reader.load(blob)
    assert model.logits(x) == pytest.approx(model.logits(PIXELS), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(16),
        np.zeros((2, 15)),
        np.full((1, 16), 256),
        np.full((1, 16), -1),
        PIXELS.astype(np.float32),
        np.full((1, 16), -1.01),
        np.full((2, 16), np.nan),
        np.zeros((1, 16), bool),
        [["x"] * 16],
        [],
        7,
        None,
    ],
    ids=lambda x: f"{np.asarray(x).dtype}{np.shape(x)}",
)
def test_inputs_that_do_not_fit_are_refused(blob, x):
    got = re.escape(f"{np.asarray(x).dtype} of shape {np.shape(x)}")
    with pytest.raises(ReaderError, match=rf"x must be uint8 pixels or floats -1 to 1.* \(B, 16\), got {got}$"):
        reader.load(blob).logits(x)


def test_every_cut_is_refused(blob, tmp_path):
    for end in {*range(0, 40), *range(len(blob) - 40, len(blob)), len(blob) // 2}:
        (tmp_path / "cut").write_bytes(blob[:end])
        with pytest.raises(ReaderError) as caught:
            reader.load(tmp_path / "cut")
        assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "long").write_bytes(blob + b"x")
    with pytest.raises(ReaderError, match="damaged"):
        reader.load(tmp_path / "long")


def test_every_flipped_bit_is_seen(blob):
    draw = np.random.default_rng(0)
    for place in draw.integers(8, len(blob), 150):
        flipped = bytearray(blob)
        flipped[place] ^= 1 << draw.integers(8)
        if parts_equal(bytes(flipped), blob):
            continue  # a space for a space
        with pytest.raises(ReaderError):
            reader.load(bytes(flipped))
        assert find_fault(bytes(flipped), older=False) is not None


def parts_equal(a, b):
    try:
        return split_file(a) == split_file(b)
    except ValueError:
        return False


@pytest.mark.parametrize("places", [[(0, 4), (0, 4)], [(0, 4), (5, 9)], [(4, 8)], [(0, 4), (4, 9)]], ids=str)
def test_tensors_that_overlap_or_leave_a_gap_are_refused(places):
    """Eight bytes that two tensors of four must fill."""
    tensors = {f"t{k}": {"dtype": "U8", "shape": [4], "data_offsets": list(p)} for k, p in enumerate(places)}
    program = {"model": "mine:net", "inputs": 1, "outputs": 1, "ops": []}
    metadata = {reader.PACKED: reader.VERSION, reader.MODEL: json.dumps(program)}
    with pytest.raises(ReaderError, match="must fill its place in 8 bytes of data"):
        reader.load(sign_file({"__metadata__": metadata, **tensors}, b"abcdefgh"))


HOSTILE = [
    -1,
    0,
    1,
    3,
    2**31,
    2**63,
    2**70,
    10**400,
    True,
    None,
    1.5,
    "x",
    "\x1b[31m\n",
    [],
    [0],
    {},
    [[1]],
    [2**40, 0],
]


def test_lying_headers_are_refused_or_read_within_bounds(blob):
    """Lies that are signed: each number, word and list of the header and of the program becomes something else."""
    header, numbers = split_file(blob)
    program = json.loads(header["__metadata__"][reader.MODEL])
    places = list(leaves(header | {"__metadata__": {}})) + [("program", *place) for place in leaves(program)]
    assert len(places) > 60
    refused, x = list[str](), np.zeros((2, 16), np.uint8)
    draw = np.random.default_rng(1)
    for place in places:
        for value in draw.permutation(np.array([*HOSTILE, "#"], object))[:4]:
            lying, told = json.loads(json.dumps(header)), json.loads(json.dumps(program))
            put(told if place[0] == "program" else lying, place[place[0] == "program" :], value)
            lying["__metadata__"][reader.MODEL] = json.dumps(told)
            try:
                with np.errstate(all="ignore"):
                    logits = reader.load(sign_file(lying, numbers)).logits(x)
            except ReaderError as error:
                refused.append(str(error))
            else:
                assert logits.shape == (2, 4)  # the lie said what was there
    assert len(refused) > 200
    assert all(line.isprintable() and len(line) <= 300 for line in refused)


def leaves(value, place=()):
    """The places of all numbers, words and lists."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*place, key))
    elif isinstance(value, list):
        yield from ([place] if place else [])
        for k, inner in enumerate(value):
            yield from leaves(inner, (*place, k))
    elif place:
        yield place


def put(tree, place, value):
    for key in place[:-1]:
        tree = tree[key]
    tree[place[-1]] = value


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "must be whole"),
        (b"PAR1" * 9, "must be whole"),
        (struct.pack("<Q", 2) + b"[]", "no packed model"),
        (struct.pack("<Q", 2) + b"{}", "no packed model"),
        (struct.pack("<Q", 40_000) + b"[" * 40_000, "no packed model"),
        (sign_file({"__metadata__": {"qdtune.packed": "6"}}, b""), "of version 1 to 5, got '6'"),
        (sign_file({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"x"), "version 1 to 5, got None"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, content, why):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ReaderError, match=why):
        reader.load(path)
