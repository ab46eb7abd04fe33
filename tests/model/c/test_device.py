"""Exported C on emulated microcontrollers gives the numbers of `reader.py`; needs cross compilers and QEMU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from qdtune.model.c import device
from qdtune.model.c.device import Flash, Measured, TooLargeError, _build, _number, measure
from qdtune.model.c.host import CompileError, Program
from qdtune.model.c.program import to_c
from qdtune.model.c.targets import TARGETS, missing_tools, target_of
from qdtune.model.formats import c
from qdtune.model.formats.c import describe_measured, list_measured
from qdtune.model.quantize import quantize
from qdtune.spec.tasks import NO_CLASS
from tests.model.c.networks import KINDS, draw_model, pack


def need_tools(target):
    if missing := missing_tools(target):
        pytest.skip(f"no {' and no '.join(missing)}")


def run(target, model, rows):
    made = to_c(model, "m")
    return made, measure(target, Program("m", {".h": made.header, ".c": made.source}, model), rows)


@pytest.mark.slow  # its smaller relatives compile for this machine: `test_program.py`
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_an_emulated_processor_gives_the_logits_of_the_reader(target, kind):
    need_tools(target)
    model, rows = draw_model(3, kind, weight_bits=3, act_bits=4, levels="full", split=1)
    made, found = run(target, model, rows[:20])
    assert found.differing == 0
    assert made.ram_bytes <= found.ram <= made.ram_bytes + 16
    # Arrays are aligned. The compiler writes windows into the code, and arrays of two numbers.
    most, inlined = made.flash_bytes + 16, 40 * made.source.count("qd_window window_") + 8 * model.program["outputs"]
    assert most - 16 - inlined <= found.flash["class"].model <= most
    assert 0 < found.stack < 1024
    assert (found.instructions > 100).all()
    assert found.flash["logits"].kernels > found.flash["class"].kernels > 0


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_tables_of_the_library_are_no_numbers_of_the_model(target):
    """A mean is found in double precision, and functions of these read tables of the compiler's library."""
    need_tools(target)
    torch.manual_seed(0)
    rows = np.random.default_rng(0).integers(0, 256, (4, 64)).astype(np.uint8)
    layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = quantize(nn.Sequential(*layers, nn.Linear(4, 2)), 4, 8)
    made, found = run(target, pack(network, torch.from_numpy(rows).float() / 127.5 - 1, 64, 2), rows)
    assert found.differing == 0
    for flash in found.flash.values():
        assert flash.model <= made.flash_bytes + 16
        assert flash.kernels > 2000


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_more_products_take_more_instructions(target):
    """Twice the hidden units are about twice the instructions: what is counted is the work, and not the clock."""
    need_tools(target)
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


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_long_program_is_counted_beyond_the_bits_of_the_counter(target):
    """Each round of SysTick is some 65 to 84 million instructions; eleven layers take eleven times those of one."""
    need_tools(target)
    torch.manual_seed(0)
    side, channels = (24, 11) if target.name == "cortex-m0plus" else (32, 16)
    rows = np.random.default_rng(0).integers(0, 256, (1, side**2)).astype(np.uint8)
    counts = []
    for layers in (1, 11):
        middle = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers)]
        ends = [nn.MaxPool2d(4), nn.Flatten(), nn.Linear(channels * (side // 4) ** 2, 2)]
        chain = [nn.Unflatten(1, (1, side, side)), nn.Conv2d(1, channels, 1), *middle, *ends]
        model = pack(quantize(nn.Sequential(*chain), 4, 8), torch.from_numpy(rows).float() / 127.5 - 1, side**2, 2)
        counts.append(run(target, model, rows)[1].instructions.mean())
    assert counts[1] > 90e6
    assert 9 < counts[1] / counts[0] < 12


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_without_classes_the_outputs_are_measured(target):
    need_tools(target)
    model, rows = draw_model(3, "mlp", weight_bits=3, act_bits=4, split=1)
    made = to_c(model, "m", classes=NO_CLASS)
    found = measure(target, Program("m", {".h": made.header, ".c": made.source}, model, NO_CLASS), rows[:5])
    assert list(found.flash) == ["logits"]
    assert found.differing == 0
    assert (found.instructions > 100).all()


@pytest.mark.slow
def test_a_program_beyond_the_memory_of_a_target_is_told_by_how_much():
    target = target_of("cortex-m0plus")
    need_tools(target)
    torch.manual_seed(0)
    rows = np.random.default_rng(0).integers(0, 256, (2, 64)).astype(np.uint8)
    network = quantize(nn.Sequential(nn.Linear(64, 20_000), nn.ReLU(), nn.Linear(20_000, 2)), 1, 8)
    model = pack(network, torch.from_numpy(rows).float() / 127.5 - 1, 64, 2)
    with pytest.raises(TooLargeError, match=r"^it needs [\d,]+ bytes more than 16 KiB of ram$"):
        run(target, model, rows)


def test_a_linker_without_room_is_understood(monkeypatch, tmp_path):
    def fail(*given):
        raise CompileError("ld: region `flash' overflowed by 12345 bytes collect2: error")

    monkeypatch.setattr(device, "run", fail)
    with pytest.raises(TooLargeError, match=r"^it needs 12,345 bytes more than 4 MiB of flash$"):
        _build(target_of("cortex-m3"), tmp_path, "m", "main")


def test_what_is_measured_is_said_in_lines():
    flash = {"class": Flash(3000, 1500), "logits": Flash(3040, 2600)}
    found = Measured("cortex-m3", flash, 4496, 168, np.array([1000.0, 3000.0]), 0)
    said = describe_measured(found)
    assert (
        said
        == """\
on cortex-m3, 2 rows of qd_..._class:
  flash of the model    3,000 bytes (with logits: 3,040)
  flash of the kernels  1,500 bytes (with logits: 2,600)
  RAM, static           4,496 bytes
  stack                   168 bytes
  instructions          2,000 per inference (1,000 to 3,000)
  logits                equal to those of reader.py"""
    )
    large = replace(found, flash={"logits": flash["logits"]}, instructions=np.full(100, 2.28e8), differing=12)
    said = describe_measured(large)
    assert "on cortex-m3, 100 rows of qd_..._logits:\n  flash of the model          3,040 bytes\n" in said
    assert said.endswith("  logits                12 differ from those of reader.py in their last bits")
    assert max(map(len, said.splitlines())) <= 80
    assert list_measured(found) == {
        "flash_class": {"model_bytes": 3000, "kernel_bytes": 1500},
        "flash_logits": {"model_bytes": 3040, "kernel_bytes": 2600},
        **{"ram_bytes": 4496, "stack_bytes": 168, "rows": 2, "differing_logits": 0},
        "instructions": {"mean": 2000, "least": 1000, "most": 3000},
    }


def test_what_cannot_be_measured_is_said(monkeypatch):
    program, counts = Program("m", {}, draw_model(0, "mlp")[0]), []
    monkeypatch.setattr(c, "missing_tools", lambda target: ["qemu-system-arm"])
    told = c.C._measure(program, np.zeros((1, 1)), 1, "cortex-m3")
    assert told.note == (
        "not measured on cortex-m3: no qemu-system-arm here (install the Debian packages gcc-arm-none-eabi "
        "qemu-system-arm)"
    )

    def fail(target, program, rows):
        counts.append(len(rows))
        raise (CompileError if len(counts) == 1 else TooLargeError)("it needs more")

    monkeypatch.setattr(c, "missing_tools", lambda target: [])
    monkeypatch.setattr(c, "measure", fail)
    assert c.C._measure(program, np.zeros((1, 1)), 1, "cortex-m3").fault == "must run on cortex-m3, got it needs more"
    told = c.C._measure(program, np.zeros((500, 3072), np.uint8), 1, "cortex-m3")
    assert (told.fault, told.note) == (None, "not measured on cortex-m3: it needs more")
    c.C._measure(program, np.zeros((500, 9), np.uint8), 200_000_000, "cortex-m3")
    c.C._measure(program, np.zeros((500, 9), np.uint8), 10**12, "cortex-m3")
    assert counts == [1, 32, 2, 1], "rows leave most of the flash to the program, and large networks get fewer"
    assert target_of("rv32").compiler.startswith("riscv")
