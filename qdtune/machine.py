"""What this machine has for a sweep, found out without loading anything."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def has_compiler() -> bool:
    """Whether the C++ compiler that torch calls is there; without it every training step runs eagerly."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def cache_dir() -> Path:
    """Where compiled steps are kept between runs: `qdtune` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qdtune"


def gpus(devices: Path = Path("/dev")) -> int:
    """NVIDIA GPUs of this machine, counted without a driver's library."""
    return len(list(devices.glob("nvidia[0-9]*")))
