"""Exported C, compiled and run on this machine, against `reader.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdtune.messages import one_line
from qdtune.model.c.program import ROWS
from qdtune.reader import INPUT, Model
from qdtune.spec.tasks import LARGEST, NO_CLASS, ClassRule

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
NEARLY_EQUAL = 1e-6  # of the largest output: two that are this close may be in another order in whole numbers
LIMIT_S = 600  # of a run over a test set; a large model needs some 20 s for 10,000 rows
MAIN = """#include <stdio.h>
#include "{name}.h"

int main(void)
{{
    static {row} row[{inputs}];
    static float logits[{outputs}];
    while (fread(row, sizeof row, 1, stdin) == 1) {{
        int32_t found;
        qd_{name}_logits(row, logits);
        found = {find};
        fwrite(logits, sizeof logits, 1, stdout);
        fwrite(&found, sizeof found, 1, stdout);
    }}
    return 0;
}}
"""


@dataclass(frozen=True)
class Program:
    """A written C program.

    Attributes:
        name: of its files.
        texts: suffix -> content of its files, `.c` and `.h`.
        model: from which it was made.
        classes: how a class follows from the outputs, see `Task.classes`.
    """

    name: str
    texts: Mapping[str, str]
    model: Model
    classes: ClassRule = LARGEST

    @property
    def has_class(self) -> bool:
        """Whether there is a `qd_NAME_class`."""
        return self.classes != NO_CLASS

    @property
    def row(self) -> str:
        """The type of C of one number of a row."""
        return ROWS[self.model.program.get(INPUT, "uint8")]

    def find_classes(self, logits: NDArray[Any]) -> NDArray[np.int64]:
        """The classes (N,) that follow from logits (N, O); zeros if there are none."""
        if not self.has_class:
            return np.zeros(len(logits), np.int64)
        return np.asarray(logits.argmax(1) if self.classes == LARGEST else logits[:, 0] > 0, np.int64)

    def count_wrong(self, logits: NDArray[Any], places: NDArray[Any]) -> int:
        """How many classes (N,) do not follow from logits (N, O), by more than rounding."""
        size = float(abs(logits).max(initial=0.0)) or 1.0
        wrong = self.find_classes(logits) != places
        if self.classes == LARGEST:
            chosen = np.take_along_axis(logits, places[:, None].astype(np.int64), 1)[:, 0]
            return int((wrong & (logits.max(1) - chosen > NEARLY_EQUAL * size)).sum())
        return int((wrong & (abs(logits[:, 0]) > NEARLY_EQUAL * size)).sum())


class CompileError(Exception):
    """A compiler or a compiled program fails; the message says how."""


@dataclass(frozen=True)
class Comparison:
    """The answers of a C program beside those of `reader.py`.

    Attributes:
        rows: the number of inputs.
        logits: how many outputs differ in any bit.
        largest: the largest difference, as a share of the largest output.
        classes: how many rows have another class.
        wrong: how many of these have a class that does not follow from the outputs, by more than rounding.
        mean: the mean difference, as a share of the largest output.
    """

    rows: int
    logits: int
    largest: float
    classes: int
    wrong: int
    mean: float = 0.0


def find_compiler() -> list[str] | None:
    """The command of the C compiler of this machine: that of $CC, else the first one found; None if there is none."""
    if given := os.environ.get("CC", "").split():
        return given if shutil.which(given[0]) else None
    return next(([name] for name in COMPILERS if shutil.which(name)), None)


def compare(compiler: list[str], program: Program, rows: NDArray[Any]) -> Comparison:
    """Compiles a program, runs it over rows, and compares its answers.

    Args:
        compiler: the command.
        program: its files.
        rows: (N, I).

    Raises:
        CompileError: the compiler finds fault with it, or the program ends early.
    """
    logits, places = answer(compiler, program, rows)
    parts = np.array_split(rows, max(1, len(rows) // 500))
    expected = np.concatenate([program.model.logits(part) for part in parts])
    size = float(abs(expected).max(initial=0.0)) or 1.0
    off = abs(logits.astype(np.float64) - expected) / size
    return Comparison(
        rows=len(rows),
        logits=int((logits != expected).sum()),
        largest=float(off.max(initial=0.0)),
        classes=int((places != program.find_classes(expected)).sum()),
        wrong=program.count_wrong(expected, places),
        mean=float(off.mean()) if len(rows) else 0.0,
    )


def answer(
    compiler: list[str], program: Program, rows: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The outputs (N, O) and classes (N,) that a compiled program gives for rows (N, I).

    Raises:
        CompileError: as `compare`.
    """
    name, inputs, outputs = program.name, *(program.model.program[width] for width in ("inputs", "outputs"))
    find = f"qd_{name}_class(row)" if program.has_class else "0"
    main = MAIN.format(name=name, row=program.row, inputs=inputs, outputs=outputs, find=find)
    with tempfile.TemporaryDirectory(prefix="qdtune-c-") as where:
        folder = Path(where)
        for suffix, text in program.texts.items():
            (folder / f"{name}{suffix}").write_text(text)
        (folder / "main.c").write_text(main)
        run([*compiler, *FLAGS, f"{name}.c", "main.c", "-o", "main"], folder)
        answers = run([str(folder / "main")], folder, np.ascontiguousarray(rows).tobytes())
    found = np.frombuffer(answers, np.dtype([("logits", "<f4", (outputs,)), ("place", "<i4")]))
    if len(found) != len(rows):
        raise CompileError(f"it answered {len(found)} of {len(rows)} rows")
    return found["logits"], found["place"]


def run(command: list[str], folder: Path, given: bytes = b"", limit_s: float = LIMIT_S) -> bytes:
    """What a command prints.

    Raises:
        CompileError: it fails, or takes longer than the limit.
    """
    try:
        done = subprocess.run(command, cwd=folder, input=given, capture_output=True, check=False, timeout=limit_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(one_line(str(error))[:300]) from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise CompileError(f"{Path(command[0]).name}: {one_line(said)[:300]}")
    return done.stdout
