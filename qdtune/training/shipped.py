"""Tests a trained network in the form that is shipped: its packed bytes, run by `reader.py` or by the user's code.

The table and the exported file then agree to the last sample. The network as it was trained computes the same but for
rounding: a folded normalisation, for example, has other last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from qdtune import reader
from qdtune.model.formats.packed import one_seed
from qdtune.model.layers.conv import Conv1d, Conv2d
from qdtune.model.load_into import load_into
from qdtune.spec.tasks import Metric, task_of
from qdtune.training.cohort import EVAL_IMAGES, EVAL_ROWS
from qdtune.training.losses import Meter
from qdtune.training.step import StepShape, check_outputs
from qdtune.training.tensors import Tensors

CONVOLUTIONS = (Conv1d.name, Conv2d.name)


def measure_shipped(
    weights: bytes,
    seeds: Iterable[int],
    data: Tensors,
    metrics: Sequence[Metric],
    shape: StepShape,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Each seed and its metrics by column, on the test set; NaN if one is not defined.

    Args:
        weights: the packed file of a trial.
        seeds: those of its replicas that are in the file.
        data: its test set is read.
        metrics: those of the task.
        shape: names the task, and builds the user's own network; a file that is complete needs no such network.
    """
    task = task_of(shape.task)
    for seed in seeds:
        alone = one_seed(weights, seed)
        model = reader.load(alone)
        predict = _predict_by_reader(model) if model.is_complete else _predict_by_module(shape, alone, data)
        meters = [Meter(task, metric, 1, data.test_x.device) for metric in metrics]
        count = EVAL_IMAGES if any(op["op"] in CONVOLUTIONS for op in model.program["ops"]) else EVAL_ROWS
        for rows, targets in zip(data.test_x.split(count), data.test_y.split(count), strict=True):
            outputs, inputs = predict(rows)[None], data.normalise(rows)
            for meter in meters:
                meter.add(outputs, targets, inputs)
        yield seed, {meter.metric.test: meter.values()[0] for meter in meters}


def load_shipped(own: StepShape, alone: bytes) -> nn.Module:
    """The user's own network with the numbers of a packed file of one seed."""
    return load_into(own.build_undivided(seed=0), alone)


def _predict_by_reader(model: reader.Model) -> Callable[[Tensor], Tensor]:
    return lambda rows: torch.from_numpy(model.logits(rows.cpu().numpy())).to(rows.device)


def _predict_by_module(own: StepShape, alone: bytes, data: Tensors) -> Callable[[Tensor], Tensor]:
    module = load_shipped(own, alone)

    @torch.no_grad()
    def predict(rows: Tensor) -> Tensor:
        return check_outputs(module.to(rows.device)(data.normalise(rows)), len(rows), own.outputs)

    return predict
