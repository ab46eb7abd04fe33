"""The function of C of one stage: it takes the numbers of the stage before, `x`, and gives its own, `y`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qdtune.model.c import kernels, products
from qdtune.model.c.singles import PRODUCT, add_code, add_float
from qdtune.model.c.stages import Op, Stage
from qdtune.model.c.sums import code_type, find_requantiser, scheme_of, sum_type
from qdtune.model.c.text import Text, float_literal
from qdtune.model.formats.format import averaging_of, is_pixels
from qdtune.reader import Model
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.flash import WINDOW_BYTES

PLANE_BYTES = 4  # of a sum of one channel of a convolution
FLOAT_SUMS = "plane.f"


@dataclass(frozen=True)
class _Body:
    """What the functions of one stage share.

    Attributes:
        text, model: the program so far, and the model.
        k: the number of the stage.
        stage: the stage.
        taken, given: the types of x and y.
        is_whole: whether sums become codes in whole numbers, by `code_K`.
    """

    text: Text
    model: Model
    k: int
    stage: Stage
    taken: str
    given: str
    is_whole: bool

    def end(self, number: str) -> str:
        """The expression of what a number becomes at the end of a stage without a pool.

        Args:
            number: the expression of a whole sum if `is_whole`, else of a float.
        """
        if self.is_whole:
            channel = "" if self.stage.op is None else ", o"
            return f"({self.given})code_{self.k}({number}{channel})"
        if self.stage.quantiser is not None:
            return f"({self.given})round_{self.k}({number}, o)"
        return f"value_{self.k}({number}, o)"


def add_stage(text: Text, model: Model, k: int, stage: Stage, taken: str) -> tuple[bool, int]:
    """Adds `stage_K`.

    Args:
        text: gets it.
        model: of the program.
        k: the number of the stage.
        stage: the stage.
        taken: the type of what it takes.

    Returns:
        Whether it ends in codes that are made in whole numbers, and the bytes of the plane of sums that it needs.
    """
    whole = find_requantiser(model, stage)
    body = _Body(text, model, k, stage, taken, code_type(stage.quantiser), whole is not None)
    if whole is not None:
        add_code(text, model, k, stage, whole)
    else:
        _add_floats(body)
    if stage.op is None:
        lines = _copy(body)
    else:
        lines = (_multiply if len(stage.op["shape"]) == 2 else _convolve)(body, stage.op)
    text.functions.append(f"\nstatic void stage_{k}(const {taken} *x, {body.given} *y)\n{{\n{lines}}}\n")
    has_plane = stage.pool is not None or (stage.op is not None and len(stage.op["shape"]) > 2)
    return body.is_whole, PLANE_BYTES * stage.plane if has_plane else 0


def _add_floats(body: _Body) -> None:
    """Adds the functions that a stage calls if it works with floats."""
    stage, k = body.stage, body.k
    before: list[Op] = [*([{"op": PRODUCT}] if stage.op is not None else []), *stage.before]
    if stage.pool is not None:
        add_float(body.text, body.model, f"value_{k}", stage, before)
        if stage.after or stage.quantiser is not None:
            add_float(body.text, body.model, f"after_{k}", stage, stage.after, stage.quantiser)
    else:
        name = "value" if stage.quantiser is None else "round"
        add_float(body.text, body.model, f"{name}_{k}", stage, before, stage.quantiser)


def _copy(body: _Body) -> str:
    """The lines of a stage without a product: it takes rows of the caller, or the floats of the stage before."""
    stage, model = body.stage, body.model
    channels, plane = stage.shape[0], stage.plane
    if stage.pool is not None:
        return f"""    for (uint32_t o = 0U; o < {channels}U; o++) {{
        for (uint32_t p = 0U; p < {plane}U; p++) {{ {FLOAT_SUMS}[p] = x[o * {plane}U + p]; }}
{_finish(body, FLOAT_SUMS)}    }}
"""
    value = "x[o]" if plane == 1 else "*x++"
    averaging = averaging_of(model.program) if stage.source == "input" else None
    if averaging is not None:
        value = _average(body.text, averaging)
    if stage.source == "input" and not body.is_whole:
        value = f"(float){value}" if body.taken != "float" else value
        value += " / 127.5f - 1.0f" if is_pixels(model.program) else ""
    if plane == 1:
        return f"    for (uint32_t o = 0U; o < {channels}U; o++) {{ y[o] = {body.end(value)}; }}\n"
    return f"""    for (uint32_t o = 0U; o < {channels}U; o++) {{
        for (uint32_t p = 0U; p < {plane}U; p++) {{ *y++ = {body.end(value)}; }}
    }}
"""


def _average(text: Text, averaging: Op) -> str:
    """The expression of pixel `o` of averaged images."""
    (height, width), (rows, columns) = averaging["image"][1:], averaging["size"]
    area = height * width
    bits = 32 if 511 * area < 2**32 else 64  # twice the sum of all pixels, and half a pixel
    quotient = kernels.divide(f"2U * sum + {area}U", 511 * area, 2 * area)
    made = kernels.AVERAGE.format(h=rows, w=columns, H=height, W=width, bits=bits, quotient=quotient)
    text.shared.setdefault("qd_average", made)
    image, place = f"x + o / {rows * columns}U * {height * width}U", f"o % {rows * columns}U"
    return f"qd_average({image}, {place} / {columns}U, {place} % {columns}U)"


def _add_stream(body: _Body, op: Op) -> str:
    """Adds weights as they are packed; the statement that begins to read them."""
    stored = body.model.stored[op["weight"]].ravel()
    body.text.add_array(f"weights_{body.k}", "uint8_t", [str(b) for b in stored])
    return begin_stream(body.text, body.k)


def begin_stream(text: Text, k: int) -> str:
    """The statement that begins to read the weights of a stage."""
    text.types["qd_stream"] = kernels.BITS
    return f"    qd_stream w = {{ weights_{k}, 0U, 0U }};\n"


def _add_float_weights(body: _Body, op: Op) -> None:
    numbers = [float_literal(v) for v in body.model.tensors[op["weight"]].ravel()]
    body.text.add_array(f"weights_{body.k}", "float", numbers)


def _multiply(body: _Body, op: Op) -> str:
    """The lines of a linear layer."""
    outputs, inputs = op["shape"]
    total = sum_type(body.model, op)
    if op["bits"] == FLOAT_BITS:
        _add_float_weights(body, op)
        dot = body.text.share(products.dot(scheme_of(op), body.taken, total))
        begin, product = "", f"{dot}(weights_{body.k} + o * {inputs}U, x, {inputs}U)"
    else:
        begin = _add_stream(body, op)
        more, product = write_product(body.text, op, body.taken, total)
        begin += more
    number = "sum" if body.is_whole or total == "float" else "(float)sum"
    return f"""{begin}    for (uint32_t o = 0U; o < {outputs}U; o++) {{
        const {total} sum = {product};
        y[o] = {body.end(number)};
    }}
"""


def write_product(text: Text, op: Op, taken: str, total: str) -> tuple[str, str]:
    """A sum of products of the next row of a stream: what comes before all rows, and its expression.

    Unsigned codes are summed, and what all of them are off by is added afterwards: as much as the sum of the inputs.
    """
    scheme, inputs = scheme_of(op), op["shape"][1]
    codes, _ = products.GROUPS.get(scheme.bits, (0, 0))
    if total != "float" and codes and inputs % codes == 0 and not scheme.is_packed_ternary:
        kernel, is_unsigned = products.dot_groups(scheme, taken, total), True
    else:
        kernel, is_unsigned = products.dot(scheme, taken, total), total != "float" and not scheme.is_ternary
    product = f"{text.share(kernel)}(&w, x, {inputs}U)"
    if not (is_unsigned and scheme.low):
        return "", product
    summed = text.share(products.sum_inputs(taken, total))
    begin = f"    const {total} rest = {scheme.low} * {summed}(x, {inputs}U);\n"
    return begin, f"{'2 * ' if scheme.is_binary else ''}{product} + rest"


def _convolve(body: _Body, op: Op) -> str:
    """The lines of a convolution: channel by channel, each weight added to all sums that it is part of."""
    text, stage, k = body.text, body.stage, body.k
    outputs, inner, *kernel = op["shape"]
    scheme, total = scheme_of(op), sum_type(body.model, op)
    text.types["qd_window"] = kernels.WINDOW
    text.add_constant(f"window_{k}", "qd_window", f" {_list_window(op, stage)} ", WINDOW_BYTES)
    sums, zero = (FLOAT_SUMS, "0.0f") if total == "float" else ("plane.i", "0")
    kind = "float" if scheme.bits == FLOAT_BITS else "int32_t"
    tap = text.share(products.tap(body.taken, total, kind, scheme.is_binary or scheme.is_ternary))
    if scheme.bits == FLOAT_BITS:
        _add_float_weights(body, op)
        begin, read = f"    const float *w = weights_{k};\n", "*w++"
    else:
        begin, read = _add_stream(body, op), f"{text.share(products.read_code(scheme))}(&w)"
    (rows, columns), area = ([1, *kernel])[-2:], math.prod(stage.taken[1:])
    channel = "x" if op["groups"] == 1 else f"x + o / {outputs // op['groups']}U * {inner * area}U"
    skip = "" if scheme.is_binary else f"if (weight {'== 0.0f' if kind == 'float' else '== 0'}) {{ continue; }}"
    return f"""{begin}    for (uint32_t o = 0U; o < {outputs}U; o++) {{
        const {body.taken} *channel = {channel};
        for (uint32_t p = 0U; p < {stage.plane}U; p++) {{ {sums}[p] = {zero}; }}
        for (uint32_t c = 0U; c < {inner}U; c++, channel += {area}) {{
            for (int32_t ky = 0; ky < {rows}; ky++) {{
                for (int32_t kx = 0; kx < {columns}; kx++) {{
                    const {kind} weight = {read};
                    {skip}
                    {tap}({sums}, channel, weight, &window_{k}, ky, kx);
                }}
            }}
        }}
{_finish(body, sums)}    }}
"""


def _list_window(op: Op, stage: Stage) -> str:
    """The initial values of a `qd_window`."""
    (height, width), (out_height, out_width) = ([1, *sides[1:]][-2:] for sides in (stage.taken, stage.shape))
    pairs = (op["stride"], op["padding"][: len(op["stride"])], op["dilation"])
    both = [[neutral, *pair][-2:] for neutral, pair in zip((1, 0, 1), pairs, strict=True)]
    numbers = ", ".join(f"{{ {a}, {b} }}" for a, b in both)
    return f"{height}, {width}, {out_height}, {out_width}, {numbers}"


def _finish(body: _Body, sums: str) -> str:
    """The lines that make the outputs of channel `o` of its sums, which are in the plane, and move y on."""
    k, stage = body.k, body.stage
    each = f"{sums}[p]"
    number = each if body.is_whole or sums == FLOAT_SUMS else f"(float){each}"
    loop = f"        for (uint32_t p = 0U; p < {stage.plane}U; p++) {{"
    if stage.pool is None:
        return f"{loop} *y++ = {body.end(number)}; }}\n"
    if body.is_whole:
        return f"{loop} {each} = code_{k}({each}, o); }}\n" + _pool(stage, sums, "int32_t", f"({body.given})found")
    result = "found" if stage.quantiser is None and not stage.after else f"after_{k}(found, o)"
    result = f"({body.given}){result}" if stage.quantiser is not None else result
    return f"{loop} {FLOAT_SUMS}[p] = value_{k}({number}, o); }}\n" + _pool(stage, FLOAT_SUMS, "float", result)


def _pool(stage: Stage, numbers: str, kind: str, result: str) -> str:
    """The lines that pool the numbers of one channel.

    Args:
        stage: whose pool it is.
        numbers: their array.
        kind: their type.
        result: the expression of what is put out, of `found`.
    """
    pool = stage.pool
    assert pool is not None
    width = stage.shape[-1]
    (height, _), (out_height, out_width) = ([1, *sides[1:]][-2:] for sides in (stage.shape, stage.pooled))
    if pool["op"] == "global_average":
        rows, columns, down, right = height, width, 1, 1
    else:
        (rows, columns), (down, right) = ([1, *pool[key]][-2:] for key in ("kernel", "stride"))
    first = f"{numbers}[i * {down * width}U + j * {right}U]"
    each = f"{numbers}[(i * {down}U + ky) * {width}U + j * {right}U + kx]"
    if pool["op"] == "max_pool":
        begin, add, end = f"{kind} found = {first};", f"if ({each} > found) {{ found = {each}; }}", ""
    else:
        begin, add = "double total = 0.0;", f"total += (double){each};"
        end = f"                const float found = (float)(total / {rows * columns}.0);\n"
    return f"""        for (uint32_t i = 0U; i < {out_height}U; i++) {{
            for (uint32_t j = 0U; j < {out_width}U; j++) {{
                {begin}
                for (uint32_t ky = 0U; ky < {rows}U; ky++) {{
                    for (uint32_t kx = 0U; kx < {columns}U; kx++) {{ {add} }}
                }}
{end}                *y++ = {result};
            }}
        }}
"""
