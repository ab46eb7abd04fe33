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

from qdtune.model.c.host import CompileError, count_wrong, run
from qdtune.model.c.program import ROWS
from qdtune.model.c.targets import MEMORY_FUNCTIONS, Target
from qdtune.model.c.text import float_literal
from qdtune.reader import INPUT, Model

SHARED_FLAGS = ("-std=c99", "-Os", "-ffreestanding", "-ffunction-sections", "-fdata-sections", "-Wall", "-Wextra")
LINK_FLAGS = ("-nostdlib", "-nostartfiles", "-Wl,--gc-sections", "-Wl,--build-id=none")
EMULATOR_LIMIT_S = 300.0
PAINT = "0xA5A5A5A5U"
STACK_WORDS = 2048  # that are painted
LOOPS = 50_000  # of two instructions: how many there are in a tick


# What a program does with the model, to see what it adds to a program that does nothing with it.
CALLS = {
    "empty": "return given[0] > 0;",
    "class": "return (int)qd_{name}_class(given);",
    "logits": "static float out[{outputs}]; qd_{name}_logits(given, out); return out[0] > 0.0f;",
}


@dataclass(frozen=True)
class Measured:
    """What a program needs on a target.

    Attributes:
        target: its name.
        numbers, code: bytes of flash: weights and other constants; functions, those of the compiler's library that
            they call included. Both of `_class` alone.
        logits_code: bytes of code of `_logits` alone.
        ram: bytes of static buffers.
        stack: bytes, the most that `_class` used.
        instructions: of `_class`, for each input.
        differing: how many logits were not those of `reader.py`, and how many classes were wrong.
    """

    target: str
    numbers: int
    code: int
    logits_code: int
    ram: int
    stack: int
    instructions: NDArray[np.float64]
    differing: int


MAIN = """#include <stdint.h>
#include "{name}.h"
extern uint32_t _end_of_bss;
void qd_write(const char *text);
uint32_t qd_time(void);
uint32_t qd_elapsed(uint32_t from, uint32_t to);
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
/* The bytes below the stack pointer that a call has used: what is no longer painted. */
static uint32_t __attribute__((noinline)) measure_stack(const {row} *row)
{{
    uint32_t *top = qd_stack(), *low = top - {stack_words};
    if (low < &_end_of_bss) {{ low = &_end_of_bss; }}
    for (volatile uint32_t *p = low; p < top; p++) {{ *p = {paint}; }}
    (void)qd_{name}_class(row);
    while (low < top && *low == {paint}) {{ low++; }}
    return 4U * (uint32_t)(top - low);
}}
int main(void)
{{
    static union {{ float f[{outputs}]; uint32_t u[{outputs}]; }} logits;
    write_number(measure_stack(rows[0]));
    const uint32_t start = qd_time(), then = qd_time();
    qd_loop({loops}U);
    write_number(qd_elapsed(start, then));
    write_number(qd_elapsed(then, qd_time()));
    for (uint32_t i = 0U; i < {count}U; i++) {{
        const uint32_t from = qd_time();
        const int32_t found = qd_{name}_class(rows[i]);
        const uint32_t to = qd_time();
        write_number(qd_elapsed(from, to));
        write_number((uint32_t)found);
        qd_{name}_logits(rows[i], logits.f);
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


def measure(target: Target, texts: Mapping[str, str], name: str, model: Model, rows: NDArray[Any]) -> Measured:
    """Builds a program for a target, runs it over rows, and measures it.

    Args:
        target: its tools are there.
        texts: suffix -> content of the files of the program.
        name: of these files.
        model: from which it was made.
        rows: (N, I).

    Raises:
        CompileError: it does not fit the target, or a tool fails.
    """
    with tempfile.TemporaryDirectory(prefix="qdtune-c-") as where:
        folder = Path(where)
        files = {f"{name}{suffix}": text for suffix, text in texts.items()}
        for file, text in (files | _write_programs(target, name, model, rows)).items():
            (folder / file).write_text(text)
        programs = {kind: _build(target, folder, name, kind) for kind in ("main", *CALLS)}
        sizes = {kind: _section_sizes(target, programs[kind], folder) for kind in CALLS}
        said = run([*target.emulator, "-kernel", programs["main"]], folder, limit_s=EMULATOR_LIMIT_S).decode()
    numbers = [int(text, 16) for text in said.split() if re.fullmatch(r"[0-9a-f]{8}", text)]
    outputs, base = model.program["outputs"], sizes["empty"]
    wanted = 3 + len(rows) * (2 + outputs)
    if len(numbers) != wanted:
        raise CompileError(f"it ended early on {target.name}: {len(numbers)} of {wanted} numbers, {said[-80:]!r}")
    stack, idle, looped, *rest = numbers
    ticks, places, *_ = table = np.array(rest, np.uint32).reshape(len(rows), 2 + outputs).T
    expected, found = model.logits(rows), np.ascontiguousarray(table[2:].T).view(np.float32)
    return Measured(
        target=target.name,
        numbers=sizes["class"]["rodata"] - base["rodata"],
        code=sizes["class"]["text"] - base["text"],
        logits_code=sizes["logits"]["text"] - base["text"],
        ram=sizes["class"]["bss"] - base["bss"],
        stack=stack,
        instructions=(ticks.astype(np.float64) - idle) * 2 * LOOPS / (looped - idle),
        differing=int((found != expected).sum()) + count_wrong(expected, places),
    )


def _write_programs(target: Target, name: str, model: Model, rows: NDArray[Any]) -> dict[str, str]:
    """Name -> content of the files beside those of the model."""
    row = ROWS[model.program.get(INPUT, "uint8")]
    words = {"name": name, "row": row, "inputs": model.program["inputs"], "outputs": model.program["outputs"]}
    values = ",\n".join("{" + ", ".join(_number(v) for v in one) + "}" for one in rows)
    more = {"count": len(rows), "values": values, "paint": PAINT, "stack_words": STACK_WORDS, "loops": LOOPS}
    small = {f"{kind}.c": SMALL_MAIN.format(**words, call=call.format(**words)) for kind, call in CALLS.items()}
    start = {"start.c": target.start + MEMORY_FUNCTIONS, "link.ld": target.link}
    return start | {"main.c": MAIN.format(**words, **more)} | small


def _build(target: Target, folder: Path, name: str, main: str) -> str:
    """Builds a program; the name of its file."""
    sources = ["start.c", f"{main}.c", f"{name}.c"]
    link = [*LINK_FLAGS, "-T", "link.ld"]
    run(
        [target.compiler, *SHARED_FLAGS, *target.flags, *sources, *link, "-lgcc", "-o", f"{main}.elf"],
        folder,
    )
    return f"{main}.elf"


def _section_sizes(target: Target, program: str, folder: Path) -> dict[str, int]:
    """Section without its dot -> bytes."""
    tool = target.compiler.removesuffix("gcc") + "size"
    said = run([tool, "-A", program], folder).decode()
    found = dict.fromkeys(("text", "rodata", "bss"), 0)
    return found | {name: int(size) for name, size in re.findall(r"^\.(text|rodata|bss)\s+(\d+)", said, re.MULTILINE)}


def _number(value: Any) -> str:
    return str(int(value)) if np.asarray(value).dtype.kind in "iu" else float_literal(value)
