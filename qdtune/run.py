"""A run folder as tables: what of it belongs to its sweep, whole or while that still runs. Nothing is written."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qdtune.answers import Answers, answer
from qdtune.names import PLANNED
from qdtune.plan import plan
from qdtune.results import members
from qdtune.spec import Spec, loads
from qdtune.storage import child
from qdtune.store import Store
from qdtune.tables import aggregate, table_front


class RunError(ValueError):
    """A folder from which no run can be read; `str` is one line."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds of its sweep, as it stands in its `sweep.yaml`.

    Attributes:
        name: of the sweep.
        where: the folder, a path or a URL.
        spec: the sweep file, resolved.
        trials: one row per seed, as `tables.TRIALS`.
        history: one row per seed and epoch, as `tables.HISTORY`.
        pareto: one row per configuration, as `tables.PARETO`, computed from `trials`.
        damaged: a line for each file that cannot be believed and was left out.
        planned: configurations that the sweep is to train; for a search its `run_cap`.
    """

    name: str
    where: str
    spec: Spec
    trials: pa.Table
    history: pa.Table
    pareto: pa.Table
    damaged: tuple[str, ...]
    planned: int

    @property
    def states(self) -> dict[str, int]:
        """Configurations that have a result, by state."""
        return dict(Counter(self.pareto["state"].to_pylist()))

    @property
    def finished(self) -> int:
        """Configurations with an accuracy that counts: every seed `ok`."""
        return self.pareto.num_rows - self.pareto["pareto_rank"].null_count

    @property
    def left(self) -> int:
        """Configurations that have no final result yet: 0 where the sweep is done."""
        final = sum(self.states.get(state, 0) for state in ("ok", "pruned", "diverged"))
        return max(0, self.planned - final)

    def front(self, budget: int | None = None) -> pa.Table:
        """The rows of `pareto` that are on the front, by ascending size.

        Args:
            budget: bytes, above which nothing is wanted.
        """
        front = table_front(self.pareto)
        return front if budget is None else front.filter(pc.less_equal(front["size_bytes"], budget))

    def answers(self, budget: int | None = None) -> Answers:
        """What the sweep decides, and what it does not.

        Args:
            budget: bytes, for the question what is best.
        """
        return answer(self.trials, self.history, self.pareto, budget)

    def plot(self) -> Any:
        """The front as a chart (Altair)."""
        from qdtune.figures import front_figure  # drawing is not needed to compute

        return front_figure(self)


def read(run: str | os.PathLike[str]) -> Run:
    """See `qdtune.load`."""
    store = Store(run)
    text = store.sweep_yaml()
    if text is None:
        raise RunError(f"{os.fspath(run)} is no run folder: it holds no sweep.yaml")
    spec = loads(text, child(run, "sweep.yaml"))
    trials, damaged = store.trials(), store.damaged
    history, damaged = store.history(), damaged + store.damaged
    ids = pa.array(list(members(spec, trials)), pa.string())
    trials, history = (table.filter(pc.is_in(table["trial_id"], ids)) for table in (trials, history))
    planned = len(plan(spec).trials) if spec.method in PLANNED else spec.run_cap or 0
    return Run(
        spec.name, os.fspath(run), spec, trials, history, aggregate(trials, bootstrap=True), tuple(damaged), planned
    )
