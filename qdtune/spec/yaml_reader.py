"""Bytes of a YAML 1.2 file as plain data, with the place of every key and all mistakes at once.

A library (ruamel.yaml, pure Python) scans, parses and decides what a scalar is: `1e-3` is a number, `no` is text.
This file walks its events. It refuses tags, anchors and aliases, merge keys, duplicate keys, keys that are not text,
several documents, and files that are too large or too deep. It builds dict, list, str, int, float, bool and None.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
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

from qdtune.messages import KeyPath, Place, Problem, format_value, one_line

MAX_BYTES = 1_000_000
MAX_NODES = 10_000
MAX_DEPTH = 20
MAX_DIGITS = 40  # in a whole number; every limit has fewer, and int() is still fast


@dataclass
class Document:
    """The content of a YAML file.

    Attributes:
        value: dict, list, str, int, float, bool or None; also None if the file is empty or cannot be read.
        places: the place of each key path; the empty path is the document itself.
        problems: the mistakes found.
        refused: the key paths of refused values, which are None in `value`.
    """

    value: Any
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    refused: set[KeyPath] = field(default_factory=set)


def parse_yaml(data: bytes, source: str, *, has_lines: bool = True) -> Document:
    """The document in `data`. Bad input raises nothing: the mistakes are in `problems`.

    Args:
        data: the bytes of the file, UTF-8, with or without a byte order mark.
        source: its name in messages.
        has_lines: False for text without line numbers, such as an option of the command line.
    """
    reader = _YamlReader(source, has_lines)
    value = None
    try:
        value = reader.read_document(_decode(data))
    except _UnreadableError as error:
        reader.add_problem((), error.place or reader.find_place(None), str(error))
    return Document(value, reader.places, reader.problems, reader.refused)


class _UnreadableError(Exception):
    """The rest of the file cannot be read."""

    def __init__(self, what: str, place: Place | None = None) -> None:
        super().__init__(what)
        self.place = place


def _decode(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise _UnreadableError(f"file has more than {MAX_BYTES:,} bytes")  # `read_sweep_file` stops there
    if control := re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", data):
        raise _UnreadableError(f"not a text file (byte 0x{control[0][0]:02x} at offset {control.start()})")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _UnreadableError(f"not UTF-8 (byte 0x{data[error.start]:02x} at offset {error.start})") from None


def _find_odd_space(text: str) -> re.Match[str] | None:
    """The last character that looks like a space, or like nothing, and is no space in YAML."""
    found = [odd for odd in re.finditer(r"[^\x00-\x7f]", text) if _is_odd_space(odd[0])]
    return found[-1] if found else None


def _is_odd_space(character: str) -> bool:
    return not character.isascii() and unicodedata.category(character) in ("Zs", "Zl", "Zp", "Cf")


def _describe_odd_space(character: str) -> str:
    name = unicodedata.name(character, "an invisible character").lower()
    return f"{name} (U+{ord(character):04X}) is no space in YAML (replace it by a normal space, or delete it)"


class _YamlReader:
    """Builds the value from the parser's events. The parser does not recurse, and this class stops at MAX_DEPTH."""

    def __init__(self, source: str, has_lines: bool) -> None:
        self.source = source
        self.has_lines = has_lines
        self.places: dict[KeyPath, Place] = {}
        self.problems: list[Problem] = []
        self.refused: set[KeyPath] = set()
        self.nodes = 0
        self.yaml = YAML(typ="safe", pure=True)

    def find_place(self, event: Any) -> Place:
        return Place(self.source, event.start_mark.line + 1 if event is not None and self.has_lines else 0)

    def add_problem(self, path: KeyPath, place: Place, what: str) -> None:
        self.problems.append(Problem(place, path, what))

    def refuse(self, path: KeyPath, place: Place, what: str) -> None:
        self.add_problem(path, place, what)
        self.refused.add(path)

    def list_events(self, text: str) -> Iterator[Any]:
        try:
            yield from self.yaml.parse(text)
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            what = getattr(error, "problem", None) or getattr(error, "reason", "unreadable")
            place = Place(self.source, mark.line + 1, mark.column + 1) if mark and self.has_lines else None
            self.refuse_odd_space(text, mark.line if mark else None)
            raise _UnreadableError(f"not valid YAML: {one_line(str(what))}", place) from None
        except (ValueError, OverflowError):  # the library's own, from an escape such as "\UFFFFFFFF"
            raise _UnreadableError("not valid YAML: a character that does not exist") from None

    def refuse_odd_space(self, text: str, last: int | None) -> None:
        """Raises if a character like a non-breaking space is near what the library cannot read.

        Args:
            text: of the file.
            last: the line from 0 at which the library stopped; it often reads on past the character. None: the last.
        """
        lines = [re.sub(r"(^|\s)#.*", "", line) for line in re.split(r"\r\n?|\n", text)]
        for number in range(len(lines) - 1 if last is None else min(last, len(lines) - 1), -1, -1):
            if odd := _find_odd_space(lines[number]):
                place = Place(self.source, number + 1, odd.start() + 1) if self.has_lines else None
                raise _UnreadableError(_describe_odd_space(odd[0]), place)

    def read_document(self, text: str) -> Any:
        events = self.list_events(text)
        value = None
        documents = 0
        for event in events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _UnreadableError("more than one YAML document", self.find_place(event))
                if event.version or event.tags:  # %YAML 1.1 would change how scalars are read
                    raise _UnreadableError("directives (%YAML, %TAG) are not supported", self.find_place(event))
                root = next(events)
                value = self.read_node(root, events, ())
            elif isinstance(event, StreamStartEvent):
                self.places[()] = Place(self.source)
        return value

    def read_node(self, event: Any, events: Iterator[Any], path: KeyPath) -> Any:
        """The value that starts with `event`; takes its events from `events`."""
        place = self.find_place(event)
        self.places.setdefault(path, place)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _UnreadableError(f"more than {MAX_NODES:,} values", place)
        if len(path) > MAX_DEPTH:
            raise _UnreadableError(f"nesting deeper than {MAX_DEPTH}", place)
        is_barred = self.is_barred(event, path, place)
        value: Any = None
        if isinstance(event, ScalarEvent) and not is_barred:
            value = self.read_scalar(event, path, place)
        elif isinstance(event, SequenceStartEvent):
            value = []
            while not isinstance(item := next(events), SequenceEndEvent):
                value.append(self.read_node(item, events, (*path, len(value))))
        elif isinstance(event, MappingStartEvent):
            value = self.read_mapping(events, path)
        return None if is_barred else value

    def is_barred(self, event: Any, path: KeyPath, place: Place) -> bool:
        if event.anchor is not None:
            self.refuse(path, place, "anchors and aliases are not supported")
        elif not isinstance(event, AliasEvent) and event.ctag is not None:
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            self.refuse(path, place, f"YAML tag {format_value(tag)} is not supported")
        else:
            return False
        return True

    def read_mapping(self, events: Iterator[Any], path: KeyPath) -> dict[str, Any]:
        value: dict[str, Any] = {}
        while not isinstance(event := next(events), MappingEndEvent):
            place = self.find_place(event)
            key = self.read_key(event, events, path)
            if key is None:  # already reported; reading its value finds the mistakes in it
                self.read_node(next(events), events, (*path, "?"))
                continue
            inner = (*path, key)
            if key in value:
                first = self.places[inner].line
                where = f" (first on line {first})" if first else ""
                self.add_problem(path, place, f"key {format_value(key)} is given twice{where}")
            self.places.setdefault(inner, place)
            given = self.read_node(next(events), events, inner)
            value.setdefault(key, given)
        return value

    def read_key(self, event: Any, events: Iterator[Any], path: KeyPath) -> str | None:
        place = self.find_place(event)
        if isinstance(event, ScalarEvent) and event.style is None and (odd := _find_odd_space(event.value)):
            raise _UnreadableError(_describe_odd_space(odd[0]), place)  # the rest is indented otherwise than it looks
        before = len(self.problems)
        nowhere = (*path, "?")
        key = self.read_node(event, events, nowhere)
        del self.places[nowhere]
        if len(self.problems) > before:
            self.problems[before:] = [replace(problem, path=path) for problem in self.problems[before:]]
            return None
        if isinstance(event, ScalarEvent) and event.value == "<<" and event.implicit[0]:
            self.add_problem(path, place, "merge keys are not supported")
            return None
        if not isinstance(key, str):
            self.add_problem(path, place, f"keys must be text, got {format_value(key)}")
            return None
        return key

    def read_scalar(self, event: ScalarEvent, path: KeyPath, place: Place) -> Any:
        text: str = event.value
        kind = str(self.yaml.resolver.resolve(ScalarNode, text, event.implicit)).rpartition(":")[2]
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind in ("int", "float"):
            number = _parse_number(text, kind)
            if isinstance(number, str):
                self.refuse(path, place, number)
                return None
            return number
        if re.search(r"[\ud800-\udfff]", text):  # "\ud800" is valid YAML, but such text cannot be stored
            self.refuse(path, place, f"{format_value(text)} holds half a character")
            return None
        edges = [c for c in (text[:1], text[-1:]) if c and _is_odd_space(c)]
        if edges and event.style is None:  # between words of plain text they may be meant
            self.refuse(path, place, _describe_odd_space(edges[0]))
            return None
        return text  # dates are text too


def _parse_number(text: str, kind: str) -> int | float | str:
    """The number in `text`, which the library takes for a number; or, as text, why it is refused."""
    plain = text.replace("_", "").lower()
    digits = plain.lstrip("+-")
    if len(digits) > MAX_DIGITS:
        return f"{format_value(text)} is out of range"
    try:
        if digits.startswith((".inf", ".nan")):  # the check of the key refuses it and names the right values
            return float(plain.replace(".", "", 1))
        if kind == "float":
            return float(plain)
        if not digits.isdecimal():
            return f"{format_value(text)} is not decimal (write {int(plain, 0)})"
    except ValueError:  # the library takes ._ and 0x_ for numbers, Python does not
        return f"{format_value(text)} is not a number"
    if len(digits) > 1 and digits.startswith("0"):
        return f"{format_value(text)} has a leading zero (write {int(plain)})"
    return int(plain)
