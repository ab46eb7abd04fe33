"""The processors on which exported C is measured: their compilers, their emulators, and how a program starts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A processor that is emulated.

    Attributes:
        name: the value of `--target`.
        compiler: the command that compiles for it, and `size` and `objcopy` have the same beginning.
        flags: of the compiler.
        emulator: the command that runs a program.
        packages: of Debian, that hold both.
        start: C, what runs first: `_start`, `qd_write` and `qd_exit`, `qd_start_clock`, `qd_time` and `qd_stack`.
        memory: where its flash and its RAM begin, and how large they are, in the words of a linker.
    """

    name: str
    compiler: str
    flags: tuple[str, ...]
    emulator: tuple[str, ...]
    packages: str
    start: str
    memory: Mapping[str, str]

    @property
    def link(self) -> str:
        """The script of the linker."""
        return LINK.format(**self.memory)

    @property
    def flash(self) -> str:
        """The size of its flash: `4 MiB`."""
        return _say_size(self.memory["flash_size"])

    @property
    def ram(self) -> str:
        """The size of its RAM."""
        return _say_size(self.memory["ram_size"])


def _say_size(size: str) -> str:
    return f"{size[:-1]} {size[-1]}iB"


LINK = """
ENTRY(_start)
MEMORY {{ flash (rx) : ORIGIN = {flash}, LENGTH = {flash_size}
         ram (rwx) : ORIGIN = {ram}, LENGTH = {ram_size} }}
SECTIONS {{
    .text : {{ KEEP(*(.first)) *(.text*) *libgcc.a:*(.rodata* .srodata*) }} > flash  /* tables of the library too */
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
    main();
    qd_exit();
}
/* SysTick counts 24 bits down. It asks for an interrupt each time, which counts the other bits. */
static volatile uint32_t rounds;
static void count_round(void) { rounds++; }
void qd_start_clock(void)
{
    *(volatile uint32_t *)0xE000E014U = 0xFFFFFFU;
    *(volatile uint32_t *)0xE000E018U = 0U;
    *(volatile uint32_t *)0xE000E010U = 7U;
}
uint32_t qd_time(void)
{
    uint32_t before, left;
    do {  /* again between two rounds, where the interrupt may come before or after the number is read */
        before = rounds;
        left = *(volatile uint32_t *)0xE000E018U;
    } while (left == 0U || before != rounds || (*(volatile uint32_t *)0xE000ED04U & 1U << 26) != 0U);
    return (before << 24) + (0xFFFFFFU - left);
}
void qd_loop(uint32_t n) { __asm__ volatile (".syntax unified\\n1: subs %0, %0, #1\\nbne 1b" : "+l"(n) : : "cc"); }
uint32_t *qd_stack(void) { uint32_t *sp; __asm__ volatile ("mov %0, sp" : "=r"(sp)); return sp; }
static void fault(void) { qd_write("fault\\n"); qd_exit(); }
__attribute__((section(".first"), used)) static const void *const vectors[16] = {
    &_top, _start, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, count_round,
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
void qd_start_clock(void) { }
/* Reads minstret, CSR 0xB02. */
uint32_t qd_time(void) { uint32_t n; __asm__ volatile (".insn i 0x73, 2, %0, x0, -1278" : "=r"(n)); return n; }
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
    return Target(name, "arm-none-eabi-gcc", ("-mthumb", *cpu), command, ARM_PACKAGES, start, memory)


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
        {"flash": "0x80000000", "flash_size": "16M", "ram": "0x81000000", "ram_size": "16M"},
    ),
)
TARGET_NAMES = tuple(target.name for target in TARGETS)


def target_of(name: str) -> Target:
    """The target of this name."""
    return TARGETS[TARGET_NAMES.index(name)]


def missing_tools(target: Target) -> list[str]:
    """The commands that a target needs and that are not there."""
    return [tool for tool in (target.compiler, target.emulator[0]) if shutil.which(tool) is None]
