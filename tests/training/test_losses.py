"""Each metric against a second computation, of outputs that come in parts and of rows in any order."""

import math

import numpy as np
import pytest
import torch

from qdtune.spec.tasks import ACCURACY, AUC, AUTOENCODER, BINARY, F1, MAE, MSE, MULTILABEL, R2, REGRESSION, TASKS
from qdtune.training.losses import Meter, chance_of, loss_function, measure_auc

CPU = torch.device("cpu")
REPLICAS, N, INPUTS, OUTPUTS = 3, 57, 5, 4


def scored(task, metric, outputs, y, x, size):
    meter = Meter(task, metric, len(outputs), CPU)
    for part in range(0, N, size):
        meter.add(outputs[:, part : part + size], y[part : part + size], x[part : part + size])
    return meter.values()


def drawn(task, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(N, INPUTS, generator=draw)
    width = {
        "classification": OUTPUTS,
        "binary": 1,
        "multilabel": OUTPUTS,
        "regression": OUTPUTS,
        "autoencoder": INPUTS,
    }[task.name]
    outputs = torch.randn(REPLICAS, N, width, generator=draw).mul(2).round() / 2  # so that there are ties
    y = torch.randint(OUTPUTS, (N,), generator=draw)
    if task in (BINARY, AUTOENCODER):
        y = torch.randint(2, (N, 1), generator=draw).float()
    elif task is MULTILABEL:
        y = torch.randint(2, (N, OUTPUTS), generator=draw).float()
    elif task is REGRESSION:
        y = torch.randn(N, OUTPUTS, generator=draw) * torch.tensor([1.0, 10.0, 0.1, 3.0]) + 5
    return outputs, y, x


def expected(task, metric, outputs, y, x):
    """The metric of one replica, from its definition."""
    out, target = outputs.numpy().astype(float), (x if task is AUTOENCODER else y).numpy().astype(float)
    if metric is ACCURACY:
        return np.mean(out.argmax(1) == target if out.shape[1] > 1 else (out > 0) == (target > 0.5))
    if metric is F1:
        hits, wrong = ((out > 0) & (target > 0.5)).sum(), ((out > 0) != (target > 0.5)).sum()
        return 2 * hits / (2 * hits + wrong)
    if metric is AUC:
        values = ((out - target) ** 2).mean(1) if task is AUTOENCODER else out[:, 0]
        ones, zeros = values[y.numpy()[:, 0] == 1], values[y.numpy()[:, 0] == 0]
        return np.mean([(a > b) + (a == b) / 2 for a in ones.round(6) for b in zeros.round(6)])
    errors = np.abs(out - target) if metric is MAE else (out - target) ** 2
    if metric in (MAE, MSE):
        return errors.mean()
    return np.mean(1 - errors.sum(0) / ((target - target.mean(0)) ** 2).sum(0))


@pytest.mark.parametrize("size", [1, 10, N])
@pytest.mark.parametrize(
    ("task", "metric"), [(task, metric) for task in TASKS for metric in {*task.metrics, *task.tested}]
)
def test_metric_is_that_of_its_definition(task, metric, size):
    outputs, y, x = drawn(task, seed=size)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    wanted = [expected(task, metric, one, y, x) for one in outputs]
    assert scored(task, metric, outputs, y, x, size) == pytest.approx(wanted, rel=1e-6)
    shuffled = scored(task, metric, outputs[:, order], y[order], x[order], size)
    assert shuffled == pytest.approx(wanted, rel=1e-6)
    low, high = metric.bounds
    assert all(low <= value <= high for value in shuffled)


def test_r2_is_that_of_scikit_learn():
    from sklearn.metrics import r2_score

    outputs, y, x = drawn(REGRESSION, seed=0)
    assert scored(REGRESSION, R2, outputs, y, x, 7) == pytest.approx([r2_score(y, one) for one in outputs], rel=1e-5)


def test_what_is_not_defined_is_nan():
    assert math.isnan(measure_auc(torch.rand(4), torch.ones(4, dtype=torch.bool)))
    assert math.isnan(measure_auc(torch.tensor([1.0, math.nan]), torch.tensor([True, False])))
    constant, x = torch.full((N, 1), 0.1), torch.zeros(N, INPUTS)
    assert math.isnan(scored(REGRESSION, R2, torch.rand(1, N, 1), constant, x, N)[0])
    assert scored(MULTILABEL, F1, -torch.ones(1, N, 2), torch.zeros(N, 2), x, N) == [0.0]


def test_chance_is_what_a_constant_answer_reaches():
    labels = torch.tensor([0, 1, 1, 2])
    assert chance_of(TASKS[0], ACCURACY, labels) == 0.5
    assert chance_of(BINARY, ACCURACY, torch.tensor([[0.0], [1.0], [1.0], [1.0]])) == 0.75
    assert chance_of(BINARY, AUC, labels) == 0.5
    mean = torch.randn(N, OUTPUTS, generator=torch.Generator().manual_seed(0))
    outputs = mean.mean(0).expand(1, N, OUTPUTS)
    assert scored(REGRESSION, R2, outputs, mean, torch.zeros(N, INPUTS), N) == pytest.approx([0.0], abs=1e-5)
    assert math.isnan(chance_of(REGRESSION, MAE, labels))


@pytest.mark.parametrize("task", TASKS)
def test_loss_falls_along_its_gradient(task):
    outputs, y, x = drawn(task, seed=3)
    one = outputs[0].clone().requires_grad_()
    loss = loss_function(task)(one, y, x)
    (slope,) = torch.autograd.grad(loss, one)
    assert loss_function(task)(one - slope, y, x) < loss
