"""A run folder as tables: the rows of its sweep, finished or still running. It writes nothing."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from qdtune.analysis.answers import Answers, answer
from qdtune.analysis.behind import CurveBook
from qdtune.messages import SpecError, format_count, one_line
from qdtune.spec.axes import AXIS_NAMES
from qdtune.spec.choices import PLANNED
from qdtune.spec.objectives import SIZE_BYTES
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec
from qdtune.store.cohorts import Key, find_stored_cohorts
from qdtune.store.decisions import schedule_of
from qdtune.store.folder import LocationError, StorageError, join_location
from qdtune.store.lost_weights import reopen_rows
from qdtune.store.opened import OpenedRun, open_run
from qdtune.store.pareto_table import aggregate, table_front
from qdtune.store.parquet import NewerSchemaError
from qdtune.store.partners import is_without_partner, list_planned_depths
from qdtune.store.releases import shares_to_reach
from qdtune.store.tables import Table, rows_among, rows_up_to
from qdtune.store.unfinished import Unfinished, find_unfinished

R = TypeVar("R", bound="Run")


class RunError(ValueError):
    """No run can be read from a folder; `str` is one line."""


@dataclass(frozen=True)
class Run:
    """The rows of a run folder that belong to the sweep in its `sweep.yaml`.

    Attributes:
        name: the name of the sweep.
        where: the folder, a path or a URL.
        spec: the sweep file, resolved.
        trials: one row per seed, as `columns.trials_schema`.
        history: one row per seed and epoch, as `columns.history_schema`.
        pareto: one row per configuration, as `columns.pareto_schema`, computed from `trials`.
        damaged: a line for each damaged file; its rows are left out.
        left_out: a line for each file that was left out because it is a link or not ours.
        planned: the number of configurations of the sweep; for a search its `run_cap`.
        budget: the largest size here in bytes; None: no limit. See `within`.
        listed: the configurations of its plan, each as `Configuration.key`; None for a search.
        lost_weights: the trials whose weights are gone; a launch trains them again.
        whole: the run without a budget; None if this is it.
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
    listed: frozenset[Key] | None = None
    left_out: tuple[str, ...] = ()
    lost_weights: frozenset[str] = frozenset()
    whole: Run | None = None

    def __str__(self) -> str:
        states = ", ".join(f"{n:,} {state}" for state, n in sorted(self.states.items()))
        if self.whole is not None:
            return f"{self.whole}; within {format_count(self.budget or 0, 'byte')}: {states or 'no configuration'}"
        done = "finished" if not self.left else f"{self.planned - self.left:,} of {self.planned:,} done"
        return f"{self.name}: {done}: {states}" if states else f"{self.name}: {done}"

    def __repr__(self) -> str:
        return f"<qdtune.run.Run {self} in {one_line(self.where)}>"

    @property
    def states(self) -> dict[str, int]:
        """State -> the number of configurations in it."""
        return dict(Counter(self.pareto["state"].to_pylist()))

    @property
    def finished(self) -> int:
        """The number of configurations whose seeds are all `ok`."""
        return self.pareto.num_rows - self.pareto["pareto_rank"].null_count

    @property
    def left(self) -> int:
        """The number of configurations that a launch would still train: 0 if the sweep is done."""
        return self._unfinished.count

    @cached_property
    def _unfinished(self) -> Unfinished:
        cohorts = find_stored_cohorts(reopen_rows(self.trials, self.lost_weights), self.history)
        found = find_unfinished(self.spec, cohorts, self.listed, self.planned)
        if self.whole is None:
            return found
        # A stopped configuration may be like finished ones of any size, so all of them decide about its release.
        return replace(found, to_release=self.whole._unfinished.to_release & _keys(self.pareto))

    def within(self, budget: int | None) -> Run:
        """The same run without configurations larger than `budget` bytes; the run itself if the budget is None.

        The front within a budget is the part of the front up to this size, because larger configurations dominate
        nothing in it. If bytes are none of its costs, it is drawn anew.

        Raises:
            ValueError: the budget is not a whole number of bytes from 1 on.
        """
        if budget is None:
            return self
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise ValueError(f"budget must be a whole number of bytes from 1 on, got {budget!r}")
        pareto, trials = (rows_up_to(t, SIZE_BYTES.name, budget) for t in (self.pareto, self.trials))
        if SIZE_BYTES not in self.spec.costs:
            shares = {row["trial_id"]: row["p_reach"] for row in pareto.to_pylist() if row["p_reach"] is not None}
            pareto = aggregate(trials, bootstrap=True, p_reach=shares, costs=self.spec.costs)
        history = rows_among(self.history, "trial_id", set(trials["trial_id"].to_pylist()))
        planned = max(0, self.planned - (self.pareto.num_rows - pareto.num_rows))
        small = replace(self, trials=trials, history=history, pareto=pareto, planned=planned, budget=budget)
        small = replace(small, whole=self.whole or self)
        if self.listed is None:
            return small
        return replace(small, listed=self.listed - (_keys(self.pareto) - _keys(pareto)))

    def front(self, budget: int | None = None) -> Table:
        """The rows of `pareto` on the front, of at most `budget` bytes, by ascending costs."""
        return table_front(self.within(budget).pareto)

    def answers(self, budget: int | None = None) -> Answers:
        """The answers of the sweep from configurations of at most `budget` bytes."""
        return self.within(budget)._answers

    @cached_property
    def _answers(self) -> Answers:
        whole = self.whole or self  # a side may be like configurations of any size
        curves = CurveBook(whole.trials, whole.history, self.spec.data.info)
        schedule = schedule_of(self.spec)
        return answer(
            self.trials,
            self.history,
            self.pareto,
            self.budget,
            curves,
            schedule,
            whole.pareto,
            bool(self.left),
            self._find_lonely() if self.left else (),
        )

    def _find_lonely(self) -> frozenset[tuple[Any, ...]]:
        """The settings of comparisons of depths for which the plan has no partner of equal size."""
        if self.listed is None:
            return frozenset()
        asked = list_planned_depths(plan(self.spec).trials, self.spec.metric)
        return frozenset(one.name for one in asked if is_without_partner(one))


def load_run(run: str | os.PathLike[str], kind: type[R] = Run) -> R:  # type: ignore[assignment]
    """The run in a folder, see `qdtune.load`, as a `Run` or as a subclass of it."""
    where = one_line(os.fspath(run))
    try:
        opened = open_run(run)
        spec = _launched_spec(opened)
        listed = frozenset(trial.key for trial in plan(spec).trials) if spec.method in PLANNED else None
        rows = opened.read_rows()
    except SpecError as error:
        raise RunError(str(error).splitlines()[0].removeprefix("error: ")) from None
    except (LocationError, NewerSchemaError, StorageError) as error:
        raise RunError(one_line(str(error))) from None
    if not rows.trials.num_rows:
        skipped = (*rows.damaged, *rows.left_out)
        why = f" that can be read: {skipped[0]}" if skipped else " yet: its sweep has to run"
        raise RunError(one_line(f"{where} holds no results{why}"))
    ours = rows.of_members()
    shares = shares_to_reach(spec, find_stored_cohorts(ours.trials, ours.history))
    pareto = aggregate(ours.trials, bootstrap=True, p_reach=shares, costs=spec.costs)
    planned = (spec.run_cap or 0) if listed is None else len(listed)
    found = kind(
        spec.name,
        os.fspath(run),
        spec,
        ours.trials,
        ours.history,
        pareto,
        rows.damaged,
        planned=planned,
        listed=listed,
        left_out=rows.left_out,
        lost_weights=rows.lost_weights,
    )
    if not found.finished:
        there = ", ".join(f"{n} {state}" for state, n in sorted(found.states.items()))
        raise RunError(f"{where} holds no finished configuration yet ({there or 'none'} of {planned})")
    return found


def _launched_spec(opened: OpenedRun) -> Spec:
    """The sweep of a run folder, which a launch must have written."""
    spec = opened.spec
    if len(spec.data.names) > 1 or spec.data.info is None or (spec.model.factory and not spec.model.built):
        where = join_location(opened.where, "sweep.yaml")
        raise RunError(f"{where} must be as a launch writes it, with one data set: run its sweep")
    return spec


def _keys(pareto: Table) -> set[Key]:
    return set(zip(*(pareto[axis].to_pylist() for axis in AXIS_NAMES), strict=True))
