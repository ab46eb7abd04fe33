"""A packed model as a C program: a header and a source file without a library, for a microcontroller.

Every stage (`stages`) is a function. The codes between stages lie in one static buffer. Sums of codes become the next
codes in whole numbers where `requantise` finds how, and otherwise in float32, operation by operation as in
`reader.py`. Both give exactly the codes of `reader.py`, and the logits are exactly its logits, if all layers have
quantised weights and inputs. Where weights or inputs are floats, two programs differ in the last bits of their sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qdtune.messages import user_error
from qdtune.model.c.bodies import add_stage
from qdtune.model.c.interface import Interface
from qdtune.model.c.products import TYPES
from qdtune.model.c.singles import EXACT_ACTIVATIONS
from qdtune.model.c.stages import Stage, StageList
from qdtune.model.c.sums import code_type, is_code_sum
from qdtune.model.c.text import Text
from qdtune.model.formats.format import is_pixels
from qdtune.reader import ACTIVATIONS, INPUT, Model
from qdtune.spec.flash import COEFFICIENT_BYTES
from qdtune.spec.structure import C_ALIGNMENT
from qdtune.spec.tasks import LARGEST, ClassRule

ROWS = {"uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t", "float32": "float"}
SIZES = {"uint8_t": 1, "int8_t": 1, "uint16_t": 2, "int16_t": 2, "float": 4}
EXACT = "_EXACT 1\n"  # how the line of the header ends that says that logits are those of `reader.py` to the last bit


@dataclass(frozen=True)
class CSource:
    """An exported model.

    Attributes:
        header, source: the text of the two files.
        flash_bytes: of the constants that its class function reads, or without one the function of its outputs.
        ram_bytes: of its static buffers.
        is_exact: whether its logits are those of `reader.py` to the last bit.
        whole_stages, code_stages: how many stages make codes in whole numbers, of how many that make codes.
    """

    header: str
    source: str
    flash_bytes: int
    ram_bytes: int
    is_exact: bool
    whole_stages: int
    code_stages: int


def list_stages(model: Model) -> list[Stage]:
    """The stages of a complete model."""
    from qdtune.model.layers.known import kind_of_op  # which imports the kinds, and these the stages

    found = StageList(model)
    for op in model.layers:
        kind_of_op(op["op"]).add_stage(found, op)
    return found.stages


def to_c(
    model: Model,
    name: str,
    facts: Mapping[str, str | int] | None = None,
    notes: str = "",
    classes: ClassRule = LARGEST,
) -> CSource:
    """The C program of a packed model.

    Args:
        model: a complete one, as `reader.load` gives it.
        name: of the model and of its files; its functions are called `qd_NAME_...`.
        facts: what else the header defines, in capitals -> value.
        notes: lines of the comment at the top of the header.
        classes: how a class follows from the outputs, see `Task.classes`.

    Raises:
        SpecError: C has no code for one of its operations, its sums do not fit, or one of its numbers is not finite.
    """
    for tensor, numbers in model.tensors.items():
        if not np.isfinite(numbers).all():
            raise user_error(f"the numbers of a model must be finite in C, got others in {tensor!r}: it diverged")
    stages, text = list_stages(model), Text()
    row = ROWS[model.program.get(INPUT, "uint8")]
    types = [row, *(code_type(stage.quantiser) for stage in stages[:-1])]
    is_whole, planes = zip(
        *(add_stage(text, model, k, stage, types[k]) for k, stage in enumerate(stages)), strict=True
    )
    places, buffer_bytes = _place_buffers(stages, types[1:])
    argument = "pixels" if is_pixels(model.program) else "row"
    interface = Interface(f"qd_{name}", f"const {row} *{argument}", model, classes)
    inputs = [argument, *(_name_place(kind, place) for kind, place in zip(types[1:], places, strict=True))]
    has_scores = interface.add_class(text, len(stages) - 1, stages[-1], types[-1])
    ram = buffer_bytes + max(planes) + interface.logits_bytes(has_scores)
    is_exact = all(_is_exact(stage, done) for stage, done in zip(stages, is_whole, strict=True))
    flash = _count_constants(text, f"value_{len(stages) - 1}_" if has_scores else None)
    defined = {"FLASH_BYTES": flash, "RAM_BYTES": ram, "EXACT": int(is_exact), **(facts or {})}
    header = interface.write_header(defined, notes)
    source = f"""/* See {name}.h. Made by qdtune; C99, no library, static buffers. */
#include "{name}.h"
{"".join(text.types.values())}
{chr(10).join(text.constants.values())}
{"".join(text.shared.values())}
{_declare_buffers(types[1:], buffer_bytes, max(planes))}{"".join(text.functions)}
{interface.write_calls(inputs, has_scores)}"""
    code_stages = sum(stage.quantiser is not None for stage in stages)
    return CSource(header, source, flash, ram, is_exact, sum(is_whole), code_stages)


def _count_constants(text: Text, unread: str | None) -> int:
    """The bytes of constants, without those whose names begin like this."""
    arrays = sum(size for name, size in text.constant_bytes.items() if unread is None or not name.startswith(unread))
    return arrays + sum(COEFFICIENT_BYTES.get(name.removeprefix("qd_"), 0) for name in text.shared)


def _is_exact(stage: Stage, is_whole: bool) -> bool:
    """Whether every program finds the same bits in a stage."""
    activations = [op["op"] for op in (*stage.before, *stage.after) if op["op"] in ACTIVATIONS]
    has_same_bits = is_whole or all(name in EXACT_ACTIVATIONS for name in activations)
    return has_same_bits and (stage.op is None or is_code_sum(stage.op))


def _place_buffers(stages: list[Stage], types: list[str]) -> tuple[list[int], int]:
    """Where the output of each stage but the last begins, in bytes, and the bytes of the buffer.

    Outputs lie at its start and its end in turn, so input and output of a stage never overlap.
    """
    sizes = [
        -(-math.prod(stage.end_shape) * SIZES[kind] // C_ALIGNMENT) * C_ALIGNMENT
        for stage, kind in zip(stages[:-1], types, strict=True)
    ]
    whole = max(a + b for a, b in zip([0, *sizes], [*sizes, 0], strict=True))
    return [0 if k % 2 == 0 else whole - size for k, size in enumerate(sizes)], whole


def _name_place(kind: str, place: int) -> str:
    """The expression of a place in the buffer."""
    return f"buffer.{TYPES[kind]}" + (f" + {place // SIZES[kind]}" if place else "")


def _declare_buffers(types: list[str], buffer_bytes: int, plane_bytes: int) -> str:
    """The declarations of the buffer, and of the plane of sums of one channel."""
    used = [kind for kind in TYPES if kind in types]
    members = " ".join(f"{kind} {TYPES[kind]}[{buffer_bytes // SIZES[kind]}];" for kind in used)
    text = f"static union {{ {members} int32_t word; }} buffer;\n"
    numbers = plane_bytes // 4
    return text + (f"static union {{ int32_t i[{numbers}]; float f[{numbers}]; }} plane;\n" if numbers else "")
