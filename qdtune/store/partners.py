"""The comparisons of depths that no run of a plan can make, because no pair has equal size: known before training."""

from __future__ import annotations

from collections.abc import Iterable

from qdtune.spec.axes import decisive_axes
from qdtune.spec.configuration import Configuration
from qdtune.spec.objectives import SIZE_BYTES
from qdtune.spec.tasks import Metric
from qdtune.store.pairs import KEYS, Side
from qdtune.store.questions import Asked, list_depths


def list_planned_depths(trials: Iterable[Configuration], metric: Metric) -> list[Asked]:
    """The comparisons of depths of a plan, as if all of it had been trained.

    Args:
        trials: the configurations of one plan.
        metric: that judges.
    """
    sides: dict[tuple[object, ...], Side] = {}
    for trial in trials:
        key = decisive_axes(trial.cells | {"dataset": "", "model": ""})  # all have the same
        side = Side(key, "ok", None, {SIZE_BYTES.name: trial.sizes.size_bytes}, [], {}, {}, metric)
        sides.setdefault(side.values(KEYS), side)
    return list(list_depths(list(sides.values())))


def is_without_partner(asked: Asked) -> bool:
    """Whether a comparison of a plan has no pair that can be compared."""
    return None not in asked.by_obstacle
