"""The time that this process spends on making training steps, compiling included, and who is told of it.

A step that lies in the cache takes milliseconds, one that must be compiled many seconds. An epoch is timed without
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class CompileWatch:
    """Measures how long a process makes steps.

    Attributes:
        seconds: spent so far.
        listener: called with True before a step is made and with False after it; None if nobody listens.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.listener: Callable[[bool], None] | None = None

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Counts the seconds of its block and tells the listener of both ends."""
        began = time.perf_counter()
        self._tell(True)
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
            self._tell(False)

    def _tell(self, is_compiling: bool) -> None:
        if self.listener is not None:
            self.listener(is_compiling)


COMPILE_WATCH = CompileWatch()  # of this process
