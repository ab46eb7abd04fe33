"""Exported C on emulated microcontrollers: the flash and the RAM that it needs, and the instructions it takes.

A program with a hundred inputs is built for a target and run by QEMU. It prints its answers, which must be those of
`reader.py`. Instructions are counted by QEMU (`-icount`, in which each instruction takes an equal time). They are
instructions and not cycles: a chip takes more than one cycle for some, and waits for its flash.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdtune.model.c.host import CompileError, count_wrong, run
from qdtune.model.c.text import float_literal
from qdtune.reader import INPUT, Model

SHARED_FLAGS = ("-std=c99", "-Os", "-ffreestanding", "-ffunction-sections", "-fdata-sections", "-Wall", "-Wextra")
LINK_FLAGS = ("-nostdlib", "-nostartfiles", "-Wl,--gc-sections", "-Wl,--build-id=none")
EMULATOR_LIMIT_S = 300.0
PAINT = "0xA5A5A5A5U"
LOOPS = 50_000  # of two instructions: how many there are in a tick


@dataclass(frozen=True)
class Target:
    """A processor that is emulated.

    Attributes:
        name: the value of `--target`.
        compiler: the command that compiles for it, and `size` and `objcopy` have the same beginning.
        flags: of the compiler.
        emulator: the command that runs a program.
        packages: of Debian, that hold both.
        start: C, what runs first: `_start`, `qd_write` and `qd_exit`, `qd_time` and `qd_stack`.
        link: the script of the linker.
    """

    name: str
    compiler: str
    flags: tuple[str, ...]
    emulator: tuple[str, ...]
    packages: str
    start: str
    link: str


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


LINK = """
ENTRY(_start)
MEMORY {{ flash (rx) : ORIGIN = {flash}, LENGTH = {flash_size}
         ram (rwx) : ORIGIN = {ram}, LENGTH = {ram_size} }}
SECTIONS {{
    .text : {{ KEEP(*(.first)) *(.text*) }} > flash
    .rodata : {{ *(.rodata*) *(.srodata*) }} > flash
    .data : {{ *(.data*) *(.sdata*) }} > ram AT > flash
    .bss : {{ _bss = .; *(.bss*) *(.sbss*) *(COMMON) . = ALIGN(4); _end_of_bss = .; }} > ram
    _top = ORIGIN(ram) + LENGTH(ram);
    /DISCARD/ : {{ *(.ARM.exidx*) *(.comment) *(.eh_frame*) }}
}}
"""
# A call of the debugger's interface, which QEMU answers: 4 writes a text, 0x18 ends the program.
ARM_START = """#include <stdint.h>
extern uint32_t _bss, _end_of_bss, _top;
int main(void);
static void qd_ask(uint32_t what, uint32_t with)
{
    register uint32_t r0 __asm__("r0") = what;
    register uint32_t r1 __asm__("r1") = with;
    __asm__ volatile ("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}
void qd_write(const char *text) { qd_ask(4U, (uint32_t)text); }
void qd_exit(void) { qd_ask(0x18U, 0x20026U); for (;;) { } }
void _start(void)
{
    for (uint32_t *p = &_bss; p < &_end_of_bss; p++) { *p = 0U; }
    FPU
    *(volatile uint32_t *)0xE000E014U = 0xFFFFFFU;  /* SysTick: counts down from here */
    *(volatile uint32_t *)0xE000E018U = 0U;
    *(volatile uint32_t *)0xE000E010U = 5U;
    main();
    qd_exit();
}
uint32_t qd_time(void) { return 0xFFFFFFU - *(volatile uint32_t *)0xE000E018U; }
uint32_t qd_elapsed(uint32_t from, uint32_t to) { return (to - from) & 0xFFFFFFU; }
void qd_loop(uint32_t n) { __asm__ volatile (".syntax unified\\n1: subs %0, %0, #1\\nbne 1b" : "+l"(n) : : "cc"); }
uint32_t *qd_stack(void) { uint32_t *sp; __asm__ volatile ("mov %0, sp" : "=r"(sp)); return sp; }
static void fault(void) { qd_write("fault\\n"); qd_exit(); }
__attribute__((section(".first"), used)) static const void *const vectors[16] = {
    &_top, _start, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, fault,
};
"""
RISCV_START = """#include <stdint.h>
extern uint32_t _bss, _end_of_bss, _top;
int main(void);
static void qd_ask(uint32_t what, uint32_t with)
{
    register uint32_t a0 __asm__("a0") = what;
    register uint32_t a1 __asm__("a1") = with;
    __asm__ volatile (".option push\\n.option norvc\\nslli x0, x0, 0x1f\\nebreak\\nsrai x0, x0, 7\\n.option pop"
                      : "+r"(a0) : "r"(a1) : "memory");
}
void qd_write(const char *text) { qd_ask(4U, (uint32_t)text); }
void qd_exit(void) { qd_ask(0x18U, 0x20026U); for (;;) { } }
__attribute__((section(".first"), naked, used)) void _start(void)
{
    __asm__ volatile ("la sp, _top\\nla a0, _bss\\nla a1, _end_of_bss\\n1: bgeu a0, a1, 2f\\nsw zero, 0(a0)\\n"
                      "addi a0, a0, 4\\nj 1b\\n2: call main\\ncall qd_exit");
}
/* Reads minstret, CSR 0xB02. */
uint32_t qd_time(void) { uint32_t n; __asm__ volatile (".insn i 0x73, 2, %0, x0, -1278" : "=r"(n)); return n; }
uint32_t qd_elapsed(uint32_t from, uint32_t to) { return to - from; }
void qd_loop(uint32_t n) { __asm__ volatile ("1: addi %0, %0, -1\\nbnez %0, 1b" : "+r"(n)); }
uint32_t *qd_stack(void) { uint32_t *sp; __asm__ volatile ("mv %0, sp" : "=r"(sp)); return sp; }
"""
MEMORY_FUNCTIONS = """
#include <stddef.h>
void *memset(void *to, int value, size_t n);
void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n)
{ volatile uint8_t *p = to; while (n--) { *p++ = (uint8_t)value; } return to; }
void *memcpy(void *to, const void *from, size_t n)
{ volatile uint8_t *p = to; const uint8_t *q = from; while (n--) { *p++ = *q++; } return to; }
"""
ENABLE_FPU = "*(volatile uint32_t *)0xE000ED88U |= 0xFU << 20;"
ARM_PACKAGES = "gcc-arm-none-eabi qemu-system-arm"
_OUTPUT: tuple[str, ...] = ("-display", "none", "-monitor", "none", "-serial", "none", "-chardev", "stdio,id=out")
_OUTPUT += ("-semihosting-config", "enable=on,target=native,chardev=out")
_MPS2 = {"flash": "0x0", "flash_size": "4M", "ram": "0x20000000", "ram_size": "4M"}


def _arm(name: str, machine: str, cpu: tuple[str, ...], memory: Mapping[str, str], shift: int) -> Target:
    """A Cortex-M on which each instruction takes 2^shift nanoseconds. Its SysTick, which has 24 bits, counts them."""
    command = ("qemu-system-arm", "-M", machine, "-icount", f"shift={shift}", *_OUTPUT)
    start = ARM_START.replace("FPU", ENABLE_FPU if "-mfloat-abi=hard" in cpu else "")
    return Target(name, "arm-none-eabi-gcc", ("-mthumb", *cpu), command, ARM_PACKAGES, start, LINK.format(**memory))


TARGETS = (
    # QEMU has no M0+, but its M0 runs the same instructions (ARMv6-M).
    _arm(
        "cortex-m0plus",
        "microbit",
        ("-mcpu=cortex-m0plus",),
        {"flash": "0x0", "flash_size": "256K", "ram": "0x20000000", "ram_size": "16K"},
        4,
    ),
    _arm("cortex-m3", "mps2-an385", ("-mcpu=cortex-m3",), _MPS2, 3),
    _arm(
        "cortex-m4",
        "mps2-an386",
        ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
        _MPS2,
        3,
    ),
    Target(
        "rv32",
        "riscv64-unknown-elf-gcc",
        ("-march=rv32imac", "-mabi=ilp32", "-msmall-data-limit=0"),
        ("qemu-system-riscv32", "-M", "virt", "-bios", "none", "-icount", "shift=0", *_OUTPUT),
        "gcc-riscv64-unknown-elf qemu-system-misc",
        RISCV_START,
        LINK.format(flash="0x80000000", flash_size="16M", ram="0x81000000", ram_size="16M"),
    ),
)
TARGET_NAMES = tuple(target.name for target in TARGETS)
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


def target_of(name: str) -> Target:
    """The target of this name."""
    return TARGETS[TARGET_NAMES.index(name)]


def missing_tools(target: Target) -> list[str]:
    """The commands that a target needs and that are not there."""
    return [tool for tool in (target.compiler, target.emulator[0]) if shutil.which(tool) is None]


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
    inputs, outputs = model.program["inputs"], model.program["outputs"]
    row = {"uint8": "uint8_t", "float32": "float"}.get(dtype := model.program.get(INPUT, "uint8"), f"{dtype}_t")
    values = ",\n".join("{" + ", ".join(_number(v) for v in one) + "}" for one in rows)
    words = {"name": name, "row": row, "inputs": inputs, "outputs": outputs}
    calls = {
        "empty": "return given[0] > 0;",
        "class": f"return (int)qd_{name}_class(given);",
        "logits": f"static float out[{outputs}]; qd_{name}_logits(given, out); return out[0] > 0.0f;",
    }
    with tempfile.TemporaryDirectory(prefix="qdtune-c-") as where:
        folder = Path(where)
        for suffix, text in texts.items():
            (folder / f"{name}{suffix}").write_text(text)
        (folder / "start.c").write_text(target.start + MEMORY_FUNCTIONS)
        (folder / "link.ld").write_text(target.link)
        (folder / "main.c").write_text(
            MAIN.format(**words, count=len(rows), values=values, paint=PAINT, stack_words=2048, loops=LOOPS)
        )
        sizes = {}
        for kind, call in calls.items():
            (folder / f"{kind}.c").write_text(SMALL_MAIN.format(**words, call=call))
            sizes[kind] = _section_sizes(target, _build(target, folder, name, kind), folder)
        program = _build(target, folder, name, "main")
        said = run([*target.emulator, "-kernel", program], folder, limit_s=EMULATOR_LIMIT_S).decode()
    numbers = [int(text, 16) for text in said.split() if re.fullmatch(r"[0-9a-f]{8}", text)]
    wanted = 3 + len(rows) * (2 + outputs)
    if len(numbers) != wanted:
        raise CompileError(f"it ended early on {target.name}: {len(numbers)} of {wanted} numbers, {said[-80:]!r}")
    stack, idle, looped, *rest = numbers
    table = np.array(rest, np.uint32).reshape(len(rows), 2 + outputs)
    expected = model.logits(rows)
    found = np.ascontiguousarray(table[:, 2:]).view(np.float32)
    differing = int((found != expected).sum()) + count_wrong(expected, table[:, 1])
    base = sizes["empty"]
    return Measured(
        target=target.name,
        numbers=sizes["class"]["rodata"] - base["rodata"],
        code=sizes["class"]["text"] - base["text"],
        logits_code=sizes["logits"]["text"] - base["text"],
        ram=sizes["class"]["bss"] - base["bss"],
        stack=stack,
        instructions=(table[:, 0].astype(np.float64) - idle) * 2 * LOOPS / (looped - idle),
        differing=differing,
    )


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
