"""The group `fallback` of a sweep file: what changes where another data set stands in for the first one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

from qdtune.datasets.known import DATASET_NAMES
from qdtune.messages import KeyPath
from qdtune.spec.checks import choice
from qdtune.spec.values import Distinct, Frozen, as_list


class Fallback(Frozen):
    """Groups as they would stand in a sweep file of their own. They are checked there, see `Spec.resolve`.

    Attributes:
        dataset: a data set, or a list: those it is for; null: all of `data.dataset` but the first
        parameters: the axes that have other values
        exclude: instead of those of the file
        seeds: instead of those of the file
        train: the keys that have other values
        early_terminate: instead of that of the file
        replicate: instead of that of the file
        objectives: instead of those of the file
        constraints: instead of those of the file
    """

    dataset: Annotated[Distinct[Annotated[str, choice(DATASET_NAMES)]], BeforeValidator(as_list)] | None = None
    parameters: dict[str, Any] | None = None
    exclude: list[Any] | None = None
    seeds: list[Any] | None = None
    train: dict[str, Any] | None = None
    early_terminate: dict[str, Any] | None = None
    replicate: dict[str, Any] | None = None
    objectives: list[Any] | None = None
    constraints: list[Any] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The groups that it has, JSON-able; null is a value, such as of `replicate`."""
        return self.model_dump(exclude_unset=True, exclude={"dataset"})

    def is_for(self, dataset: str, listed: Sequence[str]) -> bool:
        """Whether it changes a data set of those that are `listed` in order of preference."""
        return dataset in (listed[1:] if self.dataset is None else self.dataset)

    def to_dict(self) -> dict[str, Any]:
        """The keys that the file has, JSON-able."""
        return self.given if self.dataset is None else {"dataset": [*self.dataset], **self.given}


def change_groups(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The data of a sweep file with the groups of a fallback in it.

    Args:
        data: JSON-able, as of `Spec.to_dict`.
        changes: `given` of a `Fallback`.
    """
    changed = {**data, **changes}
    if isinstance(changes.get("parameters"), dict):
        changed["parameters"] = {**data["parameters"], **changes["parameters"]}
    if isinstance(changes.get("train"), dict):
        changed["train"] = _change_keys(data["train"], changes["train"])
    return changed


def keep_stand_ins(fallback: Any, listed: Any, chosen: Any) -> None:
    """Lets a fallback be for the data sets that it was for, in place, although others are chosen now.

    Args:
        fallback: as the file has it.
        listed: `data.dataset` of the file.
        chosen: the same as an override has it.
    """
    listed, chosen = as_list(listed), as_list(chosen)
    if not (isinstance(fallback, dict) and listed and chosen) or "dataset" in fallback:
        return
    preferred, *stand_ins = listed
    kept = [name for n, name in enumerate(chosen) if name in stand_ins or (n and name != preferred)]
    if stand_ins and kept != chosen[1:]:
        fallback["dataset"] = kept


def drop_key(fallback: Any, path: KeyPath) -> None:
    """Takes out of a fallback, in place, what it says of a key of the file; groups that are empty then go, too.

    Args:
        fallback: as the file has it.
        path: of the key, such as `("train", "qat", "lr")`. What is replaced as a whole goes as a whole.
    """
    if path[0] != "train":
        path = path[:2] if path[0] == "parameters" else path[:1]
    _drop(fallback, path)


def _drop(group: Any, path: KeyPath) -> None:
    if not isinstance(group, dict) or path[0] not in group:
        return
    if len(path) > 1:
        _drop(group[path[0]], path[1:])
    if len(path) == 1 or group[path[0]] == {}:
        del group[path[0]]


def _change_keys(group: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The group with other values; a group in it keeps the keys that are not changed."""
    return {
        **group,
        **{
            key: _change_keys(group[key], value)
            if isinstance(value, dict) and isinstance(group.get(key), dict)
            else value
            for key, value in changes.items()
        },
    }
