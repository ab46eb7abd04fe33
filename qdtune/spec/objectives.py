"""What a configuration is judged by: its metric (such as accuracy), bytes, parameters.

Everything that names an objective derives it from `OBJECTIVES`: what constraints and `objectives` of a sweep file may
name, the columns of the tables, the ranks of the Pareto table, what stops a trial, the directions of the Optuna study
and the figures of the front. To add one, add an entry at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qdtune.datasets.dataset import DatasetInfo
from qdtune.messages import format_count
from qdtune.spec.axes import AXES
from qdtune.spec.flash import flash_bytes
from qdtune.spec.tasks import ACCURACY, AUC, F1, METRICS, R2, Metric, task_of


@dataclass(frozen=True)
class Objective:
    """One number that is to be large or small.

    Attributes:
        name: its column.
        direction: which way is better, in Optuna's words.
        unit: of the number.
        text: one sentence for the docs.
        value: of a `Configuration`, where that is known before it is trained; None: training tells.
        since: the schema version of the tables that it came with; tables of an older version read as null.
        is_cost: whether a sweep file may choose it as a cost of the front.
        noun: one of its unit after a number, such as `byte`; empty: its name follows the number.
        title: of its axis in figures, without the unit; empty: its name.
        uncompressed: its value if nothing is compressed, where a hypervolume ends; None: twice the largest value.
    """

    name: str
    direction: Literal["maximize", "minimize"]
    unit: str
    text: str
    value: Callable[[Any], int] | None = None
    since: int = 1
    is_cost: bool = False
    noun: str = ""
    title: str = ""
    uncompressed: Callable[[Any], int] | None = None

    @property
    def sign(self) -> int:
        """What to multiply it by so that less is better."""
        return -1 if self.direction == "maximize" else 1

    @property
    def head(self) -> str:
        """The head of its column in the table of the front."""
        return f"{self.noun}s" if self.noun else self.name

    @property
    def axis_title(self) -> str:
        """The title of its axis in figures."""
        return f"{self.title} ({self.head}, log scale)" if self.title else f"{self.head} (log scale)"

    def say(self, value: int) -> str:
        """A value with its unit: `1,234 bytes`."""
        return format_count(value, self.noun) if self.noun else f"{value:,} {self.name}"

    def log2(self, value: int) -> float:
        """The value in halvings, less is better, as hypervolumes measure it; 0 counts as 1."""
        return self.sign * math.log2(max(value, 1))


def _judged_by(metric: Metric) -> Objective:
    unit = "fraction" if metric.is_fraction else "number"
    text = f"{metric.name} on the validation split, mean of the seeds"
    return Objective(metric.val, metric.direction, unit, text)


_JUDGING = {metric: _judged_by(metric) for metric in METRICS}
PARAMS = Objective("params", "minimize", "parameters", "trainable parameters", lambda c: c.sizes.params)
SIZE_BYTES = Objective(
    "size_bytes",
    "minimize",
    "bytes",
    "total size of the shipped model",
    lambda c: c.sizes.size_bytes,
    is_cost=True,
    noun="byte",
    title="size shipped",
    uncompressed=lambda c: c.sizes.fp32_bytes,
)
WEIGHT_BYTES = Objective(
    "weight_bytes", "minimize", "bytes", "weights, packed at their bit width", lambda c: c.sizes.weight_bytes
)
SCALE_BYTES = Objective("scale_bytes", "minimize", "bytes", "step sizes", lambda c: c.sizes.scale_bytes)
BIAS_BYTES = Objective("bias_bytes", "minimize", "bytes", "biases and normalisation", lambda c: c.sizes.bias_bytes)
OTHER_BYTES = Objective(
    "other_bytes",
    "minimize",
    "bytes",
    "parameters and buffers of all other layers, float32",
    lambda c: c.sizes.other_bytes,
    since=3,
)
FP32_BYTES = Objective(
    "fp32_bytes",
    "minimize",
    "bytes",
    "total size of the shipped model without quantisation",
    lambda c: c.sizes.fp32_bytes,
)
MACS = Objective(
    "macs",
    "minimize",
    "multiplications",
    "multiply-accumulates for one sample, in the layers that are quantised",
    lambda c: c.structure.macs(c.depth, c.decompose),
    since=7,
    is_cost=True,
    noun="MAC",
)
ACTIVATION_BYTES = Objective(
    "activation_bytes",
    "minimize",
    "bytes",
    "most bytes that one layer reads and writes for one sample, both at act_bits (null: float32)",
    lambda c: c.structure.activation_bytes(c.depth, c.input_bits, c.decompose),
    since=7,
    is_cost=True,
    noun="activation byte",
)
RAM_BYTES = Objective(
    "ram_bytes",
    "minimize",
    "bytes",
    "static buffers of the model as C (`qdtune export --format c`), without the stack",
    lambda c: c.structure.ram_bytes(c.depth, c.bits, c.input_bits, c.decompose, task_of(c.task).has_class),
    since=9,
    is_cost=True,
    noun="RAM byte",
    title="RAM",
)
FLASH_BYTES = Objective(
    "flash_bytes",
    "minimize",
    "bytes",
    "constants of the model as C (`qdtune export --format c`), by a rule, without the code",
    flash_bytes,
    since=10,
    is_cost=True,
    noun="flash byte",
    title="flash",
)
OBJECTIVES = (
    _JUDGING[ACCURACY],
    PARAMS,
    SIZE_BYTES,
    WEIGHT_BYTES,
    SCALE_BYTES,
    BIAS_BYTES,
    OTHER_BYTES,
    FP32_BYTES,
    MACS,
    ACTIVATION_BYTES,
    RAM_BYTES,
    FLASH_BYTES,
)
KNOWN_BEFORE = tuple(one for one in OBJECTIVES if one.value)
# What `objectives` of a sweep file may name after its metric, and what it means if there is no such key.
COSTS = tuple(one for one in KNOWN_BEFORE if one.is_cost)
DEFAULT_COSTS = (SIZE_BYTES,)
MOST_COSTS = 3  # of one front: over more of them hardly any configuration dominates another
CHOICE_OF_COSTS = f"one to {MOST_COSTS} of {', '.join(one.name for one in COSTS)}"
OBJECTIVE_NAMES = (*(metric.val for metric in METRICS), *(one.name for one in COSTS))
# What a constraint may name: it is judged before anything is trained.
BOUNDED = (*(one.name for one in KNOWN_BEFORE), *(axis.name for axis in AXES if axis.is_bounded))


def known_before(configuration: Any) -> dict[str, int]:
    """The objectives of a `Configuration` that are known before it is trained, by name."""
    return {one.name: one.value(configuration) for one in KNOWN_BEFORE if one.value}


def find_known(configuration: Any, name: str) -> int:
    """The objective of this name, which is known before training."""
    return next(one.value(configuration) for one in KNOWN_BEFORE if one.value and one.name == name)


def costs_of(names: Sequence[str] | None) -> tuple[Objective, ...]:
    """The costs that `objectives` of a sweep file names after its metric; `DEFAULT_COSTS` if there is no such key."""
    if names is None:
        return DEFAULT_COSTS
    by_name = {one.name: one for one in COSTS}
    return tuple(by_name[name] for name in names if name in by_name)


def front_of(metric: Metric, costs: Sequence[Objective]) -> tuple[Objective, ...]:
    """The objectives of the front of a run that is judged by `metric`, over these costs; the metric is the first."""
    return (_JUDGING[metric], *costs)


def front_values(configuration: Any, judged: Any, costs: Sequence[Objective]) -> list[Any]:
    """The values of the objectives of `front_of`, given that of the metric, which training tells."""
    return [judged, *(find_known(configuration, one.name) for one in costs)]


def weigh(costs: Sequence[Objective], values: Sequence[float]) -> tuple[float, ...]:
    """The values of these costs as numbers of which less is better."""
    return tuple(one.sign * value for one, value in zip(costs, values, strict=True))


def say_costs(costs: Sequence[Objective], row: Mapping[str, int]) -> str:
    """The values of these costs in a row of a table: `1,234 bytes, 5,120 MACs`."""
    return ", ".join(one.say(row[one.name]) for one in costs)


def say_cheaper(costs: Sequence[Objective]) -> str:
    """Who may stop a trial, after a noun: `of equal or smaller size`, or `with no more bytes and MACs`."""
    if tuple(costs) == DEFAULT_COSTS:
        return "of equal or smaller size"
    return f"with no more {say_list([one.head for one in costs])}"


def say_front(metric: Metric, costs: Sequence[Objective]) -> str:
    """What a front is over: `accuracy, bytes and MACs`."""
    return say_list([metric.name, *(one.head for one in costs)])


def say_amount(cost: Objective) -> str:
    """What a value of a cost is called: `size`, or `number of MACs`."""
    return "size" if cost is SIZE_BYTES else f"number of {cost.head}"


def say_larger(costs: Sequence[Objective], share: str = "") -> str:
    """What has more of these costs than others, as a predicate: `is larger`, or `has more bytes and MACs`.

    Args:
        costs: of which it has more.
        share: how much more, before the word: `more than 5 % `.
    """
    if tuple(costs) == DEFAULT_COSTS:
        return f"is {share}larger"
    return f"has {share}more {say_list([one.head for one in costs])}"


def say_list(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def worst_log2(cost: Objective, configurations: Sequence[Any]) -> float:
    """Where the hypervolume of a sweep ends, in halvings of a cost: nothing beyond it counts.

    Args:
        cost: one of `COSTS`.
        configurations: of the plan.
    """
    if cost.uncompressed:
        return max((cost.log2(cost.uncompressed(one)) for one in configurations), default=0.0)
    return 1 + max((cost.log2(find_known(one, cost.name)) for one in configurations), default=-1.0)


UNTRAINED_MARGIN = 0.02  # a training that ends within this score of an untrained network has learned nothing


def untrained_value(metric: Metric, info: DatasetInfo) -> float | None:
    """The metric of a network that has learned nothing, the worst corner of a front; None if the data decide it."""
    values = {ACCURACY: 1 / info.classes, AUC: 0.5, F1: 0.0, R2: 0.0}
    return values.get(metric)
