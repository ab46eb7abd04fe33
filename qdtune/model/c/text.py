"""The text of one C program, as its parts are added."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdtune.model.c.steps import INT32

WIDTHS = (8, 16, 32, 64)
LINE = 110  # characters of a line of numbers


@dataclass
class Text:
    """The parts of a source file, in its order.

    Attributes:
        types: name -> text, of what stands before everything else.
        constants: name -> text, of arrays.
        constant_bytes: name -> bytes, of the same.
        shared: name -> text, of the functions of `kernels`.
        functions: those of this model.
    """

    types: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    constant_bytes: dict[str, int] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)

    def add_whole(self, name: str, values: NDArray[Any], kind: str = "int32_t") -> str:
        """The expression, of a type, of whole numbers, one for each channel `o`."""
        numbers = [int(v) for v in values.ravel()]
        if len(set(numbers)) == 1:
            return literal(numbers[0], kind)
        zeros = min((v & -v).bit_length() - 1 for v in numbers if v)
        small = [v >> zeros for v in numbers]
        narrow, full = _width(small), _width(numbers)
        if narrow == full:
            small, zeros = numbers, 0
        self.add_array(name, f"int{narrow}_t", [literal(v, f"int{narrow}_t") for v in small])
        cast = f"({kind}){name}[o]" if kind != f"int{narrow}_t" else f"{name}[o]"
        return f"{cast} * {literal(2**zeros, kind)}" if zeros else cast

    def add_floats(self, name: str, values: NDArray[Any]) -> str:
        """The expression of floats, one for each channel `o`, or one for all."""
        numbers = [float_literal(v) for v in values.astype(np.float32).ravel()]
        if len(set(numbers)) == 1:
            return numbers[0]
        self.add_array(name, "float", numbers)
        return f"{name}[o]"

    def add_array(self, name: str, kind: str, items: list[str]) -> None:
        """Adds a constant array of a type."""
        lines, line = [], "   "
        for item in items:
            if len(line) + len(item) > LINE:
                lines.append(line)
                line = "   "
            line += f" {item},"
        lines.append(line)
        size = np.dtype("float32" if kind == "float" else kind.removesuffix("_t")).itemsize
        self.add_constant(f"{name}[{len(items)}]", kind, "\n" + "\n".join(lines) + "\n", len(items) * size)

    def add_constant(self, name: str, kind: str, values: str, size: int) -> None:
        """Adds a constant of a type and a size in bytes, given its initial values."""
        self.constants[name] = f"static const {kind} {name} = {{{values}}};"
        self.constant_bytes[name] = size

    def share(self, made: tuple[str, str]) -> str:
        """Adds a shared function; its name."""
        self.shared.setdefault(*made)
        return made[0]


def _width(numbers: list[int]) -> int:
    """The fewest bits of a signed type that holds them."""
    return next(bits for bits in WIDTHS if all(-(2 ** (bits - 1)) <= v < 2 ** (bits - 1) for v in numbers))


def literal(number: int, kind: str) -> str:
    """A whole number of C."""
    if kind == "int64_t" or abs(number) > INT32:
        return f"INT64_C({number})" if number >= 0 else f"(-INT64_C({-number}))"
    return str(number)


def float_literal(number: Any) -> str:
    """A float32 of C, to the last bit."""
    text = f"{float(np.float32(number)):.9g}"
    return f"{text}{'' if any(c in text for c in '.en') else '.0'}f"
