"""Exported C, compiled with every warning an error, gives the numbers of `reader.py`."""

import re
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

from qdtune.datasets.dataset import Averaging
from qdtune.messages import SpecError
from qdtune.model.c import host
from qdtune.model.c.host import CompileError, Program, compare, find_compiler
from qdtune.model.c.program import to_c
from qdtune.model.layers.pooling import MaxPool
from qdtune.model.packed import RowFormat
from qdtune.model.quantize import quantize
from qdtune.spec.tasks import ABOVE_0, LARGEST, NO_CLASS
from tests.model.c.networks import KINDS, draw_model, pack

COMPILER = find_compiler()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def run(model, rows, classes=LARGEST):
    """A model's C, and its comparison with `reader.py`."""
    made = to_c(model, "m", classes=classes)
    return made, compare(COMPILER, Program("m", {".h": made.header, ".c": made.source}, model, classes), rows)


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_codes_give_the_logits_of_the_reader_to_the_last_bit(kind, seed):
    bits, act_bits = [(1, 8), (2, 2), (4, 3), (8, 1)][seed]
    model, rows = draw_model(seed, kind, weight_bits=bits, act_bits=act_bits, levels="symmetric")
    made, found = run(model, rows)
    assert made.whole_stages >= made.code_stages - 1
    assert found.wrong == 0
    if made.is_exact:
        assert (found.logits, found.largest) == (0, 0.0)
    else:
        assert found.classes <= 3


@needs_compiler
@pytest.mark.slow  # `test_codes_give...` and `test_floats_give...` are its smaller relatives
@pytest.mark.parametrize("seed", range(100, 160))
def test_random_networks_give_the_logits_of_the_reader(seed):
    model, rows = draw_model(seed, KINDS[seed % 3])
    made, found = run(model, rows)
    if made.is_exact:
        assert (found.logits, found.wrong) == (0, 0)
    else:
        assert found.classes <= 6


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
def test_floats_give_them_but_for_rounding(kind):
    model, rows = draw_model(7, kind, weight_bits=3, act_bits=None, levels="full", split=1)
    made, found = run(model, rows)
    assert not made.is_exact
    assert found.largest < 1e-5
    assert found.classes == 0


@needs_compiler
def test_images_are_averaged_and_other_rows_normalised():
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    image, size = (1, 9, 12), (4, 5)
    rows = generator.integers(0, 256, (200, 108)).astype(np.uint8)
    network = nn.Sequential(nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.rand(200, 20) * 2 - 1
    averaged = pack(quantize(network, 2, 4), x, 108, 3, RowFormat(averaging=Averaging(image, size)))
    assert run(averaged, rows)[1].logits == 0

    wide = generator.integers(-3000, 3000, (200, 7)).astype(np.int16)
    scale = torch.rand(7) / 1000
    x = torch.from_numpy(wide).float() * scale + 0.5
    network = quantize(nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)), 4, 8)
    given = pack(network, x, 7, 3, RowFormat("int16", scale, torch.full((7,), 0.5)))
    made, found = run(given, wide)
    assert "const int16_t *row" in made.header
    assert found.logits == 0


def draw_rows(layers, inputs, **settings):
    """A model of these layers with two outputs, and rows."""
    torch.manual_seed(0)
    rows = np.random.default_rng(0).integers(0, 256, (200, inputs)).astype(np.uint8)
    x = torch.from_numpy(rows).float() / 127.5 - 1
    return pack(quantize(nn.Sequential(*layers), **settings), x, inputs, 2), rows


@needs_compiler
@pytest.mark.parametrize(
    ("layers", "inputs", "settings"),
    [
        ([nn.Linear(300, 8), nn.Tanh(), nn.Linear(8, 2)], 300, {"weight_bits": 16, "act_bits": 8}),
        (
            [nn.Unflatten(1, (2, 8)), nn.Conv1d(2, 3, 3), nn.Conv1d(3, 2, 6), nn.Flatten()],
            16,
            {"weight_bits": (4, 32)},
        ),
    ],
    ids=["64 bits, then 32", "codes, then floats"],
)
def test_layers_that_differ_in_one_type_get_functions_of_their_own(layers, inputs, settings):
    made, found = run(*draw_rows(layers, inputs, **settings))
    assert found.classes == 0
    assert found.logits == 0 or not made.is_exact


@needs_compiler
@pytest.mark.parametrize("first", [nn.Tanh, nn.LeakyReLU, nn.GELU])
def test_an_activation_bends_where_the_one_before_it_reaches_its_bend(first):
    layers = [nn.Linear(12, 20), first(), nn.GELU(), nn.Linear(20, 2)]
    with torch.no_grad():
        layers[0].weight *= 100 if first is nn.LeakyReLU else 3
    made, found = run(*draw_rows(layers, 12, weight_bits=4, act_bits=8))
    assert made.is_exact
    assert found.logits == 0


@needs_compiler
@pytest.mark.parametrize("act_bits", [None, 8])
def test_without_classes_there_is_no_function_for_them(act_bits):
    model, rows = draw_model(5, "mlp", weight_bits=4, act_bits=act_bits, split=1)
    made, found = run(model, rows, NO_CLASS)
    assert "_class" not in made.header
    assert "class" not in made.source
    assert "qd_m_logits" in made.header
    assert (found.classes, found.wrong) == (0, 0)
    assert found.largest < 1e-5
    with_class = to_c(model, "m")
    held = 4 * model.program["outputs"] if act_bits is None else 0
    assert with_class.ram_bytes - made.ram_bytes == held


@needs_compiler
@pytest.mark.parametrize("act_bits", [None, 8])
def test_one_output_above_0_is_the_class_1(act_bits):
    torch.manual_seed(1)
    rows = np.random.default_rng(1).integers(0, 256, (200, 12)).astype(np.uint8)
    x = torch.from_numpy(rows).float() / 127.5 - 1
    network = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 1))
    with torch.no_grad():
        network[2].bias -= network(x).median()
    model = pack(quantize(network, 8, act_bits), x, 12, 1)
    answers = model.logits(rows)[:, 0] > 0
    assert 20 < answers.sum() < 180, "both classes are found"
    made, found = run(model, rows, ABOVE_0)
    assert (found.classes, found.wrong) == (0, 0)
    assert "1 if the output is above 0" in made.header
    largest = to_c(model, "m")
    other = compare(COMPILER, Program("m", {".h": largest.header, ".c": largest.source}, model, ABOVE_0), rows)
    assert other.wrong == answers.sum(), "the place of the largest of one output is always 0"


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
def test_sanitisers_find_nothing(kind, monkeypatch):
    flags = ("-std=c99", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    monkeypatch.setattr(host, "FLAGS", flags)
    model, rows = draw_model(3, kind, weight_bits=2, act_bits=8, levels="ternary")
    assert run(model, rows)[1].wrong == 0


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_told(number):
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.bias[0] = number
    model, _ = draw_rows([layer], 4, weight_bits=4, act_bits=8)
    with pytest.raises(SpecError, match=r"must be finite in C, got others in '.*bias'"):
        to_c(model, "m")


@needs_compiler
def test_another_weight_is_found():
    model, rows = draw_model(2, "mlp", weight_bits=4, act_bits=8, split=1)
    made = to_c(model, "m")
    first = re.search(r"weights_1\[\d+\] = \{\n    (\d+),", made.source)
    worse = made.source[: first.start(1)] + str(int(first[1]) ^ 1) + made.source[first.end(1) :]
    found = compare(COMPILER, Program("m", {".h": made.header, ".c": worse}, model), rows)
    assert found.logits > 0


@needs_compiler
def test_a_program_that_does_not_compile_is_told():
    model, rows = draw_model(2, "mlp", weight_bits=4, act_bits=8)
    made = to_c(model, "m")
    with pytest.raises(CompileError, match=r"(cc|gcc|clang): "):
        compare(COMPILER, Program("m", {".h": made.header, ".c": "wrong;"}, model), rows)


def test_weights_of_three_values_are_added_and_not_multiplied():
    model, _ = draw_model(5, "mlp", weight_bits=2, act_bits=8, levels="ternary", granularity="tensor", split=1)
    source = to_c(model, "m").source
    dot = re.search(r"static int32_t qd_dot_ternary.*?\n}\n", source, re.DOTALL)[0]
    assert "sum += (int32_t)*x" in dot
    assert "sum -= (int32_t)*x" in dot
    assert not re.search(r"sum [+-]= .* \* ", dot)


def test_the_program_is_self_contained():
    for kind in KINDS:
        model, _ = draw_model(1, kind)
        made = to_c(model, "m", {"MACS": 12}, "a */ /* comment")
        assert re.findall(r"#include (\S+)", made.header + made.source) == ["<stdint.h>", '"m.h"']
        assert not re.search(r"\b(malloc|free|memset|memcpy|printf|goto|alloca)\b", made.source)
        assert "#define QD_M_MACS 12\n" in made.header
        assert made.header.startswith("/* a * / / * comment */")


@needs_compiler
def test_the_static_bytes_are_those_that_it_says(tmp_path):
    model, _ = draw_model(4, "image", weight_bits=4, act_bits=8, levels="full")
    made = to_c(model, "m")
    (tmp_path / "m.h").write_text(made.header)
    (tmp_path / "m.c").write_text(made.source)
    subprocess.run([*COMPILER, "-std=c99", "-O2", "-c", "m.c"], cwd=tmp_path, check=True)
    said = subprocess.run(["size", "-A", "m.o"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    sections = {name: int(size) for name, size in re.findall(r"^\.(\S+)\s+(\d+)", said, re.MULTILINE)}
    assert sections["data"] == 0
    assert made.ram_bytes <= sections["bss"] <= made.ram_bytes + 32 * 3  # each buffer begins at a multiple of 32


def test_a_kind_without_c_is_refused(monkeypatch):
    model, _ = draw_model(1, "signal")
    monkeypatch.delattr(MaxPool.__mro__[1], "add_stage")
    models = (draw_model(seed, "signal")[0] for seed in range(9))
    model = next(one for one in models if any("pool" in op["op"] for op in one.program["ops"]))
    with pytest.raises(SpecError, match=r"--format c has no code for the operation '\w+_pool'"):
        to_c(model, "m")
