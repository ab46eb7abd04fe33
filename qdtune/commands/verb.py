"""The verbs of `qdtune`: every file of this folder that declares a `VERB` is one, and its `main` runs it.

Declarations are read from the text of the files, because importing all verbs would take a second.
"""

from __future__ import annotations

import pkgutil
import re
from dataclasses import dataclass

from qdtune import commands

_LINE = re.compile(r'^VERB = Verb\(place=(\d+), text="([^"\\]+)"\)\s*$', re.MULTILINE)


@dataclass(frozen=True)
class Verb:
    """The line of a verb in `qdtune --help`; a file declares it as `VERB = Verb(place=1, text="what it does")`.

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
        source = pkgutil.get_data(commands.__name__, f"{module.name}.py") or b""
        if verb := _read_verb(module.name, source.decode()):
            found[module.name] = verb
    return dict(sorted(found.items(), key=lambda item: (item[1].place, item[0])))


def _read_verb(name: str, source: str) -> Verb | None:
    """What a file declares; None if it is no verb.

    Raises:
        ValueError: the declaration is no line of the form that `Verb` shows.
    """
    if not re.search(r"^VERB\b", source, re.MULTILINE):
        return None
    if not (line := _LINE.search(source)):
        raise ValueError(f'commands/{name}.py must declare its verb as VERB = Verb(place=N, text="..."), on one line')
    return Verb(int(line[1]), line[2])
