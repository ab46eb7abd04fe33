"""The device that a trial trains on: chosen, capped to the trial's share, and watched."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def choose_device(gpu: float) -> torch.device:
    """The device of a trial that holds this share of a GPU: CUDA if it holds any and there is one, else the CPU."""
    return torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")


def set_threads(cpu: float) -> None:
    """Gives torch the threads of a trial that holds so many CPU cores.

    One unless the trial holds more: two on a busy machine were 30 to 60 times slower (measured).
    """
    torch.set_num_threads(max(1, int(cpu)))


def cap_memory(device: torch.device, share: float) -> None:
    """Limits what torch holds of a GPU to a share (0..1): Ray places by fractions but does not enforce them.

    The process needs some half a gigabyte beside it.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what the last trial here left
        torch.cuda.set_per_process_memory_fraction(share)


def free_memory() -> None:
    """Gives back what torch holds of a GPU and does not use."""
    torch.cuda.empty_cache()


def is_out_of_memory(errors: Iterable[BaseException]) -> bool:
    """Whether the memory of a device ran out in any of these."""
    return any(isinstance(error, torch.OutOfMemoryError) for error in errors)


def memory_peak(device: torch.device) -> dict[str, float]:
    """The largest share of the GPU's memory (0..1) that torch has held in this process; empty without a GPU."""
    if device.type != "cuda":
        return {}
    return {"gpu_memory_peak": torch.cuda.max_memory_reserved() / torch.cuda.mem_get_info()[1]}
