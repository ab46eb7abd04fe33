"""The group `fallback` of a sweep file: what changes where another data set stands in for the first one."""

from __future__ import annotations

from typing import Any

from qdtune.spec.values import Frozen


class Fallback(Frozen):
    """Groups as they would stand in a sweep file of their own. They are checked there, see `Spec.resolve`.

    Attributes:
        parameters: the axes that have other values
        exclude: instead of those of the file
        seeds: instead of those of the file
        train: the keys that have other values
        early_terminate: instead of that of the file
        replicate: instead of that of the file
        constraints: instead of those of the file
    """

    parameters: dict[str, Any] | None = None
    exclude: list[Any] | None = None
    seeds: list[Any] | None = None
    train: dict[str, Any] | None = None
    early_terminate: dict[str, Any] | None = None
    replicate: dict[str, Any] | None = None
    constraints: list[Any] | None = None


def change_groups(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The data of a sweep file with the groups of a fallback in it.

    Args:
        data: JSON-able, as of `Spec.to_dict`.
        changes: of a `Fallback`, without keys that are None.
    """
    changed = {**data, **changes}
    changed["parameters"] = {**data["parameters"], **changes.get("parameters", {})}
    changed["train"] = _change_keys(data["train"], changes.get("train", {}))
    return changed


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
