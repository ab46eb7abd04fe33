"""Exported C on emulated microcontrollers gives the numbers of `reader.py`; needs cross compilers and QEMU."""

import numpy as np
import pytest

from qdtune.model.c.device import _number, measure
from qdtune.model.c.host import CompileError
from qdtune.model.c.program import to_c
from qdtune.model.c.targets import TARGETS, missing_tools
from qdtune.model.formats.c import describe_measured
from tests.model.c.networks import KINDS, draw_model


def run(target, model, rows):
    made = to_c(model, "m")
    return made, measure(target, {".h": made.header, ".c": made.source}, "m", model, rows)


@pytest.mark.slow  # its smaller relatives compile for this machine: `test_program.py`
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_an_emulated_processor_gives_the_logits_of_the_reader(target, kind):
    if missing := missing_tools(target):
        pytest.skip(f"no {' and no '.join(missing)}")
    model, rows = draw_model(3, kind, weight_bits=3, act_bits=4, levels="full", split=1)
    made, found = run(target, model, rows[:20])
    assert found.differing == 0
    assert made.ram_bytes <= found.ram <= made.ram_bytes + 16
    assert 0 < found.stack < 1024
    assert (found.instructions > 100).all()
    assert found.logits_code > found.code > 0


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_more_products_take_more_instructions(target):
    """Twice the hidden units are about twice the instructions: what is counted is the work, and not the clock."""
    if missing := missing_tools(target):
        pytest.skip(f"no {' and no '.join(missing)}")
    import torch
    from torch import nn

    from qdtune.model.quantize import quantize
    from tests.model.c.networks import pack

    torch.manual_seed(0)
    rows = np.random.default_rng(0).integers(0, 256, (3, 64)).astype(np.uint8)
    counts = []
    for width in (32, 64):
        network = quantize(nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 4)), 4, 8)
        model = pack(network, torch.from_numpy(rows).float() / 127.5 - 1, 64, 4)
        counts.append(run(target, model, rows)[1].instructions.mean())
    assert 1.8 < counts[1] / counts[0] < 2.1
    assert 64 * 64 * 2 < counts[1] < 64 * 64 * 30


def test_rows_are_numbers_of_c():
    values = [np.float32(1), np.float32(-0.5), np.int16(-7)]
    assert [_number(value) for value in values] == ["1.0f", "-0.5f", "-7"]


def test_what_is_measured_is_said_and_a_missing_tool_too(monkeypatch, tmp_path):
    from types import SimpleNamespace

    from qdtune.model.c.device import Measured
    from qdtune.model.c.targets import target_of
    from qdtune.model.formats import c

    found = Measured("cortex-m3", 3000, 1500, 2600, 4496, 168, np.array([1000.0, 3000.0]), 0)
    assert describe_measured(found) == (
        "on cortex-m3: flash 4,500 bytes (3,000 of numbers, 1,500 of code), with logits 5,600; RAM 4,496 and 168 of "
        "stack; 2,000 instructions per class (1,000 to 3,000) of 2 rows; all logits as here"
    )
    monkeypatch.setattr(c, "missing_tools", lambda target: ["qemu-system-arm"])
    model = SimpleNamespace(name="m", model=None)
    told = c.C._measure(model, {}, None, "cortex-m3")
    assert told.note == (
        "not measured on cortex-m3: no qemu-system-arm here (install the Debian packages gcc-arm-none-eabi "
        "qemu-system-arm)"
    )

    counts = []

    def fail(*given):
        counts.append(len(given[-1]))
        raise CompileError("region `flash' overflowed")

    monkeypatch.setattr(c, "missing_tools", lambda target: [])
    monkeypatch.setattr(c, "measure", fail)
    told = c.C._measure(model, {}, np.zeros((1, 1)), "cortex-m3")
    assert told.fault == "must run on cortex-m3, got region `flash' overflowed"
    c.C._measure(model, {}, np.zeros((500, 3072), np.uint8), "cortex-m3")
    assert counts == [1, 32], "rows leave most of the flash to the program"
    assert target_of("rv32").compiler.startswith("riscv")
