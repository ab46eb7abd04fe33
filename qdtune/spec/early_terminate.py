"""The group `early_terminate` of a sweep file: its keys are those of all pruners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_type_hints

from pydantic import create_model, model_validator

from qdtune.spec.checks import choice
from qdtune.spec.pruners import FIRST_KEYS, PRUNERS, NoPruner, Pruner, pruner_of
from qdtune.spec.values import Frozen


def _key_fields() -> dict[str, Any]:
    """Every key of any pruner as a field for pydantic, in the order of canonical text."""
    found: dict[str, Any] = {}
    for pruner in PRUNERS:
        types = get_type_hints(pruner, include_extras=True)
        for key in pruner.defaults():
            if found.setdefault(key, types[key]) != types[key]:
                what = f"{key} must have the same type in all pruners, got {types[key]} in {pruner.name}"
                raise TypeError(f"{what}: share the type, or rename the key")
    return {key: (found[key] | None, None) for key in (*FIRST_KEYS, *found)}


# A group with the keys of all pruners, so that a message can say which type a key belongs to.
_Keys: Any = create_model(
    "_Keys",
    __base__=Frozen,
    type=(Annotated[str, choice(pruner.name for pruner in PRUNERS)], NoPruner.name),
    **_key_fields(),
)


class EarlyTerminate(_Keys):
    """Which pruner stops weak trials; every key that belongs to `type` has a value, the others are None."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        return {**pruner_of(data.get("type")).defaults_beside(data), **data} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _check_keys(self) -> EarlyTerminate:
        own = pruner_of(self.type).defaults()
        for key in type(self).model_fields:
            if key != "type" and key not in own and getattr(self, key) is not None:
                own_keys = ", ".join(own) or "it has none: name a type, such as pareto"
                raise ValueError(f"{key} is no key of type {self.type} ({own_keys})")
            if key in own and getattr(self, key) is None and pruner_of(self.type).needs(key):
                raise ValueError(f"{key} must have a value (default: {own[key]})")
        return self

    @classmethod
    def keys_of(cls, name: object) -> list[str]:
        """The keys that a message lists for this type; those of all pruners if the type has none or is unknown."""
        own = pruner_of(name).defaults()
        return ["type", *own] if own else list(cls.model_fields)

    @property
    def options(self) -> dict[str, Any]:
        """The keys of this type with their values."""
        return {key: getattr(self, key) for key in pruner_of(self.type).defaults()}

    @property
    def pruner(self) -> Pruner:
        """The pruner of this type with these values."""
        return pruner_of(self.type)(**self.options)

    @property
    def keeps_front(self) -> bool:
        """Whether a trial is compared only with trials of equal or smaller size, so that the front survives."""
        return self.pruner.keeps_front

    def group_of(self, cells: Mapping[str, Any]) -> tuple[Any, ...]:
        """What tells the group of a configuration from others: a trial is compared only within its group.

        Args:
            cells: the value of each axis, as in tables.
        """
        return tuple(cells[name] for name in self.within or ())
