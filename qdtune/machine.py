"""What this machine has for a sweep, found out without loading anything."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def has_compiler() -> bool:
    """Whether what torch calls to compile is there, openssl included; without it every training step runs eagerly."""
    return all(shutil.which(tool) for tool in (os.environ.get("CXX", "g++"), "openssl"))


# From this many steps on a phase is compiled: that costs 15 s once, for all trials of its shape, and saves each of
# them 3 to 4 ms a step (one core, depth 2): from the fifth on it has paid. The trial decides, not the cache: one
# that runs again shall give the same numbers.
COMPILE_FROM = 800


def is_compiled(compile: str, epochs: int, batch_size: int, samples: int) -> bool:
    """Whether the steps of a phase of so many epochs are compiled: `always`, `never`, or `auto`, where it repays."""
    steps = epochs * (samples // batch_size)
    return compile == "always" or (compile == "auto" and steps >= COMPILE_FROM and has_compiler())


def cache_dir() -> Path:
    """Where compiled steps are kept between runs: `qdtune` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qdtune"


@contextmanager
def own_folder() -> Iterator[str]:
    """A temporary folder for the user alone, removed in the end; so are those that killed processes have left.

    It lies in RAY_TMPDIR, else in /tmp: a short path, since those of Ray's sockets have to fit into 107 bytes.
    """
    place = os.environ.get("RAY_TMPDIR") or "/tmp"
    for left in Path(place).glob("qdtune-*/lock"):
        with suppress(OSError):
            if left.parent.lstat().st_uid == os.getuid() and not left.parent.is_symlink():
                with left.open() as held:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left.parent, ignore_errors=True)
    made = tempfile.TemporaryDirectory(prefix="qdtune-", dir=place, ignore_cleanup_errors=True)
    with made as folder, open(f"{folder}/new", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(lock.name, f"{folder}/lock")  # seen only when it is held
        yield folder


@contextmanager
def handling(handle: Callable[[int, Any], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to `handle` within, as (number, frame), and to whom they went before afterwards."""
    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def gpus(devices: Path = Path("/dev")) -> int:
    """NVIDIA GPUs of this machine, counted without a driver's library."""
    return len(list(devices.glob("nvidia[0-9]*")))
