"""What a network is trained for, and the number by which it is judged.

A `Task` says what the targets of the data are; its loss is in `training/losses.py`. A `Metric` is measured on the
validation split and on the test set. One metric is the axis of the front against bytes, and may go up or down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qdtune.datasets.dataset import DatasetInfo
from qdtune.datasets.targets import ANOMALIES, FLAGS, LABEL, LABELS, NUMBERS, Targets
from qdtune.reach import progress


@dataclass(frozen=True)
class Metric:
    """A number that says how good the outputs of a network are. Its columns are `val`, `test` and `float_val`.

    Attributes:
        name: in sweep files, and after `val_` in columns.
        direction: which way is better, in Optuna's words.
        is_fraction: whether it lies in 0..1, and is shown in per cent and compared in percentage points.
        text: a few words for the docs, without a full stop.
        least_error: smaller errors, or distances to 1, count as this one on a logarithmic scale.
    """

    name: str
    direction: Literal["maximize", "minimize"]
    is_fraction: bool
    text: str
    least_error: float

    def __reduce__(self) -> tuple[object, ...]:
        return metric_of, (self.name,)  # there is one object of each name, also after a copy

    @property
    def val(self) -> str:
        """The column of the validation split."""
        return f"val_{self.name}"

    @property
    def test(self) -> str:
        """The column of the test set."""
        return f"test_{self.name}"

    @property
    def float_val(self) -> str:
        """The column of the validation split at the end of the float warm-up."""
        return f"float_val_{self.name}"

    @property
    def sign(self) -> int:
        """What to multiply a value by so that more is better."""
        return 1 if self.direction == "maximize" else -1

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value that there can be."""
        if self.is_fraction:
            return (0.0, 1.0)
        return (float("-inf"), 1.0) if self.direction == "maximize" else (0.0, float("inf"))

    def progress(self, score: float) -> float:
        """How far a training has come, from its score, `sign` times the metric: -ln(error), see `reach`."""
        return progress(score, self.direction == "maximize", self.least_error)


TINY = 1e-100  # less than the square of any float32 but 0
ACCURACY = Metric("accuracy", "maximize", True, "share of samples whose label is right", 1e-3)
F1 = Metric(
    "f1", "maximize", True, "F1 score: of the label 1; of several labels, over all labels together (micro)", 1e-6
)
AUC = Metric("auc", "maximize", True, "area under the ROC curve", 1e-6)
R2 = Metric("r2", "maximize", False, "R², the share of the variance that is explained; mean of the outputs", 1e-6)
MAE = Metric("mae", "minimize", False, "mean absolute error, in the unit of the targets", TINY)
MSE = Metric("mse", "minimize", False, "mean squared error", TINY)
METRICS = (ACCURACY, F1, AUC, R2, MAE, MSE)


ClassRule = Literal["largest", "above_0", "none"]
LARGEST: ClassRule = "largest"
ABOVE_0: ClassRule = "above_0"
NO_CLASS: ClassRule = "none"


@dataclass(frozen=True)
class Task:
    """What a network is trained for.

    Attributes:
        name: in sweep files.
        text: what the targets are, and what is trained, for the docs.
        targets: their kind.
        answers: what the outputs of its network are, for model cards.
        decision: what to make of them, for model cards.
        classes: the same for programs: a class is the place of the `LARGEST` output, or 1 if the output is `ABOVE_0`
            and else 0, or there is `NO_CLASS`.
        metrics: by which it may be judged; the first is the default.
        tested: metrics that are measured on the test set only, besides the one that judges.
    """

    name: str
    text: str
    targets: Targets
    answers: str
    decision: str
    classes: ClassRule
    metrics: tuple[Metric, ...]
    tested: tuple[Metric, ...] = ()

    def __reduce__(self) -> tuple[object, ...]:
        return task_of, (self.name,)

    @property
    def has_class(self) -> bool:
        """Whether a class follows from the outputs."""
        return self.classes != NO_CLASS

    def also_tested(self, metric: Metric) -> tuple[Metric, ...]:
        """The metrics that are measured on the test set besides `metric`, which judges."""
        return tuple(other for other in self.tested if other is not metric)

    def outputs(self, info: DatasetInfo) -> int:
        """The outputs of its network, O."""
        if self is AUTOENCODER:
            return info.inputs
        return 1 if self is BINARY else info.classes


CLASSIFICATION = Task(
    "classification",
    "one label from 0 to the number of classes - 1 per sample; softmax and cross-entropy",
    LABELS,
    "a logit for each class; their softmax has the probabilities",
    "the class of the largest output, counted from 0",
    LARGEST,
    (ACCURACY,),
)
BINARY = Task(
    "binary",
    "a label 0 or 1 per sample; one output, whose sigmoid is the probability of 1; binary cross-entropy",
    LABEL,
    "one logit; its sigmoid is the probability of label 1",
    "label 1 if the output is above 0, else label 0",
    ABOVE_0,
    (ACCURACY, F1, AUC),
)
MULTILABEL = Task(
    "multilabel",
    "a row of labels 0 or 1 per sample; one output for each; binary cross-entropy, a label is 1 if its output is > 0",
    FLAGS,
    "a logit for each label; its sigmoid is the probability that the label is 1",
    "a label is 1 if its output is above 0, else 0",
    NO_CLASS,
    (F1,),
)
REGRESSION = Task(
    "regression",
    "a float, or a row of floats, per sample; one output for each; squared error",
    NUMBERS,
    "the targets themselves, in the units of the training targets",
    "none: each output is the predicted number",
    NO_CLASS,
    (R2, MAE, MSE),
    tested=(R2, MAE),
)
AUTOENCODER = Task(
    "autoencoder",
    "the normalised inputs themselves; squared error. Test labels 0 (normal) and 1 (anomaly) give the test AUC of "
    "the squared error of a sample",
    ANOMALIES,
    "the input in normalised units, row * scale + shift, as `normalisation` has them",
    "the anomaly score of a row is the mean of (output - (row * scale + shift))^2 over its numbers; take the "
    "threshold from the scores of normal rows",
    NO_CLASS,
    (MSE,),
    tested=(AUC,),
)
TASKS = (CLASSIFICATION, BINARY, MULTILABEL, REGRESSION, AUTOENCODER)
TASK_NAMES = tuple(task.name for task in TASKS)
METRIC_NAMES = tuple(metric.name for metric in METRICS)


def task_of(name: str) -> Task:
    """The task of this name."""
    return TASKS[TASK_NAMES.index(name)]


def metric_of(name: str) -> Metric:
    """The metric of this name."""
    return METRICS[METRIC_NAMES.index(name)]
