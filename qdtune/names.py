"""The words of the project: axes and what may be named on them, methods, pruners, data sets. No dependency at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

FLOAT_BITS = 32  # of weights: not quantised

METHODS = ("grid", "random", "tpe", "nsga2", "nsga3", "gp", "qmc")
PLANNED = ("grid", "random")  # known before anything runs; the others ask what came out so far
ORDERS = ("small_first", "large_first", "shuffled", "as_listed")
# The keys of each pruner and what they are where not given. The names are Optuna's, but for `pareto`, which is ours.
PRUNERS: dict[str, dict[str, Any]] = {
    "none": {},
    "pareto": {"margin": 0.01, "signal": "best_so_far", "min_epochs": 2, "patience": 1},
    "median": {"scope": "size", "n_startup_trials": 5, "n_warmup_steps": 0, "interval_steps": 1},
    "percentile": {
        "scope": "size",
        "percentile": 25.0,
        "n_startup_trials": 5,
        "n_warmup_steps": 0,
        "interval_steps": 1,
    },
    "hyperband": {"scope": "size", "min_resource": 1, "reduction_factor": 3},
    "successive_halving": {"scope": "size", "min_resource": 1, "reduction_factor": 3},
    "patient": {"patience": 2, "min_delta": 0.0},
    "threshold": {"lower": 0.2, "n_warmup_steps": 0, "interval_steps": 1},
    "wilcoxon": {"scope": "size", "p_threshold": 0.1, "n_warmup_steps": 0},
}
COMPILES = ("auto", "always", "never")
SIGNALS = ("best_so_far", "raw", "ema")
ACTIVATIONS = ("identity", "relu", "leaky_relu", "gelu", "tanh", "hardtanh")
SCALES = ("minmax", "absmean", "lsq")
AUGMENTS = ("none", "shift", "elastic")
FACTOR_INITS = ("default", "orthogonal", "isometry", "svd")
GRANULARITIES = ("tensor", "channel")
LEVELS = ("symmetric", "ternary", "full")
DECOMPOSED = ("all", "hidden")
# Of `batch_norm`, beside true (a normalisation after each hidden layer) and false: between factors, too.
NORMS = ("factors",)
BUDGETS = (
    "size_bytes",
    "params",
    "weight_bytes",
    "scale_bytes",
    "bias_bytes",
    "other_bytes",
    "fp32_bytes",
    "depth",
    "weight_bits",
)

AXES = (
    "depth",
    "weight_bits",
    "activation",
    "act_bits",
    "scale",
    "factor_init",
    "granularity",
    "levels",
    "decompose",
    "hidden",
    "warmup_lr",
    "qat_lr",
    "augment",
)
# Where an axis decides nothing: a single factor has nothing in between and splits no layer, floats have no step size
# and no levels, and one bit has two levels, whatever they are called.
IDLE: list[tuple[dict[str, Any], str]] = [
    ({"depth": 1}, "activation"),
    ({"depth": 1}, "decompose"),
    ({"weight_bits": FLOAT_BITS, "act_bits": None}, "scale"),
    ({"weight_bits": FLOAT_BITS}, "granularity"),
    ({"weight_bits": FLOAT_BITS}, "levels"),
    ({"weight_bits": 1}, "levels"),
]
# What earlier versions did, which knew no such axes: where one has this value, nothing is said of it.
SINCE = {"granularity": "tensor", "levels": "symmetric", "decompose": "all", "augment": "none"}
HIDDEN = (24,)  # the notebook's widths, which a sweep file need not name


class DatasetInfo(NamedTuple):
    """Training samples (validation split included), input features, classes."""

    train: int
    inputs: int
    classes: int


DATASETS = {
    "mnist": DatasetInfo(60_000, 784, 10),
    "fashion_mnist": DatasetInfo(60_000, 784, 10),
    "kmnist": DatasetInfo(60_000, 784, 10),
    "cifar10": DatasetInfo(50_000, 3072, 10),
    "digits": DatasetInfo(1437, 64, 10),
    "synthetic": DatasetInfo(512, 16, 4),  # blobs, for tests only
}


def image_side(inputs: int) -> int | None:
    """Pixels along a side of a square image of one or three colours and so many numbers; None where it is none."""
    for colours in (1, 3):
        side = math.isqrt(inputs // colours)
        if colours * side**2 == inputs:
            return side
    return None


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The axes of one configuration, None for those that change nothing (`IDLE`): equal ones are the same network.

    Args:
        config: a value per axis, by name; other keys are kept.
    """
    idle = [axis for where, axis in IDLE if all(config[name] == value for name, value in where.items())]
    told = {**config, **dict.fromkeys(idle)}
    ternary = told["levels"] == "ternary" and config["weight_bits"] != 2
    return told | {"levels": "symmetric"} if ternary else told


def label(config: Mapping[str, Any]) -> str:
    """A configuration in a few words: `d2 w1 relu`, and what is not as it always was: `d2 w2 relu h64-32 ternary`.

    Args:
        config: a value per axis, by name, hidden widths as text.
    """
    inputs = "" if config["act_bits"] is None else f" a{config['act_bits']}"
    others = "".join(f" {config[axis]}" for axis in SINCE if config[axis] != SINCE[axis])
    widths = "" if config["hidden"] == text_of(HIDDEN) else f" h{config['hidden']}"
    return f"d{config['depth']} w{config['weight_bits']}{inputs} {config['activation']}{widths}{others}"


def text_of(value: object) -> str:
    """A value of an axis as it stands in tables: (64, 32) is 64-32."""
    return "-".join(map(str, value)) if isinstance(value, tuple) else "null" if value is None else str(value)
