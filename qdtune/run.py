"""A run folder as tables: what of it belongs to its sweep, whole or while that still runs. Nothing is written."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qdtune.answers import Answers, answer
from qdtune.names import PLANNED
from qdtune.plan import plan
from qdtune.results import members
from qdtune.rules import SpecError, one_line
from qdtune.spec import Spec, loads
from qdtune.storage import LocationError, StorageError, child
from qdtune.store import Store
from qdtune.tables import FINAL, NewerSchemaError, aggregate, table_front


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
        budget: bytes, above which there is nothing here; None: no limit. See `within`.
    """

    name: str
    where: str
    spec: Spec
    trials: pa.Table
    history: pa.Table
    pareto: pa.Table
    damaged: tuple[str, ...]
    planned: int
    budget: int | None = None

    def __str__(self) -> str:
        done = "finished" if not self.left else f"{self.planned - self.left:,} of {self.planned:,} done"
        return f"{self.name}: {done}: {', '.join(f'{n:,} {state}' for state, n in sorted(self.states.items()))}"

    def __repr__(self) -> str:
        return f"<qdtune.run.Run {self} in {self.where}>"

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
        """Configurations that have not come to their end: 0 where the sweep is done."""
        pruning = self.spec.early_terminate.type != "none"  # else what was stopped is trained on
        final = sum(n for state, n in self.states.items() if state in FINAL and (pruning or state != "pruned"))
        return max(0, self.planned - final) + self._to_replicate

    @property
    def _to_replicate(self) -> int:
        """Configurations on the front, or close behind it, that `replicate` has yet to give more seeds."""
        wanted = self.spec.replicate
        ranked = self.pareto.filter(pc.is_valid(self.pareto["pareto_rank"])).sort_by("size_bytes")
        if wanted is None or not ranked.num_rows:
            return 0
        sizes, accuracies, seeds = (ranked[name].to_numpy() for name in ("size_bytes", "val_accuracy", "n_seeds"))
        best = np.maximum.accumulate(accuracies)[np.searchsorted(sizes, sizes, side="right") - 1]
        return int(((best - accuracies <= wanted.within) & (seeds < wanted.front)).sum())

    def within(self, budget: int | None) -> Run:
        """The same run without what is larger than `budget` bytes, if that is given.

        The front within a budget is the front up to there, for nothing larger has a say in it.

        Raises:
            ValueError: the budget is no whole number of bytes from 1 on.
        """
        if budget is None:
            return self
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise ValueError(f"budget must be a whole number of bytes from 1 on, got {budget!r}")
        pareto, trials = (t.filter(pc.less_equal(t["size_bytes"], budget)) for t in (self.pareto, self.trials))
        history = self.history.filter(pc.is_in(self.history["trial_id"], trials["trial_id"].combine_chunks()))
        planned = self.planned - (self.pareto.num_rows - pareto.num_rows)
        return replace(self, trials=trials, history=history, pareto=pareto, planned=max(0, planned), budget=budget)

    def front(self, budget: int | None = None) -> pa.Table:
        """The rows of `pareto` that are on the front, by ascending size; those of at most `budget` bytes."""
        return table_front(self.within(budget).pareto)

    def answers(self, budget: int | None = None) -> Answers:
        """What the sweep decides, and what it does not, from configurations of at most `budget` bytes."""
        return self.within(budget)._answers

    @cached_property
    def _answers(self) -> Answers:
        return answer(self.trials, self.history, self.pareto, self.budget)

    def plot(self) -> Any:
        """The front as a chart (Altair)."""
        from qdtune.figures import front_figure  # drawing is not needed to compute

        return front_figure(self)


def read(run: str | os.PathLike[str]) -> Run:
    """See `qdtune.load`."""
    where = one_line(os.fspath(run))
    if os.path.isfile(run):
        raise RunError(f"{where} must be a run folder, such as runs/NAME, got a file")
    try:
        store = Store(run)
        spec = _spec(store, where)
        planned = len(plan(spec).trials) if spec.method in PLANNED else spec.run_cap or 0
        trials, damaged = store.trials(), store.damaged
        # What is stored while this reads: a curve lies there before its rows do.
        history, damaged = store.history(), damaged + store.damaged
    except SpecError as error:
        raise RunError(str(error).splitlines()[0].removeprefix("error: ")) from None
    except (LocationError, NewerSchemaError, StorageError) as error:
        raise RunError(one_line(str(error))) from None
    if not trials.num_rows:
        why = f" that can be read: {damaged[0]}" if damaged else " yet: its sweep has to run"
        raise RunError(one_line(f"{where} holds no results{why}"))
    ids = pa.array(list(members(spec, trials)), pa.string())
    trials, history = (table.filter(pc.is_in(table["trial_id"], ids)) for table in (trials, history))
    found = Run(spec.name, where, spec, trials, history, aggregate(trials, True), tuple(damaged), planned)
    if not found.finished:
        there = ", ".join(f"{n} {state}" for state, n in sorted(found.states.items()))
        raise RunError(f"{where} holds no finished configuration yet ({there or 'none'} of {planned})")
    return found


def _spec(store: Store, where: str) -> Spec:
    """The sweep as it stands in the folder."""
    text = store.sweep_yaml()
    if text is None:
        raise RunError(f"{where} is no run folder: it holds no sweep.yaml")
    spec = loads(text, child(where, "sweep.yaml"))
    if len(spec.data.names) > 1 or spec.data.info is None or (spec.model.factory and not spec.model.built):
        raise RunError(
            f"{child(where, 'sweep.yaml')} must be as a launch writes it, with one data set: run its sweep"
        )
    return spec
