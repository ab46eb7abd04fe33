"""The verbs of `qdtune`: every file of this folder that declares a `VERB` is one, and its `main` runs it.

Declarations are read from the text of the files, because importing all verbs would take a second.
"""

from __future__ import annotations

import ast
import pkgutil
import re
from contextlib import suppress
from dataclasses import dataclass

from qdtune import commands


@dataclass(frozen=True)
class Verb:
    """The line of a verb in `qdtune --help`; it is declared with literals and keywords.

    Attributes:
        place: in the list, from 1; verbs of one place are listed by name.
        text: what the verb does, in a few words.
    """

    place: int
    text: str


def read_verbs() -> dict[str, Verb]:
    """The verbs by name, in the order of `--help`; none of their files is imported."""
    found = {}
    for module in pkgutil.iter_modules(commands.__path__):
        source = pkgutil.get_data(commands.__name__, f"{module.name}.py")
        if source and re.search(rb"^VERB\b", source, re.MULTILINE):
            found[module.name] = _read_verb(module.name, source)
    return dict(sorted(found.items(), key=lambda item: (item[1].place, item[0])))


def _read_verb(name: str, source: bytes) -> Verb:
    """What the file of a verb declares.

    Raises:
        ValueError: the declaration is not a call of `Verb` with literals as keywords.
    """
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(
                targets=[ast.Name(id="VERB")], value=ast.Call(func=ast.Name(id="Verb"), args=[], keywords=keywords)
            ):
                with suppress(ValueError, TypeError):
                    return Verb(**{str(one.arg): ast.literal_eval(one.value) for one in keywords})
    raise ValueError(f"commands/{name}.py must declare VERB = Verb(place=N, text='...') with literals")
