"""Whether new results can be compared with those in a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qdtune.messages import name_option, user_error
from qdtune.spec.sweep_file import Spec, loads


def check_comparable(
    spec: Spec,
    sweep_yaml: bytes | None,
    folder: str,
    missing: str | None = None,
    has_results: Callable[[], bool] = lambda: True,
) -> None:
    """Checks that a run folder is of no sweep whose results differ from those of the spec in more than the axes.

    Args:
        spec: resolved.
        sweep_yaml: the content of `sweep.yaml` in the folder; None if there is no such file.
        folder: its name in messages.
        missing: why the data set that the sweep prefers is not available, if so.
        has_results: whether the folder holds results; called only if the settings differ.

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
    if not changed:
        return
    is_begun, data = has_results(), ", ".join(earlier.data.names)
    if missing:
        held = f"holds results on {data}" if is_begun else f"has no results yet and is for {data}"
        raise user_error(
            f"{missing}; {folder} {held}: point {name_option('--data-dir')} or QDTUNE_DATA to where that is"
        )
    held = "holds results that are not comparable" if is_begun else "has no results yet, but other settings"
    raise user_error(
        f"{folder} {held} ({'; '.join(changed)}): choose another name, or set {'them' if is_begun else 'it'} aside "
        f"with {name_option('--fresh')}"
    )


def _flatten(group: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The nested keys as dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in group.items():
        leaves |= _flatten(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return leaves
