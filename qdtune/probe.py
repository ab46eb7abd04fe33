"""What one trial takes of a GPU, measured: the ground on which `resources: {gpu: auto}` divides it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile

from qdtune.cohort import Tensors
from qdtune.placement import Need
from qdtune.train import run

if TYPE_CHECKING:
    from qdtune.configuration import Trial
    from qdtune.data import Data


class _Nowhere:
    """Warm-ups that are not kept."""

    def claim(self, key: str) -> bytes | None:
        return None

    def keep(self, key: str, blob: bytes) -> None:
        pass


def measure(trial: Trial, data: Data, compile: str) -> Need:
    """What a trial takes of a GPU that nothing else uses, in its second epoch of quantised training.

    Args:
        trial: the configuration; its own epochs do not matter.
        data: the data set.
        compile: as of `train.run`.
    """
    epochs = {
        "warmup": trial.warmup.model_copy(update={"epochs": 0}),
        "qat": trial.qat.model_copy(update={"epochs": 3}),
    }
    trial = replace(trial, **epochs)  # type: ignore[arg-type]
    reports = run(trial, Tensors.of(data, torch.device("cuda")), _Nowhere(), compile)
    next(reports)
    torch.cuda.synchronize()
    began = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        next(reports)
        torch.cuda.synchronize()
    wall = time.perf_counter() - began
    working = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    free, total = torch.cuda.mem_get_info()
    return Need(memory=total - free, total=total, busy=min(1.0, working / wall))
