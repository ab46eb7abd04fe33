"""Functions of C of one number: from a sum to a code, in whole numbers or by way of floats, or to a float."""

from __future__ import annotations

import math

import numpy as np

from qdtune.model.c import kernels
from qdtune.model.c.requantise import Requantiser
from qdtune.model.c.stages import Op, Quantiser, Stage
from qdtune.model.c.steps import INT32
from qdtune.model.c.sums import is_code_sum, range_of, sum_type, worth_of
from qdtune.model.c.text import Text, float_literal, literal
from qdtune.reader import Model

PRODUCT = "product"  # beside the operations of a packed program: the end of a product, its steps and its bias
EXACT_ACTIVATIONS = ("identity", "relu", "leaky_relu", "hardtanh")  # of which every program finds the same bits


def add_code(text: Text, model: Model, k: int, stage: Stage, whole: Requantiser) -> None:
    """Adds `code_K`, which makes a code of a sum in whole numbers."""
    is_input = stage.op is None
    total = "int32_t" if stage.op is None else sum_type(model, stage.op)
    kind = "int64_t" if whole.is_wide or total == "int64_t" else "int32_t"
    by = text.add_whole(f"multiplier_{k}", whole.multiplier, kind)
    add = text.add_whole(f"offset_{k}", whole.offset, kind)
    text.types["qd_shift"] = kernels.SHIFT_CHECK
    scaled = "sum" if total == kind else f"({kind})sum"
    if by != literal(1, kind):
        scaled = f"{scaled} * ({by})" if " * " in by else f"{scaled} * {by}"
    if add != literal(0, kind):
        scaled += f" + {add}"
    is_final = whole.table is not None or whole.is_binary
    lines = [f"{'const ' if is_final else ''}{kind} number = {scaled};"]
    if len(whole.exceptions):
        lines.append(_add_exceptions(text, k, whole, is_input))
    elif not (is_input or "[o]" in scaled):
        lines.append("(void)o;")
    low, high = int(whole.codes[0]), int(whole.codes[-1])
    if whole.is_binary:
        lines.append("return number >= 0 ? 1 : -1;")
    elif whole.table is not None:
        lines += _look_up(text, k, whole)
    else:
        if whole.to_even:
            half = (1 << whole.shift - 1) - 1
            lines.append(f"number += {literal(half, kind)} + ((number >> {whole.shift}) & 1);")
        if whole.shift:
            lines.append(f"number >>= {whole.shift};")
        cast = "(int32_t)" if kind == "int64_t" else ""
        lines.append(f"return number < {low} ? {low} : number > {high} ? {high} : {cast}number;")
    arguments = f"{total} sum" if is_input else f"{total} sum, uint32_t o"
    _add(text, f"int32_t code_{k}({arguments})", lines)


def _add_exceptions(text: Text, k: int, whole: Requantiser, is_input: bool) -> str:
    """A statement that returns the codes of single sums. Most channels have none."""
    channels, sums, codes = whole.exceptions.T
    text.add_array(f"odd_sums_{k}", "int32_t", [literal(int(n), "int32_t") for n in sums])
    narrow = "int8_t" if abs(codes).max() < 2**7 else "int16_t" if abs(codes).max() < 2**15 else "int32_t"
    text.add_array(f"odd_codes_{k}", narrow, [str(int(n)) for n in codes])
    if is_input:
        places = "0U", f"{len(sums)}U"
    else:
        ends = np.searchsorted(channels, np.arange(len(whole.multiplier) + 1))
        text.add_array(f"odd_{k}", "uint8_t", [str(int(n)) for n in ends])
        places = f"odd_{k}[o]", f"odd_{k}[o + 1U]"
    return (
        f"for (uint32_t i = {places[0]}; i < {places[1]}; i++) "
        f"{{ if (odd_sums_{k}[i] == sum) {{ return odd_codes_{k}[i]; }} }}"
    )


def _look_up(text: Text, k: int, whole: Requantiser) -> list[str]:
    """Statements that find the code of `number` in a table."""
    assert whole.table is not None
    text.add_array(f"steps_{k}", "int32_t", [literal(int(v), "int32_t") for v in whole.table])
    lines = [
        f"uint32_t low = 0U, high = {len(whole.table)}U;",
        "while (low < high) {",
        "    const uint32_t middle = (low + high) / 2U;",
        f"    if (steps_{k}[middle] <= number) {{ low = middle + 1U; }} else {{ high = middle; }}",
        "}",
    ]
    if (np.diff(whole.codes) == 1).all():
        return [*lines, f"return (int32_t)low + ({int(whole.codes[0])});"]
    narrow = "int8_t" if abs(whole.codes).max() < 2**7 else "int16_t"
    text.add_array(f"codes_{k}", narrow, [str(int(c)) for c in whole.codes])
    return [*lines, f"return codes_{k}[low];"]


def add_float(
    text: Text, model: Model, name: str, stage: Stage, ops: list[Op], quantiser: Quantiser | None = None
) -> None:
    """Adds a function of a float `v` and the channel `o`, which gives a float, or its code, as `reader.py` does.

    Args:
        text: gets it.
        model: of the program.
        name: of the function.
        stage: whose number it is.
        ops: what is done to it; `PRODUCT` first if it is a sum of products.
        quantiser: of the code; None: it gives a float.
    """
    t, lines = model.tensors, list[str]()
    for i, op in enumerate(ops):
        label = f"{name}_{i}"
        if op["op"] == PRODUCT:
            assert stage.op is not None
            lines += _end_product(text, model, label, stage.op)
        elif op["op"] == "affine":
            lines.append(_multiply(text, text.add_floats(f"{label}_scale", t[op["scale"]])))
            if op["shift"] is not None:
                lines.append(f"v = v + {text.add_floats(f'{label}_shift', t[op['shift']])};")
        else:
            lines += _activate(text, op["op"])
    if quantiser is None:
        lines.append("return v;")
    elif quantiser.is_binary:
        lines.append("return v >= 0.0f ? 1 : -1;")
    else:
        text.shared.setdefault("qd_round", kernels.ROUND)
        step = float_literal(t[quantiser.step])
        lines.append(f"return qd_round(v, {step}, {quantiser.low}, {quantiser.high});")
    if not any("[o]" in line for line in lines):
        lines.insert(0, "(void)o;")
    _add(text, f"{'float' if quantiser is None else 'int32_t'} {name}(float v, uint32_t o)", lines)


def _end_product(text: Text, model: Model, label: str, op: Op) -> list[str]:
    """Statements that multiply a sum by the steps and add the bias."""
    lines, worth = [], worth_of(model, op)
    if (worth != 1).any():
        lines.append(_multiply(text, text.add_floats(f"{label}_step", worth)))
    if op["bias"] is not None:
        lines.append(f"v = v + {text.add_floats(f'{label}_bias', model.tensors[op['bias']])};")
    return lines


def _multiply(text: Text, by: str) -> str:
    """A statement that multiplies `v`."""
    text.shared.setdefault("qd_mul", kernels.MULTIPLY)
    return f"v = qd_mul(v, {by});"


def _activate(text: Text, name: str) -> list[str]:
    """Statements that apply an activation to `v`."""
    if name == "identity":
        return []
    if name == "relu":
        return ["v = v > 0.0f ? v : 0.0f;"]
    if name == "leaky_relu":
        text.shared.setdefault("qd_mul", kernels.MULTIPLY)
        return ["v = v > 0.0f ? v : qd_mul(0.01f, v);"]
    if name == "hardtanh":
        return ["v = v < -1.0f ? -1.0f : v > 1.0f ? 1.0f : v;"]
    for needed in kernels.FLOAT_ACTIVATIONS[name]:
        text.shared.setdefault(*needed)
    return [f"v = qd_{name}(v);"]


def write_score(text: Text, model: Model, stage: Stage) -> tuple[str, str] | None:
    """The type and the expression of a whole number in the order of the outputs, of `sum` and the output `o`.

    None if the last stage is something else than a product of codes of 32 bits and normalisations.
    """
    op, t = stage.op, model.tensors
    if op is None or stage.pool is not None or len(stage.shape) != 1:
        return None
    if not is_code_sum(op) or sum_type(model, op) != "int32_t" or any(one["op"] != "affine" for one in stage.before):
        return None
    slope = worth_of(model, op).astype(np.float64) * np.ones(stage.shape[0])
    offset = np.zeros(stage.shape[0]) if op["bias"] is None else t[op["bias"]].astype(np.float64)
    for one in stage.before:
        scale = t[one["scale"]].astype(np.float64)
        slope, offset = slope * scale, offset * scale
        if one["shift"] is not None:
            offset = offset + t[one["shift"]].astype(np.float64)
    largest = range_of(model, op).largest
    reach = abs(slope).max() * max(1, largest) + abs(offset).max()
    shift = min(61 - math.frexp(reach)[1], 30 - math.frexp(abs(slope).max())[1])
    while shift > -60 and all((np.rint(n * 2.0**shift) % 2 == 0).all() for n in (slope, offset)):
        shift -= 1  # powers of two need few bits
    by, add = (np.rint(n * 2.0**shift).astype(np.int64) for n in (slope, offset))
    is_wide = int(abs(by).max()) * largest + int(abs(add).max()) > INT32
    kind = "int64_t" if is_wide else "int32_t"
    score = f"{'(int64_t)' if is_wide else ''}sum * {text.add_whole('class_multiplier', by, kind)}"
    if add.any():
        score += f" + {text.add_whole('class_offset', add, kind)}"
    return kind, score


def _add(text: Text, head: str, lines: list[str]) -> None:
    """Adds a function."""
    body = "".join(f"    {line}\n" for line in lines)
    text.functions.append(f"\nstatic {head}\n{{\n{body}}}\n")
