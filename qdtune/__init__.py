"""qdtune: sweeps over depth, bits and activation of factorised, quantised networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from qdtune.run import Run

__version__ = "0.1.0"


def load(run: str | os.PathLike[str]) -> Run:
    """What a run folder holds: its rows, curves and Pareto table, and the answers they give; nothing is written.

    Args:
        run: the run folder, a path or a URL.

    Raises:
        RunError: it is no run folder, or holds nothing that can be read, or nothing that has finished.
    """
    from qdtune.run import read  # pyarrow and all: `import qdtune` stays light

    return read(run)
