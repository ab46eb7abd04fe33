"""Exported C on emulated microcontrollers: the flash and the RAM that it needs, and the instructions it takes.

A program with a hundred inputs is built for a target and run by QEMU. It prints its answers, which must be those of
`reader.py`. Instructions are counted by QEMU (`-icount`, in which each instruction takes an equal time). They are
instructions and not cycles: a chip takes more than one cycle for some, and waits for its flash.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdtune.model.c.host import CompileError, Program, run
from qdtune.model.c.targets import MEMORY_FUNCTIONS, Target
from qdtune.model.c.text import float_literal

SHARED_FLAGS = ("-std=c99", "-Os", "-ffreestanding", "-ffunction-sections", "-fdata-sections", "-Wall", "-Wextra")
LINK_FLAGS = ("-nostdlib", "-nostartfiles", "-Wl,--gc-sections", "-Wl,--build-id=none")
EMULATOR_LIMIT_S = 300.0
PAINT = "0xA5A5A5A5U"
STACK_WORDS = 2048  # that are painted
LOOPS = 50_000  # of two instructions: how many there are in a tick


CLASS, LOGITS, EMPTY = "class", "logits", "empty"
# What a program does with the model, to see what it adds to a program that does nothing with it.
CALLS = {
    EMPTY: "return given[0] > 0;",
    CLASS: "return (int)qd_{name}_class(given);",
    LOGITS: "static float out[{outputs}]; qd_{name}_logits(given, out); return out[0] > 0.0f;",
}
# What is timed: an expression, the class of a row.
TIMED = {CLASS: "qd_{name}_class(row)", LOGITS: "(qd_{name}_logits(row, logits.f), 0)"}
OVERFLOW = re.compile(r"region `(\w+)' overflowed by (\d+) bytes")


class TooLargeError(CompileError):
    """A program does not fit the memory of a target; the message says by how much."""


@dataclass(frozen=True)
class Flash:
    """What a function and everything that it calls take of the flash, in bytes.

    Attributes:
        model: the numbers: weights and other constants.
        kernels: the code, with the functions of the compiler's library.
    """

    model: int
    kernels: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.model + self.kernels


@dataclass(frozen=True)
class Measured:
    """What a program needs on a target.

    Attributes:
        target: its name.
        flash: `CLASS` and `LOGITS` -> that of the function; without classes there is only the second.
        ram: bytes of static buffers.
        stack: bytes, the most that the first of these functions used.
        instructions: of the first of these functions, for each input.
        differing: how many logits were not those of `reader.py`, and how many classes were wrong.
    """

    target: str
    flash: Mapping[str, Flash]
    ram: int
    stack: int
    instructions: NDArray[np.float64]
    differing: int


MAIN = """#include <stdint.h>
#include "{name}.h"
extern uint32_t _end_of_bss;
void qd_write(const char *text);
void qd_start_clock(void);
uint32_t qd_time(void);
uint32_t *qd_stack(void);
void qd_loop(uint32_t n);
int main(void);
static const {row} rows[{count}][{inputs}] = {{
{values}
}};
static void write_number(uint32_t n)
{{
    static char text[10];  /* zeros at the start, as there is no code that copies other initial values */
    text[8] = ' ';
    for (int i = 7; i >= 0; i--, n >>= 4) {{ text[i] = "0123456789abcdef"[n & 15U]; }}
    qd_write(text);
}}
static union {{ float f[{outputs}]; uint32_t u[{outputs}]; }} logits;
#define ANSWER(row) {timed}
/* The bytes below the stack pointer that a call has used: what is no longer painted. */
static uint32_t __attribute__((noinline)) measure_stack(const {row} *row)
{{
    uint32_t *top = qd_stack(), *low = top - {stack_words};
    if (low < &_end_of_bss) {{ low = &_end_of_bss; }}
    for (volatile uint32_t *p = low; p < top; p++) {{ *p = {paint}; }}
    (void)ANSWER(row);
    while (low < top && *low == {paint}) {{ low++; }}
    return 4U * (uint32_t)(top - low);
}}
int main(void)
{{
    write_number(measure_stack(rows[0]));
    qd_start_clock();
    const uint32_t start = qd_time(), then = qd_time();
    qd_loop({loops}U);
    write_number(then - start);
    write_number(qd_time() - then);
    for (uint32_t i = 0U; i < {count}U; i++) {{
        const uint32_t from = qd_time();
        const int32_t found = ANSWER(rows[i]);
        const uint32_t to = qd_time();
        write_number(to - from);
        write_number((uint32_t)found);
        {logits}
        for (uint32_t o = 0U; o < {outputs}U; o++) {{ write_number(logits.u[o]); }}
    }}
    return 0;
}}
"""
SMALL_MAIN = """#include <stdint.h>
#include "{name}.h"
int main(void);
extern {row} given[{inputs}];
{row} given[{inputs}];
int main(void) {{ {call} }}
"""


def measure(target: Target, program: Program, rows: NDArray[Any]) -> Measured:
    """Builds a program for a target, runs it over rows, and measures it.

    Args:
        target: its tools are there.
        program: its files.
        rows: (N, I).

    Raises:
        TooLargeError: it does not fit the target.
        CompileError: a tool fails.
    """
    calls = [CLASS, LOGITS] if program.has_class else [LOGITS]
    with tempfile.TemporaryDirectory(prefix="qdtune-c-") as where:
        folder = Path(where)
        files = {f"{program.name}{suffix}": text for suffix, text in program.texts.items()}
        for file, text in (files | _write_programs(target, program, rows)).items():
            (folder / file).write_text(text)
        built = {kind: _build(target, folder, program.name, kind) for kind in ("main", EMPTY, *calls)}
        sizes = {kind: _section_sizes(target, built[kind], folder) for kind in (EMPTY, *calls)}
        said = run([*target.emulator, "-kernel", built["main"]], folder, limit_s=EMULATOR_LIMIT_S).decode()
    numbers = [int(text, 16) for text in said.split() if re.fullmatch(r"[0-9a-f]{8}", text)]
    outputs, base = program.model.program["outputs"], sizes.pop(EMPTY)
    wanted = 3 + len(rows) * (2 + outputs)
    if len(numbers) != wanted:
        raise CompileError(f"it ended early on {target.name}: {len(numbers)} of {wanted} numbers, {said[-80:]!r}")
    stack, idle, looped, *rest = numbers
    ticks, places, *_ = table = np.array(rest, np.uint32).reshape(len(rows), 2 + outputs).T
    expected, found = program.model.logits(rows), np.ascontiguousarray(table[2:].T).view(np.float32)
    return Measured(
        target=target.name,
        flash={
            kind: Flash(one["rodata"] - base["rodata"], one["text"] - base["text"]) for kind, one in sizes.items()
        },
        ram=sizes[calls[0]]["bss"] - base["bss"],
        stack=stack,
        instructions=(ticks.astype(np.float64) - idle) * 2 * LOOPS / (looped - idle),
        differing=int((found != expected).sum()) + program.count_wrong(expected, places),
    )


def _write_programs(target: Target, program: Program, rows: NDArray[Any]) -> dict[str, str]:
    """Name -> content of the files beside those of the model."""
    inputs, outputs = program.model.program["inputs"], program.model.program["outputs"]
    words = {"name": program.name, "row": program.row, "inputs": inputs, "outputs": outputs}
    timed = TIMED[CLASS if program.has_class else LOGITS].format(**words)
    again = f"qd_{program.name}_logits(rows[i], logits.f);" if program.has_class else ""
    values = ",\n".join("{" + ", ".join(_number(v) for v in one) + "}" for one in rows)
    more = {"count": len(rows), "values": values, "paint": PAINT, "stack_words": STACK_WORDS, "loops": LOOPS}
    small = {f"{kind}.c": SMALL_MAIN.format(**words, call=call.format(**words)) for kind, call in CALLS.items()}
    start = {"start.c": target.start + MEMORY_FUNCTIONS, "link.ld": target.link}
    return start | {"main.c": MAIN.format(**words, **more, timed=timed, logits=again)} | small


def _build(target: Target, folder: Path, name: str, main: str) -> str:
    """Builds a program; the name of its file."""
    sources = ["start.c", f"{main}.c", f"{name}.c"]
    link = [*LINK_FLAGS, "-T", "link.ld", "-lgcc", "-o", f"{main}.elf"]
    try:
        run([target.compiler, *SHARED_FLAGS, *target.flags, *sources, *link], folder)
    except CompileError as error:
        if over := OVERFLOW.search(str(error)):
            memory = {"flash": target.flash, "ram": target.ram}[over[1]]
            raise TooLargeError(f"it needs {int(over[2]):,} bytes more than {memory} of {over[1]}") from None
        raise
    return f"{main}.elf"


def _section_sizes(target: Target, program: str, folder: Path) -> dict[str, int]:
    """Section without its dot -> bytes."""
    tool = target.compiler.removesuffix("gcc") + "size"
    said = run([tool, "-A", program], folder).decode()
    found = dict.fromkeys(("text", "rodata", "bss"), 0)
    return found | {name: int(size) for name, size in re.findall(r"^\.(text|rodata|bss)\s+(\d+)", said, re.MULTILINE)}


def _number(value: Any) -> str:
    return str(int(value)) if np.asarray(value).dtype.kind in "iu" else float_literal(value)
