"""A run folder as `qdtune.load` gives it: its tables and answers, and its front as a chart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qdtune.analysis.run import Run


@dataclass(frozen=True, repr=False)
class DrawnRun(Run):
    """A run that can draw itself."""

    def plot(self) -> Any:
        """The front as a chart (Altair)."""
        from qdtune.report.figures import front_figure  # drawing is not needed to compute

        return front_figure(self)
