"""The bytes of the constants and buffers of exported C are those that a configuration says before it is trained."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest

from qdtune.model.c.program import to_c
from qdtune.model.c.text import Text, float_literal
from qdtune.spec import flash
from qdtune.spec.flash import flash_bytes
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.spec.tasks import AUTOENCODER, NO_CLASS
from tests.model.c.networks import build

SWEEP = """
version: 1
name: constants
parameters:
  depth: {values: [1, 3]}
%s
seeds: [0]
data: {dataset: digits, val_size: 200}
%s
train: {batch_size: 100, warmup: {epochs: 1}, qat: {epochs: 1}}
"""
MLP = "model: {name: mlp, hidden: [13, 6], batch_norm: %s}"
CNN = "model: {name: cnn, blocks: [%s], hidden: [7], batch_norm: true}"
MODELS = (MLP % "true", CNN % "conv 3, dw, pool, pw 5")
ALL_MODELS = (*MODELS, MLP % "false", MLP % "factors", CNN % "conv 4, dw, mean", CNN % "conv 3, mean, pw 5")


def plan_trials(lines, model):
    """The configurations of a sweep over these axes."""
    text = SWEEP % ("\n".join(f"  {line}" for line in lines), model)
    return plan(loads(text.encode(), "constants.yaml").resolve("digits")).trials


@pytest.mark.parametrize("model", MODELS)
def test_ram_is_known_before_training(model):
    trials = plan_trials(["weight_bits: {values: [2, 32]}", "act_bits: {values: [null, 4, 8, 10]}"], model)
    assert len(trials) == 16
    for trial in trials:
        assert to_c(build(trial), "m").ram_bytes == trial.columns["ram_bytes"], trial.label


AXES = [
    "granularity: {values: [tensor, channel]}",
    "overhead: {values: [float32, float16, int8]}",
    "bias: {values: [all, none]}",
    "activation: {values: [identity, tanh, gelu]}",
]


def draw_trials(model, count, *lines):
    """Some of the configurations of a sweep."""
    return random.Random(0).sample(plan_trials([*AXES, *lines], model), count)


@pytest.mark.parametrize("model", ALL_MODELS)
def test_flash_of_floats_is_known_to_the_byte(model):
    for trial in draw_trials(model, 8, "weight_bits: {values: [1, 3, 8, 32]}"):
        assert to_c(build(trial), "m").flash_bytes == trial.columns["flash_bytes"], trial.label


@pytest.mark.parametrize("model", MODELS)
def test_floats_that_are_equal_take_no_bytes(model, monkeypatch):
    """Powers of two often are, in all channels of a layer. That depends on the training, so it is not counted."""
    lines = ["weight_bits: {values: [1, 2, 8]}", "granularity: {value: channel}", "overhead: {value: pow2}"]
    trials = plan_trials(lines, model)
    said = [trial.columns["flash_bytes"] for trial in trials]
    found = [to_c(build(trial), "m").flash_bytes for trial in trials]
    assert all(less <= more for less, more in zip(found, said, strict=True))
    assert found != said

    def write_all(text, name, values):
        if values.size > 1:
            text.add_array(name, "float", [float_literal(value) for value in values.ravel()])
        return f"{name}[o]" if values.size > 1 else float_literal(values.ravel()[0])

    monkeypatch.setattr(Text, "add_floats", write_all)
    assert [to_c(build(trial), "m").flash_bytes for trial in trials] == said


SIZES = {"float": 4, "int8_t": 1, "uint8_t": 1, "int16_t": 2, "int32_t": 4, "int64_t": 8, "qd_window": 40}
FITTED = ("multiplier", "offset", "steps", "codes", "odd", "class")  # how the names of numbers begin that are fitted


def list_constants(source):
    """Name -> bytes of the arrays that a program names, the coefficients of float functions apart."""
    found = re.findall(r"^static const (\w+) (\w+)(?:\[(\d+)\])? = \{", source, re.MULTILINE)
    return {name: SIZES[kind] * int(count or 1) for kind, name, count in found}


@pytest.mark.parametrize("model", ALL_MODELS)
def test_only_the_numbers_that_are_fitted_follow_a_rule(model, monkeypatch):
    """Weights, windows and floats are counted to the byte; the lines from sums to codes are what is estimated."""
    rule = [vars(flash)[name] for name in ("_line_bytes", "_table_bytes", "_score_bytes")]
    trials = draw_trials(model, 8, "weight_bits: {values: [1, 2, 4, 8]}", "act_bits: {values: [2, 4, 8]}")
    for one in rule:
        monkeypatch.setattr(flash, one.__name__, lambda *given: 0)
    for trial in trials:
        made = to_c(build(trial), "m")
        constants, last = list_constants(made.source), f"value_{made.source.count('static void stage_') - 1}_"
        read = {name: size for name, size in constants.items() if not name.startswith(last)}
        assert made.flash_bytes == sum(read.values()), trial.label
        known = sum(size for name, size in read.items() if not name.startswith(FITTED))
        assert flash_bytes(trial) == known, trial.label


def errors_of(trials):
    """How much the rule is off, as a share, for each configuration without exceptions."""
    found = []
    for trial in trials:
        made = to_c(build(trial), "m")
        if "odd_sums" not in made.source:
            found.append(trial.columns["flash_bytes"] / made.flash_bytes - 1)
    return np.array(found)


@pytest.mark.parametrize("hidden", [[16], [48, 48]])
def test_the_rule_is_near_what_is_fitted(hidden):
    model = f"model: {{name: mlp, hidden: {hidden}, batch_norm: true}}"
    lines = ["weight_bits: {values: [1, 2, 4]}", "act_bits: {values: [4, 8]}", "levels: {value: full}"]
    errors = errors_of([trial for trial in plan_trials([*lines, *AXES[:2]], model) if trial.depth == 1])
    assert len(errors) > 30
    assert abs(errors).mean() < 0.03
    assert abs(errors).max() < 0.15


@pytest.mark.parametrize("act_bits", ["null", 8])
def test_a_task_without_classes_reads_the_floats_of_its_outputs(act_bits):
    lines = ["weight_bits: {value: 4}", f"act_bits: {{value: {act_bits}}}", "granularity: {value: channel}"]
    trial = replace(plan_trials(lines, "model: {name: mlp, hidden: []}")[0], task=AUTOENCODER.name, metric="mse")
    made = to_c(build(trial), "m", classes=NO_CLASS)
    assert made.flash_bytes == trial.columns["flash_bytes"] == 64 * 64 // 2 + 64 * (4 + 4)
    assert made.ram_bytes == trial.columns["ram_bytes"]
    assert f"#define QD_M_FLASH_BYTES {made.flash_bytes}\n" in made.header
