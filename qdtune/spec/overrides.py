"""Overrides of a sweep file from the command line: `--set KEY=VALUE`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qdtune.messages import KeyPath, Place, Problem, format_path, format_value, name_option
from qdtune.spec.fallback import drop_key, keep_stand_ins
from qdtune.spec.yaml_reader import Document, parse_yaml


def apply_overrides(document: Document, options: Sequence[str]) -> None:
    """Sets keys of a document in place and adds mistakes to its problems.

    Args:
        document: by `parse_yaml`; its value is a dict.
        options: `KEY=VALUE` each, with a dotted key and a value in YAML; missing groups are added.
    """
    place = Place(name_option("--set"))
    seen: set[KeyPath] = set()
    listed = _names_of(document)
    for option in options:
        key, equals, text = option.partition("=")
        path: KeyPath = tuple(key.split("."))
        if not equals or not all(path):
            what = f"{format_value(option)} is not KEY=VALUE (such as train.batch_size=32)"
            document.problems.append(Problem(place, (), what))
            continue
        if path in seen:
            document.problems.append(Problem(place, path, "is given twice"))
            continue
        seen.add(path)
        given = parse_yaml(text.encode("utf-8", "surrogateescape"), name_option("--set"), has_lines=False)
        document.problems += [replace(problem, path=path + problem.path) for problem in given.problems]
        if not given.problems:
            _set_key(document, path, given)
            drop_key(document.value.get("fallback"), path)  # an override holds on every data set
    if (chosen := _names_of(document)) != listed:
        keep_stand_ins(document.value.get("fallback"), listed, chosen)


def _names_of(document: Document) -> Any:
    data = document.value.get("data")
    return data.get("dataset") if isinstance(data, dict) else None


def _set_key(document: Document, path: KeyPath, given: Document) -> None:
    group = document.value
    for n, part in enumerate(path[:-1], start=1):
        group = group.setdefault(part, {})
        document.places.setdefault(path[:n], Place(name_option("--set")))
        if not isinstance(group, dict):
            what = f"{format_path(path[:n])} is no group of keys"
            document.problems.append(Problem(Place(name_option("--set")), path, what))
            return
    group[path[-1]] = given.value
    for old in [old for old in document.places if old[: len(path)] == path]:
        del document.places[old]
    healed = {old for old in document.refused if old[: len(path)] == path}
    document.refused -= healed
    document.problems[:] = [problem for problem in document.problems if problem.path not in healed]
    document.places |= {path + inner: at for inner, at in given.places.items()}
