"""What one trial takes of a GPU, measured: the ground on which `resources: {gpu: auto}` divides it."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile

from qdtune.datasets.load import Samples
from qdtune.machine import is_compiled
from qdtune.spec.configuration import Configuration
from qdtune.training.cohort import Tensors
from qdtune.training.train import Nowhere, train_configuration


def measure(trial: Configuration, data: Samples, compile: str) -> dict[str, float]:
    """What a trial takes of a GPU that nothing else uses, in quantised training, once it runs.

    Args:
        trial: the configuration.
        data: the data set.
        compile: as of `train.train_configuration`.
    """
    tensors = Tensors.of(data, torch.device("cuda"))
    compiled = is_compiled(compile, trial.qat.epochs, trial.batch_size, len(data.train_x))
    compile = "always" if compiled else "never"
    warmup, qat = (phase.model_copy(update={"epochs": n}) for phase, n in ((trial.warmup, 0), (trial.qat, 4)))
    reports = train_configuration(replace(trial, warmup=warmup, qat=qat), tensors, Nowhere(), compile)
    next(reports)
    torch.cuda.synchronize()
    began = time.perf_counter()
    next(reports)
    torch.cuda.synchronize()
    wall = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:  # the same again: profiling takes time of its own
        next(reports)
        torch.cuda.synchronize()
    working = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    free, total = torch.cuda.mem_get_info()
    return {"memory": total - free, "total": total, "busy": min(1.0, working / wall)}
