"""Reads the bytes of a sweep file, or says why they cannot be read."""

from __future__ import annotations

import difflib
import os
import stat

from qdtune.messages import SpecError, one_line, user_error
from qdtune.spec.yaml_reader import MAX_BYTES


def read_sweep_file(path: str) -> bytes:
    """The bytes of a regular file, at most MAX_BYTES + 1 of them.

    Raises:
        SpecError: there is no such file (the message names the nearest one), or it cannot be read.
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
        others = {_stem(other): other for other in _list_names(folder) if other.endswith((".yaml", ".yml"))}
        near = difflib.get_close_matches(_stem(path), others, n=1)
        hint = f" (did you mean {one_line(os.path.join(folder, others[near[0]]))}?)" if near else ""
        raise user_error(f"no such file: {name}{hint}") from None
    except OSError as error:
        raise user_error(f"cannot read {name}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        if isinstance(error, SpecError):
            raise
        raise user_error(f"cannot read {name}: {error}") from None


def _stem(path: str) -> str:
    """The name of a file without its ending, which all sweep files have in common."""
    return os.path.splitext(os.path.basename(path))[0]


def _list_names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder or "."))
    except OSError:
        return []
