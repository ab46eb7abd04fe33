"""qdtune: sweeps over depth, bits and activation of factorised, quantised networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from qdtune.report.drawn_run import DrawnRun

__version__ = "0.1.0"


def load(run: str | os.PathLike[str]) -> DrawnRun:
    """What a run folder holds: its rows, curves and Pareto table, and the answers they give; nothing is written.

    Args:
        run: the run folder, a path or a URL.

    Raises:
        RunError: it is no run folder, or holds nothing that can be read, or nothing that has finished.
    """
    from qdtune.analysis.run import load_run  # pyarrow and all: `import qdtune` stays light
    from qdtune.report.drawn_run import DrawnRun

    return load_run(run, DrawnRun)
