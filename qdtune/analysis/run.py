"""A run folder as tables: what of it belongs to its sweep, whole or while that still runs. Nothing is written."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qdtune.analysis.answers import Answers, answer
from qdtune.messages import SpecError, one_line
from qdtune.spec.choices import PLANNED
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec, loads
from qdtune.store.columns import FINAL
from qdtune.store.folder import LocationError, StorageError, child
from qdtune.store.pareto_table import aggregate, table_front
from qdtune.store.parquet import NewerSchemaError
from qdtune.store.results import members
from qdtune.store.store import Store
from qdtune.store.tables import Table, cells_in_order, rows_agree, rows_among, rows_equal, rows_known, rows_up_to

R = TypeVar("R", bound="Run")


class RunError(ValueError):
    """A folder from which no run can be read; `str` is one line."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds of its sweep, as it stands in its `sweep.yaml`.

    Attributes:
        name: of the sweep.
        where: the folder, a path or a URL.
        spec: the sweep file, resolved.
        trials: one row per seed, as `columns.TRIALS`.
        history: one row per seed and epoch, as `columns.HISTORY`.
        pareto: one row per configuration, as `columns.PARETO`, computed from `trials`.
        damaged: a line for each file that cannot be believed and was left out.
        planned: configurations that the sweep is to train; for a search its `run_cap`.
        budget: bytes, above which there is nothing here; None: no limit. See `within`.
    """

    name: str
    where: str
    spec: Spec
    trials: Table
    history: Table
    pareto: Table
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
        return max(0, self.planned - final) + self._wrongly_stopped + self._to_replicate

    @property
    def _wrongly_stopped(self) -> int:
        """Configurations that were stopped early and are to be trained again, for nothing finished holds them down.

        As `Queue` has it, which trains them once all others have ended.
        """
        stopped = rows_equal(self.pareto, "state", "pruned")
        rule = self.spec.early_terminate
        if rule.type == "none" or not rule.keeps_front or not stopped.num_rows:
            return 0
        theirs = rows_among(self.history, "trial_id", stopped["trial_id"].to_pylist())
        curves = rows_equal(theirs, "phase", "qat")
        means = curves.group_by(["trial_id", "epoch"], use_threads=False).aggregate(
            [("val_accuracy", "mean"), ("val_accuracy", "count"), ("seed", "count")]
        )
        means = rows_agree(means, "val_accuracy_count", "seed_count")  # else one has diverged
        highest = means.group_by("trial_id", use_threads=False).aggregate([("val_accuracy_mean", "max")])
        sizes = cells_in_order(stopped, "size_bytes", "trial_id", highest["trial_id"].to_pylist())
        ahead = highest["val_accuracy_mean_max"].to_numpy().round(12) > self._best_up_to(sizes.to_numpy()).round(12)
        return int(ahead.sum())

    @property
    def _to_replicate(self) -> int:
        """Configurations on the front, or close behind it, that `replicate` has yet to give more seeds."""
        wanted = self.spec.replicate
        if wanted is None:
            return 0
        ranked = self._ranked
        sizes, accuracies, seeds = (ranked[name].to_numpy() for name in ("size_bytes", "val_accuracy", "n_seeds"))
        behind = self._best_up_to(sizes) - accuracies
        return int(((behind <= wanted.within) & (seeds < wanted.front)).sum())

    @property
    def _ranked(self) -> Table:
        """What of `pareto` has come to its end with all its seeds."""
        return rows_known(self.pareto, "pareto_rank")

    def _best_up_to(self, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """The highest accuracy of what has come to its end and is not larger; minus infinity where nothing is."""
        ranked = self._ranked.sort_by("size_bytes")
        best = np.maximum.accumulate([-np.inf, *ranked["val_accuracy"].to_pylist()])
        return best[np.searchsorted(ranked["size_bytes"].to_numpy(), sizes, side="right")]

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
        pareto, trials = (rows_up_to(t, "size_bytes", budget) for t in (self.pareto, self.trials))
        history = rows_among(self.history, "trial_id", set(trials["trial_id"].to_pylist()))
        planned = self.planned - (self.pareto.num_rows - pareto.num_rows)
        return replace(self, trials=trials, history=history, pareto=pareto, planned=max(0, planned), budget=budget)

    def front(self, budget: int | None = None) -> Table:
        """The rows of `pareto` that are on the front, by ascending size; those of at most `budget` bytes."""
        return table_front(self.within(budget).pareto)

    def answers(self, budget: int | None = None) -> Answers:
        """What the sweep decides, and what it does not, from configurations of at most `budget` bytes."""
        return self.within(budget)._answers

    @cached_property
    def _answers(self) -> Answers:
        return answer(self.trials, self.history, self.pareto, self.budget)


def load_run(run: str | os.PathLike[str], kind: type[R] = Run) -> R:  # type: ignore[assignment]
    """What a run folder holds, see `qdtune.load`, as a `Run` or as a class that is made of it."""
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
    ids = members(spec, trials).keys()
    trials, history = (rows_among(table, "trial_id", ids) for table in (trials, history))
    found = kind(spec.name, where, spec, trials, history, aggregate(trials, True), tuple(damaged), planned)
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
