"""Bytes of a YAML 1.2 file as plain data, with the place of every key and all mistakes at once.

A library (ruamel.yaml, pure Python) scans, parses and decides what a scalar is: `1e-3` is a number, `no` is text.
This file walks its events and refuses what a sweep file has no use for: tags, anchors and aliases, merge keys,
keys given twice, keys that are not text, several documents, whatever is too large or too deep. Nothing is ever
constructed but dict, list, str, int, float, bool and None.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamStartEvent,
)
from ruamel.yaml.nodes import ScalarNode

from qdtune.messages import KeyPath, Place, Problem, SpecError, format_path, format_value, one_line, user_error

MAX_BYTES = 1_000_000
MAX_NODES = 10_000
MAX_DEPTH = 20
MAX_DIGITS = 40  # of a whole number: far above every limit, far below what makes int() slow


@dataclass
class Document:
    """What a file says.

    Attributes:
        value: dict, list, str, int, float, bool or None; None too where nothing was readable or written.
        places: the place of each key path; the empty path is the document itself.
        problems: what was refused.
        refused: where; a refused value stands in `value` as None.
    """

    value: Any
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    refused: set[KeyPath] = field(default_factory=set)


def parse(data: bytes, source: str, *, numbered: bool = True) -> Document:
    """The document in `data`; never raises for bad input, its mistakes are in `problems`.

    Args:
        data: the bytes of the file, UTF-8, with or without a byte order mark.
        source: what messages call it.
        numbered: False for text without lines of its own, such as an option of the command line.
    """
    reader = _Reader(source, numbered)
    value = None
    try:
        value = reader.read(_text(data))
    except _UnreadableError as error:
        reader.blame((), error.place or reader.place(None), str(error))
    return Document(value, reader.places, reader.problems, reader.refused)


def read_file(path: str) -> bytes:
    """The bytes of a regular file, at most one more than MAX_BYTES of them.

    Raises:
        SpecError: there is no such file (the nearest name is given), or it cannot be read.
    """
    name = one_line(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block, a folder has no bytes
            kind = "a folder (give a .yaml file)" if os.path.isdir(path) else "not a regular file"
            raise user_error(f"{name} is {kind}")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        folder = os.path.dirname(path)
        others = [other for other in _names(folder) if other.endswith((".yaml", ".yml"))]
        near = difflib.get_close_matches(os.path.basename(path), others, n=1)
        hint = f" (did you mean {one_line(os.path.join(folder, near[0]))}?)" if near else ""
        raise user_error(f"no such file: {name}{hint}") from None
    except OSError as error:
        raise user_error(f"cannot read {name}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        if isinstance(error, SpecError):
            raise
        raise user_error(f"cannot read {name}: {error}") from None


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder or "."))
    except OSError:
        return []


def override(document: Document, options: Sequence[str]) -> None:
    """Sets keys of a document whose value is a dict, in place; mistakes go to its problems.

    Args:
        document: as `parse` gives it.
        options: `KEY=VALUE` each, a dotted key and a value in YAML; groups on the way are made as needed.
    """
    place = Place("--set")
    seen: set[KeyPath] = set()
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
        given = parse(text.encode("utf-8", "surrogateescape"), "--set", numbered=False)
        document.problems += [replace(problem, path=path + problem.path) for problem in given.problems]
        if not given.problems:
            _put(document, path, given)


def _put(document: Document, path: KeyPath, given: Document) -> None:
    group = document.value
    for n, part in enumerate(path[:-1], start=1):
        group = group.setdefault(part, {})
        document.places.setdefault(path[:n], Place("--set"))
        if not isinstance(group, dict):
            what = f"{format_path(path[:n])} is no group of keys"
            document.problems.append(Problem(Place("--set"), path, what))
            return
    group[path[-1]] = given.value
    for old in [old for old in document.places if old[: len(path)] == path]:
        del document.places[old]
    healed = {old for old in document.refused if old[: len(path)] == path}
    document.refused -= healed
    document.problems[:] = [problem for problem in document.problems if problem.path not in healed]
    document.places |= {path + inner: at for inner, at in given.places.items()}


class _UnreadableError(Exception):
    """Nothing after this point can be read."""

    def __init__(self, what: str, place: Place | None = None) -> None:
        super().__init__(what)
        self.place = place


def _text(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise _UnreadableError(f"file has more than {MAX_BYTES:,} bytes")  # `read` stops there
    if control := re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", data):
        raise _UnreadableError(f"not a text file (byte 0x{control[0][0]:02x} at offset {control.start()})")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _UnreadableError(f"not UTF-8 (byte 0x{data[error.start]:02x} at offset {error.start})") from None


class _Reader:
    """Builds the value from the parser's events; the parser does not recurse and we stop at MAX_DEPTH."""

    def __init__(self, source: str, numbered: bool) -> None:
        self.source = source
        self.numbered = numbered
        self.places: dict[KeyPath, Place] = {}
        self.problems: list[Problem] = []
        self.refused: set[KeyPath] = set()
        self.nodes = 0
        self.yaml = YAML(typ="safe", pure=True)

    def place(self, event: Any) -> Place:
        return Place(self.source, event.start_mark.line + 1 if event is not None and self.numbered else 0)

    def blame(self, path: KeyPath, place: Place, what: str) -> None:
        self.problems.append(Problem(place, path, what))

    def refuse(self, path: KeyPath, place: Place, what: str) -> None:
        self.blame(path, place, what)
        self.refused.add(path)

    def events(self, text: str) -> Iterator[Any]:
        try:
            yield from self.yaml.parse(text)
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            what = getattr(error, "problem", None) or getattr(error, "reason", "unreadable")
            place = Place(self.source, mark.line + 1, mark.column + 1) if mark and self.numbered else None
            raise _UnreadableError(f"not valid YAML: {one_line(str(what))}", place) from None
        except (ValueError, OverflowError):  # the library's own, from an escape such as "\UFFFFFFFF"
            raise _UnreadableError("not valid YAML: a character that does not exist") from None

    def read(self, text: str) -> Any:
        events = self.events(text)
        value = None
        documents = 0
        for event in events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _UnreadableError("more than one YAML document", self.place(event))
                if event.version or event.tags:  # %YAML 1.1 would change what a scalar is
                    raise _UnreadableError("directives (%YAML, %TAG) are not supported", self.place(event))
                root = next(events)
                value = self.node(root, events, ())
            elif isinstance(event, StreamStartEvent):
                self.places[()] = Place(self.source)
        return value

    def node(self, event: Any, events: Iterator[Any], path: KeyPath) -> Any:
        """The value that starts with `event`; reads `events` to its end."""
        place = self.place(event)
        self.places.setdefault(path, place)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _UnreadableError(f"more than {MAX_NODES:,} values", place)
        if len(path) > MAX_DEPTH:
            raise _UnreadableError(f"nesting deeper than {MAX_DEPTH}", place)
        barred = self.barred(event, path, place)
        value: Any = None
        if isinstance(event, ScalarEvent) and not barred:
            value = self.scalar(event, path, place)
        elif isinstance(event, SequenceStartEvent):
            value = []
            while not isinstance(item := next(events), SequenceEndEvent):
                value.append(self.node(item, events, (*path, len(value))))
        elif isinstance(event, MappingStartEvent):
            value = self.mapping(events, path)
        return None if barred else value

    def barred(self, event: Any, path: KeyPath, place: Place) -> bool:
        if event.anchor is not None:
            self.refuse(path, place, "anchors and aliases are not supported")
        elif not isinstance(event, AliasEvent) and event.ctag is not None:
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            self.refuse(path, place, f"YAML tag {format_value(tag)} is not supported")
        else:
            return False
        return True

    def mapping(self, events: Iterator[Any], path: KeyPath) -> dict[str, Any]:
        value: dict[str, Any] = {}
        while not isinstance(event := next(events), MappingEndEvent):
            place = self.place(event)
            key = self.key(event, events, path)
            if key is None:  # already reported; its value is read for the mistakes in it
                self.node(next(events), events, (*path, "?"))
                continue
            inner = (*path, key)
            if key in value:
                first = self.places[inner].line
                where = f" (first on line {first})" if first else ""
                self.blame(path, place, f"key {format_value(key)} is given twice{where}")
            self.places.setdefault(inner, place)
            given = self.node(next(events), events, inner)
            value.setdefault(key, given)
        return value

    def key(self, event: Any, events: Iterator[Any], path: KeyPath) -> str | None:
        place = self.place(event)
        before = len(self.problems)
        nowhere = (*path, "?")
        key = self.node(event, events, nowhere)
        del self.places[nowhere]
        if len(self.problems) > before:
            self.problems[before:] = [replace(problem, path=path) for problem in self.problems[before:]]
            return None
        if isinstance(event, ScalarEvent) and event.value == "<<" and event.implicit[0]:
            self.blame(path, place, "merge keys are not supported")
            return None
        if not isinstance(key, str):
            self.blame(path, place, f"keys must be text, got {format_value(key)}")
            return None
        return key

    def scalar(self, event: ScalarEvent, path: KeyPath, place: Place) -> Any:
        text: str = event.value
        kind = str(self.yaml.resolver.resolve(ScalarNode, text, event.implicit)).rpartition(":")[2]
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind in ("int", "float"):
            number = _number(text, kind)
            if isinstance(number, str):
                self.refuse(path, place, number)
                return None
            return number
        if re.search(r"[\ud800-\udfff]", text):  # "\ud800" is YAML, but no text that could be stored
            self.refuse(path, place, f"{format_value(text)} holds half a character")
            return None
        return text  # dates stay text too


def _number(text: str, kind: str) -> int | float | str:
    """The number that the library says `text` is; a text says why it is not taken."""
    plain = text.replace("_", "").lower()
    digits = plain.lstrip("+-")
    if len(digits) > MAX_DIGITS:
        return f"{format_value(text)} is out of range"
    try:
        if digits.startswith((".inf", ".nan")):  # for the rules to refuse, who know what would be right
            return float(plain.replace(".", "", 1))
        if kind == "float":
            return float(plain)
        if not digits.isdecimal():
            return f"{format_value(text)} is not decimal (write {int(plain, 0)})"
    except ValueError:  # what the library takes for a number and Python does not: ._ or 0x_
        return f"{format_value(text)} is not a number"
    if len(digits) > 1 and digits.startswith("0"):
        return f"{format_value(text)} has a leading zero (write {int(plain)})"
    return int(plain)
