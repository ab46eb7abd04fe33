"""Whether new results can be compared with those in a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdtune.messages import name_option, user_error
from qdtune.spec.sweep_file import Spec, loads


def check_comparable(spec: Spec, sweep_yaml: bytes | None, folder: str, missing: str | None = None) -> None:
    """Checks that a run folder holds no results that differ from those of the spec in more than the axes.

    Args:
        spec: resolved.
        sweep_yaml: the content of `sweep.yaml` in the folder; None if there is no such file.
        folder: its name in messages.
        missing: why the data set that the sweep prefers is not available, if so.

    Raises:
        SpecError: data, model, training or seeds differ; or `sweep.yaml` in the folder is not a sweep file.
    """
    if sweep_yaml is None:
        return
    earlier = loads(sweep_yaml, f"{folder}/sweep.yaml")
    old, new = (_flatten(one.result_settings()) for one in (earlier, spec))
    changed = [
        f"{key}: {old.get(key)} there, {new.get(key)} now" for key in new | old if old.get(key) != new.get(key)
    ]
    if changed and missing:
        raise user_error(
            f"{missing}; {folder} holds results on {', '.join(earlier.data.names)}: "
            f"point {name_option('--data-dir')} or QDTUNE_DATA to where that is"
        )
    if changed:
        raise user_error(
            f"{folder} holds results that are not comparable ({'; '.join(changed)}): choose another name, or set "
            f"them aside with {name_option('--fresh')}"
        )


def _flatten(group: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The nested keys as dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in group.items():
        leaves |= _flatten(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return leaves
