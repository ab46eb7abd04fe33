"""The pruners, which stop weak trials during QAT.

Each pruner is one frozen dataclass in `PRUNERS`: its name, its keys with defaults and checks, and one line for the
docs. The group `early_terminate` of a sweep file, its messages and the table in the docs are derived from it;
`search/pruners.py` builds it. To add one, add a class at the end of `PRUNERS` and its builder there.

A `Measure` has the unit of the metric that judges; accuracies are fractions. Epochs are QAT epochs from 1: warm-up
epochs never count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

from qdtune.spec.axes import AXIS_NAMES
from qdtune.spec.checks import choice, measure, number, whole
from qdtune.spec.values import Several

SIGNALS = ("best_so_far", "raw", "ema")

# Keys with the same name have the same check in all pruners.
Scope = Annotated[str, choice(("size", "all"))]
Signal = Annotated[str, choice(SIGNALS)]
Measure = Annotated[float, measure()]
Percent = Annotated[float, number("0 to 100", lambda x: 0 <= x <= 100)]
Probability = Annotated[float, number("above 0, up to 1", lambda x: 0 < x <= 1)]
Risk = Annotated[float, number("above 0 and below 1, or null", lambda x: 0 < x < 1)]
TrialCount = Annotated[int, whole(0, 1_000_000)]
EpochCount = Annotated[int, whole(1, 100_000)]
FirstEpoch = Annotated[int, whole(0, 100_000)]
Factor = Annotated[int, whole(2, 1000)]
GroupAxes = Several[Annotated[str, choice(AXIS_NAMES)]]  # whose values all trials of a group share


@dataclass(frozen=True)
class Pruner:
    """A pruner as a sweep file asks for it; its fields are its keys.

    Attributes:
        name: its `type` in a sweep file.
        text: what it stops, in one line of Markdown for the docs.
        has_rungs: whether it marks the trials that it has judged: a relaunch has to show it every curve again.
        is_by_seed: whether it needs the metric of every seed and not only their mean.
    """

    name: ClassVar[str]
    text: ClassVar[str]
    has_rungs: ClassVar[bool] = False
    is_by_seed: ClassVar[bool] = False

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Its keys in the order in which messages list them, with their defaults."""
        return {key.name: key.default for key in fields(cls)}

    @classmethod
    def defaults_beside(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Its keys with their defaults in a sweep file that gives these values."""
        return cls.defaults()

    @classmethod
    def needs(cls, key: str) -> bool:
        """Whether one of its keys must have a value, and not null."""
        return type(None) not in get_args(get_type_hints(cls)[key])

    @property
    def keeps_front(self) -> bool:
        """Whether it compares a trial only with trials of equal or smaller size, so that the front survives."""
        return False

    def stretch(self, before: int, epochs: int) -> dict[str, Any]:
        """Its keys with their values; those in epochs, chosen for `before` QAT epochs, in proportion to `epochs`."""
        types = get_type_hints(type(self), include_extras=True)
        values = {key.name: getattr(self, key.name) for key in fields(self)}
        in_epochs = {name for name in values if types[name] in (EpochCount, FirstEpoch)}
        return {name: -(-value * epochs // before) if name in in_epochs else value for name, value in values.items()}

    def misfits(self, n_seeds: int) -> Iterator[tuple[str, str]]:
        """The keys that do not fit a sweep of so many seeds per configuration, each with the reason."""
        yield from ()


@dataclass(frozen=True)
class ScopedPruner(Pruner):
    """A pruner that sees all trials, or with `scope: size` only those of equal or smaller size; in its group."""

    scope: Scope = "size"
    within: GroupAxes | None = None

    @property
    def keeps_front(self) -> bool:
        return self.scope == "size"


@dataclass(frozen=True)
class NoPruner(Pruner):
    """Stops nothing."""

    name: ClassVar = "none"
    text: ClassVar = "nothing: every trial trains to its end"


@dataclass(frozen=True)
class Pareto(Pruner):
    """Our own: stops a trial only if another one of equal or smaller size is ahead of it."""

    name: ClassVar = "pareto"
    text: ClassVar = (
        "trials more than `margin` behind another one of equal or smaller size, at each of the last `patience` epochs"
    )

    # Margin and risk were chosen on recordings, see docs/pruning.md.
    margin: Measure = 0.005
    signal: Signal = "best_so_far"
    min_epochs: EpochCount = 2
    patience: EpochCount = 1
    risk: Risk | None = 0.1
    within: GroupAxes | None = None

    @classmethod
    def defaults_beside(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        # A file with all of these keys and no risk is from before there was one, and has a right to the old rule.
        is_old = {"margin", "signal", "min_epochs", "patience"} <= given.keys()
        is_other = given.get("signal", cls.signal) != cls.signal  # a risk is judged by the best so far
        return cls.defaults() | ({"risk": None} if is_old or is_other else {})

    def misfits(self, n_seeds: int) -> Iterator[tuple[str, str]]:
        if self.risk is not None and self.signal != "best_so_far":
            yield "signal", f"{self.signal} does not go with a risk, which is judged by best_so_far"

    @property
    def keeps_front(self) -> bool:
        return True


@dataclass(frozen=True)
class Median(ScopedPruner):
    """Optuna's MedianPruner."""

    name: ClassVar = "median"
    text: ClassVar = "trials whose best metric so far is worse than the median of the others at the same epoch"

    n_startup_trials: TrialCount = 5
    n_warmup_steps: FirstEpoch = 0
    interval_steps: EpochCount = 1


@dataclass(frozen=True)
class Percentile(ScopedPruner):
    """Optuna's PercentilePruner."""

    name: ClassVar = "percentile"
    text: ClassVar = "trials whose best metric so far is not in the top `percentile` % at the same epoch"

    percentile: Percent = 25.0
    n_startup_trials: TrialCount = 5
    n_warmup_steps: FirstEpoch = 0
    interval_steps: EpochCount = 1


@dataclass(frozen=True)
class Hyperband(ScopedPruner):
    """Optuna's HyperbandPruner."""

    name: ClassVar = "hyperband"
    text: ClassVar = "as `successive_halving`, in several groups that start to halve at different epochs"
    has_rungs: ClassVar = True

    min_resource: EpochCount = 1
    reduction_factor: Factor = 3


@dataclass(frozen=True)
class SuccessiveHalving(ScopedPruner):
    """Optuna's SuccessiveHalvingPruner."""

    name: ClassVar = "successive_halving"
    text: ClassVar = (
        "trials outside the best 1/`reduction_factor` at epochs 1, 3, 9, … (`min_resource`, times `reduction_factor`)"
    )
    has_rungs: ClassVar = True

    min_resource: EpochCount = 1
    reduction_factor: Factor = 3


@dataclass(frozen=True)
class Patient(Pruner):
    """Optuna's PatientPruner around no other one."""

    name: ClassVar = "patient"
    text: ClassVar = "trials without an improvement of `min_delta` for more than `patience` epochs"

    patience: EpochCount = 2
    min_delta: Measure = 0.0


@dataclass(frozen=True)
class Threshold(Pruner):
    """Optuna's ThresholdPruner with one limit."""

    name: ClassVar = "threshold"
    text: ClassVar = "trials whose metric is worse than `lower`"

    lower: Measure = 0.2
    n_warmup_steps: FirstEpoch = 0
    interval_steps: EpochCount = 1


@dataclass(frozen=True)
class Wilcoxon(ScopedPruner):
    """Optuna's WilcoxonPruner over the seeds at one epoch."""

    name: ClassVar = "wilcoxon"
    text: ClassVar = "trials whose seeds are behind the best trial at the same epoch, with a p below `p_threshold`"
    is_by_seed: ClassVar = True

    p_threshold: Probability = 0.1
    n_warmup_steps: FirstEpoch = 0

    def misfits(self, n_seeds: int) -> Iterator[tuple[str, str]]:
        least = 0.5**n_seeds
        if least >= self.p_threshold:
            what = f"p_threshold {self.p_threshold:g} is never reached: the least p of {n_seeds} seeds is {least:g}"
            yield "p_threshold", f"{what} (more seeds)"


PRUNERS: tuple[type[Pruner], ...] = (
    NoPruner,
    Pareto,
    Median,
    Percentile,
    Hyperband,
    SuccessiveHalving,
    Patient,
    Threshold,
    Wilcoxon,
)
# Canonical text starts with these keys; the others follow in the order of PRUNERS. Recorded sweep files keep their
# text that way.
FIRST_KEYS = ("scope", "margin", "signal", "min_epochs", "patience", "min_delta")


def pruner_of(name: object) -> type[Pruner]:
    """The pruner with this name; `NoPruner`, which has no keys, if there is none."""
    return next((pruner for pruner in PRUNERS if pruner.name == name), NoPruner)
