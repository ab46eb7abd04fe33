"""Measures how long a configuration trains, by a few of its steps, for the forecast of a dry run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from qdtune.datasets.load import Samples
from qdtune.spec.configuration import Configuration
from qdtune.training.compile_watch import COMPILE_WATCH
from qdtune.training.device import choose_device, set_up_process
from qdtune.training.tensors import Tensors
from qdtune.training.train import train_configuration, will_compile
from qdtune.training.warmups import NoWarmups

MIN_MEASURED = 2  # configurations, even if their steps are compiled now, which takes long
LONG_COMPILE_S = 2.0  # a step from the cache takes less
MEASURED_STEPS = 40  # of each measured epoch, unless the data has fewer
MEASURED_EPOCHS = 3  # the fastest counts, because the first one also fills caches
VAL_ROWS = 32  # that are evaluated after each measured epoch, next to nothing
FORWARD_SHARE = 1 / 3  # of a step's time that the forward pass takes


class StepTimes(NamedTuple):
    """The times of one configuration.

    Attributes:
        qat_s: of a QAT epoch of all its seeds, validation included.
        overhead_s: of a training, besides its epochs.
        compile_s: that its steps took to compile.
    """

    qat_s: float
    overhead_s: float
    compile_s: float


def time_configurations(
    trials: Sequence[Configuration],
    samples: Samples,
    compile: str,
    cpu: float,
    gpu: float,
    tell: Callable[[Configuration], None],
) -> list[StepTimes]:
    """The times of configurations, measured in turn in this process; of the first `MIN_MEASURED` at least.

    Args:
        trials: the configurations.
        samples: the data set.
        compile: as `train.train_configuration`.
        cpu, gpu: of one trial.
        tell: called with each of them before it is measured.
    """
    set_up_process(cpu)
    data = Tensors.of(samples, choose_device(gpu))
    found: list[StepTimes] = []
    for trial in trials:
        if len(found) >= MIN_MEASURED and any(one.compile_s > LONG_COMPILE_S for one in found):
            break
        tell(trial)
        found.append(_time_one(trial, data, compile))
    least = min(one.overhead_s for one in found)  # the first one also loads libraries
    return [one._replace(overhead_s=least) for one in found]


def _time_one(trial: Configuration, data: Tensors, compile: str) -> StepTimes:
    steps = len(data.train_x) // trial.batch_size
    few = min(steps, MEASURED_STEPS)
    rows = few * trial.batch_size
    small = replace(
        data,
        train_x=data.train_x[:rows],
        train_y=data.train_y[:rows],
        val_x=data.val_x[:VAL_ROWS],
        val_y=data.val_y[:VAL_ROWS],
    )
    compiled = will_compile(trial, data, "qat", compile)
    warmup = trial.warmup.model_copy(update={"epochs": 0})  # another step to compile
    qat = trial.qat.model_copy(update={"epochs": MEASURED_EPOCHS})
    began, compiled_before = time.perf_counter(), COMPILE_WATCH.seconds
    short = replace(trial, warmup=warmup, qat=qat)
    reports = train_configuration(short, small, NoWarmups(), "always" if compiled else "never")
    seconds = [report["seconds"] for report in reports]
    compile_s = COMPILE_WATCH.seconds - compiled_before
    overhead = time.perf_counter() - began - compile_s - sum(seconds)
    val_steps = FORWARD_SHARE * len(data.val_x) / trial.batch_size
    return StepTimes(min(seconds) / few * (steps + val_steps), overhead, compile_s)
