"""The bad input matrix, one case each; what a good file becomes; what identifies a configuration."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdtune.datasets.dataset import Averaging, DatasetInfo, image_side
from qdtune.datasets.known import dataset_of
from qdtune.messages import MAX_LINES, Problem, SpecError
from qdtune.spec import configuration
from qdtune.spec.axes import AXES, AXIS_NAMES
from qdtune.spec.configuration import Configuration, OwnData, OwnModel
from qdtune.spec.groups import Qat, Warmup
from qdtune.spec.plan import make_trial, plan
from qdtune.spec.structure import mlp_sizes
from qdtune.spec.sweep_file import Spec, load, loads

GOOD = """\
version: 1
name: grid
description: Does depth help at low bits?
method: grid
run_cap: null
parameters:
  depth:       {values: [1, 2, 3, 4]}
  weight_bits: {values: [1, 2, 3, 4, 8]}
  activation:  {values: [identity, relu]}
  act_bits:    {value: null}
  scale:       {value: absmean}
  factor_init: {value: orthogonal}
exclude:
  - {depth: 1, activation: relu}
seeds: [0, 1, 2]
data:    {dataset: [mnist, digits], val_size: 5000}
model:   {name: mlp, hidden: [24]}
train:
  batch_size: 64
  warmup: {epochs: 5,  optimizer: sgd, lr: 0.1}
  qat:    {epochs: 10, optimizer: sgd, lr: 0.01, schedule: constant}
early_terminate: {type: none}
constraints: []
resources: {gpu: 0.125, cpu: 1}
run:     {max_concurrent_trials: null, time_budget_s: null, max_failures: 2, trial_timeout_s: null}
"""
SMALL = "version: 1\nname: a\nparameters: {}\ndata: {dataset: digits, val_size: 100}\n"


def good(*overrides: str) -> Spec:
    return loads(GOOD.encode(), "x.yaml", overrides)


def small(*overrides: str) -> Spec:
    return loads(SMALL.encode(), "x.yaml", overrides)


def errors(text: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        loads(text.encode(), "x.yaml", overrides)
    return str(caught.value).splitlines()


def told(*overrides: str) -> list[str]:
    """The lines for SMALL with these keys set, without what they all start with."""
    return [line.removeprefix("error: --set: ") for line in errors(SMALL, *overrides)]


def test_example_of_the_readme_is_read_in_full() -> None:
    spec = good()
    assert spec.axes["depth"].values == (1, 2, 3, 4)
    assert spec.axes["act_bits"].values == (None,)
    assert spec.axes["hidden"].values == ((24,),)
    assert spec.axes["qat_lr"].values == (0.01,)
    assert spec.exclude == ({"depth": 1, "activation": "relu"},)
    assert spec.data.dataset == ("mnist", "digits")
    assert spec.train.qat == Qat(epochs=10, lr=0.01)
    assert (spec.resources.gpu, spec.run.max_failures, spec.seeds) == (0.125, 2, (0, 1, 2))


def test_smallest_file_has_the_defaults_of_the_example() -> None:
    spec = small()
    assert {name: axis.values for name, axis in spec.axes.items()} == {
        "depth": (1,),
        "weight_bits": (32,),
        "activation": ("identity",),
        "act_bits": (None,),
        "scale": ("absmean",),
        "factor_init": ("orthogonal",),
        "granularity": ("tensor",),
        "levels": ("symmetric",),
        "decompose": ("all",),
        "hidden": ((24,),),
        "warmup_lr": (0.1,),
        "qat_lr": (0.01,),
        "augment": ("none",),
        "resolution": (None,),
        "channels": (None,),
        "first_bits": (None,),
        "last_bits": (None,),
        "layer_bits": (None,),
        "layer_act_bits": (None,),
        "overhead": ("float32",),
        "bias": ("all",),
        "blocks": (None,),
    }
    assert spec.train == good().train
    assert spec.resources == good().resources
    assert spec.method == "grid"


LR = "a finite number above 0"
BITS = "a whole number, 1 to 16 or 32"
DEPTH = "a whole number, 1 to 64"
ACTIVATIONS = "identity, relu, leaky_relu, gelu, tanh, hardtanh"
SETS = "mnist, fashion_mnist, kmnist, cifar10, digits, synthetic"
NAME = "letters, digits, . _ - ; starts with a letter or digit; at most 64; no device name"
GPU = "0, a fraction of 0.0001 to 1 such as 1/3, a whole number, or auto"
ALL_AXES = ", ".join(AXIS_NAMES)
METHODS = "grid, random, tpe, nsga2, nsga3, gp, qmc"
TYPES = "none, pareto, median, percentile, hyperband, successive_halving, patient, threshold, wilcoxon"
PRUNER_KEYS = (
    "type, scope, margin, signal, min_epochs, patience, min_delta, risk, within, n_startup_trials, n_warmup_steps,"
    " interval_steps, percentile, min_resource, reduction_factor, lower, p_threshold"
)
MATRIX = [
    # row of the matrix, what is set, the line about it
    (2, "parameters.qat_lr={values: [1e-3, fast]}", f"parameters.qat_lr.values[1]: 'fast' is not a number ({LR})"),
    (3, "train.qat.lr=.inf", f"train.qat.lr: inf is not allowed ({LR})"),
    (3, "train.qat.lr=.nan", f"train.qat.lr: nan is not allowed ({LR})"),
    (3, "train.qat.lr=nan", f"train.qat.lr: 'nan' is not a number ({LR})"),
    (3, "train.qat.lr=inf", f"train.qat.lr: 'inf' is not a number ({LR})"),
    (3, "train.qat.lr=1e999", f"train.qat.lr: inf is not allowed ({LR})"),
    (4, "train.warmup.lr=0", f"train.warmup.lr: 0 is not allowed ({LR})"),
    (4, "train.warmup.lr=-0.1", f"train.warmup.lr: -0.1 is not allowed ({LR})"),
    (4, "train.warmup.lr=-0.0", f"train.warmup.lr: -0.0 is not allowed ({LR})"),
    (5, "parameters.weight_bits={value: 0}", f"parameters.weight_bits: 0 is not allowed ({BITS})"),
    (6, "parameters.weight_bits={value: 33}", f"parameters.weight_bits: 33 is not allowed ({BITS})"),
    (6, "parameters.weight_bits={value: 17}", f"parameters.weight_bits: 17 is not allowed ({BITS})"),
    (7, "parameters.weight_bits={value: 010}", "parameters.weight_bits.value: '010' has a leading zero (write 10)"),
    (8, "parameters.weight_bits={value: '4'}", "parameters.weight_bits: '4' is text (write 4 without quotes)"),
    (9, "parameters.weight_bits={value: 4.5}", f"parameters.weight_bits: 4.5 is not a whole number ({BITS})"),
    (10, "parameters.weight_bits={value: true}", f"parameters.weight_bits: true is not a whole number ({BITS})"),
    (11, "parameters.depth={value: 0}", f"parameters.depth: 0 is not allowed ({DEPTH})"),
    (11, "model.hidden=[24, -1]", "model.hidden[1]: -1 is not allowed (a whole number, 1 to 65,536)"),
    (12, "parameters.depth={value: 1000000}", f"parameters.depth: 1000000 is not allowed ({DEPTH})"),
    (13, "parameters.depth={values: []}", "parameters.depth.values: empty list (give at least one value)"),
    (13, "seeds=[]", "seeds: empty list (give at least one value)"),
    (14, "parameters.depth={values: [4, 4]}", "parameters.depth.values: 4 appears twice"),
    (14, "parameters.depth={values: [4, 4.0]}", "parameters.depth.values: 4 appears twice"),
    (14, "parameters.qat_lr={values: [1e-3, 0.001]}", "parameters.qat_lr.values: 0.001 appears twice"),
    (14, "parameters.hidden={values: [8, [8]]}", "parameters.hidden.values: 8 appears twice"),
    (14, "seeds=[1, 0, 1]", "seeds: 1 appears twice"),
    (14, "data.dataset=[digits, digits]", "data.dataset: digits appears twice"),
    (
        15,
        "parameters.depth={values: [4, [8]]}",
        f"parameters.depth.values[1]: a list is not a whole number ({DEPTH})",
    ),
    (15, "parameters.depth={value: {a: 1}}", f"parameters.depth: a mapping is not a whole number ({DEPTH})"),
    (16, "parameters.depth={value: }", f"parameters.depth: no value ({DEPTH})"),
    (16, "parameters.depth={value: ~}", f"parameters.depth: no value ({DEPTH})"),
    (16, "seeds=", "seeds: no value (a list)"),
    (16, "train=", "train: no value (key: value pairs)"),
    (
        17,
        "parameters.activation={value: relo}",
        f"parameters.activation: unknown 'relo'; did you mean 'relu'? ({ACTIVATIONS})",
    ),
    (18, "parameters.activation={value: no}", f"parameters.activation: unknown 'no' ({ACTIVATIONS})"),
    (18, "parameters.activation={value: off}", f"parameters.activation: unknown 'off' ({ACTIVATIONS})"),
    (18, "parameters.activation={value: true}", f"parameters.activation: true is not a name ({ACTIVATIONS})"),
    (19, "data.dataset=mnsit", f"data.dataset: unknown 'mnsit'; did you mean 'mnist'? ({SETS})"),
    (20, "data.dataset=../../etc", f"data.dataset: unknown '../../etc' ({SETS})"),
    (22, "train.foo=1", "train: unknown key 'foo' (batch_size, warmup, qat)"),
    (22, "exclude=[{dpth: 1}]", f"exclude[0]: unknown key 'dpth'; did you mean 'depth'? ({ALL_AXES})"),
    (25, "train.qat.epochs=0", "train.qat.epochs: 0 is not allowed (a whole number, 1 to 100,000)"),
    (25, "train.qat.epochs=-1", "train.qat.epochs: -1 is not allowed (a whole number, 1 to 100,000)"),
    (25, "train.qat.epochs=1.5", "train.qat.epochs: 1.5 is not a whole number (a whole number, 1 to 100,000)"),
    (25, "train.qat.epochs=1:30", "train.qat.epochs: '1:30' is not a whole number (a whole number, 1 to 100,000)"),
    (25, "train.warmup.epochs=-1", "train.warmup.epochs: -1 is not allowed (a whole number, 0 to 100,000)"),
    (26, "train.batch_size=0", "train.batch_size: 0 is not allowed (a whole number, 1 to 10,000,000)"),
    (
        26,
        "train.batch_size=1338",
        "train.batch_size: 1338 is above the 1337 training samples of digits (1437 less val_size 100)",
    ),
    (27, "data.val_size=-1", "data.val_size: -1 is not allowed (a whole number, 1 to 10,000,000)"),
    (27, "data.val_size=0.2", "data.val_size: 0.2 is not a whole number (a whole number, 1 to 10,000,000)"),
    (
        28,
        "data.val_size=1437",
        "data.val_size: 1437 leaves none of the 1437 training samples of digits: set data.val_size, at most 1436; "
        "a fallback takes a fifth of the training samples, 287",
    ),
    (32, "resources.gpu=0.00001", f"resources.gpu: 1e-05 is not allowed ({GPU})"),
    (32, "resources.gpu=1.5", f"resources.gpu: 1.5 is not allowed ({GPU})"),
    (32, "resources.gpu=-1", f"resources.gpu: -1 is not allowed ({GPU})"),
    (32, "resources.gpu=4/3", f"resources.gpu: '4/3' is not allowed ({GPU})"),
    (32, "resources.gpu=1/0", f"resources.gpu: '1/0' is not a number ({GPU})"),
    (32, "resources.gpu=.inf", f"resources.gpu: inf is not allowed ({GPU})"),
    (32, "resources.cpu=0", "resources.cpu: 0 is not allowed (a fraction of 0.0001 to 1, or a whole number)"),
    (37, "run_cap=0", "run_cap: 0 is not allowed (a whole number, 1 to 1,000,000)"),
    (37, "run_cap=-1", "run_cap: -1 is not allowed (a whole number, 1 to 1,000,000)"),
    (37, "run_cap=1000000000", "run_cap: 1000000000 is not allowed (a whole number, 1 to 1,000,000)"),
    (37, "method=random", "error: x.yaml: run_cap: no value (how many configurations method random draws)"),
    (
        37,
        "run_cap=5",
        "run_cap: has no use with method grid, which runs every configuration (or write method: random)",
    ),
    (37, "method=tpe", "error: x.yaml: run_cap: no value (how many configurations method tpe draws)"),
    (38, "method=nsga", f"method: unknown 'nsga'; did you mean 'nsga3'? ({METHODS})"),
    (38, "method=bayes", "method: unknown 'bayes' (W&B's bayes is tpe or gp here)"),
    (38, "early_terminate=pareto", "early_terminate: 'pareto' is not allowed (key: value pairs)"),
    (
        38,
        "early_terminate.type=paretto",
        f"early_terminate.type: unknown 'paretto'; did you mean 'pareto'? ({TYPES})",
    ),
    (38, "early_terminate.type=[pareto]", f"early_terminate.type: a list is not a name ({TYPES})"),
    (
        38,
        "early_terminate.margin=0.1",
        "early_terminate: margin is no key of type none (it has none: name a type, such as pareto)",
    ),
    (
        38,
        "early_terminate={type: pareto, scope: all}",
        "early_terminate: scope is no key of type pareto (margin, signal, min_epochs, patience, risk, within)",
    ),
    (
        38,
        "early_terminate={type: patient, patience: 3, lower: 0.1}",
        "early_terminate: lower is no key of type patient (patience, min_delta)",
    ),
    (
        38,
        "early_terminate={type: pareto, margn: 0.1}",
        "early_terminate: unknown key 'margn'; did you mean 'margin'? "
        "(type, margin, signal, min_epochs, patience, risk, within)",
    ),
    (
        38,
        "early_terminate={type: patient, min_dlta: 0.1}",
        "early_terminate: unknown key 'min_dlta'; did you mean 'min_delta'? (type, patience, min_delta)",
    ),
    (
        38,
        "early_terminate={margn: 0.1}",
        f"early_terminate: unknown key 'margn'; did you mean 'margin'? ({PRUNER_KEYS})",
    ),
    (38, "early_terminate={type: pareto, margin: }", "early_terminate: margin must have a value (default: 0.005)"),
    (38, "early_terminate={type: median, scope: ~}", "early_terminate: scope must have a value (default: size)"),
    *[
        (38, f"early_terminate={{type: {kind}, {key}: {value}}}", f"early_terminate.{key}: {value} is not {what}")
        for kind, key, value, what in [
            ("pareto", "margin", -0.01, "allowed (an accuracy, 0 to 1)"),
            ("pareto", "margin", 5, "allowed (an accuracy, 0 to 1)"),
            ("pareto", "min_epochs", 0, "allowed (a whole number, 1 to 100,000)"),
            ("pareto", "patience", 0, "allowed (a whole number, 1 to 100,000)"),
            ("pareto", "patience", 1.5, "a whole number (a whole number, 1 to 100,000)"),
            ("median", "n_startup_trials", -1, "allowed (a whole number, 0 to 1,000,000)"),
            ("median", "n_warmup_steps", -1, "allowed (a whole number, 0 to 100,000)"),
            ("median", "interval_steps", 0, "allowed (a whole number, 1 to 100,000)"),
            ("percentile", "percentile", 101, "allowed (0 to 100)"),
            ("percentile", "percentile", -1, "allowed (0 to 100)"),
            ("hyperband", "min_resource", 0, "allowed (a whole number, 1 to 100,000)"),
            ("successive_halving", "reduction_factor", 1, "allowed (a whole number, 2 to 1,000)"),
            ("patient", "min_delta", 2, "allowed (an accuracy, 0 to 1)"),
            ("threshold", "lower", 20, "allowed (an accuracy, 0 to 1)"),
            ("wilcoxon", "p_threshold", 0, "allowed (above 0, up to 1)"),
            ("wilcoxon", "p_threshold", 1.5, "allowed (above 0, up to 1)"),
        ]
    ],
    (
        38,
        "early_terminate={type: pareto, signal: best}",
        "early_terminate.signal: unknown 'best' (best_so_far, raw, ema)",
    ),
    (38, "early_terminate={type: median, scope: none}", "early_terminate.scope: unknown 'none' (size, all)"),
    (
        38,
        "early_terminate.type=wilcoxon",
        "early_terminate: p_threshold 0.1 is never reached: the least p of 3 seeds is 0.125 (more seeds)",
    ),
    (
        38,
        "early_terminate={type: wilcoxon, p_threshold: 0.125}",
        "early_terminate.p_threshold: p_threshold 0.125 is never reached: the least p of 3 seeds is 0.125"
        " (more seeds)",
    ),
    (0, "duplicates=keep", "duplicates: unknown 'keep' (resample, replicate)"),
    (
        0,
        "duplicates=replicate",
        "duplicates: has no use with method grid, which never repeats itself (or leave it out)",
    ),
    (0, "replicate={within: 0.1}", "replicate: has neither 'front' nor 'until' (one of them)"),
    (0, "replicate=5", "replicate: 5 is not allowed (key: value pairs)"),
    (0, "replicate={front: 1}", "replicate.front: 1 is not allowed (a whole number, 2 to 10,000)"),
    (
        0,
        "replicate={front: 3}",
        "replicate.front: 3 is not above the 3 seeds that every configuration has (or leave replicate out)",
    ),
    (0, "replicate={front: 4, within: 2}", "replicate.within: 2 is not allowed (an accuracy, 0 to 1)"),
    (
        0,
        "replicate={front: 4, seeds: 2}",
        "replicate: unknown key 'seeds' (front, within, until, looks, alpha, same_within, budget, questions)",
    ),
    (
        0,
        "run.order=smallest_first",
        "run.order: unknown 'smallest_first'; did you mean 'small_first'?"
        " (small_first, large_first, shuffled, as_listed)",
    ),
    (39, "parameters.depth={min: 4, max: 1}", "parameters.depth: min 4 is not below max 1"),
    (39, "parameters.qat_lr={min: 0.1, max: 0.1}", "parameters.qat_lr: min 0.1 is not below max 0.1"),
    (
        39,
        "parameters.qat_lr={min: 0, max: 1, distribution: log_uniform}",
        f"parameters.qat_lr.min: 0 is not allowed ({LR})",
    ),
    (
        39,
        "parameters.qat_lr={min: 0.1, max: 1}",
        "parameters.qat_lr: a range is not possible with method grid (list values, or write method: random)",
    ),
    (42, "seeds=[-1]", "seeds[0]: -1 is not allowed (a whole number, 0 to 4,294,967,295)"),
    (42, "seeds=[one]", "seeds[0]: 'one' is not a whole number (a whole number, 0 to 4,294,967,295)"),
    (
        42,
        "seeds=[1180591620717411303424]",
        "seeds[0]: 1180591620717411303424 is not allowed (a whole number, 0 to 4,294,967,295)",
    ),
    (78, "seeds=[0x10]", "seeds[0]: '0x10' is not decimal (write 16)"),
    (78, f"seeds=[1{'0' * 50}]", f"seeds[0]: '1{'0' * 50}' is out of range"),
    *[
        (68, f"name={text}", f"name: {text!r} is not allowed ({NAME})")
        for text in (
            "../../x",
            "/abs",
            "a/b",
            ".",
            "..",
            "a" * 54 + "/",
            "CON",
            "nul.txt",
            "com1",
            "a.",
            "🙂",
            "-rf",
            "a b",
        )
    ],
    (68, "name=''", f"name: '' is not allowed ({NAME})"),
    (68, f"name={'a' * 300}", f"name: '{'a' * 55}...' is not allowed ({NAME})"),
    (68, 'name="a\\nb"', f"name: 'a\\nb' is not allowed ({NAME})"),
    (68, 'name="a\\0"', f"name: 'a\\x00' is not allowed ({NAME})"),
    (68, "name=5", f"name: 5 is not text (in quotes: {NAME})"),
    (0, "version=2", "version: 2 is not allowed (it must be 1)"),
    (0, "model.batch_norm=yes", "model.batch_norm: 'yes' is not a switch (true or false or factors)"),
    (0, "train.qat.momentum=1", "train.qat.momentum: 1 is not allowed (0 or more, below 1)"),
    (0, "train.qat={optimizer: adam, momentum: 0.9}", "train.qat: momentum is for sgd only (optimizer is adam)"),
    (0, "parameters.depth=3", "parameters.depth: 3 is not an axis (write {value: x} or {values: [x, y]})"),
    (0, "parameters.depth={value: 1, values: [2]}", "parameters.depth: has both 'value' and 'values' (one of them)"),
    (0, "parameters.depth={value: 1, min: 2}", "parameters.depth: has both values and a range (one of them)"),
    (
        0,
        "parameters.depth={min: 2}",
        "parameters.depth: has no values (write {value: x}, {values: [x, y]} or {min: a, max: b})",
    ),
    (
        0,
        "parameters.depth={min: 1, max: 2, distribution: log_uniform}",
        "parameters.depth: log_uniform is not possible on an axis of whole numbers",
    ),
    (
        0,
        "parameters.qat_lr={min: 1, max: 2, distribution: int_uniform}",
        "parameters.qat_lr: int_uniform is not possible on an axis of real numbers",
    ),
    (0, "exclude=[{depth: 2}]", "exclude[0].depth: 2 never occurs in parameters.depth"),
    (0, "exclude=[{depth: }]", f"exclude[0].depth: no value ({DEPTH})"),
    (0, "exclude=[{act_bits: 4}]", "exclude[0].act_bits: 4 never occurs in parameters.act_bits"),
    (0, "exclude=[{hidden: [8, 8]}]", "exclude[0].hidden: 8-8 never occurs in parameters.hidden"),
    (0, "exclude=[{}]", "exclude[0]: names no axis (it would exclude everything)"),
    (0, "exclude=[1]", "exclude[0]: 1 is not allowed (key: value pairs)"),
    *[
        (79, f"model={{factory: {text}}}", f"model.factory: {text!r} is not allowed (package.module:function)")
        for text in ("os", "os:", ":system", "os.system", "os:system()", "../os:system", "os:a.b", "ös:f", "a:b:c")
    ],
    (79, "data.factory=os:f", "error: x.yaml:4: data: has both 'dataset' and 'factory' (one of them)"),
    (79, "model={name: mlp, factory: os:f}", "model: has both 'name' and 'factory' (one of them)"),
    (79, "model.name=", "model: has neither 'name' nor 'factory' (one of them)"),
    (
        79,
        "model={factory: a:f, batch_norm: true}",
        "model: batch_norm is for mlp and cnn only (a factory has the layers that it builds)",
    ),
    (79, "model={factory: a:f, sha256: abc}", "model.sha256: 'abc' is not allowed (64 hexadecimal digits)"),
    (79, f"model.sha256={'a' * 64}", "model: sha256 is for a factory only"),
    (79, "data.shape=[1, 2, 3]", "error: x.yaml:4: data: shape is for a factory only"),
    (79, "model={factory: a:f, built: {'8': 3}}", "model.built.8: 3 is not allowed (key: value pairs)"),
]


@pytest.mark.parametrize(("row", "given", "line"), MATRIX, ids=lambda value: str(value)[:40])
def test_bad_value_is_told_in_one_line(row: int, given: str, line: str) -> None:
    assert told(given) == [line]


def test_every_method_is_there_and_all_but_a_grid_need_a_cap() -> None:
    for method in METHODS.split(", ")[1:]:
        assert small(f"method={method}", "run_cap=5").method == method
        assert told(f"method={method}") == [
            f"error: x.yaml: run_cap: no value (how many configurations method {method} draws)"
        ]


def test_repeats_are_for_a_search_only() -> None:
    assert small("method=nsga2", "run_cap=5", "duplicates=replicate").duplicates == "replicate"
    assert small().duplicates == "resample"
    assert told("method=random", "run_cap=5", "duplicates=replicate") == [
        "duplicates: has no use with method random, which never repeats itself (or leave it out)"
    ]


def test_mistakes_of_early_terminate_are_told_by_line() -> None:
    block = "early_terminate:\n  type: pareto\n  margin: 3\n  patience: 0\n  n_warmup: 1\nreplicate:\n  front: 2\n"
    assert errors(SMALL + block) == [
        "error: x.yaml:7: early_terminate.margin: 3 is not allowed (an accuracy, 0 to 1)",
        "error: x.yaml:8: early_terminate.patience: 0 is not allowed (a whole number, 1 to 100,000)",
        "error: x.yaml:9: early_terminate: unknown key 'n_warmup' "
        "(type, margin, signal, min_epochs, patience, risk, within)",
    ]
    block = "early_terminate:\n  type: parto\n  n_warmup: 1\n"  # of no known type: the keys of all
    assert errors(SMALL + block)[-1] == (
        f"error: x.yaml:7: early_terminate: unknown key 'n_warmup'; did you mean 'n_warmup_steps'? ({PRUNER_KEYS})"
    )
    block = "early_terminate:\n  type: wilcoxon\n  p_threshold: 0.05\nreplicate:\n  front: 2\n"
    assert [line.split(": ")[1:3] for line in errors(SMALL + block)] == [
        ["x.yaml:7", "early_terminate.p_threshold"],
        ["x.yaml:9", "replicate.front"],
    ]
    assert errors(SMALL + "early_terminate:\n  type: median\n  margin: 0.1\n") == [
        "error: x.yaml:5: early_terminate: margin is no key of type median"
        " (scope, within, n_startup_trials, n_warmup_steps, interval_steps)"
    ]


@pytest.mark.parametrize(("seeds", "p"), [(3, 0.126), (4, 0.1), (4, 0.0626), (1, 0.51), (10, 0.001)])
def test_wilcoxon_needs_seeds_enough_to_reach_its_threshold(seeds: int, p: float) -> None:
    rule = f"early_terminate={{type: wilcoxon, p_threshold: {p}}}"
    assert small(rule, f"seeds={list(range(seeds))}").early_terminate.p_threshold == p
    if seeds > 1:
        (line,) = told(rule, f"seeds={list(range(seeds - 1))}")
        assert f"is never reached: the least p of {seeds - 1} seeds is {0.5 ** (seeds - 1):g}" in line


@pytest.mark.parametrize(
    ("given", "text", "keeps_front"),
    [
        ("type: none", "{type: none}", False),
        (
            "type: pareto",
            "{type: pareto, margin: 0.005, signal: best_so_far, min_epochs: 2, patience: 1, risk: 0.1}",
            True,
        ),
        (  # from before there was a risk
            "type: pareto, margin: 0.01, signal: best_so_far, min_epochs: 2, patience: 1",
            "{type: pareto, margin: 0.01, signal: best_so_far, min_epochs: 2, patience: 1}",
            True,
        ),
        (
            "type: pareto, patience: 3, margin: 0, signal: ema",
            "{type: pareto, margin: 0.0, signal: ema, min_epochs: 2, patience: 3}",
            True,
        ),
        (
            "type: median",
            "{type: median, scope: size, n_startup_trials: 5, n_warmup_steps: 0, interval_steps: 1}",
            True,
        ),
        (
            "type: median, scope: all, n_startup_trials: 0",
            "{type: median, scope: all, n_startup_trials: 0, n_warmup_steps: 0, interval_steps: 1}",
            False,
        ),
        (
            "type: percentile",
            "{type: percentile, scope: size, n_startup_trials: 5, n_warmup_steps: 0, interval_steps: 1,"
            " percentile: 25.0}",
            True,
        ),
        ("type: hyperband", "{type: hyperband, scope: size, min_resource: 1, reduction_factor: 3}", True),
        (
            "type: successive_halving, scope: all",
            "{type: successive_halving, scope: all, min_resource: 1, reduction_factor: 3}",
            False,
        ),
        ("type: patient", "{type: patient, patience: 2, min_delta: 0.0}", False),
        ("type: threshold", "{type: threshold, n_warmup_steps: 0, interval_steps: 1, lower: 0.2}", False),
        ("type: wilcoxon", "{type: wilcoxon, scope: size, n_warmup_steps: 0, p_threshold: 0.1}", True),
    ],
    ids=lambda value: str(value)[:40],
)
def test_early_terminate_has_the_keys_of_its_type_filled_in(given: str, text: str, keeps_front: bool) -> None:
    spec = small(f"early_terminate={{{given}}}", "seeds=[0, 1, 2, 3]")
    rule = spec.early_terminate
    assert " ".join(spec.to_yaml().split("early_terminate:")[1].split("\nconstraints")[0].split()) == text
    assert loads(spec.to_yaml().encode(), "again.yaml") == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert rule.keeps_front is keeps_front
    own = {key.split(":")[0] for key in text[1:-1].split(", ")} - {"type"}
    assert {key for key, value in rule.options.items() if value is not None} == own
    assert all(getattr(rule, key) is None for key in set(type(rule).model_fields) - own - {"type"})


def test_smallest_file_stops_and_repeats_nothing() -> None:
    spec = small()
    assert (spec.early_terminate.type, spec.replicate, spec.duplicates) == ("none", None, "resample")
    assert (spec.early_terminate.options, spec.run.order) == ({}, "small_first")
    assert "replicate" not in spec.to_yaml()


def test_replicate_survives_canonical_text() -> None:
    spec = small("replicate={front: 5}")
    assert "replicate: {front: 5, within: 0.005}" in spec.to_yaml()
    assert loads(spec.to_yaml().encode(), "x") == spec


@pytest.mark.parametrize("name", [axis.name for axis in AXES if not axis.has_range])
@pytest.mark.parametrize("text", ["{min: 1, max: 2}", "{value: 1, max: 2}", "{distribution: uniform}"])
def test_range_is_for_numbers_only(name: str, text: str) -> None:
    what = "a range is not possible on this axis (write {value: x} or {values: [x, y]})"
    assert told(f"parameters.{name}={text}") == [f"parameters.{name}: {what}"]


def test_range_of_bits_does_not_reach_float() -> None:
    assert told("method=random", "run_cap=2", "parameters.weight_bits={min: 8, max: 32}") == [
        "parameters.weight_bits.max: a range ends at 16 (32 is float; give it as a value)"
    ]


@pytest.mark.parametrize(
    "text", ["size <= 3", "size_bytes =< 3", "size_bytes <= many", "size_bytes <= 1 ; 2", "", "<= 3"]
)
def test_bad_constraint_is_told(text: str) -> None:
    assert told(f"constraints=['{text}']")[0].startswith(f"constraints[0]: '{text}' is not allowed (like 'size_bytes")


@pytest.mark.parametrize("value", ["1e-3", "1E-3", "0.001", "1_0e-4"])
def test_number_may_be_written_in_any_way(value: str) -> None:
    assert small(f"train.qat.lr={value}").train.qat.lr == 0.001


@pytest.mark.parametrize(
    ("value", "gpu"),
    [
        ("1/3", 0.3333),
        ("2/3", 0.6666),
        ("0.33339", 0.3333),
        ("0", 0),
        ("1", 1),
        ("4", 4),
        ("0.0001", 0.0001),
        ("2/1", 2),
    ],
)
def test_share_is_cut_to_what_ray_counts(value: str, gpu: float) -> None:
    assert small(f"resources.gpu={value}").resources.gpu == gpu


def test_unknown_keys_name_the_nearest_known_one() -> None:
    found = errors(GOOD.replace("train:", "trian:").replace("seeds:", "foo:") + "metric: acuracy\nmode: maximum\n")
    known = ", ".join(Spec.model_fields)
    assert found == [
        f"error: x.yaml:15: unknown key 'foo' ({known})",
        f"error: x.yaml:18: unknown key 'trian'; did you mean 'train'? ({known})",
        f"error: x.yaml:26: unknown key 'metric'; it is called data.metric here, and knows its direction ({known})",
        f"error: x.yaml:27: unknown key 'mode'; leave it out: it follows from data.metric ({known})",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: a", "x.yaml:2: unknown key 'nam'; did you mean 'name'?"),
        ("version: 1", "x.yaml:1: unknown key 'Version'; did you mean 'version'?"),
        ("parameters: {}", "x.yaml:3: unknown key 'parameter'; did you mean 'parameters'?"),
        ("parameters: {}", "x.yaml:3: parameters.scale: unknown key 'vlaues'; did you mean 'values'?"),
        ("parameters: {}", "x.yaml:3: parameters.scale: unknown key 'Value'; did you mean 'value'?"),
    ],
)
def test_a_misspelt_key_is_not_missing_too(text: str, line: str) -> None:
    word = line.split("'")[1]
    wrong = f"parameters: {{scale: {{{word}: [lsq]}}}}" if "scale" in line else text.replace(line.split("'")[3], word)
    (found,) = errors(SMALL.replace(text, wrong))
    assert found.startswith(f"error: {line}")


def test_a_key_is_missing_beside_an_unknown_one_that_means_another() -> None:
    found = errors(SMALL.replace("name: a", "seed: [1]"))
    assert [line.split(" (")[0] for line in found] == [
        "error: x.yaml: name: is missing",
        "error: x.yaml:2: unknown key 'seed'; did you mean 'seeds'?",
    ]


def test_code_is_never_named_by_a_file() -> None:
    assert errors(SMALL + "trainable: evil.mod:f\n")[0].startswith("error: x.yaml:5: unknown key 'trainable'")
    assert told("model.name=evil.mod:f") == ["model.name: unknown 'evil.mod:f' (mlp, cnn)"]


def test_missing_keys_are_named() -> None:
    assert errors("description: x") == [
        f"error: x.yaml: {key}: is missing" for key in ("version", "name", "parameters", "data")
    ]
    assert errors(SMALL.replace("dataset: digits, ", "")) == [
        "error: x.yaml:4: data: has neither 'dataset' nor 'factory' (one of them)"
    ]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "error: x.yaml: file is empty"),
        (b"# only\n", "error: x.yaml: file is empty"),
        (b"[1]", "error: x.yaml: top level must be key: value pairs"),
        (b"just text", "error: x.yaml: top level must be key: value pairs"),
        (b"a: b: c", "error: x.yaml:1:5: not valid YAML: mapping values are not allowed here"),
        (b"!x {a: 1}", "error: x.yaml:1: YAML tag '!x' is not supported"),
    ],
)
def test_file_that_is_no_mapping_is_refused(data: bytes, line: str) -> None:
    with pytest.raises(SpecError) as caught:
        loads(data, "x.yaml")
    assert str(caught.value) == line


def test_every_mistake_is_listed_by_line_whoever_finds_it() -> None:
    text = GOOD.replace("[1, 2, 3, 4]}", "[0, 010, 65]}").replace("sgd, lr: 0.1}", "sgdd, lr: !x 1}")
    text = text.replace("seeds: [0, 1, 2]", "seeds: [0, 0]").replace("cpu: 1}", "cpu: 1, tpu: 1}")
    found = errors(text, "name=..")
    assert [line.split(": ")[1] for line in found] == ["--set", *[f"x.yaml:{n}" for n in (7, 7, 7, 15, 20, 20, 24)]]


def test_more_than_twenty_mistakes_are_counted() -> None:
    found = errors(SMALL, f"seeds={list(range(-30, 0))}")
    assert len(found) == MAX_LINES + 1
    assert found[-1] == "error: ... and 10 more"


def test_override_of_a_wrong_value_heals_it() -> None:
    assert loads(SMALL.replace("100", "010").encode(), "x.yaml", ["data.val_size=10"]).data.val_size == 10


def test_control_characters_of_the_user_are_never_printed() -> None:
    line = errors(SMALL + '"\\e[2J\\n": 1\n')[0]
    assert line.isprintable()
    assert "\\x1b[2J\\n" in line
    with pytest.raises(SpecError) as caught:
        loads(b"", "a\n\x1b.yaml")
    assert str(caught.value) == "error: a\\n\\x1b.yaml: file is empty"


def test_load_reads_a_file_and_judges_its_bytes(tmp_path: Any) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(GOOD)
    assert load(path) == good()
    path.write_bytes(b"#" * 2_000_000)
    with pytest.raises(SpecError, match=r"grid.yaml: file has more than 1,000,000 bytes$"):
        load(path)


def test_axis_wins_over_model_and_train() -> None:
    spec = small("parameters={hidden: {values: [8, [16, 8]]}, qat_lr: {value: 1}}")
    assert spec.axes["hidden"].values == ((8,), (16, 8))
    assert spec.axes["qat_lr"].values == (1.0,)
    assert {trial.qat.lr for trial in plan(spec).trials} == {1.0}


def test_augment_comes_from_the_training_unless_it_is_an_axis() -> None:
    shifting = small("train.qat.augment=shift")
    assert [(trial.qat.augment, trial.cells["augment"]) for trial in plan(shifting).trials] == [("shift", "shift")]
    both = plan(small("train.qat.augment=shift", "parameters={augment: {values: [shift, none]}}"))
    assert [trial.qat.augment for trial in both.trials] == ["shift", "none"]
    assert (both.warmups, both.twins) == (1, 0)
    assert both.trials[1].trial_id == plan(small()).trials[0].trial_id  # as if there were no such axis
    assert shifting.result_settings() == small().result_settings()


def test_a_share_of_plain_images_counts_only_where_images_are_distorted() -> None:
    ids = {
        text: plan(small(f"train.qat.augment={augment}", f"train.qat.plain_share={text}")).trials[0].trial_id
        for augment, text in (("affine", "null"), ("affine", "0"), ("affine", "0.5"), ("none", "0.25"))
    }
    assert ids["null"] == ids["0"] != ids["0.5"]
    assert ids["0.25"] == plan(small()).trials[0].trial_id
    wrong = told("train.qat.plain_share=1.5", "train.warmup.plain_share=-0.1")
    assert wrong == [
        "train.warmup.plain_share: -0.1 is not allowed (0 to 1)",
        "train.qat.plain_share: 1.5 is not allowed (0 to 1)",
    ]


def test_a_factory_decides_about_biases_itself() -> None:
    (line,) = told("model={factory: 'mine:net'}", "parameters.bias={values: [all, none]}")
    assert line.endswith("bias: is for mlp and cnn only (or all): a factory builds its layers with or without biases")


def test_distortions_need_images() -> None:
    own = "data={factory: 'mine:data', shape: [600, 20, 4], val_size: 100}"
    what = "needs square images, which a factory returns as (rows, channels, height, width)"
    line = f"shift {what}; mine:data has 20 numbers a sample (or none)"
    assert told(own, "train.qat.augment=shift") == [f"train.qat.augment: {line}"]
    assert told(own, "parameters={augment: {value: shift}}") == [f"parameters.augment: {line}"]
    assert told(own, "train.warmup.augment=shift") == [f"train.warmup.augment: {line}"]
    assert told(own, "parameters={augment: {values: [none, elastic, shift]}}") == [
        f"parameters.augment: {line}",
        f"parameters.augment: {line.replace('shift', 'elastic')}",
    ]
    assert [image_side(n) for n in (784, 3072, 64, 12, 1, 20, 6)] == [28, 32, 8, 2, 1, None, None]


def test_a_resolution_needs_larger_images() -> None:
    images = "data={factory: 'mine:data', shape: [600, 80, 4], image: [1, 8, 10], val_size: 100}"
    axis = "parameters={resolution: {values: [null, 8, 9]}}"
    ends = "mine:data has 80 numbers a sample (or null)"
    line = f"parameters.resolution: 9 is more than the 8 pixels of the shorter side; {ends}"
    assert told(images, axis) == [line]
    assert told(images, "method=random", "run_cap=4", "parameters={resolution: {min: 2, max: 9}}") == [line]
    for wrong in ("image: [1, 1, 80]", "image: [1, 8, 10], dtype: int16"):
        (line,) = told(f"data={{factory: 'mine:data', shape: [600, 80, 4], {wrong}, val_size: 100}}", axis)[:1]
        assert line.startswith("parameters.resolution: resolution needs ")
    coder = "data={dataset: mnist, task: autoencoder}"
    (line,) = told(coder, "parameters={resolution: {values: [4, 8]}}")
    assert line.startswith("parameters.resolution: one value only with task autoencoder")
    assert small(coder, "parameters={resolution: {value: 4}}").task.name == "autoencoder"


def test_a_resolution_changes_the_network_and_its_warmup() -> None:
    axis = "parameters={resolution: {values: [14, null, 28]}}"
    half, whole, same = plan(small("data={dataset: mnist}", axis)).trials  # the smallest first
    assert [one.structure.layers[0].inputs for one in (whole, same, half)] == [784, 784, 196]
    assert (same.averaging, half.averaging) == (None, Averaging((1, 28, 28), (14, 14)))
    assert half.sizes.params == 196 * 24 + 24 + 24 * 10 + 10
    assert len({one.warmup_id for one in (whole, same, half)}) == 3
    assert (whole.label, half.label) == ("d1 w32 identity", "d1 w32 identity r14")


def test_bits_of_layers_fit_the_network() -> None:
    wide = "model={hidden: [32, 16]}"
    what = "parameters.layer_bits: [8, 2] has 2 entries, and the network 3 layers (one for each)"
    assert told(wide, "parameters={layer_bits: {values: [null, [8, 2]]}, weight_bits: {value: 2}}") == [what]
    (line,) = told(wide, "parameters={layer_bits: {value: [8, 2, 2]}}")
    assert line.endswith("tables and labels show: set weight_bits to one of its entries, such as {value: 2}")
    (line,) = told("parameters={weight_bits: {value: [8, 2]}}")
    assert line.endswith("is not a whole number (bits of each layer are the axis layer_bits)")
    assert len(told("parameters={layer_bits: {values: [[8, 77], []]}}")) == 2
    both = "{hidden: {values: [[24], [8, 8]]}, weight_bits: {value: 2}, layer_bits: {values: [[8, 2], [8, 2, 2]]}}"
    planned = plan(small(f"parameters={both}"))
    assert [(one.hidden, one.layer_bits) for one in planned.trials] == [((8, 8), (8, 2, 2)), ((24,), (8, 2))]
    several = {"layer_bits with 3 numbers for 2 layers": 1, "layer_bits with 2 numbers for 3 layers": 1}
    assert (planned.infeasible, planned.broken) == (2, several)
    (line,) = told("parameters={layer_act_bits: {value: [8, 32]}, act_bits: {value: 4}}")
    assert "[8, 32] replaces act_bits, which tables and labels show: set act_bits to one of its entries" in line
    axes = "layer_act_bits: {value: [8, 32]}, act_bits: {values: [8, null]}, scale: {values: [lsq, minmax]}"
    mixed = plan(small(f"parameters={{{axes}}}"))
    assert [(one.input_bits, one.bits) for one in mixed.trials] == [((8, None), 32)] * 4
    assert mixed.twins == 2  # the list replaces act_bits, and scale has an effect on inputs


def test_bits_of_layers_share_a_warmup_and_twins_are_told() -> None:
    axes = "{weight_bits: {values: [2, 4]}, first_bits: {values: [null, 2]}, layer_bits: {values: [null, [8, 2]]}}"
    planned = plan(small("parameters=" + axes))
    assert planned.warmups == 1
    # At w2, first_bits 2 is none; of the four with layer_bits one is left.
    assert (len(planned.trials), planned.twins) == (8, 1 + 3)
    assert {one.label for one in planned.trials} >= {"d1 w4 identity first2", "d1 w2 identity b8-2", "d1 w4 identity"}
    for trial in planned.trials:
        assert make_trial(planned.spec, trial.cells) == trial
    alone = plan(small("parameters={weight_bits: {values: [2, 4]}}")).trials
    assert {one.trial_id for one in alone} < {one.trial_id for one in planned.trials}


# --- Canonical text, resolving, identity.

axis_values = {
    "depth": st.integers(1, 64),
    "weight_bits": st.integers(1, 16) | st.just(32),
    "activation": st.sampled_from(["identity", "relu", "tanh"]),
    "act_bits": st.none() | st.integers(1, 16),
    "scale": st.sampled_from(["minmax", "absmean", "lsq"]),
    "factor_init": st.sampled_from(["default", "orthogonal", "svd"]),
    "hidden": st.lists(st.integers(1, 99), min_size=1, max_size=3),
    "warmup_lr": st.floats(1e-300, 1e300),
    "qat_lr": st.floats(1e-9, 10),
}
values = st.fixed_dictionaries(
    {},
    optional={
        name: st.lists(value, min_size=1, max_size=3, unique_by=repr).map(lambda given: {"values": given})
        for name, value in axis_values.items()
    },
)
texts = st.text(st.characters(codec="utf-8"), max_size=30)


@settings(max_examples=60, deadline=None)
@given(values, texts, st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True), st.booleans())
def test_canonical_text_loads_back_equal(parameters: Any, description: str, seeds: list[int], norm: bool) -> None:
    data = {
        "version": 1,
        "name": "a",
        "description": description,
        "parameters": parameters,
        "exclude": [{name: axis["values"][0]} for name, axis in parameters.items()],
        "seeds": seeds,
        "data": {"dataset": ["mnist"]},
        "model": {"batch_norm": norm},
        "constraints": ["size_bytes  <=1e4"],
    }
    spec = Spec.model_validate(data)
    text = spec.to_yaml()
    again = loads(text.encode(), "again.yaml")
    assert again == spec
    assert again.to_yaml() == text
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_ranges_survive_canonical_text() -> None:
    spec = small("method=random", "run_cap=3", "parameters={qat_lr: {min: 1e-4, max: 1, distribution: log_uniform}}")
    assert loads(spec.to_yaml().encode(), "x") == spec
    assert "qat_lr: {min: 0.0001, max: 1.0, distribution: log_uniform}" in spec.to_yaml()


def test_canonical_text_does_not_depend_on_the_order_of_keys() -> None:
    turned = "".join(reversed(SMALL.splitlines(keepends=True)))
    assert loads(turned.encode(), "x").to_yaml() == small().to_yaml()


def test_resolve_lowers_the_split_of_a_fallback_only() -> None:
    assert good().resolve("mnist").data.val_size == 5000
    assert good().resolve("digits").data.val_size == 1437 // 5
    assert good("data.val_size=10").resolve("digits").data.val_size == 10
    assert good().resolve("digits").data.dataset == ("digits",)


def test_resolve_refuses_what_does_not_fit() -> None:
    with pytest.raises(SpecError, match=r"^error: data.dataset: 'kmnist' is not in the list \(mnist, digits\)$"):
        good().resolve("kmnist")
    with pytest.raises(
        SpecError, match=r"^error: train.batch_size: 1151 is above the 1150 training samples of digits"
    ):
        good("train.batch_size=1151").resolve("digits")


def test_result_settings_change_with_results_and_not_with_axes() -> None:
    base = good().result_settings()
    assert json.loads(json.dumps(base)) == base
    same = [
        "name=b",
        "parameters.depth={value: 9}",
        "train.qat.lr=3",
        "model.hidden=[8]",
        "resources.cpu=2",
        "exclude=[]",
        "early_terminate.type=pareto",
        "replicate={front: 9}",
        "run.order=shuffled",
    ]
    for option in same:
        assert good(option, *(["exclude=[]"] if option.startswith("parameters") else [])).result_settings() == base
    for option in [
        "seeds=[0]",
        "data.val_size=1",
        "data.dataset=mnist",
        "train.qat.epochs=2",
        "model.batch_norm=true",
    ]:
        assert good(option).result_settings() != base


TRIAL = Configuration(
    depth=2,
    weight_bits=4,
    activation="relu",
    act_bits=None,
    scale="lsq",
    factor_init="orthogonal",
    hidden=(64, 32),
    batch_norm=True,
    dataset="mnist",
    val_size=5000,
    batch_size=64,
    warmup=Warmup(),
    qat=Qat(),
    seeds=(0, 1),
)
CHANGED: dict[str, Any] = {
    "depth": 3,
    "weight_bits": 5,
    "activation": "gelu",
    "act_bits": 4,
    "scale": "minmax",
    "factor_init": "default",
    "granularity": "channel",
    "levels": "full",
    "decompose": "hidden",
    "hidden": (64,),
    "resolution": 8,
    "channels": 4,
    "blocks": ("conv 8", "pool"),
    "model_blocks": ("conv 4", "pool"),
    "padding": "same",
    "first_bits": 8,
    "last_bits": 8,
    "layer_bits": (8, 2),
    "layer_act_bits": (8, 32),
    "overhead": "pow2",
    "bias": "none",
    "batch_norm": False,
    "dataset": "kmnist",
    "val_size": 4999,
    "batch_size": 65,
    "warmup": Warmup(lr=0.2),
    "qat": Qat(schedule="cosine"),
    "seeds": (0, 2),
    "own_model": OwnModel("mine:net", "a" * 64),
    "own_data": OwnData("a" * 64, "b" * 64, DatasetInfo(600, 64, 10)),
    "task": "binary",
    "metric": "f1",
    "normalize": "feature",
}


def test_trial_id_is_frozen() -> None:
    # A change here makes every result written so far count as not done: raise RESULTS_VERSION instead.
    assert (TRIAL.trial_id, TRIAL.warmup_id) == ("fc0cacca9796", "0a8d22cc2f8a")


@pytest.mark.parametrize("name", [field.name for field in fields(Configuration)])
def test_trial_id_changes_with_every_field(name: str) -> None:
    other = replace(TRIAL, **{name: CHANGED[name]})
    assert other.trial_id != TRIAL.trial_id
    shared = name in (
        "weight_bits",
        "first_bits",
        "last_bits",
        "layer_bits",
        "layer_act_bits",
        "act_bits",
        "scale",
        "granularity",
        "levels",
        "overhead",
        "qat",
    )
    assert (other.warmup_id == TRIAL.warmup_id) is shared


def test_svd_shares_one_warmup_between_depths_and_activations() -> None:
    trials = [replace(TRIAL, factor_init="svd", depth=d, activation=a) for d in (1, 2, 3) for a in ("relu", "tanh")]
    assert len({trial.warmup_id for trial in trials}) == 1
    undivided = replace(TRIAL, factor_init="default", depth=1, activation="identity")
    assert {trial.warmup_id for trial in trials} == {undivided.warmup_id}
    assert len({trial.trial_id for trial in trials}) == 6


def test_trial_ids_change_with_the_results_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = TRIAL.trial_id, TRIAL.warmup_id
    monkeypatch.setattr(configuration, "RESULTS_VERSION", 2)
    trial = replace(TRIAL)
    assert not {trial.trial_id, trial.warmup_id} & set(before)


def test_trial_id_does_not_see_how_a_number_was_written() -> None:
    ids = {plan(small(f"train.qat.lr={lr}")).trials[0].trial_id for lr in ("1e-3", "0.001", "1E-3")}
    assert len(ids) == 1
    assert plan(small("train.qat.lr=1")).trials[0].trial_id == plan(small("train.qat.lr=1.0")).trials[0].trial_id


def test_label_says_what_is_not_as_it_always_was() -> None:
    assert TRIAL.label == f"d{TRIAL.depth} w4 relu h64-32"
    other = replace(TRIAL, levels="full", act_bits=2, decompose="hidden", hidden=(24,))
    assert other.label.endswith("w4 a2 relu full hidden")


def test_config_holds_the_axes_in_order() -> None:
    assert tuple(TRIAL.cells) == AXIS_NAMES
    assert TRIAL.cells["hidden"] == "64-32"
    assert (TRIAL.cells["warmup_lr"], TRIAL.cells["qat_lr"]) == (0.1, 0.01)
    assert replace(TRIAL, qat=Qat(augment="shift")).cells["augment"] == "shift"


def test_ledger_is_that_of_the_network() -> None:
    info = dataset_of("mnist")
    assert TRIAL.sizes == mlp_sizes(
        info.inputs, (64, 32), info.classes, depth=2, weight_bits=4, act_bits=None, batch_norm=True
    )


def test_spec_error_without_a_place_prints_what_it_knows() -> None:
    assert str(SpecError([Problem(None, ("a", 0), "is wrong")])) == "error: a[0]: is wrong"


def test_mutated_files_give_a_spec_or_lines() -> None:
    generator = random.Random(0)
    pieces = ["{", "}", "[", "]", ":", " ", "\n", "-", "0", "1e9", "null", "'", "&a", "*a", "!t", "é", "\t", "values"]
    kept = 0
    for _ in range(400):
        text = GOOD
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(len(text))
            text = text[:at] + generator.choice(pieces) + text[at + generator.randint(0, 4) :]
        found: list[str] = []
        try:
            kept += loads(loads(text.encode(), "x.yaml").to_yaml().encode(), "y.yaml").version
        except SpecError as error:
            found = str(error).splitlines()
        assert all(line.startswith("error: x.yaml") and line.isprintable() for line in found)
    assert 0 < kept < 400


@pytest.mark.parametrize("module", ["yaml_reader", "sweep_file", "plan", "axes"])
def test_import_loads_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, qdtune.spec.{module}; print({{'torch', 'ray', 'optuna', 'numpy', 'rich'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_make_trial_gives_the_trial_of_a_config() -> None:
    planned = plan(good("parameters.hidden={values: [8, [16, 8]]}").resolve("mnist"))
    assert [make_trial(planned.spec, trial.cells) for trial in planned.trials] == planned.trials
