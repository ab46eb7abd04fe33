"""What a configuration is judged by: its metric (such as accuracy), bytes, parameters.

Everything that names an objective derives it from `OBJECTIVES`: what constraints may name, the columns of the tables,
the ranks of the Pareto table and the directions of the Optuna study. To add one, add an entry at the end; to draw
another front, name it in `FRONT_COSTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from qdtune.datasets.dataset import DatasetInfo
from qdtune.spec.axes import AXES
from qdtune.spec.tasks import ACCURACY, AUC, F1, METRICS, R2, Metric


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
    """

    name: str
    direction: Literal["maximize", "minimize"]
    unit: str
    text: str
    value: Callable[[Any], int] | None = None
    since: int = 1

    @property
    def sign(self) -> int:
        """What to multiply it by so that less is better."""
        return -1 if self.direction == "maximize" else 1


def _judged_by(metric: Metric) -> Objective:
    unit = "fraction" if metric.is_fraction else "number"
    text = f"{metric.name} on the validation split, mean of the seeds"
    return Objective(metric.val, metric.direction, unit, text)


_JUDGING = {metric: _judged_by(metric) for metric in METRICS}
PARAMS = Objective("params", "minimize", "parameters", "trainable parameters", lambda c: c.sizes.params)
SIZE_BYTES = Objective(
    "size_bytes", "minimize", "bytes", "total size of the shipped model", lambda c: c.sizes.size_bytes
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
)
ACTIVATION_BYTES = Objective(
    "activation_bytes",
    "minimize",
    "bytes",
    "most bytes that one layer reads and writes for one sample, both at act_bits (null: float32)",
    lambda c: c.structure.activation_bytes(c.depth, c.input_bits, c.decompose),
    since=7,
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
)
KNOWN_BEFORE = tuple(one for one in OBJECTIVES if one.value)
# What the front is drawn over besides the metric: it ranks the Pareto table, and a search asks Optuna for it.
FRONT_COSTS = (SIZE_BYTES,)
# What a constraint may name: it is judged before anything is trained.
BOUNDED = (*(one.name for one in KNOWN_BEFORE), *(axis.name for axis in AXES if axis.is_bounded))


def known_before(configuration: Any) -> dict[str, int]:
    """The objectives of a `Configuration` that are known before it is trained, by name."""
    return {one.name: one.value(configuration) for one in KNOWN_BEFORE if one.value}


def find_known(configuration: Any, name: str) -> int:
    """The objective of this name, which is known before training."""
    return next(one.value(configuration) for one in KNOWN_BEFORE if one.value and one.name == name)


def front_of(metric: Metric) -> tuple[Objective, ...]:
    """The objectives of the front of a run that is judged by `metric`; this metric is the first."""
    return (_JUDGING[metric], *FRONT_COSTS)


def front_values(configuration: Any, judged: Any) -> list[Any]:
    """The values of the objectives of `front_of`, given that of the metric, which training tells."""
    return [judged, *(one.value(configuration) for one in FRONT_COSTS if one.value)]


UNTRAINED_MARGIN = 0.02  # a training that ends within this score of an untrained network has learned nothing


def untrained_value(metric: Metric, info: DatasetInfo) -> float | None:
    """The metric of a network that has learned nothing, the worst corner of a front; None if the data decide it."""
    values = {ACCURACY: 1 / info.classes, AUC: 0.5, F1: 0.0, R2: 0.0}
    return values.get(metric)
