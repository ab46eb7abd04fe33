"""Sweeps with `replicate: {until: decided}` and an invented trainer: what is trained, and what is stored."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from qdtune.search.queue import Queue
from qdtune.search.study import Study
from qdtune.spec.axes import AXIS_NAMES
from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec
from qdtune.store.parquet import to_table
from qdtune.store.results import Result, SeedEnd
from tests.schemas import TRIALS

DRAWN_BY = AXIS_NAMES.index("augment") + 1  # the axes that change what is drawn: later ones do not
NOW = datetime(2030, 1, 2, tzinfo=timezone.utc)
ONE_WIDTH = {"depth": [1, 2, 3], "weight_bits": [1, 4, 8], "activation": ["identity", "relu"]}
AXES = ONE_WIDTH | {"weight_bits": [1, 8], "hidden": [[16], [15]]}
Value = Callable[[Configuration, int], float | None]  # the metric of a configuration with a seed; None: it diverges


def sweep(axes: dict[str, list[Any]] = AXES, *, replicate: Any = None, **given: Any) -> Spec:
    """A sweep over some axes; `replicate` has keys beside `until`."""
    data = {
        "version": 1,
        "name": "a",
        "parameters": {axis: {"values": values} for axis, values in axes.items()},
        "exclude": [{"depth": 1, "activation": "relu"}] if {"depth", "activation"} <= axes.keys() else [],
        "data": {"dataset": "digits", "val_size": 100},
        "early_terminate": {"type": "none"},
        "replicate": {"until": "decided"} | (replicate or {}),
    }
    return Spec.model_validate(data | given)


def noisy(effect: float = 0.02, noise: float = 0.02, seed: int = 0) -> Value:
    """Depth adds `effect`; each configuration and seed has its own normal noise."""

    def value(trial: Configuration, s: int) -> float:
        return 0.8 + effect * trial.depth + random.Random(repr((seed, trial.key[:DRAWN_BY], s))).gauss(0, noise)

    return value


def ended(trial: Configuration, value: Value, state: str | None = None) -> Result:
    """The result of a trial; each seed took a second."""
    values = [value(trial, s) for s in trial.seeds]
    states = [state or ("diverged" if one is None else "ok") for one in values]
    ends = tuple(SeedEnd(s, how, one, None, 1.0) for s, how, one in zip(trial.seeds, states, values, strict=True))
    worst = state or ("diverged" if None in values else "ok")
    score = sum(one for one in values if one is not None) / len(values) if worst == "ok" else None
    return Result(trial, worst, score, {}, {}, None, NOW, ends)


@dataclass
class Launches:
    """Launches of one sweep, one after the other, each of which may be killed.

    Attributes:
        spec: of the sweep.
        value: of the trainer.
        results: what is stored.
        trained: the axes and seeds of each trial that ended, in that order.
        fate: the state in which a trial ends if not by its numbers.
    """

    spec: Spec
    value: Value
    results: list[Result] = field(default_factory=list)
    trained: list[tuple[Any, tuple[int, ...]]] = field(default_factory=list)
    fate: Callable[[Configuration], str | None] = lambda trial: None

    def queue(self) -> Queue:
        """The queue of a new launch."""
        return Queue(self.spec, plan(self.spec).trials, Study(self.spec), self.results)

    def launch(self, chance: random.Random, at_once: int = 1, kill_after: int | None = None) -> Queue:
        """Trains until nothing is left, or until `kill_after` trials have ended; running ones are lost then."""
        queue, running, count = self.queue(), list[Configuration](), 0
        while kill_after is None or count < kill_after:
            while len(running) < at_once and (trial := queue.next()) is not None:
                running.append(trial)
            if not running:
                break
            trial = running.pop(chance.randrange(len(running)))
            result = ended(trial, self.value, self.fate(trial))
            queue.ended(result)
            self.results = [one for one in self.results if one.trial_id != trial.trial_id] + [result]
            self.trained.append((trial.key, trial.seeds))
            count += 1
        return queue

    @property
    def further(self) -> int:
        """The number of trainings beyond the first seeds."""
        return sum(len(seeds) for _, seeds in self.trained if seeds != self.spec.seeds)


def rows_of(results: Iterable[Result]) -> list[dict[str, Any]]:
    """The rows of the table `trials` for results."""
    return [
        result.trial.columns
        | {
            "seed": end.seed,
            "state": end.state,
            "val_accuracy": end.value,
            "error": end.error,
            "seconds": end.seconds,
            "finished_at": NOW,
        }
        for result in results
        for end in result.ends
    ]


def table_of(results: Iterable[Result]) -> Any:
    """The table `trials` for results."""
    return to_table(rows_of(results), TRIALS, {})
