"""The keys of a sweep file, with what each accepts, for the tables of the docs; see `tables.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from qdtune.spec.sweep_file import Spec

# The keys that have a table or a page of their own.
ELSEWHERE = {
    "parameters": "see [Axes](#axes)",
    "exclude": "see [Axes](#axes)",
    "early_terminate": "see [Pruning](pruning.md)",
    "fallback": "see [Another data set](#another-data-set-stands-in)",
}


def key_rows(group: type[BaseModel] = Spec, path: str = "") -> Iterator[list[str]]:
    """Yields a row per key of a group, the groups in it included: key, values, default, words."""
    words = attribute_words(group)
    for name, field in group.model_fields.items():
        if name in getattr(group, "_found", ()):  # which qdtune fills in
            continue
        inner = None if name in ELSEWHERE else _group_in(field)
        if not inner or name in words:
            values = ELSEWHERE.get(name) or ("a group" if inner else values_of(_type_of(field)))
            yield [f"`{path}{name}`", values, _default_of(field), words[name]]
        if inner:
            yield from key_rows(inner, f"{path}{name}.")


def _group_in(field: FieldInfo) -> type[BaseModel] | None:
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _type_of(field: FieldInfo) -> Any:
    kind: Any = field.annotation
    for check in field.metadata:
        kind = Annotated[kind, check]
    return kind


def _default_of(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        return f"`{default.model_dump(exclude_none=True)}`".replace("'", "")
    return value_text(default)


def attribute_words(kind: type) -> dict[str, str]:
    """The words for each attribute in the sections `Attributes:` of a class and its bases, by name.

    An entry goes on in the lines below it that are indented more.
    """
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        section = (one.__doc__ or "").partition("Attributes:\n")[2]
        for entry in re.finditer(r"^( +)(\w+): (.+(?:\n\1 +\S.*)*)", section, re.MULTILINE):
            found[entry[2]] = " ".join(entry[3].split())
    return found


def values_of(kind: Any) -> str:
    """What a type of a sweep file accepts, in the words of its own message."""
    adapter = TypeAdapter(kind)
    said = _said_of(adapter, ...) or _said_of(adapter, [...])  # an ellipsis is never accepted
    words = said.removeprefix("in quotes: ").removeprefix("it must be ")
    if _holds_several(kind):
        words = f"{'one or ' if _said_of(adapter, ...) else ''}a list of: {words}"
    return f"null or {words}" if not _said_of(adapter, None) and _takes(adapter, None) else words


def _said_of(adapter: TypeAdapter[Any], value: object) -> str:
    """The words in brackets at the end of the message about a value: what would be right."""
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        messages = [one["msg"] for one in error.errors()]
        return next((re.sub(r"^[^(]*\(", "", text)[:-1] for text in messages if text.endswith(")")), "")
    return ""


def _takes(adapter: TypeAdapter[Any], value: object) -> bool:
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def _holds_several(kind: Any) -> bool:
    return get_origin(kind) is tuple or any(_holds_several(one) for one in get_args(kind))


def value_text(value: Any) -> str:
    """A value as a sweep file has it, for a cell of a table."""
    if value == "":
        return "empty"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"
