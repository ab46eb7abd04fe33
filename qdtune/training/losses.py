"""The loss of each task, and how well outputs meet their targets by each metric.

Alphabet: K replicas, B batch, N samples, O out, I in.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from qdtune.spec.tasks import (
    ACCURACY,
    AUC,
    AUTOENCODER,
    BINARY,
    CLASSIFICATION,
    F1,
    MAE,
    MSE,
    MULTILABEL,
    R2,
    REGRESSION,
    Metric,
    Task,
)


def loss_function(task: Task) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The mean loss () of a batch, a function of outputs (B, O), targets (B,) or (B, O) and inputs (B, I)."""
    return _LOSSES[task]


_LOSSES: dict[Task, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    CLASSIFICATION: lambda outputs, y, x: F.cross_entropy(outputs, y),
    BINARY: lambda outputs, y, x: F.binary_cross_entropy_with_logits(outputs, y),
    MULTILABEL: lambda outputs, y, x: F.binary_cross_entropy_with_logits(outputs, y),
    REGRESSION: lambda outputs, y, x: F.mse_loss(outputs, y),
    AUTOENCODER: lambda outputs, y, x: F.mse_loss(outputs, x),
}


class Meter:
    """One metric of K replicas, from outputs that come in parts.

    Args:
        task: says what targets and outputs are.
        metric: one of the task.
        replicas: K.
        device: of all tensors.
    """

    def __init__(self, task: Task, metric: Metric, replicas: int, device: torch.device) -> None:
        self.task, self.metric = task, metric
        self.hits = torch.zeros(replicas, dtype=torch.int64, device=device)
        self.rows = 0
        # Sums in double precision (K, O), and of the labels: those found, those there, both.
        self.errors: Tensor | float = 0.0
        self.origin: Tensor | None = None  # (O,)
        self.moments: tuple[Tensor | float, Tensor | float] = (0.0, 0.0)
        self.counts = torch.zeros(3, replicas, dtype=torch.int64, device=device)
        self.kept: list[tuple[Tensor, Tensor]] = []  # what a curve is drawn of: values (K, B) and labels (B,)

    def add(self, outputs: Tensor, y: Tensor, x: Tensor) -> None:
        """Adds outputs (K, B, O), their targets, as of `loss_function`, and inputs (B, I)."""
        self.rows += len(y)
        if self.metric is ACCURACY:
            is_right = outputs.argmax(-1) == y if self.task is CLASSIFICATION else (outputs > 0) == (y > 0.5)
            self.hits += is_right.reshape(len(outputs), -1).sum(-1)
        elif self.metric is F1:
            found, there = outputs > 0, (y > 0.5).expand_as(outputs)
            self.counts += torch.stack([part.sum((1, 2)) for part in (found, there, found & there)])
        elif self.metric is AUC:
            is_error = self.task is AUTOENCODER
            values = (outputs - x).square().mean(-1) if is_error else outputs[..., 0]
            self.kept.append((values, y[:, 0] if y.ndim == 2 else torch.zeros_like(y)))
        else:
            targets = x if self.task is AUTOENCODER else y
            difference = (outputs - targets).double()
            self.errors += difference.abs().sum(1) if self.metric is MAE else difference.square().sum(1)
            doubles = targets.double()
            # From the first row, so that targets that are all the same have a spread of exactly zero.
            self.origin = doubles[0] if self.origin is None else self.origin
            doubles = doubles - self.origin
            self.moments = (self.moments[0] + doubles.sum(0), self.moments[1] + doubles.square().sum(0))

    def values(self) -> list[float]:
        """The metric of each replica; NaN where it is not defined, such as the AUC of samples of one label."""
        if self.metric is ACCURACY:
            return (self.hits.double() / self.rows).tolist()
        if self.metric is F1:
            found, there, both = self.counts.double()
            return (2 * both / (found + there).clamp(min=1)).tolist()
        if self.metric is AUC:
            labels = torch.cat([part for _, part in self.kept]) > 0.5
            return [measure_auc(row, labels) for row in torch.cat([part for part, _ in self.kept], dim=1)]
        assert isinstance(self.errors, Tensor), "no row has been added"
        if self.metric in (MAE, MSE):
            return (self.errors.mean(-1) / self.rows).tolist()
        assert self.metric is R2
        total, squares = self.moments
        spread = squares - total**2 / self.rows
        return torch.where(torch.as_tensor(spread > 0), 1 - self.errors / spread, torch.nan).mean(-1).tolist()


def measure_auc(values: Tensor, labels: Tensor) -> float:
    """The area under the ROC curve: how often a sample of label 1 has the larger value, a tie counting half.

    Args:
        values: (N,).
        labels: (N,), bool.

    Returns:
        0..1; NaN if the labels are all the same or a value is not finite.
    """
    ones = int(labels.sum())
    zeros = len(labels) - ones
    if not ones or not zeros or not bool(values.isfinite().all()):
        return math.nan
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts.double() - 1) / 2)[places]  # the mean rank of equal values, from 1
    return float((ranks[labels].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def chance_of(task: Task, metric: Metric, targets: Tensor) -> float:
    """What a network reaches that has learned nothing: the share of the largest class, 0 for R², 0.5 for AUC.

    Args:
        targets: those of the validation split.

    Returns:
        NaN if the metric has no such value.
    """
    if metric is ACCURACY:
        labels = targets.flatten().long()
        return int(labels.bincount().max()) / len(labels)
    return {R2: 0.0, AUC: 0.5}.get(metric, math.nan)
