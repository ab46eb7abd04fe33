"""The device of a trial: chooses it, caps it to the trial's share, and measures it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def choose_device(gpu: float) -> torch.device:
    """The device of a trial with this share of a GPU: CUDA if the share is above 0 and a GPU exists, else the CPU."""
    return torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")


def name_device(device: torch.device) -> str:
    """The name of a device, as in the column `device`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def set_up_process(cpu: float) -> None:
    """Sets the threads of torch to the CPU cores of a trial, at least one, and lets this process keep freed memory.

    Two threads on a busy machine were 30 to 60 times slower than one (measured).

    glibc gives each tensor of 32 MB or more new pages of the system. To fill these took a third of the time of five
    replicas of 16 channels of 14 x 14 pixels (measured). Other C libraries have no such options.
    """
    torch.set_num_threads(max(1, int(cpu)))
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_MAX, 0)
        set_option(M_TRIM_THRESHOLD, 2**31 - 1)


def cap_memory(device: torch.device, share: float) -> None:
    """Limits the GPU memory of torch to a share (0..1), because Ray places by fractions but does not enforce them.

    The process needs about half a gigabyte more.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()  # memory that the previous trial left
        torch.cuda.set_per_process_memory_fraction(share)


def free_memory() -> None:
    """Releases the GPU memory that torch holds and does not use."""
    torch.cuda.empty_cache()


def is_out_of_memory(errors: Iterable[BaseException]) -> bool:
    """Whether one of the errors says that a device ran out of memory."""
    return any(isinstance(error, torch.OutOfMemoryError) for error in errors)


def memory_peak(device: torch.device) -> dict[str, float]:
    """The largest share of the GPU's memory (0..1) that torch has held in this process; empty without a GPU."""
    if device.type != "cuda":
        return {}
    return {"gpu_memory_peak": torch.cuda.max_memory_reserved() / torch.cuda.mem_get_info()[1]}
