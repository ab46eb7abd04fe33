"""Measures the GPU need of one trial, from which `resources: {gpu: auto}` computes the share of a trial."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile

from qdtune.datasets.load import Samples
from qdtune.spec.configuration import Configuration
from qdtune.training.tensors import Tensors
from qdtune.training.train import train_configuration, will_compile
from qdtune.training.warmups import NoWarmups


def measure(trial: Configuration, data: Samples, compile: str) -> dict[str, float]:
    """The memory and busy share of one trial in quantised training, on a GPU that nothing else uses.

    Args:
        trial: the configuration.
        data: the data set.
        compile: see `train.train_configuration`.

    Returns:
        `memory` that is in use and `total` memory, in bytes; `busy`, the share of time (0..1) in which kernels run.
    """
    tensors = Tensors.of(data, torch.device("cuda"))
    compile = "always" if will_compile(trial, tensors, "qat", compile) else "never"
    warmup, qat = (phase.model_copy(update={"epochs": n}) for phase, n in ((trial.warmup, 0), (trial.qat, 4)))
    reports = train_configuration(replace(trial, warmup=warmup, qat=qat), tensors, NoWarmups(), compile)
    next(reports)
    torch.cuda.synchronize()
    began = time.perf_counter()
    next(reports)
    torch.cuda.synchronize()
    wall = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:  # another epoch, because profiling costs time
        next(reports)
        torch.cuda.synchronize()
    working = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    free, total = torch.cuda.mem_get_info()
    return {"memory": total - free, "total": total, "busy": min(1.0, working / wall)}
