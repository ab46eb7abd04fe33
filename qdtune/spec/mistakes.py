"""The mistakes that validation finds in a sweep file, in our words and at their lines."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from qdtune.messages import KeyPath, Place, Problem, describe_unknown, find_nearest, format_value
from qdtune.spec.early_terminate import EarlyTerminate
from qdtune.spec.foreign_words import hint_for_key, hint_for_value
from qdtune.spec.yaml_reader import Document


class DisagreementError(ValueError):
    """Several disagreements, each with the path of the key to blame."""

    def __init__(self, found: list[tuple[KeyPath, str]]) -> None:
        super().__init__(found)
        self.found = found


def list_mistakes(error: ValidationError, document: Document, top: type[BaseModel]) -> Iterator[Problem]:
    """The mistakes that pydantic found, in our words, without those in values that the reader has refused.

    Args:
        error: of the validation.
        document: that was validated.
        top: the class of the whole sweep file.
    """
    items = error.errors(include_url=False)
    unknown = [item["loc"] for item in items if item["type"] == "extra_forbidden"]
    meant = {_find_meant(path, document, top) for path in unknown}  # that these are missing is no second mistake
    for item in items:
        path, cause = item["loc"], item.get("ctx", {}).get("error")
        if any(path[:n] in document.refused for n in range(1, len(path) + 1)):
            continue
        if isinstance(cause, DisagreementError):
            yield from (_problem(where, what, document) for where, what in cause.found)
        elif item["type"] == "extra_forbidden":
            what = describe_unknown("key ", str(path[-1]), _keys_at(path[:-1], document, top), hint_for_key(path))
            yield Problem(_place_of(path, document), path[:-1], what)
        elif item["type"] == "missing":
            if path in meant:
                continue
            yield Problem(_place_of(path, document), path, "is missing")
        elif cause is not None:
            yield _problem(path, hint_for_value(path, item["input"]) or str(cause), document)
        else:  # model_type, dict_type, tuple_type, list_type: the value has another shape than the group
            right = "a list" if item["type"] in ("tuple_type", "list_type") else "key: value pairs"
            wrong = "no value" if item["input"] is None else f"{format_value(item['input'])} is not allowed"
            yield _problem(path, f"{wrong} ({right})", document)


def _find_meant(path: KeyPath, document: Document, top: type[BaseModel]) -> tuple[Any, ...]:
    """The path of the key that an unknown one may mean; its last part is None if there is none."""
    near = find_nearest(str(path[-1]), _keys_at(path[:-1], document, top))
    return (*path[:-1], "values" if near == "value" else near)  # which has the one value


def _problem(path: KeyPath, what: str, document: Document) -> Problem:
    """The problem at the innermost key that is in the file: pydantic also names keys that our validators make."""
    while path not in document.places and len(path) > 1 and document.places:
        path = path[:-1]
    return Problem(_place_of(path, document), path, what)


def _place_of(path: KeyPath, document: Document) -> Place | None:
    return next((document.places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in document.places), None)


def _keys_at(path: KeyPath, document: Document, top: type[BaseModel]) -> list[str]:
    """The keys that the group at `path` may have."""
    kind: Any = top
    if path == ("early_terminate",):
        return EarlyTerminate.keys_of(document.value[path[0]].get("type"))
    for part in path:
        kind = get_args(kind)[0] if isinstance(part, int) else kind.model_fields[part].annotation
        if NoneType in get_args(kind):
            kind = get_args(kind)[0]
    keys = list(getattr(kind, "model_fields", None) or kind.__annotations__)
    return ["value", *keys] if "values" in keys else keys
