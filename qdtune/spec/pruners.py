"""The rules that stop weak trials."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import model_validator

from qdtune.spec.checks import choice, number, whole
from qdtune.spec.values import Frozen

# The keys of each pruner and what they are where not given. The names are Optuna's, but for `pareto`, which is ours.
PRUNERS: dict[str, dict[str, Any]] = {
    "none": {},
    "pareto": {"margin": 0.01, "signal": "best_so_far", "min_epochs": 2, "patience": 1},
    "median": {"scope": "size", "n_startup_trials": 5, "n_warmup_steps": 0, "interval_steps": 1},
    "percentile": {
        "scope": "size",
        "percentile": 25.0,
        "n_startup_trials": 5,
        "n_warmup_steps": 0,
        "interval_steps": 1,
    },
    "hyperband": {"scope": "size", "min_resource": 1, "reduction_factor": 3},
    "successive_halving": {"scope": "size", "min_resource": 1, "reduction_factor": 3},
    "patient": {"patience": 2, "min_delta": 0.0},
    "threshold": {"lower": 0.2, "n_warmup_steps": 0, "interval_steps": 1},
    "wilcoxon": {"scope": "size", "p_threshold": 0.1, "n_warmup_steps": 0},
}
SIGNALS = ("best_so_far", "raw", "ema")


class EarlyTerminate(Frozen):
    """Which rule stops weak trials during QAT; every key that belongs to `type` has a value, the others are None.

    Accuracies are fractions, epochs are QAT epochs from 1: warm-up epochs never count.
    """

    type: Annotated[str, choice(PRUNERS)] = "none"
    scope: Annotated[str, choice(("size", "all"))] | None = None
    margin: Annotated[float, number("an accuracy, 0 to 1", lambda x: 0 <= x <= 1)] | None = None
    signal: Annotated[str, choice(SIGNALS)] | None = None
    min_epochs: Annotated[int, whole(1, 100_000)] | None = None
    patience: Annotated[int, whole(1, 100_000)] | None = None
    min_delta: Annotated[float, number("an accuracy, 0 to 1", lambda x: 0 <= x <= 1)] | None = None
    n_startup_trials: Annotated[int, whole(0, 1_000_000)] | None = None
    n_warmup_steps: Annotated[int, whole(0, 100_000)] | None = None
    interval_steps: Annotated[int, whole(1, 100_000)] | None = None
    percentile: Annotated[float, number("0 to 100", lambda x: 0 <= x <= 100)] | None = None
    min_resource: Annotated[int, whole(1, 100_000)] | None = None
    reduction_factor: Annotated[int, whole(2, 1000)] | None = None
    lower: Annotated[float, number("an accuracy, 0 to 1", lambda x: 0 <= x <= 1)] | None = None
    p_threshold: Annotated[float, number("above 0, up to 1", lambda x: 0 < x <= 1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kind = data.get("type", "none")
        return {**PRUNERS.get(kind, {}), **data} if isinstance(kind, str) else data

    @model_validator(mode="after")
    def _keys_of_type(self) -> EarlyTerminate:
        own = PRUNERS[self.type]
        for key in type(self).model_fields:
            if key != "type" and key not in own and getattr(self, key) is not None:
                own_keys = ", ".join(own) or "it has none: name a type, such as pareto"
                raise ValueError(f"{key} is no key of type {self.type} ({own_keys})")
            if key in own and getattr(self, key) is None:
                raise ValueError(f"{key} must have a value (default: {own[key]})")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The keys of this type with their values."""
        return {key: getattr(self, key) for key in PRUNERS[self.type]}

    @property
    def keeps_front(self) -> bool:
        """Whether a trial is compared only with trials that are not larger, so that no front member is in the way."""
        return self.type == "pareto" or self.scope == "size"
